"""The paper's tables: their rows, columns and figures, read from `results/paper_results.yaml`.

A grid's rows are methods under the paper's names, its columns image sets, or ImageNet's networks.
"""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.methods import METHODS
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.catalog import CATALOG

PAPER_RESULTS = Path(__file__).resolve().parent / "paper_results.yaml"

# Methods that the paper calls otherwise; a plus sign in a run folder's name is an underscore.
PAPER_NAMES = {"distillation": "kd", "distillation_cskd": "kd+cskd", "mixup_cskd": "mixup+cskd"}
# A table of our own, on images that anybody can have without asking: every method, no figures of the paper.
EVIDENCE = "evidence"
EVIDENCE_COLUMNS = (("digits", "resnet10"), ("fashion_mnist_1k", "test_resnet"))
EVIDENCE_METRICS = ("top1_error", "ece", "recall_at_1")
ALIASES = {**PAPER_NAMES, "kd_cskd": "kd+cskd"}


@dataclass(frozen=True)
class Block:
    """One grid of a table.

    Attributes:
        metric: what its numbers are, a key of a summary's metrics.
        methods: rows, under the paper's names.
        columns: (dataset, model).
        paper: (method, dataset, model) → mean and standard deviation, the latter None where the paper gives none.
    """

    table: str
    caption: str
    metric: str
    methods: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    paper: Mapping[tuple[str, str, str], tuple[float, float | None]]


def paper_tables() -> dict[str, list[Block]]:
    """Every table of the paper, in its order of rows and columns, and `evidence`."""
    tables: dict[str, list[Block]] = {}
    for table, content in yaml_io.read(PAPER_RESULTS)[0].items():
        blocks = tables[table] = []
        for name, rows in content.items():
            if name in ("caption", "metric"):
                continue
            paper: dict[tuple[str, str, str], tuple[float, float | None]] = {}
            for outer, inner in rows.items():
                for last, figures in inner.items():
                    if name in CATALOG:  # image set → network → method → mean of one run
                        paper[last, name, outer] = (figures, None)
                    else:  # network, or metric of ResNet-18 → method → image set → [mean, std]
                        model = name if "metric" in content else "resnet18"
                        paper[outer, last, model] = (figures[0], figures[1])
            metric = content.get("metric", name)
            methods = tuple(dict.fromkeys(method for method, _, _ in paper))
            columns = tuple(dict.fromkeys((dataset, model) for _, dataset, model in paper))
            blocks.append(Block(table, content["caption"], metric, methods, columns, paper))
    rows = ("label_smoothing", *(PAPER_NAMES.get(method, method) for method in METHODS))
    tables[EVIDENCE] = [
        Block(EVIDENCE, "Every method on small sets", metric, rows, EVIDENCE_COLUMNS, {}) for metric in EVIDENCE_METRICS
    ]
    return tables


def select(
    tables: Sequence[str], datasets: Sequence[str] = (), models: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[Block]:
    """The grids of some tables, cut to some rows and columns; nothing named keeps all.

    Args:
        tables: 'table1' …, 'evidence', or 'all' of the paper's.
        methods: the paper's rows and any of `METHODS`; one that none of these tables has gets a row, without figures
            of the paper, in each of them.

    Raises:
        UserError: a name that is none of the allowed ones, or no cell is left.
    """
    known = paper_tables()
    check_names("table", tables, [*known, "all"])
    asked = [table for table in known if table in tables or ("all" in tables and table != EVIDENCE)]
    blocks = [block for table in asked for block in known[table]]
    columns_there = [column for block in blocks for column in block.columns]
    check_names("--datasets", datasets, list(dict.fromkeys(dataset for dataset, _ in columns_there)))
    check_names("--models", models, list(dict.fromkeys(model for _, model in columns_there)))
    wanted = dict.fromkeys(ALIASES.get(method, method) for method in methods)
    all_rows = [row for each in known.values() for block in each for row in block.methods]
    own_names = [PAPER_NAMES.get(method, method) for method in METHODS]
    check_names("--methods", wanted, list(dict.fromkeys([*all_rows, *own_names])))

    rows_there = {method for block in blocks for method in block.methods}
    extra = tuple(method for method in wanted if method not in rows_there)
    left = []
    for block in blocks:
        columns = tuple(
            (dataset, model)
            for dataset, model in block.columns
            if (not datasets or dataset in datasets) and (not models or model in models)
        )
        rows = tuple(method for method in block.methods if not wanted or method in wanted) + extra
        if columns and rows:
            left.append(replace(block, methods=rows, columns=columns))
    if not left:
        named = ", ".join([*datasets, *models, *wanted])
        raise UserError(f"{' '.join(tables)}: no cell is of {named} at once; name fewer of them")
    return left


def check_names(what: str, read: Iterable[str], allowed: Sequence[str]) -> None:
    """Raises UserError, with a line for each name that is not allowed."""
    lines = []
    for name in read:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            lines.append(f"{what}: read {name!r}; allowed: {', '.join(allowed)}{hint}")
    if lines:
        raise UserError("\n".join(lines))


@dataclass(frozen=True)
class Figure:
    """A mean over runs; `std` is None where one run or the paper gives no spread."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        spread = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), spread, len(values))
