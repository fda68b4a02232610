"""Trained weights by the name that a user writes: a run, finished or not, a checkpoint, a model folder or repository.

Finding them imports no torch, except for a NETWORK.TAG of timm, so that a wrong name shows at once; loading them does.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cskd_hf.errors import UserError, one_line
from cskd_hf.recipe.pretrained import find_pretrained, read_config
from cskd_hf.recipe.sections import ModelSection
from cskd_hf.runs.checkpoint_folders import NAME as CHECKPOINT
from cskd_hf.runs.checkpoint_folders import STATE, list_checkpoints, newest_intact
from cskd_hf.runs.summary import NAME as SUMMARY
from cskd_hf.runs.summary import read_recipe

if TYPE_CHECKING:
    from cskd_hf.models.load import TrainedModel

ALLOWED = "a run folder, a checkpoint in it, local-dir:FOLDER, hf-hub:OWNER/NAME or timm's NETWORK.TAG"


@dataclass(frozen=True)
class Weights:
    """Weights that are known to exist, except on the Hub.

    Attributes:
        source: as the user wrote it.
        run: the run folder, unless the weights are a model folder or repository.
        checkpoints: if they are a run's checkpoint: the candidates, newest last.
    """

    source: str
    run: Path | None = None
    checkpoints: tuple[Path, ...] = ()


def find_weights(source: str) -> Weights:
    """Look up weights without loading them.

    Args:
        source: a run folder; `RUN/checkpoints`, or one of the folders in it; `local-dir:FOLDER`; `hf-hub:OWNER/NAME`.
            Of an unfinished run, the newest checkpoint is taken. timm's NETWORK.TAG stands for its repository.

    Raises:
        UserError: there is nothing of that name, or nothing to load; says what to write instead.

    Example:
        >>> find_weights("hf-hub:owner/name")
        Weights(source='hf-hub:owner/name', run=None, checkpoints=())
    """
    kind, _, name = source.partition(":")
    if kind == "hf-hub":
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", name):
            raise UserError(f"{source}: not a repository of the Hub; write hf-hub:OWNER/NAME")
        return Weights(source)
    if kind == "local-dir":
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"{source}: {name} has no config.json; name a model folder: local-dir:RUN/model")
        return Weights(source)
    path = Path(os.path.abspath(source))
    if re.fullmatch(r"(timm/)?[a-z0-9_]+\.[a-z0-9_]+", source) and not path.exists():
        return _of_timm(source)
    if not path.is_dir():
        raise UserError(f"{source}: {'a file' if path.exists() else 'no such folder'}; name {ALLOWED}")
    if re.fullmatch(CHECKPOINT, path.name):
        return _of_checkpoints(source, path.parent.parent, [path])
    if path.name == "checkpoints":
        return _of_checkpoints(source, path.parent, list_checkpoints(path))
    checkpoints = list_checkpoints(path / "checkpoints")
    if checkpoints and not (path / SUMMARY).is_file():
        return _of_checkpoints(source, path, checkpoints)
    if (path / "model" / "config.json").is_file():
        return Weights(source, path)
    if (path / "config.json").is_file():
        raise UserError(f"{source}: a model folder; write local-dir:{source}")
    if (path / "recipe.yaml").is_file():
        raise UserError(f"{source}: neither finished nor at its first checkpoint; resume it, or name another run")
    images = "the images follow: data.dataset=FOLDER to evaluate, files or folders to predict"
    raise UserError(f"{source}: not a run folder; name {ALLOWED}; {images}")


def _of_timm(source: str) -> Weights:
    """The repository of a NETWORK.TAG; imports timm, and with it torch."""
    try:
        pretrained = find_pretrained(ModelSection(model_name=source))
    except UserError as error:
        raise UserError(f"{source}: no such folder, nor such weights of timm: {error}; name {ALLOWED}") from None
    if pretrained.cfg is None:
        raise UserError(f"{source}: no such folder, and no network of timm's; name {ALLOWED}")
    return Weights(f"hf-hub:{pretrained.name}")


def _of_checkpoints(source: str, run: Path, checkpoints: Sequence[Path]) -> Weights:
    if not checkpoints:
        raise UserError(f"{source}: no checkpoint in it; name {ALLOWED}")
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{source}: {run} has no recipe.yaml; a checkpoint needs the recipe of its run folder")
    return Weights(source, run, tuple(checkpoints))


def read_class_names(weights: Weights) -> tuple[str, ...] | None:
    """K names in label order, without loading the weights; None if they come without names.

    Raises:
        UserError: they cannot be read, or two are equal.
    """
    if weights.checkpoints and weights.run is not None:
        return _names_of_checkpoint(weights.checkpoints[-1])
    location = weights.source if weights.run is None else f"local-dir:{weights.run / 'model'}"
    try:
        config = read_config(location)
    except (OSError, ValueError) as error:
        raise UserError(f"{weights.source}: config.json cannot be read: {one_line(error)}") from error
    names = config.get("label_names")
    if not names and location.startswith("hf-hub:timm/"):
        names = _imagenet_names(config)
    if names and len(set(names)) < len(names):
        ((twice, _),) = Counter(names).most_common(1)
        raise UserError(f"{weights.source}: config.json names two classes {twice!r} in label_names; rename one")
    return tuple(map(str, names)) if names else None


def _imagenet_names(config: dict[str, Any]) -> list[str] | None:
    """WordNet's identifiers of the classes of timm's weights, which is what ImageNet's folders are called."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": config.get("num_classes")})
    return None if subset is None else ImageNetInfo(subset).label_names()


