"""ImageNet-like JPEGs made of photographs that ship in installed packages, as a folder and as Arrow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

NUM_CLASSES = 20


def photographs() -> list[Pillow.Image]:
    """Every photograph that the installed packages ship, large enough."""
    from sklearn.datasets import load_sample_images

    found = [Pillow.fromarray(image) for image in load_sample_images().images]
    try:
        from skimage import data
    except ImportError:
        return found
    return found + [Pillow.fromarray(image) for image in (data.astronaut(), data.coffee(), data.chelsea())]


def jpegs(count: int) -> list[bytes]:
    """Crops of the photographs, each mirrored, tinted and grained in its own way."""
    sources, draws, made = photographs(), np.random.RandomState(0), []
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
        made.append(buffer.getvalue())
    return made


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
