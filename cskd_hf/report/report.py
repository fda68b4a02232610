"""The HTML report of a run, and the README of its exported weights.

The report is one page without fonts or requests, so that it opens anywhere, even in ten years. Its only script sorts
tables; the page is whole without it.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from cskd_hf.evaluation.confidence import wilson_interval
from cskd_hf.evaluation.formats import markdown_table
from cskd_hf.evaluation.table import metric_cells, metric_rows, number
from cskd_hf.files import write_text
from cskd_hf.models.export import loading_code
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.report.curves import Drawing, draw_run
from cskd_hf.report.describe import describe_method
from cskd_hf.report.details import Evaluated, describe_details
from cskd_hf.report.pairs import NAME as PAIRS
from cskd_hf.report.templates import render_template
from cskd_hf.runs.environment import NAME as ENVIRONMENT
from cskd_hf.runs.environment import hardware_line, read_environments
from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.summary import NAME as SUMMARY
from cskd_hf.runs.summary import Summary, read_recipe, read_summary

NAME = "report.html"
CURVES = "learning_curves.svg"
SCRIPT = Path(__file__).with_name("page.js")


class Figure(NamedTuple):
    """A picture for the page."""

    kind: str
    caption: str
    text: str
    width: int
    height: int
    source: str


def write_report(folder: Path, evaluated: Evaluated | None = None) -> Path:
    """Write `report.html` from the other files of a run's folder, finished or not; atomic, and repeatable at any time.

    Args:
        folder: the run folder, named in the page as given: a relative path keeps home folders out of it.
        evaluated: of the test split of a finished run, or of the split watched in training; without it the page shows
            no single classes and images.
    """
    lines = read_metrics(folder)
    summary = read_summary(folder) if (folder / SUMMARY).is_file() else None
    temperature = None if summary is None else summary.metrics.temperature
    with_holdout = [line for line in lines if "holdout/top1_error" in line]
    newest = [line for line in lines if "holdout/top1_error" in line or "test/top1_error" in line][-1:]
    page = render_page(
        "report.html.jinja",
        title=folder.resolve().name if summary is None else summary.name,
        newest=newest[0] if newest else None,
        best=min(with_holdout, key=lambda line: line["holdout/top1_error"], default=None),
        figures=_figures(folder, lines, finished=summary is not None),
        details=None if evaluated is None else describe_details(evaluated, temperature),
        environments=read_environments(folder),
        lines=lines,
        keys=list(dict.fromkeys(key for line in lines for key in line)),
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        environment_json=(folder / ENVIRONMENT).read_text(encoding="utf-8"),
        cell=_cell,
        duration=_duration,
        hardware_line=hardware_line,
        **(_unfinished(read_recipe(folder)) if summary is None else _finished(summary, folder)),
    )
    path = folder / NAME
    write_text(path, page)
    return path


def render_page(template: str, **values: Any) -> str:
    """A page with this package's style and script; its policy allows no other script."""
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render_template(template, script=script, script_hash=f"sha256-{digest}", number=number, **values)


def _finished(summary: Summary, folder: Path) -> dict[str, Any]:
    metrics = summary.metrics
    error = torch.tensor(metrics.last.top1_error / 100)
    return {
        "summary": summary,
        "selection": summary.selection,
        "model_name": summary.model.model_name,
        "dataset": summary.dataset.name,
        "method": summary.method,
        "interval": tuple(100 * end.item() for end in wilson_interval(error, torch.tensor(summary.tested_images))),
        "rows": metric_rows(metrics.last, metrics.metrics_scaled),
        "temperature": None if metrics.temperature is None else f"{metrics.temperature:.4g}",
        "usage": _usage(summary, folder),
    }


def _unfinished(recipe: Recipe) -> dict[str, Any]:
    return {
        "summary": None,
        "selection": recipe.run.selection,
        "model_name": recipe.model.model_name,
        "dataset": recipe.data.dataset,
        "method": recipe.to_dict()["method"],
        "num_epochs": recipe.scheduler.total_epochs,
        "has_holdout": bool(recipe.data.holdout),
        "temperature": None,
    }


def model_readme(summary: Summary, folder: Path) -> str:
    """The README.md of `folder/model`, with the Hub's metadata block."""
    metrics = summary.metrics
    return render_template(
        "model_readme.md.jinja",
        summary=summary,
        method=describe_method(summary.method),
        usage=_usage(summary, folder),
        table=markdown_table(metric_cells(metric_rows(metrics.last, metrics.metrics_scaled))),
    )


def _usage(summary: Summary, folder: Path) -> str:
    return loading_code(f"local-dir:{folder.as_posix()}/model", summary.model.needs_cskd_hf).rstrip()


def _figures(folder: Path, lines: list[dict[str, Any]], finished: bool) -> list[Figure]:
    """The curves, then the pairs, then what is drawn at the end; that of a run being continued is out of date."""
    curves, paths = draw_run(lines), sorted((folder / "figures").glob("*.png"))
    if not finished:
        paths = [path for path in paths if path.name == PAIRS]
    paths.sort(key=lambda path: path.name != PAIRS)
    figures = [png_figure(path) for path in paths]
    if curves is None:
        return figures
    return [curves_figure(curves), *figures]


def curves_figure(curves: Drawing) -> Figure:
    """Learning curves for the page."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(curves.svg.encode()).decode()}"
    return Figure("curves", "learning curves", curves.description, curves.width, curves.height, source)


def png_figure(path: Path) -> Figure:
    """An image with the alternative text that was written into the file."""
    name = path.stem.replace("_", " ")
    with Image.open(path) as image:
        text = image.info.get("Description", name)  # a figure from elsewhere may have none
        dpi = 96 if path.name == PAIRS else 150  # as drawn; CSS has 96
        width, height = (pixels * 96 // dpi for pixels in image.size)
    kind, caption = ("photos", text) if path.name == PAIRS else ("chart", name)
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return Figure(kind, caption, text, width, height, source)


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else number(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
