"""The methods by name: a paper a file."""

from cskd_hf.methods.base import Batch, Method
from cskd_hf.methods.cross_entropy import CrossEntropy
from cskd_hf.methods.cskd import CSKD
from cskd_hf.methods.ddgsd import DDGSD
from cskd_hf.methods.max_entropy import MaxEntropy
from cskd_hf.methods.mutual_cskd import MutualCSKD
from cskd_hf.methods.virtual_softmax import VirtualSoftmax

METHODS: dict[str, type[Method]] = {
    "cross_entropy": CrossEntropy,
    "max_entropy": MaxEntropy,
    "virtual_softmax": VirtualSoftmax,
    "ddgsd": DDGSD,
    "cskd": CSKD,
    "mutual_cskd": MutualCSKD,
}

__all__ = [
    "CSKD",
    "DDGSD",
    "METHODS",
    "Batch",
    "CrossEntropy",
    "MaxEntropy",
    "Method",
    "MutualCSKD",
    "VirtualSoftmax",
]
