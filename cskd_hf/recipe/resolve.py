"""Fill the keys that a recipe leaves null from the catalog and the pretrained weights; no image is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD, entry_of
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import DataSection, ModelSection, Section, TransformSection

Kind = TypeVar("Kind", bound=Section)


def resolve(recipe: Recipe) -> Recipe:
    """Fill null keys of `data` and `transform`.

    Example:
        >>> from cskd_hf import load_recipe, resolve
        >>> recipe = load_recipe("recipes/digits_resnet10.yaml")
        >>> recipe.transform.mean, resolve(recipe).transform.mean
        (None, (0.305, 0.305, 0.305))
    """
    transform = resolve_transform(recipe.transform, recipe.data, recipe.model)
    return recipe.model_copy(update={"data": resolve_data(recipe.data), "transform": transform})


def resolve_data(data: DataSection) -> DataSection:
    """Fill null splits, columns, hold-out and revision from the catalog, else with the usual names."""
    defaults: dict[str, Any] = {"train_split": "train", "test_split": "test", "holdout": 0.0}
    defaults |= {"image_column": "image", "label_column": "label", "revision": None}
    entry = entry_of(data.dataset)
    if entry is not None:
        defaults |= {key: value for key, value in vars(entry).items() if key in defaults and value is not None}
    return _fill(data, defaults)


def resolve_transform(transform: TransformSection, data: DataSection, model: ModelSection) -> TransformSection:
    """Fill null mean and std from the pretrained weights, else from the catalog, else with ImageNet's."""
    entry = entry_of(data.dataset)
    statistics = (
        {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if entry is None else {"mean": entry.mean, "std": entry.std}
    )
    if model.pretrained:
        from timm.models import get_pretrained_cfg

        pretrained = get_pretrained_cfg(model.model_name)
        if pretrained is not None:
            statistics = {"mean": pretrained.mean, "std": pretrained.std}
    return _fill(transform, statistics)


def _fill(section: Kind, defaults: Mapping[str, Any]) -> Kind:
    """A copy of `section` with `defaults` for its null keys."""
    written = section.model_dump(exclude_none=True)
    return section.model_copy(update={key: value for key, value in defaults.items() if key not in written})
