"""A release's README.md, from the template `card.md.jinja`.

Every number comes from the run's summary, environment or recipe.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from cskd_hf.data.transforms import conversion_of
from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.evaluation.table import number
from cskd_hf.hub.card_metadata import card_metadata
from cskd_hf.hub.provenance import data_source, paper_of, published_results, terms_of
from cskd_hf.hub.source import Release
from cskd_hf.models.export import listable
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection
from cskd_hf.report.describe import describe_method
from cskd_hf.runs.environment import hardware_line

_IMPORT = "import cskd_hf.models  # registers the architecture with timm\n"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def release_card(release: Release) -> str:
    from cskd_hf.hub.onnx import INPUT, OUTPUTS

    source, summary = release.source, release.source.summary
    recipe, metrics = source.recipe, summary.metrics
    conversion = conversion_of(recipe.transform, None)
    data, metadata = data_source(recipe), card_metadata(release)
    # The publisher's folder means nothing to others: they must say where the images are.
    dataset = recipe.data.dataset if recipe.data.dataset in (data.name, data.hub_id) else None
    templates = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return templates.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        metadata=metadata.to_yaml().strip(),
        release=release,
        repo_id=release.repo_id,
        summary=summary,
        environments=source.environments,
        holdout=source.holdout,
        imports=_IMPORT if summary.model.needs_cskd_hf else "",
        deep=_deep(summary.dataset.deep),
        mode=conversion.mode,
        background=repr(conversion.background).replace("'", '"'),
        num_features=source.num_features,
        class_map=listable(source.config["label_names"]),
        data=data,
        official_split=data.official_split(recipe.data),
        paper=paper_of(recipe.method),
        terms=terms_of(recipe, summary.model),
        licence=str(release.licence),
        method=describe_method(summary.method),
        test_name=recipe.data.test_name,
        raw=metrics.last,
        scaled=metrics.metrics_scaled,
        temperature=None if metrics.temperature is None else f"{metrics.temperature:.6g}",
        columns=_columns(release),
        definitions={name: DEFINITIONS[name] for name, value in metrics.last if value is not None},
        onnx_names=(INPUT, *OUTPUTS),
        images=_images(recipe, dataset or data.hub_id or "FOLDER"),
        rerun="" if dataset else " data.dataset=FOLDER",
        device="; then ".join(dict.fromkeys(map(hardware_line, source.environments))),
        hours=_duration(summary.throughput.train_seconds, source.environments),
        number=number,
    )


def _images(recipe: Recipe, dataset: str) -> str:
    """Arguments of `evaluate` that name the test images: the recipe's settings, as far as they are not the defaults."""
    defaults = resolve_data(DataSection(dataset=dataset)).model_copy(update={"test_split": None})
    shown = ["config_name", "revision", "test_split", "image_column", "label_column", "labels"]
    shown += ["train_split"] * isinstance(recipe.data.test_split, float)
    settings = {"dataset": dataset} | {key: getattr(recipe.data, key) for key in shown}
    return shlex.join(
        f"data.{key}={value}"
        for key, value in settings.items()
        if value is not None and (key == "dataset" or value != getattr(defaults, key))
    )


def _deep(ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any] | None:
    """What the card's code needs to map grey images deeper than 8 bits, of the first kind; None without any."""
    if not ranges:
        return None
    kind = next(iter(ranges))
    low, high = (int(value) if float(value).is_integer() else value for value in ranges[kind])
    width = (high - low + (kind != "floating-point")) / 256  # as `data.deep.to_levels` computes it
    return {"kind": kind, "kinds": ", ".join(ranges), "low": low, "high": high, "width": width}


def _columns(release: Release) -> dict[str, dict[str, str]]:
    """Title → metric → cell of the table of results."""
    metrics, seeds = release.source.summary.metrics, release.seeds
    columns = {"as trained": {name: number(value) for name, value in metrics.last}}
    if metrics.metrics_scaled is not None:
        columns["calibrated"] = {name: number(value) for name, value in metrics.metrics_scaled}
    if seeds is not None:
        for title, key in (("as trained", "last"), ("calibrated", "metrics_scaled")):
            if seeds[key] is not None:
                columns[f"{title}, n = {seeds['n']}"] = {
                    name: f"{number(value['mean'])} ± {value['std']:.2g}" for name, value in seeds[key].items()
                }
    published = published_results(release.source.recipe)
    if published:
        columns["paper"] = {
            name: number(result.mean) + ("" if result.std is None else f" ± {number(result.std)}")
            for name, result in published.items()
        }
    return columns


def _duration(seconds: float, environments: Sequence[Mapping[str, Any]]) -> str:
    hours = seconds / 3600
    num_gpus = {environment["num_processes"] for environment in environments if environment["hardware"]["accelerators"]}
    gpu_hours = f", {hours * max(num_gpus):.3g} GPU-hours" if len(num_gpus) == 1 else ""  # unknown if it changed
    return f"{hours:.3g} hours{gpu_hours}"
