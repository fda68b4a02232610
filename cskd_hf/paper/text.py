"""Names, numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from cskd_hf.paper.blocks import MeanStd

_NAMES = {
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "TinyImageNet",
    "cub200": "CUB-200-2011",
    "stanford_dogs": "Stanford Dogs",
    "mit67": "MIT67",
    "imagenet": "ImageNet",
    "icons": "Icons",
    "fashion_mnist_1k": "Fashion-MNIST, 100 images per class",
    "digits": "Digits",
    "resnet10": "ResNet-10",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnext101_32x4d": "ResNeXt-101-32x4d",
    "densenet121": "DenseNet-121",
    "top1_error": "Top-1 error",
    "top5_error": "Top-5 error",
    "ece": "ECE (20 bins)",
    "ece_scaled": "ECE (20 bins) with the fitted temperature",
    "recall_at_1": "Recall@1",
}


def name_of(word: str) -> str:
    return _NAMES.get(word, word)


def number(value: MeanStd | None, *, count: bool = False, decimals: int = 2) -> str:
    """`33.50 ± 0.71`, with (n) if `count`."""
    if value is None:
        return "–"
    spread = "" if value.std is None else f" ± {value.std:.{decimals}f}"
    return f"{value.mean:.{decimals}f}{spread}" + (f" ({value.n})" if count else "")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with padded columns; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
