"""Load trained weights from a run folder, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from PIL.Image import Resampling
from safetensors import SafetensorError
from timm.data import resolve_model_data_config

from cskd_hf.errors import UserError, one_line
from cskd_hf.recipe.pretrained import read_config
from cskd_hf.recipe.sections import TransformSection


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and what its predictions depend on.

    Attributes:
        model: the timm model, in eval mode.
        class_names: K names; None if the weights come without names.
        temperature: divides the logits; None if the weights are not calibrated.
        calibration: whether they are, on what evidence, or why not.
        transform: the preprocessing, mean and std included.
        value_range: the values of black and white in images deeper than 8 bits; None: by their format.
        run: the run folder, if the source is one.
        train_images: of each class; None if the weights come without these numbers.
        folded_temperature: what the classifier's weights are already divided by.
    """

    model: Any
    class_names: tuple[str, ...] | None
    temperature: float | None
    calibration: str
    transform: TransformSection
    value_range: tuple[float, float] | None
    run: Path | None
    train_images: tuple[int, ...] | None = None
    folded_temperature: float = 1.0


def load_trained(source: str) -> TrainedModel:
    """Load weights for evaluation.

    Args:
        source: a run folder, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.

    Raises:
        UserError: there is no such folder or repository, timm cannot load its weights, or they are no classifier of the
            classes that config.json names.

    Example:
        >>> from cskd_hf import load_trained
        >>> trained = load_trained("runs/example")
        >>> trained.class_names, trained.temperature
        (('cat', 'dog'), 1.5)
    """
    run, location = None, source
    if not source.startswith(("local-dir:", "hf-hub:")):
        run = Path(source)
        if not (run / "model" / "config.json").is_file():
            raise UserError(f"{source}: not a finished run; name a run folder, local-dir:FOLDER or hf-hub:OWNER/NAME")
        location = f"local-dir:{run / 'model'}"
    try:
        config = read_config(location)
        model = timm.create_model(location, pretrained=True).eval()
        preprocessing = resolve_model_data_config(model, use_test_size=True)  # as timm's validate.py
    except (AssertionError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = f"config.json has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{source}: timm cannot load these weights: {reason or type(error).__name__}") from error
    names, facts = config.get("label_names"), config.get("cskd", {})
    if not isinstance(facts, dict):
        raise UserError(f"{source}: config.json: cskd: read {facts!r}; write an object, or remove it")
    if preprocessing["interpolation"].upper() not in Resampling.__members__:
        raise UserError(
            f"{source}: config.json: interpolation: read {preprocessing['interpolation']!r}; allowed: "
            f"{', '.join(Resampling.__members__).lower()}"
        )
    if model.num_classes == 0:
        raise UserError(f"{source}: has no classifier: it is an encoder of features; name another model")
    if names and len(names) != model.num_classes:
        raise UserError(
            f"{source}: config.json names {len(names)} classes in label_names, but the network has "
            f"{model.num_classes}; correct the list, or remove it"
        )
    background = facts.get("background", TransformSection().background)
    background = tuple(background) if isinstance(background, list) else background
    # Not validated: evaluation takes whatever timm does.
    transform = TransformSection(background=background).model_copy(update=preprocessing)
    temperature, black_white = facts.get("temperature"), facts.get("value_range")
    if temperature is not None and not (isinstance(temperature, int | float) and temperature > 0):
        raise UserError(
            f"{source}: config.json: cskd.temperature: read {temperature!r}; write a number above 0, or null"
        )
    unknown = "no temperature comes with these weights" if temperature is None else "nothing says how T was fitted"
    return TrainedModel(
        model,
        tuple(map(str, names)) if names else None,
        temperature,
        facts.get("calibration", f"not known to be calibrated: {unknown}"),
        transform,
        None if black_white is None else tuple(black_white),
        run,
        tuple(facts["train_images_per_class"]) if "train_images_per_class" in facts else None,
        facts.get("folded_temperature", 1.0),
    )
