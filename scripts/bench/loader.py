"""Images a second from files to batches of pairs: what people use today, and this package's ways.

    python scripts/bench/loader.py [--images 600] [--workers 2] [--repeats 7] [--output FOLDER]

It makes ImageNet-like JPEGs (500×375 and 375×500, 4:2:0, about 95 kB) of photographs that ship in installed packages.
Every variant loads both images of each of N pairs through a real DataLoader with the same number of workers, which
live on from epoch to epoch; a repeat takes every variant once, in an order of its own, and ratios are of one repeat's
times. RandomResizedCrop(224) and flip everywhere.

    authors'-style     a folder, Pillow, torchvision, float batches; pairs by a list of lists
    timm               create_loader on the folder, without its copy to the device; single images, it knows no pairs
    timm on Arrow      datasets.Image() and timm's transforms, pairs by one index list a batch
    DALI               its CPU operators on the folder, as many threads, where nvidia-dali is installed; single images
    ours               exact: the whole JPEG decoded; ROI: only the crop, where a libjpeg-turbo >= 3 is found;
                       in processes and in threads; from the files, and from a copy as
                       scripts/resize_dataset.py writes it (256 pixels, quality 90)

Fidelity is that of crops against Pillow's decoding, cropping and resizing of the same boxes of the original files.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Image
from others import Epoch, authors, dali, timm_arrow, timm_folder
from pictures import NUM_CLASSES, as_arrow, as_folder, jpegs
from PIL import Image as Pillow
from reporting import ratios, report, spread, table

from cskd_hf.data import crops, roi
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.decode import Box, open_picture
from cskd_hf.data.pairing import ClassPairSampler, PairedImages
from cskd_hf.data.resizing import resized_bytes
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.build import make_loader
from cskd_hf.recipe.sections import TransformSection

AUTHORS, TIMM = "authors'-style", "timm create_loader"


# Ours


def ours(data: Dataset, args: argparse.Namespace, worker_type: Any = "process", with_roi: bool = False) -> Epoch:
    labels = data.with_format("arrow")["label"].to_numpy()
    encoded = data.select_columns(["image"]).cast_column("image", Image(decode=False))
    split = ImageSplit("train", encoded, labels, tuple(map(str, range(NUM_CLASSES))), np.arange(len(labels)))
    batches = GlobalBatches(ClassPairSampler(labels), args.batch_size)
    images = PairedImages(split, Transform(TransformSection(), True))
    loader = make_loader(images, batches, args.workers, pin_memory=False, worker_type=worker_type)
    started = 0

    def epoch() -> int:
        nonlocal started
        batches.start_epoch(started)
        started += 1
        roi.enabled = with_roi  # for threads, and for processes, which are started at the first epoch
        return sum(len(batch.target) for batch in loader)

    return epoch


# Fidelity


def decibels(difference: np.ndarray) -> float:
    error = float(np.square(difference.astype(float)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


class Fidelity(NamedTuple):
    worst: int  # greatest difference, in levels
    share_over_one: float  # of all numbers, those more than one level off
    decibels: float  # mean PSNR of the crops


def fidelity(files: list[bytes], shown: list[bytes], with_roi: bool) -> Fidelity:
    """Our crops of `shown` against Pillow's of `files`."""
    roi.enabled = with_roi
    worst, over, levels = [], [], []
    for number, (original, data) in enumerate(zip(files, shown, strict=True)):
        image = Pillow.open(io.BytesIO(original))
        box = crops.random_resized_crop(random.Random(number), image.height, image.width, (0.08, 1.0), (3 / 4, 4 / 3))
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = np.asarray(image.crop(edges).resize((224, 224), Pillow.Resampling.BILINEAR))
        picture = open_picture({"bytes": data, "path": None})
        scale = picture.height / image.height
        top, left = round(box.top * scale), round(box.left * scale)
        height, width = round(box.height * scale), round(box.width * scale)
        region = torch.from_numpy(picture.region(Box(top, left, height, width)))[None].permute(0, 3, 1, 2)
        found = crops.resize(region, (224, 224), bicubic=False)
        difference = found[0].permute(1, 2, 0).numpy().astype(int) - expected
        worst.append(int(np.abs(difference).max()))
        over.append(float((np.abs(difference) > 1).mean()))
        levels.append(decibels(difference))
    noise = float(np.mean([level for level in levels if math.isfinite(level)] or [math.inf]))
    return Fidelity(max(worst), float(np.mean(over)), noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=50, help="pairs a batch (50)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the cores are the workers'

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
            "ours, exact, processes": ours(arrow, args),
            "ours, exact, threads": ours(arrow, args, "thread"),
            "ours, 256-px copy, processes": ours(copy, args),
            "ours, 256-px copy, threads": ours(copy, args, "thread"),
        }
        with suppress(ImportError):
            variants["DALI, on the CPU"] = dali(folder, args)
        seen = {"ours, exact": (files, False), "ours, 256-px copy": (copies, False)}
        if roi.available():
            variants["ours, ROI, processes"] = ours(arrow, args, with_roi=True)
            variants["ours, ROI, threads"] = ours(arrow, args, "thread", with_roi=True)
            variants["ours, ROI, 256-px copy, processes"] = ours(copy, args, with_roi=True)
            seen |= {"ours, ROI, 256-px copy": (copies, True), "ours, ROI": (files, True)}
        for epoch in variants.values():
            epoch()  # starts the workers
        rates: dict[str, list[float]] = {name: [] for name in variants}
        order = list(variants)
        for _ in range(args.repeats):
            random.shuffle(order)
            for name in order:
                started = time.perf_counter()
                count = variants[name]()
                rates[name].append(count / (time.perf_counter() - started))

    pixels = {name: fidelity(files, *what) for name, what in seen.items()}
    rows, figures = [], {}
    for name, measured in rates.items():
        of = name.removesuffix(", processes").removesuffix(", threads")
        seen_as = pixels.get(of, Fidelity(0, 0.0, math.inf))
        against = [ratios(measured, rates[other]) for other in (AUTHORS, TIMM)]
        looks = f"{seen_as.worst} at most, {seen_as.decibels:.0f} dB"
        if of not in pixels:
            looks = "another decoder's" if "DALI" in of else "the reference"
        elif 0 < seen_as.share_over_one < 1e-4:
            looks = (
                f"1; {1e6 * seen_as.share_over_one:.2g} in a million numbers {seen_as.worst}, {seen_as.decibels:.0f} dB"
            )
        rows.append([name, spread(measured, 0), *(spread(each) for each in against), looks])
        figures[name] = {
            "images_per_second": measured,
            "max_level": seen_as.worst,
            "share_over_one_level": seen_as.share_over_one,
            "decibels": min(seen_as.decibels, 999.0),
        }
    size = np.mean([len(data) for data in files]) / 1000, np.mean([len(data) for data in copies]) / 1000
    told = (
        f"{args.images} JPEGs, mean {size[0]:.0f} kB (copy at 256 px: {size[1]:.0f} kB), {args.workers} workers, pairs "
        f"in batches of {args.batch_size}, n = {args.repeats}. "
        + ("ROI: " + roi.description() if roi.available() else "ROI: no libjpeg-turbo >= 3 was found.")
    )
    head = ["loader", "images/s", "× authors'-style", "× timm", "pixels against Pillow's, in levels"]
    report("Loading pairs of images", "loader", [told, table(head, rows)], figures, args.output)


if __name__ == "__main__":
    main()
