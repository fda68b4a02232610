"""A release's results as the Hub reads them: the card's metadata with its model-index, and `.eval_results/*.yaml`."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.hub.provenance import data_source, paper_of, pretrained_source
from cskd_hf.hub.source import Release


def card_metadata(release: Release) -> ModelCardData:
    recipe, trained = release.source.recipe, release.source.summary.model
    data, paper, pretrained = data_source(recipe), paper_of(recipe.method), pretrained_source(recipe, trained)
    tags = ["image-classification", "timm", "calibration", recipe.method.name.replace("_", "-")]
    plain_rgb = not trained.needs_cskd_hf and recipe.transform.input_size[0] == 3
    tags += ["transformers"] * plain_rgb
    tags += [f"arxiv:{paper.arxiv}"] if paper.arxiv else []
    return ModelCardData(
        license=release.licence.identifier,
        license_name=release.licence.name,
        license_link=release.licence.link,
        library_name="timm",
        pipeline_tag="image-classification",
        datasets=[data.hub_id] if data.hub_id else None,
        base_model=pretrained.hub_id if pretrained else None,
        metrics=["accuracy"],
        tags=tags,
        model_name=release.repo_id.partition("/")[2],
        eval_results=_eval_results(release),
    )


def _eval_results(release: Release) -> list[EvalResult]:
    """Every metric: first what the released weights give, then with or without the temperature."""
    recipe, metrics = release.source.recipe, release.source.summary.metrics
    data = data_source(recipe)
    variants = [
        (metrics.last, "logits as trained"),
        (metrics.metrics_scaled, "logits divided by the fitted temperature"),
    ]
    results = []
    for values, logits in reversed(variants) if release.folded else variants:
        if values is None:
            continue
        rows = [("accuracy", 100 - values.top1_error, "images whose top class is the target; percent")]
        rows += [(name, value, DEFINITIONS[name]) for name, value in values if value is not None]
        results += [
            EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=data.hub_id or data.name,
                dataset_name=data.name,
                dataset_config=recipe.data.config_name,
                dataset_split=recipe.data.test_name,
                dataset_revision=recipe.data.revision,
                metric_type=name,
                metric_value=value,
                metric_name=f"{name}, {logits}: {definition}",
            )
            for name, value, definition in rows
        ]
    return results


def write_eval_results(release: Release, folder: Path) -> None:
    """Write `.eval_results/DATA.yaml`: top-1 accuracy, for a leaderboard of the image set.

    The format identifies the set by a Hub id. For images that are not from the Hub, or not divided as others divide
    them, the id is in the publisher's own namespace, so that the number cannot appear on somebody else's leaderboard.
    """
    recipe, summary = release.source.recipe, release.source.summary
    data = data_source(recipe)
    values = summary.metrics.metrics_scaled if release.folded else summary.metrics.last
    assert values is not None, "a folded release has a temperature"
    own_id = f"{release.repo_id.partition('/')[0]}/{slug(data.name)}"
    named = data.official_split(recipe.data) if data.entry else isinstance(recipe.data.test_split, str)
    hub_id = data.hub_id if named else None
    dataset = {"id": hub_id or own_id, "task_id": recipe.data.config_name or "default"}
    if hub_id and recipe.data.revision:
        dataset["revision"] = recipe.data.revision
    notes = (
        f"top-1 accuracy in percent on {summary.tested_images} images of split {recipe.data.test_name}, "
        f"{summary.which_epoch}, seed {summary.seed}; "
        f"ECE {values.ece:.4g} %, NLL {values.nll:.4g}"
    )
    if hub_id is None:
        reason = "are not from the Hub" if data.hub_id is None else "are not the official test split"
        notes += f"; the images {reason}: the id is the publisher's name for them"
    entry = {"dataset": dataset, "value": 100 - values.top1_error, "notes": notes}
    path = folder / ".eval_results" / f"{slug(data.name)}.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True), encoding="utf-8")


def slug(name: str) -> str:
    """An image set's name as a file or repository name: letters, digits, dots, dashes and underscores."""
    words = re.sub(r"-{2,}|\.{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2]))
    return words.strip("-._") or "images"
