"""Images per second from files to batches of pairs: what people use today, and this package.

    python scripts/bench/loader.py [--images 600] [--workers 2] [--repeats 7] [--output FOLDER]

The data are ImageNet-like JPEGs (500×375 and 375×500, 4:2:0, about 95 kB) made of photographs that ship in installed
packages. Every variant loads both images of N pairs through a real DataLoader with the same number of persistent
workers. A repeat runs every variant once, in random order, and ratios compare times of the same repeat.
RandomResizedCrop(224) and flip everywhere.

    authors'-style     a folder, Pillow, torchvision, float batches; pairs by a list of lists
    timm               create_loader on the folder, without its copy to the device; single images: it has no pairs
    timm on Arrow      datasets.Image() and timm's transforms, pairs by one index list per batch
    DALI               its CPU operators on the folder, as many threads, if nvidia-dali is installed; single images
    ours               decodes the whole JPEG, or only the crop (ROI) if libjpeg-turbo >= 3 is found; from the files,
                       and from a copy made by scripts/resize_dataset.py (256 pixels, quality 90)

Fidelity compares crops with Pillow's decoding, cropping and resizing of the same boxes of the original files.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, Image
from others import Epoch, authors, dali, timm_arrow, timm_folder
from pictures import NUM_CLASSES, as_arrow, as_folder, jpegs
from PIL import Image as Pillow
from reporting import alternate, bench_parser, ratios, report, spread, table

from cskd_hf.data import crops, roi
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.decode import Box, Picture
from cskd_hf.data.pairing import ClassPairSampler, PairedImages
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.build import make_loader
from cskd_hf.recipe.sections import TransformSection

sys.path.append(str(Path(__file__).resolve().parents[1]))
from resize_dataset import resized_bytes

AUTHORS, TIMM = "authors'-style", "timm create_loader"


def ours(data: Dataset, args: argparse.Namespace, with_roi: bool = False) -> Epoch:
    labels = data.with_format("arrow")["label"].to_numpy()
    encoded = data.select_columns(["image"]).cast_column("image", Image(decode=False))
    split = ImageSplit("train", encoded, labels, tuple(map(str, range(NUM_CLASSES))), np.arange(len(labels)))
    batches = GlobalBatches(ClassPairSampler(labels), args.batch_size)
    loader = make_loader(PairedImages(split, Transform(TransformSection(), True)), batches, args.workers, False)
    num_epochs = 0

    def epoch() -> int:
        nonlocal num_epochs
        batches.start_epoch(num_epochs)
        num_epochs += 1
        roi.enabled = with_roi  # inherited by the workers, which start at the first epoch
        return sum(len(batch.target) for batch in loader)

    return epoch


class Fidelity(NamedTuple):
    """Differences of crops from Pillow's, in levels."""

    worst: int
    share_over_one: float  # of all numbers
    decibels: float  # mean PSNR of the crops


def fidelity(files: list[bytes], loaded: list[bytes], with_roi: bool) -> Fidelity:
    """Our crops of the images `loaded` against Pillow's of the originals."""
    roi.enabled = with_roi
    worst, over, levels = [], [], []
    for number, (original, data) in enumerate(zip(files, loaded, strict=True)):
        image = Pillow.open(io.BytesIO(original))
        box = crops.random_resized_crop(random.Random(number), image.height, image.width, (0.08, 1.0), (3 / 4, 4 / 3))
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = np.asarray(image.crop(edges).resize((224, 224), Pillow.Resampling.BILINEAR))
        picture = Picture({"bytes": data, "path": None})
        scaled = Box(*(round(side * picture.height / image.height) for side in box))
        region = torch.from_numpy(picture.region(scaled))[None].permute(0, 3, 1, 2)
        crop = crops.resize(region, (224, 224), bicubic=False)
        difference = crop[0].permute(1, 2, 0).numpy().astype(int) - expected
        worst.append(int(np.abs(difference).max()))
        over.append(float((np.abs(difference) > 1).mean()))
        error = float(np.square(difference.astype(float)).mean())
        levels.append(math.inf if error == 0 else 10 * math.log10(255**2 / error))
    return Fidelity(max(worst), float(np.mean(over)), float(np.mean([x for x in levels if math.isfinite(x)] or levels)))


def measure(variants: Mapping[str, Epoch], repeats: int) -> dict[str, list[float]]:
    """Images per second of each variant's epochs."""
    for epoch in variants.values():
        epoch()  # starts the workers

    def rate(epoch: Epoch) -> float:
        start = time.perf_counter()
        return epoch() / (time.perf_counter() - start)

    return alternate({name: partial(rate, epoch) for name, epoch in variants.items()}, repeats)


def pixels_column(name: str, pixels: Fidelity | None) -> str:
    if pixels is None:
        return "another decoder's" if "DALI" in name else "the reference"
    if 0 < pixels.share_over_one < 1e-4:
        per_million = f"{1e6 * pixels.share_over_one:.2g} in a million numbers {pixels.worst}"
        return f"1; {per_million}, {pixels.decibels:.0f} dB"
    return f"{pixels.worst} at most, {pixels.decibels:.0f} dB"


def main() -> None:
    parser = bench_parser(__doc__, repeats=7)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=50, help="pairs per batch (50)")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)  # leave the cores to the workers

    files = jpegs(args.images)
    copies = [resized_bytes({"bytes": data, "path": None}, 256, 90) for data in files]
    labels = np.random.RandomState(1).randint(0, NUM_CLASSES, args.images)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder, arrow = as_folder(files, labels, root / "train"), as_arrow(files, labels, root / "arrow")
        copy = as_arrow(copies, labels, root / "copy")
        variants: dict[str, Epoch] = {
            AUTHORS: authors(folder, args),
            TIMM: timm_folder(folder, args),
            "timm's transforms on Arrow": timm_arrow(arrow, args),
        }
        with suppress(ImportError):
            variants["DALI, on the CPU"] = dali(folder, args)
        pixels = {}
        for with_roi in (False, True) if roi.available() else (False,):
            for name, data, loaded in (("ours", arrow, files), ("ours, 256-px copy", copy, copies)):
                name += ", ROI" * with_roi
                variants[name] = ours(data, args, with_roi)
                pixels[name] = fidelity(files, loaded, with_roi)
        rates = measure(variants, args.repeats)

    rows, figures = [], {}
    for name, measured in rates.items():
        compared = [spread(ratios(measured, rates[other])) for other in (AUTHORS, TIMM)]
        rows.append([name, spread(measured, 0), *compared, pixels_column(name, pixels.get(name))])
        worst, over_one, decibels = pixels.get(name, Fidelity(0, 0.0, math.inf))
        figures[name] = {"images_per_second": measured, "max_level": worst, "share_over_one_level": over_one}
        figures[name]["decibels"] = min(decibels, 999.0)
    size, copy_size = (np.mean([len(data) for data in images]) / 1000 for images in (files, copies))
    setup = (
        f"{args.images} JPEGs, mean {size:.0f} kB (copy at 256 px: {copy_size:.0f} kB), {args.workers} workers, pairs "
        f"in batches of {args.batch_size}, n = {args.repeats}. ROI decoder: {Path(roi.description()).name}."
    )
    head = ["loader", "images/s", "× authors'-style", "× timm", "pixels against Pillow's, in levels"]
    report("Loading pairs of images", "loader", [setup, table(head, rows)], figures, args.output)


if __name__ == "__main__":
    main()
