"""Image sets by name: where they are, their columns and splits, and the statistics their pixels are scaled by.

Facts only; `data/sources.py` opens them, `check.py` compares what was opened with what is written here. A recipe's own
`data` and `transform` keys override any of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One named image set.

    Attributes:
        path: Hub id; None where the Hub has no set with the official split, or the set needs no Hub.
        alternatives: other Hub ids with the same images, split, columns and classes: `data.dataset=ID`.
        revision: the commit that `data.revision: null` means; None follows the Hub's main.
        gated: the Hub asks to accept the set's terms and to log in.
        data_files: files of each split in the Hub's repository, where its own list would fetch more than is asked for.
        num_classes: classes of the official set.
        num_images: images a split.
        holdout: a split of its own for the temperature, where the set has one.
        mean, std: of the RGB channels in [0, 1], as the paper normalises them.
        official_split: whose division into training and test images this is.
        citation: the set's paper.
        terms: licence or terms of use, in words.
        licence: the Hub's identifier: `other` for terms of the set's own, all of which forbid commercial use; `unknown`
            if the authors state none.
        prepare: the script that makes a folder of the original archive; None where none is needed.
    """

    path: str | None
    num_classes: int
    num_images: dict[str, int]
    official_split: str
    citation: str
    terms: str
    licence: str
    prepare: str | None = None
    alternatives: tuple[str, ...] = ()
    revision: str | None = None
    gated: bool = False
    data_files: dict[str, str] = field(default_factory=dict)
    train_split: str = "train"
    test_split: str = "test"
    holdout: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    mean: tuple[float, float, float] = IMAGENET_MEAN
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
        official_split="the authors' 10,000 test images; of their 60,000 training images the first 100 of each class "
        "to train, the next 100 held out [ours]",
        citation="Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
        "Algorithms, arXiv:1708.07747, 2017",
        terms="MIT; copyright 2017 Zalando SE",
        licence="mit",
        prepare="scripts/prepare_fashion_mnist_1k.py",
    ),
    "digits": CatalogEntry(
        path=None,
        num_classes=10,
        num_images={"train": 200, "holdout": 300, "test": 1297},
        holdout="holdout",
        mean=(0.305, 0.305, 0.305),
        std=(0.375, 0.375, 0.375),
        official_split="none: 20 of each class to train, 30 held out, the rest to test, in a fixed random order [ours]",
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI ML repository, 1998",
        terms="CC BY 4.0; the 1,797 scans of 8×8 pixels that scikit-learn's load_digits ships",
        licence="cc-by-4.0",
    ),
}


def entry_of(dataset: str) -> CatalogEntry | None:
    """The facts of a set by its name or Hub id, or of a folder that a script made of its original archive, or None."""
    if dataset in CATALOG:
        return CATALOG[dataset]
    for entry in CATALOG.values():
        if dataset in (entry.path, *entry.alternatives):
            return entry
    try:
        return CATALOG[json.loads((Path(dataset) / "manifest.json").read_text(encoding="utf-8"))["name"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # somebody else's manifest, or none


def note_of_copy(dataset: str) -> str | None:
    """What a report has to say where `data.dataset` is a folder that scripts/resize_dataset.py made."""
    try:
        made = json.loads((Path(dataset) / "manifest.json").read_text(encoding="utf-8"))["resized"]
        loss = f"{made['mean_decibels']:.1f} dB" if made["num_resized"] else "no loss"
        return (
            f"the images are a copy with short sides of at most {made['short_side']} pixels (JPEG quality "
            f"{made['quality']}: {loss} against the originals made smaller likewise, {made['num_sampled']} sampled)"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no folder, no manifest, or one of another kind
