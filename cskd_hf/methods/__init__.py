"""The methods by name; one paper per file."""

from cskd_hf.batch import Batch
from cskd_hf.methods.adacos import AdaCos
from cskd_hf.methods.base import Experiment, Method
from cskd_hf.methods.byot import BYOT
from cskd_hf.methods.cross_entropy import CrossEntropy
from cskd_hf.methods.cskd import CSKD, class_wise_kd_loss
from cskd_hf.methods.cskd_e import CSKDE
from cskd_hf.methods.ddgsd import DDGSD
from cskd_hf.methods.distillation import Distillation, DistillationCSKD
from cskd_hf.methods.dlb import DLB
from cskd_hf.methods.ips import IPS
from cskd_hf.methods.max_entropy import MaxEntropy
from cskd_hf.methods.mixup import Mixup, MixupCSKD
from cskd_hf.methods.mutual_cskd import MutualCSKD
from cskd_hf.methods.pskd import PSKD
from cskd_hf.methods.tfkd_reg import TfKDReg
from cskd_hf.methods.virtual_softmax import VirtualSoftmax

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

__all__ = [
    "BYOT",
    "CSKD",
    "CSKDE",
    "DDGSD",
    "DLB",
    "IPS",
    "METHODS",
    "PSKD",
    "AdaCos",
    "Batch",
    "CrossEntropy",
    "Distillation",
    "DistillationCSKD",
    "Experiment",
    "MaxEntropy",
    "Method",
    "Mixup",
    "MixupCSKD",
    "MutualCSKD",
    "TfKDReg",
    "VirtualSoftmax",
    "class_wise_kd_loss",
]
