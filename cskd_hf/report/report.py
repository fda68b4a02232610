"""The HTML report of a finished run, and the README of its exported weights.

The report is one page without scripts, fonts or requests, so that it opens anywhere, even in ten years.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cskd_hf.evaluation.table import as_markdown, metric_rows, number
from cskd_hf.files import write_text
from cskd_hf.models.export import loading_code
from cskd_hf.runs.environment import NAME as ENVIRONMENT
from cskd_hf.runs.environment import hardware_line, read_environments
from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.summary import Summary, read_summary


class _Figure(NamedTuple):
    name: str
    text: str
    width: int
    height: int
    data: str


def write_report(folder: Path) -> Path:
    """Write `report.html` from the other files of a finished run's folder; atomic, and repeatable at any time.

    Args:
        folder: the run folder, named in the page as given: a relative path keeps home folders out of it.

    Returns:
        The path of the page.
    """
    summary, lines = read_summary(folder), read_metrics(folder)
    metrics = summary.metrics
    evaluated = [line for line in lines if "holdout/top1_error" in line]
    page = _render(
        "report.html.jinja",
        summary=summary,
        rows=metric_rows(metrics.last, metrics.metrics_scaled),
        temperature=None if metrics.temperature is None else f"{metrics.temperature:.3f}",
        best=min(evaluated, key=lambda line: line["holdout/top1_error"], default=None),
        usage=_usage(summary, folder),
        figures=[_figure(path) for path in sorted((folder / "figures").glob("*.png"))],
        environments=read_environments(folder),
        lines=lines,
        keys=list(dict.fromkeys(key for line in lines for key in line)),
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        environment_json=(folder / ENVIRONMENT).read_text(encoding="utf-8"),
        number=number,
        cell=_cell,
        duration=_duration,
        hardware_line=hardware_line,
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def model_readme(summary: Summary, folder: Path) -> str:
    """The README.md of `folder/model`, with the Hub's metadata block."""
    metrics = summary.metrics
    return _render(
        "model_readme.md.jinja",
        summary=summary,
        method=", ".join(f"{key} {value}" for key, value in summary.method.items()).removeprefix("name "),
        usage=_usage(summary, folder),
        table=as_markdown(metric_rows(metrics.last, metrics.metrics_scaled)),
    )


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.jinja"),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(template).render(values)


def _usage(summary: Summary, folder: Path) -> str:
    return loading_code(f"local-dir:{folder.as_posix()}/model", summary.model.needs_cskd_hf).rstrip()


def _figure(path: Path) -> _Figure:
    """An image with the alternative text that figures.py put into the file."""
    name = path.stem.replace("_", " ")
    with Image.open(path) as image:
        width, height = (pixels * 96 // 150 for pixels in image.size)  # drawn at 150 dpi; CSS has 96
        text = image.info.get("Description", name)  # a figure from elsewhere may have none
    return _Figure(name, text, width, height, base64.b64encode(path.read_bytes()).decode())


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else number(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
