"""A table's grids; the paper's, with its published values, from `paper_results.yaml`.

Rows are methods under the paper's names; columns are image sets, or networks on ImageNet.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.catalog import CATALOG

PAPER_RESULTS = Path(__file__).resolve().parent / "paper_results.yaml"

# Methods that the paper names differently. Run folders replace the plus sign by an underscore.
PAPER_NAMES = {"distillation": "kd", "distillation_cskd": "kd+cskd", "mixup_cskd": "mixup+cskd"}
METHOD_TITLES = {
    "cross_entropy": "Cross-entropy",
    "adacos": "AdaCos",
    "virtual_softmax": "Virtual softmax",
    "max_entropy": "Maximum entropy",
    "label_smoothing": "Label smoothing",
    "ddgsd": "DDGSD",
    "byot": "BYOT",
    "mixup": "Mixup",
    "kd": "KD",
    "cskd": "CS-KD",
    "cskd_e": "CS-KD-E",
    "mixup+cskd": "Mixup + CS-KD",
    "kd+cskd": "KD + CS-KD",
    "mutual_cskd": "Mutual CS-KD",
    "ips": "IPS",
    "pskd": "PS-KD",
    "dlb": "DLB",
    "tfkd_reg": "Tf-KD reg",
}


@dataclass(frozen=True)
class MeanStd:
    """A mean over `n` runs; `std` is the sample standard deviation, None where it is unknown."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanStd:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


class RunKey(NamedTuple):
    """One run of a cell; `epochs` is None for the recipe's."""

    dataset: str
    model: str
    method: str
    seed: int
    epochs: int | None = None


@dataclass(frozen=True)
class Block:
    """One grid of a table.

    Attributes:
        metric: a key of a summary's metrics.
        methods: rows, under the paper's names.
        columns: (dataset, model).
        paper: (method, dataset, model) → the published value.
        on_request: methods and datasets that are left out unless they are asked for by name.
        budget: equal training compute, in epochs of cross-entropy for every epoch of the recipe; None: equal epochs.
        epochs: (method, dataset, model) → epochs, where they are not the recipe's; None: to be computed from `budget`.
    """

    table: str
    caption: str
    metric: str
    methods: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    paper: Mapping[tuple[str, str, str], MeanStd]
    on_request: frozenset[str] = frozenset()
    budget: int | None = None
    epochs: Mapping[tuple[str, str, str], int] | None = None

    def key(self, method: str, column: tuple[str, str], seed: int) -> RunKey:
        dataset, model = column
        if self.budget is None:
            return RunKey(dataset, model, method, seed)
        assert self.epochs is not None, "`at_equal_compute` computes them"
        return RunKey(dataset, model, method, seed, self.epochs.get((method, dataset, model)))


def method_title(name: str) -> str:
    """A method for print, by the paper's name or the recipe's."""
    row = PAPER_NAMES.get(name, name)
    return METHOD_TITLES.get(row, row.replace("_", " "))


def paper_tables() -> dict[str, list[Block]]:
    """Every table of the paper, rows and columns in its order."""
    tables: dict[str, list[Block]] = {}
    for table, content in yaml_io.read(PAPER_RESULTS)[0].items():
        blocks = tables[table] = []
        for name, rows in content.items():
            if name in ("caption", "metric"):
                continue
            paper: dict[tuple[str, str, str], MeanStd] = {}
            for outer, inner in rows.items():
                for last, published in inner.items():
                    if name in CATALOG:  # dataset → network → method → mean of one run
                        paper[last, name, outer] = MeanStd(published, None, 1)
                    else:  # network, or metric of ResNet-18 → method → dataset → [mean, std] of three runs
                        model = name if "metric" in content else "resnet18"
                        paper[outer, last, model] = MeanStd(published[0], published[1], 3)
            metric = content.get("metric", name)
            methods = tuple(dict.fromkeys(method for method, _, _ in paper))
            columns = tuple(dict.fromkeys((dataset, model) for _, dataset, model in paper))
            blocks.append(Block(table, content["caption"], metric, methods, columns, paper))
    return tables
