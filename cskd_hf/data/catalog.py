"""Image sets by name: where they are, their columns and splits, and the statistics their pixels are scaled by.

Facts only; `data/load.py` does the loading. A recipe's own `data` and `transform` keys override any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One named image set.

    Attributes:
        path: Hub id, or None for the set that ships with scikit-learn.
        num_classes: classes of the official set.
        num_images: images a split.
        holdout: a split of its own for the temperature, where the set has one.
        mean, std: of the RGB channels in [0, 1], as the paper normalises them.
    """

    path: str | None
    num_classes: int
    num_images: dict[str, int]
    train_split: str = "train"
    test_split: str = "test"
    holdout: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


CATALOG = {
    # scikit-learn's load_digits: 1,797 scans of handwritten digits, 8×8, from the UCI ML repository (CC BY 4.0).
    "digits": CatalogEntry(
        path=None,
        num_classes=10,
        num_images={"train": 200, "holdout": 300, "test": 1297},
        holdout="holdout",
        mean=(0.305, 0.305, 0.305),
        std=(0.376, 0.376, 0.376),
    ),
    "imagenet": CatalogEntry(
        path="ILSVRC/imagenet-1k",
        num_classes=1000,
        num_images={"train": 1_281_167, "validation": 50_000},
        test_split="validation",
    ),
    "cub200": CatalogEntry(
        path="bentrevett/caltech-ucsd-birds-200-2011", num_classes=200, num_images={"train": 5_994, "test": 5_794}
    ),
    "stanford_dogs": CatalogEntry(
        path="maurice-fp/stanford-dogs", num_classes=120, num_images={"train": 12_000, "test": 8_580}
    ),
    "tiny_imagenet": CatalogEntry(
        path="zh-plus/tiny-imagenet",
        num_classes=200,
        num_images={"train": 100_000, "valid": 10_000},
        test_split="valid",
    ),
    "cifar100": CatalogEntry(
        path="uoft-cs/cifar100",
        num_classes=100,
        num_images={"train": 50_000, "test": 10_000},
        image_column="img",
        label_column="fine_label",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
}
