"""Our own tables, on images that need no permission: every method at equal epochs and at equal training compute."""

from __future__ import annotations

from cskd_hf.methods import METHODS
from cskd_hf.paper.blocks import PAPER_NAMES, Block
from cskd_hf.paper.rows import STRONG_ROWS

COLUMNS = (("icons", "test_resnet"), ("fashion_mnist_1k", "test_resnet"), ("digits", "resnet10"))
METRICS = ("top1_error", "nll", "ece", "brier", "aurc", "aurc_logit_norm", "recall_at_1")
# Training compute at equal compute, in epochs of cross-entropy for every epoch of the recipe.
BUDGET = 2

_ON_REQUEST = frozenset({"digits"})  # the demo's; too easy to tell methods apart
_AT_EQUAL_COMPUTE = ("label_smoothing", "cross_entropy", "ddgsd", "cskd", "mutual_cskd", "pskd", "tfkd_reg")


def evidence_tables() -> dict[str, list[Block]]:
    """`evidence` and `strong`; without published values."""
    names = (PAPER_NAMES.get(method, method) for method in METHODS)
    methods = tuple(dict.fromkeys(("cross_entropy", "label_smoothing", *names)))
    others = frozenset(methods) - frozenset(_AT_EQUAL_COMPUTE)

    def blocks(
        table: str, caption: str, rows: tuple[str, ...], left_out: frozenset[str], budget: int | None
    ) -> list[Block]:
        return [
            Block(table, caption, metric, rows, COLUMNS, {}, _ON_REQUEST | left_out, budget=budget)
            for metric in METRICS
        ]

    caption = "Every method on small sets"
    return {
        "evidence": [
            *blocks("evidence", caption, methods, frozenset(), None),
            *blocks("evidence", caption, methods, others, BUDGET),
        ],
        "strong": blocks("strong", "CS-KD under strong regularisation", tuple(STRONG_ROWS), frozenset(), BUDGET),
    }
