"""The methods by name: a paper a file."""

from cskd_hf.methods.base import Batch, Method
from cskd_hf.methods.cross_entropy import CrossEntropy
from cskd_hf.methods.cskd import CSKD

METHODS: dict[str, type[Method]] = {"cross_entropy": CrossEntropy, "cskd": CSKD}

__all__ = ["CSKD", "METHODS", "Batch", "CrossEntropy", "Method"]
