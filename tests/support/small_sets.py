"""Image sets of a few rows, as class folders and as tables in every layout."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage

from cskd_hf.data.decode import decode
from cskd_hf.data.splits import Images, ImageSplit, load_images
from cskd_hf.recipe.sections import DataSection

GARBAGE = b"no image at all"


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(np.full((4, 4), level, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def section(dataset: Path | str, **keys: Any) -> DataSection:
    defaults = {"train_split": "train", "test_split": "test", "image_column": "image", "label_column": "label"}
    return DataSection.model_validate({"dataset": str(dataset), **defaults, **keys})


def load(dataset: Path | str, **keys: Any) -> Images:
    return load_images(section(dataset, **keys))


def level_of(split: ImageSplit, index: int) -> int:
    """The grey level, which identifies an image."""
    return decode(split.fetch([index])[0]).getpixel((0, 0))[0]


def write(root: Path, *files: str, content: bytes = GARBAGE) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    return root


def table(
    labels: list[Any],
    label: Any = None,
    image: Any = None,
    image_column: str = "image",
    label_column: str = "label",
    images: list[Any] | None = None,
) -> Dataset:
    """A split of undecodable images, unless `images` are given."""
    features = Features({image_column: image or Image(), label_column: label or Value("int64")})
    images = [{"bytes": GARBAGE, "path": None}] * len(labels) if images is None else images
    return Dataset.from_dict({image_column: images, label_column: labels}, features=features)


def as_parquet(root: Path, **splits: Dataset) -> Path:
    (root / "data").mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
    return root


def as_dataset_dict(root: Path, **splits: Dataset) -> Path:
    DatasetDict(splits).save_to_disk(str(root), num_proc=None)
    return root


def as_split_folders(root: Path, **splits: Dataset) -> Path:
    for name, split in splits.items():
        split.save_to_disk(str(root / name), num_shards=1)
    return root


LAYOUTS = [as_parquet, as_dataset_dict, as_split_folders]
ABC = ClassLabel(names=["ant", "bee", "cat"])


def as_arrow(folder: Path, root: Path) -> Path:
    """An image folder as a saved dataset, with the image bytes in Arrow."""
    splits = {}
    for split in ("train", "test"):
        files = sorted((folder / split).rglob("*.png"))
        names = sorted({file.parent.name for file in files})
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        images = [{"bytes": file.read_bytes(), "path": None} for file in files]
        labels = [names.index(file.parent.name) for file in files]
        splits[split] = Dataset.from_dict({"image": images, "label": labels}, features=features)
    return as_dataset_dict(root, **splits)
