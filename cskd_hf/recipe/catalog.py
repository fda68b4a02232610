"""The paper's datasets and ours by name: where they are, their columns, splits and pixel statistics.

`data/sources.py` opens the datasets, `cskd-check` compares them with these facts, and the `data` and
`transform` keys of a recipe override them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """Facts about one named dataset."""

    path: str | None  # Hub id; None: the Hub has no copy with the official split, or none is needed
    num_classes: int
    num_images: dict[str, int]  # by split
    official_split: str  # who divided the images into training and test
    citation: str
    terms: str  # licence or terms of use, in words
    licence: str  # Hub id; `other`: the set's own terms, all of which forbid commercial use; `unknown`: none stated
    prepare: str | None = None  # script that converts the original archive; None: not needed
    alternatives: tuple[str, ...] = ()  # other Hub ids with the same images, splits, columns and classes
    revision: str | None = None  # commit meant by `data.revision: null`; None: the Hub's main
    gated: bool = False  # the Hub asks users to log in and accept the terms
    data_files: dict[str, str] = field(default_factory=dict)  # split → files, if the Hub would fetch more than needed
    train_split: str = "train"
    test_split: str = "test"
    holdout: str | None = None  # split for fitting the temperature
    image_column: str = "image"
    label_column: str = "label"
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the RGB channels in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD


CATALOG = {
    "imagenet": CatalogEntry(
        path="ILSVRC/imagenet-1k",
        gated=True,
        data_files={split: f"data/{split}-*.parquet" for split in ("train", "validation", "test")},
        num_classes=1000,
        num_images={"train": 1_281_167, "validation": 50_000},
        test_split="validation",
        official_split="ILSVRC 2012's training and validation images; the labels of its test images are not public",
        citation="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 115, 2015",
        terms="non-commercial research and education; ImageNet's terms of access, to be accepted on the Hub",
        licence="other",
        prepare="scripts/prepare_imagenet.py",
    ),
    "cub200": CatalogEntry(
        path="bentrevett/caltech-ucsd-birds-200-2011",
        alternatives=("Donghyun99/CUB-200-2011",),
        num_classes=200,
        num_images={"train": 5_994, "test": 5_794},
        official_split="the authors' train_test_split.txt",
        citation="Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, Caltech CNS-TR-2011-001, 2011",
        terms="non-commercial research and education; Caltech owns no copyright in the images",
        licence="other",
        prepare="scripts/prepare_cub200.py",
    ),
    "stanford_dogs": CatalogEntry(
        path="maurice-fp/stanford-dogs",
        alternatives=("Donghyun99/Stanford-Dogs",),
        num_classes=120,
        num_images={"train": 12_000, "test": 8_580},
        official_split="the authors' train_list.mat and test_list.mat: 100 training images a class",
        citation="Khosla et al., Novel Dataset for Fine-Grained Image Categorization, FGVC workshop at CVPR 2011",
        terms="images of ImageNet, under its terms: non-commercial research and education",
        licence="other",
        prepare="scripts/prepare_stanford_dogs.py",
    ),
    "mit67": CatalogEntry(
        path=None,
        num_classes=67,
        num_images={"train": 5_360, "test": 1_340},
        official_split="the authors' TrainImages.txt and TestImages.txt: about 80 and 20 images a class",
        citation="Quattoni and Torralba, Recognizing Indoor Scenes, CVPR 2009",
        terms="research only; the images' copyright stays with their owners",
        licence="other",
        prepare="scripts/prepare_mit67.py",
    ),
    "tiny_imagenet": CatalogEntry(
        path="zh-plus/tiny-imagenet",
        num_classes=200,
        num_images={"train": 100_000, "valid": 10_000},
        test_split="valid",
        official_split="the course's training and validation images; the labels of its test images are not public",
        citation="Le and Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015",
        terms="images of ImageNet, under its terms: non-commercial research and education",
        licence="other",
        prepare="scripts/prepare_tiny_imagenet.py",
    ),
    "cifar100": CatalogEntry(
        path="uoft-cs/cifar100",
        num_classes=100,
        num_images={"train": 50_000, "test": 10_000},
        image_column="img",
        label_column="fine_label",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        official_split="the authors' training and test batches: 500 and 100 images a class",
        citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009",
        terms="no licence stated; the authors ask for the citation",
        licence="unknown",
    ),
    "fashion_mnist_1k": CatalogEntry(
        path=None,
        num_classes=10,
        num_images={"train": 1_000, "holdout": 1_000, "test": 10_000},
        holdout="holdout",
        mean=(0.287, 0.287, 0.287),
        std=(0.355, 0.355, 0.355),
        official_split="the authors' 10,000 test images; of their 60,000 training images the first 100 per class for "
        "training and the next 100 for the hold-out set [ours]",
        citation="Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
        "Algorithms, arXiv:1708.07747, 2017",
        terms="MIT; copyright 2017 Zalando SE",
        licence="mit",
        prepare="scripts/prepare_fashion_mnist_1k.py",
    ),
    "icons": CatalogEntry(
        path=None,
        num_classes=200,
        num_images={"train": 6_838, "holdout": 1_052, "test": 2_631},
        holdout="holdout",
        mean=(0.714, 0.714, 0.714),
        std=(0.424, 0.424, 0.424),
        official_split="none: by author, about 65 % of the images for training, 10 % for the hold-out set and 25 % to "
        "test [ours]",
        citation="Iconify, @iconify/json 2.2.535, npm, 2026; the authors of the sets are in manifest.json",
        terms="each set has its own permissive licence, listed in manifest.json with its author; sets under CC BY "
        "require attribution; logos are trademarks of their owners",
        licence="cc-by-4.0",  # asks more than the others do
        prepare="scripts/prepare_icons.py",
    ),
    "digits": CatalogEntry(
        path=None,
        num_classes=10,
        num_images={"train": 200, "holdout": 300, "test": 1297},
        holdout="holdout",
        mean=(0.305, 0.305, 0.305),
        std=(0.375, 0.375, 0.375),
        official_split="none: in a fixed random order, 20 images per class for training, 30 for the hold-out set, the "
        "rest to test [ours]",
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI ML repository, 1998",
        terms="CC BY 4.0; the 1,797 scans of 8×8 pixels that scikit-learn's load_digits ships",
        licence="cc-by-4.0",
    ),
}


def same_split(split: str) -> str:
    """One name for val, valid and validation: `datasets` renames some of them when it reads files."""
    return "validation" if split in ("val", "valid") else split


def catalog_name(dataset: str) -> str | None:
    """Of a catalog name, a Hub id, or a folder that one of scripts/ prepared; None for other data."""
    for name, entry in CATALOG.items():
        if dataset in (name, entry.path, *entry.alternatives):
            return name
    original = _manifest(dataset).get("name")
    return original if isinstance(original, str) and original in CATALOG else None


def entry_of(dataset: str) -> CatalogEntry | None:
    """The entry of `catalog_name`."""
    name = catalog_name(dataset)
    return None if name is None else CATALOG[name]


def note_of_copy(dataset: str) -> str | None:
    """How a folder written by scripts/resize_dataset.py differs from its original; None for other data."""
    made = _manifest(dataset).get("resized")
    if not isinstance(made, dict):
        return None
    loss = f"{made['mean_decibels']:.1f} dB" if made["num_resized"] else "no loss"
    return (
        f"the images are a copy with short sides of at most {made['short_side']} pixels (JPEG quality "
        f"{made['quality']}: {loss} against the originals resized likewise, {made['num_sampled']} sampled)"
    )


def _manifest(dataset: str) -> dict[str, Any]:
    """manifest.json of a prepared folder; empty if there is none, or another program's."""
    try:
        manifest = json.loads((Path(dataset) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
