"""A finished run → the folder that is published: weights, card, results, recipe, environment, figures, licence.

config.json model.safetensors raw/      timm's, transformers' too; raw/ where the temperature is folded in
README.md .eval_results/*.yaml          the card and the results as the Hub reads them
recipe.yaml environment.json metrics.json figures/ LICENSE
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.hub.licences import choose_licence, licence_text
from cskd_hf.hub.scrub_paths import Public, public_recipe
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.environment import read_environments
from cskd_hf.runs.summary import read_recipe, read_summary

_NEEDED = ("summary.json", "recipe.yaml", "environment.json", "predictions.safetensors", "model/config.json")


@dataclass(frozen=True)
class Source:
    """A finished run, read.

    Attributes:
        recipe: as it ran.
        summary, environments: without a path of the machine; an environment for each segment between restarts.
        config: of `model/`.
    """

    folder: Path
    recipe: Recipe
    summary: dict[str, Any]
    environments: list[dict[str, Any]]
    config: dict[str, Any]


def read_source(run: Path) -> Source:
    """Read what a release is made from.

    Raises:
        UserError: there is no such run, it is not finished, or a file of it is damaged or of another version.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run; name a run folder of a finished training, such as runs/NAME")
    missing = [name for name in _NEEDED if not (run / name).is_file()]
    if "recipe.yaml" in missing:
        raise UserError(f"{run}: holds no run (no recipe.yaml); name a run folder of a finished training")
    if "summary.json" in missing:
        raise UserError(
            f"{run}: not finished (no summary.json); to train it to its end: python -m cskd_hf.train {run}/recipe.yaml"
        )
    if missing:
        raise UserError(f"{run}: has no {', '.join(missing)}; train it again into another folder")
    recipe = read_recipe(run)
    read_summary(run, recipe)
    public = Public(recipe)
    summary, config = (_read_json(run / name) for name in ("summary.json", "model/config.json"))
    return Source(run, recipe, public.value(summary), public.value(read_environments(run)), config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; train the run again into another folder") from None


def check_request(source: Source, *, fold: bool, licence: str | None) -> str:
    """The licence of a release, after what needs no weights to be refused is refused.

    Raises:
        UserError: no temperature to fold, or a licence that the data's terms rule out.
    """
    from cskd_hf.hub.provenance import terms_of

    if fold and source.summary["metrics"]["temperature"] is None:
        raise UserError(
            f"--fold-temperature: {source.folder} has no temperature, because no image was held out; train with "
            "data.holdout=0.1, or publish without it"
        )
    return choose_licence(licence, terms_of(source.recipe))


def build_release(
    source: Source,
    folder: Path,
    model: Any,
    repo_id: str,
    *,
    folded: Sequence[str],
    licence: str,
    seeds: Mapping[str, Any] | None,
    onnx: bool = False,
) -> None:
    """Write a release into the empty `folder`.

    Args:
        model: the timm model to publish, whose `folded` layers hold the temperature.
        seeds: as `read_seeds`.
        onnx: a model.onnx will be added; the card says so.
    """
    from cskd_hf.hub.card import release_card
    from cskd_hf.hub.card_metadata import card_metadata, write_eval_results
    from cskd_hf.hub.provenance import terms_of

    recipe, summary, run = source.recipe, source.summary, source.folder
    terms, holdout = terms_of(recipe), _holdout(run, summary["metrics"]["temperature"])
    config = _release_config(source, repo_id, licence, folded)
    _write_weights(model, folder / "model.safetensors")
    _write_json(folder / "config.json", config)
    if folded:
        (folder / "raw").mkdir()
        shutil.copyfile(run / "model" / "model.safetensors", folder / "raw" / "model.safetensors")
        _write_json(folder / "raw" / "config.json", _release_config(source, repo_id, licence, ()))
    yaml_io.write(public_recipe(recipe, Public(recipe)), folder / "recipe.yaml")
    _write_json(folder / "environment.json", {"segments": source.environments})
    _write_json(folder / "metrics.json", summary | {"holdout": holdout, "folded": list(folded), "seeds": seeds})
    (folder / "figures").mkdir()
    for figure in sorted((run / "figures").glob("*.png")):
        shutil.copyfile(figure, folder / "figures" / figure.name)
    (folder / "LICENSE").write_text(licence_text(licence, terms, repo_id), encoding="utf-8")
    needs_cskd_hf = summary["model"]["needs_cskd_hf"]
    metadata = card_metadata(recipe, summary, repo_id, licence, folded=bool(folded), needs_cskd_hf=needs_cskd_hf)
    card = release_card(
        metadata,
        repo_id,
        recipe,
        summary,
        source.environments,
        config,
        holdout=holdout,
        folded=folded,
        seeds=seeds,
        licence=licence,
        terms=terms,
        onnx=onnx,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_eval_results(folder, recipe, summary, repo_id, folded=bool(folded))


def _release_config(source: Source, repo_id: str, licence: str, folded: Sequence[str]) -> dict[str, Any]:
    """The run's config.json with what is known of its origin; our own facts under `cskd`."""
    from timm.models import PretrainedCfg

    from cskd_hf.hub.card_metadata import slug
    from cskd_hf.hub.provenance import data_source, paper_of

    config, summary = copy.deepcopy(source.config), source.summary
    paper, method = paper_of(source.recipe.method), summary["method"]["name"]
    told: dict[str, Any] = config["pretrained_cfg"] | {
        "tag": f"{method}_{slug(data_source(source.recipe).name)}",
        "license": licence,
        "origin_url": f"https://huggingface.co/{repo_id}",
        "paper_name": paper.title,
        "paper_ids": f"arXiv:{paper.arxiv}" if paper.arxiv else None,
    }
    # An unknown key would break loading.
    known = {field.name for field in fields(PretrainedCfg)}
    config["pretrained_cfg"] = {key: value for key, value in told.items() if key in known}
    temperature = summary["metrics"]["temperature"]
    config["cskd"] = {
        "method": summary["method"],
        # Folded, it must not divide a second time.
        "temperature": 1.0 if folded else temperature,
        **({"folded_temperature": temperature, "folded_into": list(folded)} if folded else {}),
        "recipe_hash": summary["recipe_hash"],
        "dataset": summary["dataset"],
        "epochs": summary["epochs"],
        "seed": summary["seed"],
        "needs_cskd_hf": summary["model"]["needs_cskd_hf"],
        "cskd_hf": source.environments[-1]["cskd_hf"],
    }
    return config


def _holdout(run: Path, temperature: float | None) -> dict[str, Any] | None:
    """What the fit did on the images it was made on."""
    from safetensors.torch import load_file

    from cskd_hf.evaluation.calibration import apply_temperature
    from cskd_hf.evaluation.metrics import ece, nll

    if temperature is None:
        return None
    held = load_file(run / "predictions.safetensors")
    logits, target = held["holdout_logits"], held["holdout_target"]
    scaled = apply_temperature(logits, temperature)
    return {
        "images": len(target),
        "nll": nll(logits, target),
        "nll_scaled": nll(scaled, target),
        "ece": ece(logits, target),
        "ece_scaled": ece(scaled, target),
    }


def _write_weights(model: Any, path: Path) -> None:
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    path.write_bytes(save(weights, metadata={"format": "pt"}))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
