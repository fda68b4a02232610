"""Tables, rows and columns by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import PAPER_NAMES, Block, paper_tables
from cskd_hf.paper.evidence import evidence_tables


def all_tables() -> dict[str, list[Block]]:
    """The paper's tables, then ours."""
    return paper_tables() | evidence_tables()


def select(
    tables: Sequence[str], datasets: Sequence[str] = (), models: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[Block]:
    """The grids of some tables, restricted to some rows and columns; an empty restriction selects all.

    Args:
        tables: 'table1' …, 'evidence', 'strong', or 'all' of the paper's.
        methods: the paper's rows and any of `METHODS`. A method that none of `tables` has becomes an extra row, without
            published values, in each of them.

    Raises:
        UserError: a name is not allowed, or no cell matches.
    """
    paper, known = paper_tables(), all_tables()
    check_names("table", tables, [*known, "all"])
    blocks = [
        block for table in known if table in tables or ("all" in tables and table in paper) for block in known[table]
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
        shown = datasets or [dataset for dataset, _ in block.columns if dataset not in block.on_request]
        networks = models or [model for _, model in block.columns]
        listed = wanted or [method for method in block.methods if method not in block.on_request]
        grid_columns = tuple((data, model) for data, model in block.columns if data in shown and model in networks)
        rows = (*(method for method in block.methods if method in listed), *extra)
        if grid_columns and rows:
            selected.append(replace(block, methods=rows, columns=grid_columns))
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
