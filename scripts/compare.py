"""Print finished runs side by side.

python scripts/compare.py RUN RUN … [--html compared.html]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cskd_hf.errors import run_command
from cskd_hf.evaluation.table import metric_rows, number
from cskd_hf.models.export import loading_code
from cskd_hf.report.side_by_side import write_comparison
from cskd_hf.runs.summary import Summary, read_summary

CALIBRATED = ("nll", "ece")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print finished runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with curves, diagrams and classes, too")
    arguments = parser.parse_args(argv)
    folders = arguments.runs
    summaries = [read_summary(folder) for folder in folders]
    columns = [f"{name}, {state}" for name in CALIBRATED for state in ("as trained", "calibrated")]
    header = ["method", "top1_error", *columns, "T", "images/s"]
    rows = [header, *map(_cells, summaries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        print("  ".join([name.ljust(widths[0]), *map(str.rjust, values, widths[1:])]))
    print()
    for row in metric_rows(summaries[0].metrics.last):
        if row.name in ("top1_error", *CALIBRATED):
            print(f"{row.name}: {row.definition}")
    which = " or ".join(dict.fromkeys(summary.which_epoch for summary in summaries))
    print(
        f"Test split, {which}, one seed each; recipes/README.md has means over seeds.\n"
        "Calibrated: logits divided by T, fitted on the hold-out set. images/s: supervised; CS-KD loads two each.\n"
    )
    for folder in folders:
        print(f"{folder}\n    report.html  figures/reliability.png  figures/learning_curves.svg")
    print("\nLoad the weights:\n")
    print(loading_code(f"local-dir:{(folders[0] / 'model').as_posix()}", summaries[0].model.needs_cskd_hf))
    if arguments.html is not None:
        write_comparison(folders, arguments.html)
        print(f"\nwrote {arguments.html}")
    return 0


def _cells(summary: Summary) -> list[str]:
    metrics = summary.metrics
    rows = {row.name: row for row in metric_rows(metrics.last, metrics.metrics_scaled)}
    return [
        summary.method["name"],
        number(metrics.last.top1_error),
        *(number(value) for name in CALIBRATED for value in (rows[name].value, rows[name].calibrated)),
        number(metrics.temperature),
        f"{summary.throughput.images_per_second:,.0f}",
    ]


if __name__ == "__main__":
    run_command(main)
