"""Fill the keys that a recipe leaves null from the catalog and the pretrained weights; no image is read."""

from __future__ import annotations

from typing import Any

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD, entry_of
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import TRANSFORM_DEFAULTS, DataSection, ModelSection, TransformSection, fill


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
    """Fill null splits, columns, hold-out and revision from the catalog, else columns with the usual names.

    Splits that are still null are found in the data, see `cskd_hf.data.choose`.
    """
    defaults: dict[str, Any] = {"train_split": None, "test_split": None, "holdout": 0.0}
    defaults |= {"image_column": "image", "label_column": "label", "revision": None}
    entry = entry_of(data.dataset)
    if entry is not None:
        defaults |= {key: value for key, value in vars(entry).items() if key in defaults and value is not None}
    return fill(data, defaults)


def resolve_transform(transform: TransformSection, data: DataSection, model: ModelSection) -> TransformSection:
    """Fill null mean, std, interpolation, crop_pct and crop_mode with those of the pretrained weights, if any.

    Without them, mean and std are the catalog's, else ImageNet's, and the rest `TRANSFORM_DEFAULTS`.
    """
    entry = entry_of(data.dataset)
    defaults: dict[str, Any] = dict(TRANSFORM_DEFAULTS)
    defaults |= (
        {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if entry is None else {"mean": entry.mean, "std": entry.std}
    )
    if model.pretrained:
        from timm.models import get_pretrained_cfg

        pretrained = get_pretrained_cfg(model.model_name)
        if pretrained is not None:
            defaults = {key: getattr(pretrained, key) or default for key, default in defaults.items()}
    return fill(transform, defaults)
