"""The methods by name; one paper per file."""

from cskd_hf.batch import Batch as Batch
from cskd_hf.methods.adacos import AdaCos as AdaCos
from cskd_hf.methods.base import Experiment as Experiment
from cskd_hf.methods.base import Method as Method
from cskd_hf.methods.byot import BYOT as BYOT
from cskd_hf.methods.cross_entropy import CrossEntropy as CrossEntropy
from cskd_hf.methods.cskd import CSKD as CSKD
from cskd_hf.methods.cskd import class_wise_kd_loss as class_wise_kd_loss
from cskd_hf.methods.cskd_e import CSKDE as CSKDE
from cskd_hf.methods.ddgsd import DDGSD as DDGSD
from cskd_hf.methods.distillation import Distillation as Distillation
from cskd_hf.methods.distillation import DistillationCSKD as DistillationCSKD
from cskd_hf.methods.dlb import DLB as DLB
from cskd_hf.methods.ips import IPS as IPS
from cskd_hf.methods.max_entropy import MaxEntropy as MaxEntropy
from cskd_hf.methods.mixup import Mixup as Mixup
from cskd_hf.methods.mixup import MixupCSKD as MixupCSKD
from cskd_hf.methods.mutual_cskd import MutualCSKD as MutualCSKD
from cskd_hf.methods.pskd import PSKD as PSKD
from cskd_hf.methods.tfkd_reg import TfKDReg as TfKDReg
from cskd_hf.methods.virtual_softmax import VirtualSoftmax as VirtualSoftmax

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "max_entropy": MaxEntropy,
    "virtual_softmax": VirtualSoftmax,
    "adacos": AdaCos,
    "ddgsd": DDGSD,
    "byot": BYOT,
    "mixup": Mixup,
    "distillation": Distillation,
    "cskd": CSKD,
    "cskd_e": CSKDE,
    "mixup_cskd": MixupCSKD,
    "distillation_cskd": DistillationCSKD,
    "mutual_cskd": MutualCSKD,
    "ips": IPS,
    "pskd": PSKD,
    "dlb": DLB,
    "tfkd_reg": TfKDReg,
}
