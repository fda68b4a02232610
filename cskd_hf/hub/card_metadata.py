"""A release's results as the Hub reads them: the card's metadata with its model-index, and `.eval_results/*.yaml`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.hub.licences import licence_metadata
from cskd_hf.hub.provenance import data_source, paper_of, pretrained_source
from cskd_hf.recipe.recipe import Recipe


def card_metadata(
    recipe: Recipe, summary: Mapping[str, Any], repo_id: str, licence: str, *, folded: bool, needs_cskd_hf: bool
) -> Any:
    """The card's `ModelCardData`: every metric of the last epoch as released, then as the other of raw and scaled.

    Args:
        folded: the released weights hold the temperature, so that what they predict is `metrics_scaled`.
    """
    from huggingface_hub import ModelCardData

    data, paper, pretrained = data_source(recipe), paper_of(recipe.method), pretrained_source(recipe)
    tags = ["image-classification", "timm", "calibration", recipe.method.name.replace("_", "-")]
    tags += [] if needs_cskd_hf else ["transformers"]
    tags += [f"arxiv:{paper.arxiv}"] if paper.arxiv else []
    return ModelCardData(
        **licence_metadata(licence),
        library_name="timm",
        pipeline_tag="image-classification",
        datasets=[data.hub_id] if data.hub_id else None,
        base_model=pretrained[0] if pretrained else None,
        metrics=["accuracy"],
        tags=tags,
        model_name=repo_id.partition("/")[2],
        eval_results=_eval_results(recipe, summary, folded),
    )


def _eval_results(recipe: Recipe, summary: Mapping[str, Any], folded: bool) -> list[Any]:
    from huggingface_hub import EvalResult

    data, metrics = data_source(recipe), summary["metrics"]
    found = [
        (metrics["last"], "logits as trained"),
        (metrics["metrics_scaled"], "logits divided by the fitted temperature"),
    ]
    results = []
    for values, how in found[::-1] if folded else found:
        if values is None:
            continue
        told = {"accuracy": (100 - values["top1_error"], "images whose top class is the target; percent")}
        told |= {name: (value, DEFINITIONS[name]) for name, value in values.items() if value is not None}
        results += [
            EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=data.hub_id or data.name,
                dataset_name=data.name,
                dataset_config=recipe.data.config_name,
                dataset_split=recipe.data.test_split,
                dataset_revision=recipe.data.revision,
                metric_type=metric,
                metric_value=value,
                metric_name=f"{metric}, {how}: {definition}",
            )
            for metric, (value, definition) in told.items()
        ]
    return results


def write_eval_results(folder: Path, recipe: Recipe, summary: Mapping[str, Any], repo_id: str, *, folded: bool) -> Path:
    """`.eval_results/DATA.yaml`: the one number, top-1 accuracy, that a leaderboard of the image set would hold.

    The format names the set by a Hub id. Where the Hub has no such set, the id is one of the publisher's own namespace,
    so that the number cannot land on somebody else's board.
    """
    data = data_source(recipe)
    values = summary["metrics"]["metrics_scaled" if folded else "last"]
    own = f"{repo_id.partition('/')[0]}/{slug(data.name)}"
    dataset = {"id": data.hub_id or own, "task_id": recipe.data.config_name or "default"}
    if data.hub_id and recipe.data.revision:
        dataset["revision"] = recipe.data.revision
    notes = (
        f"top-1 accuracy in percent on split {recipe.data.test_split}, last epoch, seed {summary['seed']}; "
        f"ECE {values['ece']:.4g} %, NLL {values['nll']:.4g}"
    )
    if data.hub_id is None:
        notes += "; the images are not a set of the Hub: the id is the publisher's own name for them"
    entry = {"dataset": dataset, "value": 100 - values["top1_error"], "notes": notes}
    path = folder / ".eval_results" / f"{slug(data.name)}.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def slug(name: str) -> str:
    """A set's name as a file's or a repository's: letters, digits, dots, dashes and underscores."""
    words = re.sub(r"-{2,}|\.{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2]))
    return words.strip("-._") or "images"


def check_metadata(folder: Path) -> int:
    """Read card and results back with the Hub's own client; returns how many results the card holds.

    Raises:
        RuntimeError: what was read is not what was written: our own mistake.
    """
    from huggingface_hub import ModelCard, metadata_load

    card = ModelCard.load(folder / "README.md")  # its model-index is parsed and checked here
    data: Any = card.data
    written = metadata_load(folder / "README.md")
    if written is None or data.to_dict() != written:
        raise RuntimeError(f"{folder / 'README.md'}: its metadata do not survive huggingface_hub")
    for path in sorted((folder / ".eval_results").glob("*.yaml")):
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        client: Any = importlib.import_module("huggingface_hub")
        if "parse_eval_result_entries" not in dir(client):
            continue  # a client older than the format
        if client.eval_result_entries_to_yaml(client.parse_eval_result_entries(entries)) != entries:
            raise RuntimeError(f"{path}: its entries do not survive huggingface_hub")
    return len(data.eval_results or [])
