"""Finished runs on one page: metrics, learning curves, reliability, and the classes in which they differ most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from cskd_hf.errors import UserError
from cskd_hf.evaluation.details import class_results
from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.files import write_text
from cskd_hf.report.curves import TITLES, Panel, draw, points
from cskd_hf.report.report import curves_figure, png_figure, render_page
from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.summary import Summary, read_summary

MAX_CLASSES = 20  # rows of the table of classes


class ClassDifference(NamedTuple):
    """A class's test images, and the share of them that each run recognises, in percent."""

    name: str
    images: int
    recall: list[float]


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Write a page that compares finished runs.

    Args:
        folders: run folders; the classes are compared if all were tested on the same images.

    Raises:
        UserError: a run is not finished, or `path` cannot be written.
    """
    summaries = [read_summary(folder) for folder in folders]
    names = [f"{number} {summary.name}" for number, summary in enumerate(summaries, start=1)]
    reliability = [folder / "figures" / "reliability.png" for folder in folders]
    page = render_page(
        "side_by_side.html.jinja",
        title=", ".join(summary.name for summary in summaries),
        runs=list(zip(names, summaries, strict=True)),
        rows=[
            (name, definition, _values(name, summaries))
            for name, definition in DEFINITIONS.items()
            if any(summary.metric(name) is not None for summary in summaries)
        ],
        figures=[
            *([curves_figure(drawing)] if (drawing := _curves(folders, names)) is not None else []),
            *(
                png_figure(figure)._replace(caption=name)
                for figure, name in zip(reliability, names, strict=True)
                if figure.is_file()
            ),
        ],
        classes=_class_differences(folders)[:MAX_CLASSES],
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _values(name: str, summaries: Sequence[Summary]) -> list[tuple[float | None, float | None]]:
    """A metric of each run, as trained and calibrated."""
    return [(summary.metric(name), summary.metric(f"{name}_scaled")) for summary in summaries]


def _curves(folders: Sequence[Path], names: Sequence[str]) -> Any:
    """Training loss, error, NLL and ECE, a curve per run; None if no run has any."""
    lines = [read_metrics(folder) for folder in folders]
    keys = {"training loss": ["train/loss"]}
    keys |= {title: [f"holdout/{metric}", f"test/{metric}"] for metric, title in TITLES.items()}
    panels = []
    for title, splits in keys.items():
        # The watched split: the hold-out set, if there is one.
        curves = {
            name: next(filter(None, (points(own, key) for key in splits)), [])
            for name, own in zip(names, lines, strict=True)
        }
        if any(curves.values()):
            panels.append(Panel(title, curves, may_be_logarithmic=title == "training loss"))
    return draw(panels, f"Learning curves of {', '.join(names)}.") if panels else None


def _class_differences(folders: Sequence[Path]) -> list[ClassDifference]:
    """Classes whose recall differs between the runs, by that difference; none unless the runs' test images agree."""
    try:
        tests = [load_file(folder / "predictions.safetensors") for folder in folders]
        labels = [json.loads((folder / "model/config.json").read_bytes())["label_names"] for folder in folders]
    except (OSError, KeyError):  # a folder that was cleaned up
        return []
    targets = [test["target"] for test in tests]
    if any(names != labels[0] for names in labels) or any(not targets[0].equal(target) for target in targets):
        return []
    results = zip(*(class_results(test["logits"], test["target"]) for test in tests), strict=True)
    differences = [
        ClassDifference(name, own[0].images, [100 * result.correct / own[0].images for result in own])
        for name, own in zip(labels[0], results, strict=True)
        if own[0].images
    ]
    differing = [row for row in differences if max(row.recall) > min(row.recall)]
    return sorted(differing, key=lambda row: min(row.recall) - max(row.recall))
