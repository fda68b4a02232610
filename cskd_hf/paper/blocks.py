"""The paper's tables: rows, columns and published values, read from `paper_results.yaml`.

Rows are methods under the paper's names; columns are image sets, or networks on ImageNet.
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

# Our own table: every method on images that need no permission, without published values.
EVIDENCE = "evidence"
EVIDENCE_COLUMNS = (("digits", "resnet10"), ("fashion_mnist_1k", "test_resnet"))
EVIDENCE_METRICS = ("top1_error", "ece", "recall_at_1")


@dataclass(frozen=True)
class MeanStd:
    """A mean over `n` runs; `std` is the sample standard deviation, None where it is unknown."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanStd:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Block:
    """One grid of a table.

    Attributes:
        metric: a key of a summary's metrics.
        methods: rows, under the paper's names.
        columns: (dataset, model).
        paper: (method, dataset, model) → the published value.
    """

    table: str
    caption: str
    metric: str
    methods: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    paper: Mapping[tuple[str, str, str], MeanStd]


def method_title(name: str) -> str:
    """A method for print, by the paper's name or the recipe's."""
    row = PAPER_NAMES.get(name, name)
    return METHOD_TITLES.get(row, row.replace("_", " "))


def paper_tables() -> dict[str, list[Block]]:
    """Every table of the paper, rows and columns in its order, and `evidence`."""
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
    methods = ("label_smoothing", *(PAPER_NAMES.get(method, method) for method in METHODS))
    tables[EVIDENCE] = [
        Block(EVIDENCE, "Every method on small sets", metric, methods, EVIDENCE_COLUMNS, {})
        for metric in EVIDENCE_METRICS
    ]
    return tables


def select(
    tables: Sequence[str], datasets: Sequence[str] = (), models: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[Block]:
    """The grids of some tables, restricted to some rows and columns; an empty restriction selects all.

    Args:
        tables: 'table1' …, 'evidence', or 'all' of the paper's.
        methods: the paper's rows and any of `METHODS`. A method that none of `tables` has becomes an extra row, without
            published values, in each of them.

    Raises:
        UserError: a name is not allowed, or no cell matches.
    """
    known = paper_tables()
    check_names("table", tables, [*known, "all"])
    blocks = [
        block for table in known if table in tables or ("all" in tables and table != EVIDENCE) for block in known[table]
    ]
    columns = [column for block in blocks for column in block.columns]
    check_names("--datasets", datasets, [dataset for dataset, _ in columns])
    check_names("--models", models, [model for _, model in columns])
    aliases = PAPER_NAMES | {"kd_cskd": "kd+cskd"}
    wanted = dict.fromkeys(aliases.get(method, method) for method in methods)
    # Evidence's rows are every method of ours; the paper's come first in the message.
    check_names("--methods", wanted, [method for each in known.values() for block in each for method in block.methods])

    extra = [method for method in wanted if not any(method in block.methods for block in blocks)]
    selected = []
    for block in blocks:
        chosen_columns = tuple(
            (dataset, model)
            for dataset, model in block.columns
            if (not datasets or dataset in datasets) and (not models or model in models)
        )
        rows = tuple(method for method in block.methods if not wanted or method in wanted) + tuple(extra)
        if chosen_columns and rows:
            selected.append(replace(block, methods=rows, columns=chosen_columns))
    if not selected:
        names = ", ".join([*datasets, *models, *wanted])
        raise UserError(f"{' '.join(tables)}: no cell matches all of {names}; drop some of these names")
    return selected


def check_names(option: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises UserError, with a line for each name that is not allowed."""
    allowed = list(dict.fromkeys(allowed))
    lines = []
    for name in names:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            lines.append(f"{option}: read {name!r}; allowed: {', '.join(allowed)}{hint}")
    if lines:
        raise UserError("\n".join(lines))
