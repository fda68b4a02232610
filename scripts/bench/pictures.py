"""Images for the benchmarks: ImageNet-like JPEGs as a folder and as Arrow, and large sets of tiny images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, disable_progress_bars
from PIL import Image as Pillow

NUM_CLASSES = 20


def photographs() -> list[Pillow.Image]:
    """The photographs that installed packages ship."""
    from sklearn.datasets import load_sample_images

    images = [Pillow.fromarray(image) for image in load_sample_images().images]
    try:
        from skimage import data
    except ImportError:
        return images
    return images + [Pillow.fromarray(image) for image in (data.astronaut(), data.coffee(), data.chelsea())]


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """Random crops of the photographs, mirrored, tinted and grained, 500×375 or 375×500, about 95 kB."""
    sources, draws, files = photographs(), np.random.RandomState(seed), []
    for number in range(count):
        source = sources[number % len(sources)]
        size = (500, 375) if draws.rand() < 0.75 else (375, 500)
        scale = draws.uniform(0.75, 1.0) * min(source.width / size[0], source.height / size[1])
        width, height = int(size[0] * scale), int(size[1] * scale)
        left, top = draws.randint(source.width - width + 1), draws.randint(source.height - height + 1)
        picture = source.resize(size, Pillow.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        pixels = np.asarray(picture, dtype=np.float32)[:, :: 1 if draws.rand() < 0.5 else -1]
        grain = draws.normal(0, 8, (*pixels.shape[:2], 1)) + draws.uniform(-20, 20, 3)
        buffer = io.BytesIO()
        picture = Pillow.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        picture.save(buffer, "JPEG", quality=93, subsampling=2)
        files.append(buffer.getvalue())
    return files


def as_folder(files: list[bytes], labels: np.ndarray, root: Path) -> Path:
    for number, (data, label) in enumerate(zip(files, labels, strict=True)):
        folder = root / f"class{label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.JPEG").write_bytes(data)
    return root


def as_arrow(files: list[bytes], labels: np.ndarray, root: Path) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(num_classes=NUM_CLASSES)})
    rows = {"image": [{"bytes": data, "path": None} for data in files], "label": labels.tolist()}
    Dataset.from_dict(rows, features=features).save_to_disk(str(root))
    return Dataset.load_from_disk(str(root))


def save_tiny_images(folder: Path, num_train: int, num_test: int) -> None:
    """A saved dataset of 8×8 PNGs, no two alike, in 1,000 classes; rows are sorted by class."""
    disable_progress_bars()
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), (200, 30, 90)).save(buffer, "PNG")
    features = Features({"image": Image(), "label": ClassLabel(num_classes=1000)})

    def split(count: int, salt: str) -> Dataset:
        # Decoders ignore the bytes behind a PNG's end; they make the images differ.
        images = [{"bytes": buffer.getvalue() + f"{salt}{i}".encode(), "path": None} for i in range(count)]
        return Dataset.from_dict({"image": images, "label": np.arange(count) * 1000 // count}, features=features)

    DatasetDict(train=split(num_train, "t"), test=split(num_test, "v")).save_to_disk(str(folder))
