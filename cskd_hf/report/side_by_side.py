"""Models evaluated on the same images, on one page: metrics, differences, learning curves, reliability, classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cskd_hf.errors import UserError
from cskd_hf.evaluation.comparison import Compared, Difference
from cskd_hf.evaluation.comparison_table import INTERVALS, VERDICTS, difference_cells, metric_cells
from cskd_hf.files import write_text
from cskd_hf.report.curves import TITLES, Panel, draw, points
from cskd_hf.report.report import curves_figure, png_figure, render_page
from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.summary import NAME as SUMMARY
from cskd_hf.runs.summary import read_summary

MAX_CLASSES = 20  # rows of the table of classes


class ClassDifference(NamedTuple):
    """A class's test images, and the share of them that each model recognises, in percent."""

    name: str
    images: int
    recall: list[float]


def write_comparison(
    models: Sequence[Compared], differences: Sequence[Difference], runs: Sequence[Path | None], path: Path, title: str
) -> None:
    """Write a page of one or more models, evaluated on the same images.

    Args:
        runs: the run folder of each, if it has one, whose curves and diagrams are shown.

    Raises:
        UserError: `path` cannot be written.
    """
    named = [(f"{place} {run.name}", run) for place, run in enumerate(runs, start=1) if run is not None]
    finished = [(name, run) for name, run in named if (run / SUMMARY).is_file()]
    reliability = [(name, run / "figures" / "reliability.png") for name, run in finished]
    page = render_page(
        "side_by_side.html.jinja",
        title=title,
        models=models,
        intervals=INTERVALS if models[0].last.replicated else "",
        verdicts=VERDICTS,
        metrics=metric_cells(models),
        differences=difference_cells(differences),
        runs=[(name, read_summary(run)) for name, run in finished],
        figures=[
            *([curves_figure(drawing)] if (drawing := _curves(named)) is not None else []),
            *(
                png_figure(figure)._replace(caption=f"{name}: the run's own test split")
                for name, figure in reliability
                if figure.is_file()
            ),
        ],
        classes=_class_differences(models)[:MAX_CLASSES],
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _curves(runs: Sequence[tuple[str, Path]]) -> Any:
    """Training loss, error, NLL and ECE, a curve per run; None if no run has any."""
    lines = {name: read_metrics(folder) for name, folder in runs}
    panels = []
    for metric, title in {"loss": "training loss", **TITLES}.items():
        curves = {}
        for name, own in lines.items():
            # The watched split: the hold-out set, if there is one.
            watched = "holdout" if any("holdout/top1_error" in line for line in own) else "test"
            split = "train" if metric == "loss" else watched
            curves[f"{name}, {split}"] = points(own, f"{split}/{metric}")
        if any(curves.values()):
            panels.append(Panel(title, curves, may_be_logarithmic=title == "training loss"))
    return draw(panels, f"Learning curves of {', '.join(lines)}.") if panels else None


def _class_differences(models: Sequence[Compared]) -> list[ClassDifference]:
    """Classes whose recall differs between the models, by that difference."""
    differences = []
    for name, first in models[0].classes.items():
        results = [model.classes[name] for model in models]
        if first.images:
            recall = [100 * result.correct / first.images for result in results]
            differences.append(ClassDifference(name, first.images, recall))
    differing = [row for row in differences if max(row.recall) > min(row.recall)]
    return sorted(differing, key=lambda row: min(row.recall) - max(row.recall))