def _names_of_checkpoint(checkpoint: Path) -> tuple[str, ...]:
    try:
        return tuple(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["class_names"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{checkpoint}: state.json cannot be read: {error}") from None


def load_weights(weights: Weights) -> TrainedModel:
    """Load weights for evaluation.

    Raises:
        UserError: as `load_trained`; every checkpoint is damaged, or does not fit the recipe of its run folder.
    """
    from cskd_hf.models.load import load_trained

    if weights.checkpoints and weights.run is not None:
        return _load_checkpoint(weights.checkpoints, weights.run)
    return load_trained(weights.source)


def _load_checkpoint(checkpoints: tuple[Path, ...], run: Path) -> TrainedModel:
    from safetensors.torch import load_file

    from cskd_hf.methods.base import Experiment
    from cskd_hf.models.factory import create_backbone
    from cskd_hf.models.load import TrainedModel
    from cskd_hf.runs.checkpoint import AVERAGE, WEIGHTS

    checkpoint = newest_intact(checkpoints)
    if checkpoint is None:
        raise UserError(f"{checkpoints[-1]}: damaged; name another checkpoint, or resume the run")
    recipe = read_recipe(run)
    names = _names_of_checkpoint(checkpoint)
    # The number of images sizes a memory that evaluation does not use.
    experiment = Experiment(1, recipe.scheduler.total_epochs, names, *recipe.transform.mean_and_std)
    backbone = create_backbone(recipe.model.without_weights(), len(names))
    module: Any = recipe.method.build(backbone, experiment)
    network: Any = recipe.method.export(module)
    averaged = (checkpoint / AVERAGE).is_file()
    try:
        if averaged:
            network.load_state_dict(load_file(checkpoint / AVERAGE))
        else:
            module.load_state_dict(load_file(checkpoint / WEIGHTS))
    except RuntimeError as error:
        reason = one_line(error)
        raise UserError(f"{checkpoint}: does not fit {run / 'recipe.yaml'}: {reason}") from error
    which = f"{'averaged ' if averaged else ''}weights of {checkpoint.relative_to(run.parent)}"
    verdict = f"not calibrated: {which}; a temperature is fitted when training ends; T = 1"
    return TrainedModel(
        model=network.eval(),
        class_names=names,
        temperature=None,
        calibration=verdict,
        transform=recipe.transform.for_evaluation(),
        value_range=recipe.data.value_range,
        run=None,
    )
