"""Fill the keys that a recipe leaves null from the catalog and the pretrained weights; no image is read."""

from __future__ import annotations

from typing import Any

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD, entry_of
from cskd_hf.recipe.pretrained import find_pretrained
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import TRANSFORM_DEFAULTS, DataSection, ModelSection, TransformSection, fill, of_channels


def resolve(recipe: Recipe) -> Recipe:
    """Fill null keys of `data` and `transform`, and `model.in_chans` unless images are RGB.

    Example:
        >>> from cskd_hf import load_recipe, resolve
        >>> recipe = load_recipe("recipes/digits_resnet10.yaml")
        >>> recipe.transform.mean, resolve(recipe).transform.mean
        (None, (0.305, 0.305, 0.305))
    """
    transform = resolve_transform(recipe.transform, recipe.data, recipe.model)
    channels = transform.input_size[0]
    model = fill(recipe.model, {"in_chans": None if channels == 3 else channels})
    return recipe.model_copy(update={"data": resolve_data(recipe.data), "transform": transform, "model": model})


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
    """Fill null mean, std, interpolation, crop_pct, crop_mode and test_input_size with the pretrained weights', if any.

    Without them, mean and std are the catalog's, else ImageNet's, and the rest `TRANSFORM_DEFAULTS`. For other images
    than RGB, mean and std are made of those three by `of_channels`. The test size of weights is that of images larger
    than those they were trained with: it does not fit another `input_size`, nor a network of fixed size.
    """
    entry = entry_of(data.dataset)
    defaults: dict[str, Any] = dict(TRANSFORM_DEFAULTS)
    defaults |= (
        {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if entry is None else {"mean": entry.mean, "std": entry.std}
    )
    pretrained = find_pretrained(model).cfg if model.from_weights else None
    if pretrained is not None:
        defaults = {key: getattr(pretrained, key) or default for key, default in defaults.items()}
        own_size, test_size = tuple(pretrained.input_size), tuple(pretrained.test_input_size or pretrained.input_size)
        if transform.input_size == own_size != test_size and not pretrained.fixed_input_size:
            transform = fill(transform, {"test_input_size": test_size})
        if transform.for_evaluation().input_size == test_size:
            defaults["crop_pct"] = pretrained.test_crop_pct or defaults["crop_pct"]
    defaults |= {key: of_channels(defaults[key], transform.input_size[0]) for key in ("mean", "std")}
    return fill(transform, defaults)
