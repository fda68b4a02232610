"""Fill the keys that a recipe leaves null from the catalog and the pretrained weights."""

from __future__ import annotations

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD, entry_of
from cskd_hf.recipe.recipe import Recipe


def resolve(recipe: Recipe) -> Recipe:
    """Fill the `data` and `transform` keys left null from the catalog; no image is touched.

    The pretrained weights' own statistics come before the catalog's: those are what the backbone was trained with.

    Example:
        >>> from cskd_hf import load_recipe, resolve
        >>> recipe = load_recipe("recipes/digits_resnet10.yaml")
        >>> recipe.transform.mean, resolve(recipe).transform.mean
        (None, (0.305, 0.305, 0.305))
    """
    entry = entry_of(recipe.data.dataset)
    defaults = {"train_split": "train", "test_split": "test", "holdout": 0.0}
    defaults |= {"image_column": "image", "label_column": "label", "revision": None}
    statistics = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if entry is not None:
        defaults |= {key: getattr(entry, key) for key in defaults if getattr(entry, key) is not None}
        statistics = {"mean": entry.mean, "std": entry.std}
    if recipe.model.pretrained:
        from timm.models import get_pretrained_cfg

        pretrained = get_pretrained_cfg(recipe.model.model_name)
        if pretrained is not None:
            statistics = {"mean": pretrained.mean, "std": pretrained.std}
    return recipe.replace(
        data={key: value for key, value in defaults.items() if getattr(recipe.data, key) is None},
        transform={key: value for key, value in statistics.items() if getattr(recipe.transform, key) is None},
    )
