"""What the name of a table's row stands for: a method, its settings, and overrides of other sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cskd_hf.paper.blocks import PAPER_NAMES

# The recipe's CS-KD coefficients, under the names of the methods that share them.
_CLASS_WISE = {"temperature": "temperature", "distill_loss_weight": "distill_loss_weight"}
_COEFFICIENTS: dict[str, dict[str, str]] = {
    "cskd": _CLASS_WISE,
    "cskd_e": _CLASS_WISE,
    "mutual_cskd": _CLASS_WISE,
    "ips": _CLASS_WISE,
    "mixup_cskd": _CLASS_WISE,
    "distillation_cskd": {"class_wise_temperature": "temperature", "class_wise_loss_weight": "distill_loss_weight"},
}


class Row(NamedTuple):
    """What a row changes in a recipe of CS-KD.

    Attributes:
        method: the recipe's name of it.
        settings: of the method, where they differ from its defaults.
        overrides: of other sections.
    """

    method: str
    settings: Mapping[str, Any] = {}
    overrides: tuple[str, ...] = ()

    def section(self, cskd: Mapping[str, Any]) -> dict[str, Any]:
        """The method's section, with the coefficients that it shares with the recipe's, `cskd`."""
        shared = {field: cskd[source] for field, source in _COEFFICIENTS.get(self.method, {}).items()}
        return {"name": self.method, **self.settings, **shared}


# Regularisation of the strong table; "" is none. All values but the paper's ε are [ours].
_CUTMIX = {"cutmix_alpha": 1.0}
_AUGMENTED = ("transform.auto_augment=rand-m6-mstd0.5-inc1", "transform.re_prob=0.25")
_REGULARISED: dict[str, tuple[dict[str, float], tuple[str, ...]]] = {
    "": ({}, ()),
    "label_smoothing": ({"smoothing": 0.1}, ()),
    "cutmix": (_CUTMIX, ()),
    "randaug+erasing+cutmix": (_CUTMIX, _AUGMENTED),
}


def _name(regularisation: str, method: str) -> str:
    if not regularisation:
        return method
    return regularisation if method == "cross_entropy" else f"{regularisation}+{method}"


STRONG_ROWS = {
    _name(regularisation, method): Row(method, *changes)
    for regularisation, changes in _REGULARISED.items()
    for method in ("cross_entropy", "cskd", "mutual_cskd")
}
_RECIPE_NAMES = {paper: name for name, paper in PAPER_NAMES.items()}


def row_of(name: str) -> Row:
    return STRONG_ROWS[name] if name in STRONG_ROWS else Row(_RECIPE_NAMES.get(name, name))
