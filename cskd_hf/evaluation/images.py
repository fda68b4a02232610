"""The images on which models are evaluated, found before torch is imported."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cskd_hf.errors import UserError
from cskd_hf.evaluation.inputs import find_images
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.catalog import CATALOG, catalog_name
from cskd_hf.recipe.overrides import apply_overrides
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.summary import read_recipe
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
    own_images = [own for own in weights if own.run is not None] or weights  # without a run: the overrides alone
    sections = {own.source: section for own in own_images if (section := _section_of(own, overrides)) is not None}
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
    uses = _uses(weights, data)
    splits = {own: load_split(data, own) for own in dict.fromkeys(names)}
    if isinstance(data.test_split, float) and data.labels == "name":
        # Which images a share takes depends on the order of the classes: here on that of a run, which left them out.
        first = next((place for place, own in enumerate(weights) if own.run), 0)
        reference = splits[names[first]]
        for own, own_names in zip(weights, names, strict=True):
            if splits[own_names].class_names != reference.class_names:
                order = f"{own.source} has another order of classes than {weights[first].source}"
                uses += (f"{order}, which decides the share of test images: it may have trained on some of them",)
        splits = {own: _renumbered(reference, split.class_names) for own, split in splits.items()}
    splits = {own: dataclasses.replace(split, notes=split.notes + uses) for own, split in splits.items()}
    _check_same_classes(weights, [splits[own].class_names for own in names])  # of weights without names: the data's
    return [splits[own] for own in names]


def _renumbered(split: ImageSplit, class_names: tuple[str, ...]) -> ImageSplit:
    """The same images, labels in the order of other names of the same classes."""
    from cskd_hf.data.labels import StoredLabels, renumber

    stored = StoredLabels(f"split {split.name!r}", "names", split.labels, split.class_names, listed=True)
    return dataclasses.replace(split, labels=renumber(stored, class_names)[0], class_names=class_names)


def _uses(weights: Sequence[Weights], data: DataSection) -> tuple[str, ...]:
    """Notes about runs that have already used the images: trained on them, or fitted a temperature."""
    notes = []
    for own in weights:
        if own.run is not None and (own.run / "recipe.yaml").is_file():
            before = read_recipe(own.run).data
            used = {before.holdout: "fitted its temperature to", before.train_split: "was trained on"}
            # A number is a share, which differs from a hold-out share of the same size.
            named = isinstance(data.test_split, str) and data.test_split in used
            if named and (before.dataset, before.config_name) == (data.dataset, data.config_name):
                verb = used[data.test_split]
                notes.append(f"{own.source} {verb} split {data.test_split!r}: expect worse results on new images")
    return tuple(notes)


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


def load_ood(name: str, data: DataSection) -> ImageSplit:
    """Images of other classes: the test images of a dataset, or all images of a folder without splits.

    Args:
        name: what `data.dataset` takes, or a folder of images; labels are not needed, and 0 in the result.
        data: the images that the models know, resolved.

    Raises:
        UserError: no such data, no images, or it is the data that the models know.
    """
    from cskd_hf.data.columns import images_only
    from cskd_hf.data.labels import join_labels, stored_labels
    from cskd_hf.data.sources import open_splits

    other = resolve_data(DataSection(dataset=name))
    if _holds_test_images(other.dataset, data):
        raise UserError(f"--ood: {name} holds the images that the models are tested on; name other images")
    try:
        if other.dataset not in CATALOG and os.path.isdir(other.dataset) and not _has_splits(Path(other.dataset)):
            return split_of_files(find_images([other.dataset]), Path(other.dataset))
        opened = open_splits(other, train=False)
        ((role, table),) = opened.tables.items()
        where, label = f"split {opened.names[role]!r}", other.label_column or ""
        if other.image_column not in table.column_names:
            columns = ", ".join(table.column_names)
            raise UserError(f"{where} has no column {other.image_column!r}; it has {columns}; name a folder of files")
        names = join_labels([stored_labels(table, label, where)], label)[1] if label in table.column_names else ()
        return _unlabelled(opened.names[role], images_only(table, where, other), names)
    except UserError as error:
        raise UserError(f"--ood: {name}: {str(error).removeprefix('data.dataset: ')}") from error


def _holds_test_images(dataset: str, data: DataSection) -> bool:
    """Whether a dataset is the known one, a folder around it, or its test split's folder."""
    name = catalog_name(dataset)
    if dataset == data.dataset or (name is not None and name == catalog_name(data.dataset)):
        return True
    if data.dataset in CATALOG or not (os.path.isdir(dataset) and os.path.isdir(data.dataset)):
        return False
    known, own = Path(data.dataset).resolve(), Path(dataset).resolve()
    test = known / str(data.test_split)
    return own in (known, *known.parents, test, *test.parents) or test in own.parents


def _has_splits(root: Path) -> bool:
    """Whether a folder is no mere folder of images: folders or files are named like splits, or no file is an image."""
    from cskd_hf.data.choose import is_split_word
    from cskd_hf.data.class_folders import split_folders
    from cskd_hf.data.formats import readable_extensions

    extensions, folders = readable_extensions(), split_folders(root)
    if root not in folders.values() and any(map(is_split_word, folders)):
        return True
    lists = [path for path in root.iterdir() if path.is_file() and path.suffix.lower() not in extensions]
    return any(is_split_word(path.stem) for path in lists) or not any(
        path.suffix.lower() in extensions for path in root.rglob("*")
    )


def split_of_files(paths: Sequence[str], root: Path | None = None) -> ImageSplit:
    """Files without labels, as rows of images; the folders directly below `root` are the names of classes."""
    from datasets import Dataset, Features, Image

    images = Dataset.from_dict(
        {"image": [{"bytes": None, "path": path} for path in paths]}, features=Features({"image": Image(decode=False)})
    )
    below = () if root is None else (Path(path).relative_to(root).parts for path in paths)
    return _unlabelled("files", images, dict.fromkeys(parts[0] for parts in below if len(parts) > 1))


def _unlabelled(name: str, images: Any, class_names: Iterable[str]) -> ImageSplit:
    import numpy as np

    from cskd_hf.data.splits import ImageSplit

    return ImageSplit(name, images, np.zeros(len(images), np.int64), tuple(class_names), np.arange(len(images)))
