"""The cards: a short README for a run's own weights, and the release's, from the template `card.md.jinja` beside this.

Every number in them comes from the run's summary, environment and recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cskd_hf.evaluation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.hub.licences import RESTRICTED, RESTRICTED_NAME, Terms
from cskd_hf.hub.provenance import data_source, paper_figures, paper_of
from cskd_hf.paper.blocks import Figure
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.environment import hardware_line

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def release_card(
    metadata: Any,
    repo_id: str,
    recipe: Recipe,
    summary: Mapping[str, Any],
    environments: Sequence[dict[str, Any]],
    config: Mapping[str, Any],
    *,
    holdout: Mapping[str, Any] | None,
    folded: Sequence[str],
    seeds: Mapping[str, Any] | None,
    licence: str,
    terms: Sequence[Terms],
    onnx: bool,
) -> str:
    """The README.md of a release.

    Args:
        metadata: its `ModelCardData`.
        recipe, summary, environments: the run's, fit to be public.
        config: the release's config.json.
        holdout: number of held-out images and their metrics before and after the temperature.
        folded: the layers that hold the temperature; none where it is left to who predicts.
        seeds: as `read_seeds`.
        onnx: the release holds a model.onnx.
    """
    from jinja2 import Environment, StrictUndefined

    from cskd_hf.hub.onnx import INPUT, OUTPUTS

    data, paper, throughput = data_source(recipe), paper_of(recipe.method), summary["throughput"]
    metrics = summary["metrics"]
    settings = ", ".join(f"{key} {value}" for key, value in summary["method"].items() if key != "name")
    # A folder of the publisher's is nobody else's: whoever reruns the recipe says where the images lie.
    named = recipe.data.dataset if recipe.data.dataset in (data.name, data.hub_id) else None
    templates = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return templates.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        metadata=metadata.to_yaml().strip(),
        title=repo_id.partition("/")[2],
        repo_id=repo_id,
        model_name=summary["model"]["model_name"],
        num_parameters=f"{summary['model']['num_parameters']:,}",
        needs_cskd_hf=summary["model"]["needs_cskd_hf"],
        num_classes=summary["dataset"]["num_classes"],
        num_features=config["num_features"],
        top_k=min(5, summary["dataset"]["num_classes"]),
        num_test=f"{summary['dataset']['images']['test']:,}",
        test_split=recipe.data.test_split,
        method_name=summary["method"]["name"],
        method_settings=f" ({settings})" if settings else "",
        method_summary=paper.summary,
        epochs=summary["epochs"],
        seed=summary["seed"],
        raw=metrics["last"],
        scaled=metrics["metrics_scaled"],
        temperature=None if metrics["temperature"] is None else f"{metrics['temperature']:.6g}",
        at_bound=metrics["temperature"] in (MIN_TEMPERATURE, MAX_TEMPERATURE),
        folded=folded,
        holdout=holdout,
        seeds=seeds,
        onnx_names=(INPUT, *OUTPUTS) if onnx else (),
        paper_figures=_shown(paper_figures(recipe)),
        definitions={name: DEFINITIONS[name] for name in metrics["last"]},
        data=data,
        data_argument=named or data.hub_id or "FOLDER",
        rerun="" if named else " data.dataset=FOLDER",
        recipe_hash=summary["recipe_hash"],
        environment=environments[-1],
        segments=len(environments),
        device="; then ".join(dict.fromkeys(map(hardware_line, environments))),
        hours=_duration(throughput["train_seconds"], throughput["num_processes"], environments[-1]),
        throughput=throughput,
        memory=_memory(throughput["peak_memory_bytes"]),
        notes=summary["notes"],
        terms=terms,
        licence_words=f"`{RESTRICTED_NAME}`" if licence == RESTRICTED else f"`{licence}`",
        citation=paper.citation,
        number=_cell,
        spread=_spread,
    )


def _shown(figures: Mapping[str, Figure]) -> dict[str, str]:
    return {
        name: _cell(figure.mean) + ("" if figure.std is None else f" ± {_cell(figure.std)}")
        for name, figure in figures.items()
    }


def _spread(means: Mapping[str, Mapping[str, float]] | None, name: str) -> str:
    if means is None or name not in means:
        return "–"
    return f"{_cell(means[name]['mean'])} ± {means[name]['std']:.2g}"


def _duration(seconds: float, num_processes: int, environment: Mapping[str, Any]) -> str:
    took = f"{seconds / 3600:.3g} hours"
    if environment["hardware"]["accelerators"]:
        took += f", {seconds * num_processes / 3600:.3g} GPU-hours"
    return took


def _memory(peak: int | None) -> str:
    return "not measured" if peak is None else f"{peak / 2**30:.3g} GiB"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
