"""What a finished run says about itself: the HTML report, and the README beside the weights.

The report is one page without scripts, fonts or requests, so that it opens anywhere, also in ten years.
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
        facts=_facts(summary, read_environments(folder)),
        lines=lines,
        keys=list(dict.fromkeys(key for line in lines for key in line)),
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        environment=(folder / ENVIRONMENT).read_text(encoding="utf-8"),
        number=number,
        cell=_cell,
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


def _facts(summary: Summary, environments: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What was trained, on what, and how fast."""
    dataset, model, throughput = summary.dataset, summary.model, summary.throughput
    settings = ", ".join(f"{key}={value}" for key, value in summary.method.items() if key != "name")
    counts = ", ".join(f"{split} {count:,}" for split, count in dataset.images.items())
    facts = [
        ("dataset", f"{dataset.name}, {dataset.num_classes:,} classes; images: {counts}"),
        ("model", f"{model.model_name}, {model.num_parameters:,} parameters"),
        ("method", f"{summary.method['name']} ({settings})" if settings else summary.method["name"]),
        ("recipe", f"{summary.recipe_hash}, seed {summary.seed}, {summary.epochs} epochs"),
        ("throughput", f"{throughput.images_per_second:,.0f} images/s, num_processes {throughput.num_processes}"),
        ("waiting for data", f"{100 * throughput.data_wait_share:.1f} % of the training time"),
        ("training time", _duration(throughput.train_seconds)),
    ]
    if throughput.peak_memory_bytes is not None:
        facts.append(("peak memory", f"{throughput.peak_memory_bytes / 2**30:.2f} GiB of the accelerator"))
    for environment in environments:
        start = f"from step {environment['started_at_step']:,}: " if len(environments) > 1 else ""
        commit = f", commit {environment['git']['commit'][:7]}" if environment["git"] else ""
        facts.append(("trained on", f"{start}{hardware_line(environment)}; cskd_hf {environment['cskd_hf']}{commit}"))
    return facts


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else number(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
