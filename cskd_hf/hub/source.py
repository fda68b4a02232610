"""A finished run, and the release to make from it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.evaluation.holdout import read_holdout
from cskd_hf.hub.licences import Licence
from cskd_hf.hub.paths import PathScrubber
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.environment import read_environments
from cskd_hf.runs.summary import Summary, read_recipe, read_summary

_NEEDED = ("summary.json", "recipe.yaml", "environment.json", "predictions.safetensors", "model/config.json")


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        recipe: as it ran.
        summary: without paths of the machine.
        environments: likewise; one per segment between restarts, from `read_environments`.
        config: config.json of `model/`.
    """

    folder: Path
    recipe: Recipe
    summary: Summary
    environments: list[dict[str, Any]]
    config: dict[str, Any]

    @property
    def num_features(self) -> int:
        """Of an image: what the network returns without its classifier, which may not be timm's `num_features`."""
        from safetensors import safe_open

        with safe_open(self.folder / "predictions.safetensors", framework="np") as predictions:
            return int(predictions.get_slice("features").get_shape()[1])

    @functools.cached_property
    def holdout(self) -> dict[str, Any] | None:
        """Number of hold-out images, their NLL and ECE before and after scaling; None without a temperature."""
        from cskd_hf.evaluation.confidence import ece
        from cskd_hf.evaluation.metrics import nll

        temperature = self.summary.metrics.temperature
        if temperature is None:
            return None
        logits, target = read_holdout(self.folder)
        results: dict[str, Any] = {"images": len(target)}
        for metric in (nll, ece):
            results[metric.__name__] = metric(logits, target)
            results[f"{metric.__name__}_scaled"] = metric(logits, target, temperature=temperature)
        return results


@dataclass(frozen=True)
class Release:
    """What is published of a run, and how.

    Attributes:
        repo_id: ORG/NAME.
        licence: from `choose_licence`.
        folded: layers that are divided by the temperature; empty if the weights are as trained.
        seeds: from `read_seeds`.
        onnx: with a model.onnx.
    """

    source: Source
    repo_id: str
    licence: Licence
    folded: Sequence[str] = ()
    seeds: Mapping[str, Any] | None = None
    onnx: bool = False


def read_source(run: Path) -> Source:
    """Read what a release is made from.

    Raises:
        UserError: the run does not exist or is not finished, or one of its files is damaged or of another version.
    """
    missing = [name for name in _NEEDED if not (run / name).is_file()]
    if "recipe.yaml" in missing:
        raise UserError(f"{run}: not a run folder (no recipe.yaml); name the run folder of a finished training")
    if missing:
        raise UserError(
            f"{run}: not finished (no {', '.join(missing)}); to finish it: python -m cskd_hf.train {run}/recipe.yaml"
        )
    recipe = read_recipe(run)
    scrubber = PathScrubber(recipe)
    summary = Summary.model_validate(scrubber.value(read_summary(run, recipe).model_dump(mode="json")))
    config = json.loads((run / "model" / "config.json").read_bytes())
    return Source(run, recipe, summary, scrubber.value(read_environments(run)), config)
