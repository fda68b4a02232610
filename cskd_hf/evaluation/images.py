"""The images on which models are evaluated, found before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cskd_hf.errors import UserError
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.overrides import apply_overrides
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.weights import Weights, read_class_names

if TYPE_CHECKING:
    from cskd_hf.data.splits import ImageSplit

# What makes the test images of two runs the same.
_IMAGES = ("dataset", "config_name", "revision", "test_split", "image_column", "label_column", "labels")


def data_section(weights: Sequence[Weights], overrides: Sequence[str]) -> DataSection:
    """The images to evaluate on: those of the runs' recipes, with overrides.

    Raises:
        UserError: the runs have different ones, or there is no run.
    """
    for override in overrides:
        if not override.startswith("data."):
            raise UserError(f"{override}: only data.* applies to evaluation; the weights determine the rest")
    sections = {own.source: section for own in weights if (section := _section_of(own, overrides)) is not None}
    if not sections:
        raise UserError(f"{weights[0].source}: has no recipe that names the images; write data.dataset=NAME_OR_FOLDER")
    (first, section), *others = sections.items()
    for other, own in others:
        for key in _IMAGES:
            ours, theirs = getattr(section, key), getattr(own, key)
            if ours != theirs:
                raise UserError(
                    f"data.{key}: {ours} in {first}, {theirs} in {other}, so their test images differ; "
                    f"write data.{key}=… to evaluate all models on the same ones"
                )
    return section


def _section_of(weights: Weights, overrides: Sequence[str]) -> DataSection | None:
    settings, places = dict[str, Any](), dict[str, str]()
    if weights.run is not None and (weights.run / "recipe.yaml").is_file():
        settings, places = yaml_io.read(weights.run / "recipe.yaml")
    apply_overrides(settings, overrides, places)
    if "dataset" not in settings.get("data", {}):
        return None
    return resolve_data(parse_data(settings["data"], source=weights.source, places=places))


def load_splits(weights: Sequence[Weights], data: DataSection) -> list[ImageSplit]:
    """The same images for each model, labels in the order of its classes.

    Raises:
        UserError: as `load_split`, or the models have different classes.
    """
    from cskd_hf.data.splits import load_split

    names = [read_class_names(own) for own in weights]
    _check_same_classes(weights, names)
    splits = {own: load_split(data, own) for own in dict.fromkeys(names)}
    _check_same_classes(weights, [splits[own].class_names for own in names])  # of weights without names: the data's
    return [splits[own] for own in names]


def _check_same_classes(weights: Sequence[Weights], names: Sequence[Sequence[str] | None]) -> None:
    """Raises UserError unless all models that name their classes have the same ones, in any order."""
    from cskd_hf.data.labels import some

    named = [(own.source, own_names) for own, own_names in zip(weights, names, strict=True) if own_names]
    for other, own_names in named[1:]:
        first, classes = named[0]
        sides = [(first, set(classes) - set(own_names)), (other, set(own_names) - set(classes))]
        difference = "; ".join(f"only {source} has {some(sorted(only))}" for source, only in sides if only)
        if difference:
            raise UserError(f"{other}: has other classes than {first}, so their errors do not compare: {difference}")
