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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from pictures import NUM_CLASSES, as_arrow, as_folder, jpegs
from PIL import Image as Pillow
from reporting import ratios, report, spread, table
from torch.utils.data import DataLoader
from torchvision import transforms as tv

from cskd_hf.data import crops, roi
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.decode import Box, open_picture
from cskd_hf.data.load import ImageSplit
from cskd_hf.data.pairing import ClassPairSampler, PairedImages
from cskd_hf.data.resizing import resized_bytes
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.loop import make_loader
from cskd_hf.recipe_sections import TransformSection

AUTHORS, TIMM = "authors'-style", "timm create_loader"
Epoch = Callable[[], int]  # loads an epoch, says how many images came


# What people use today


class AuthorsPairs(torch.utils.data.Dataset[Any]):
    """ImageFolder's way: open, convert, torchvision's transforms, floats."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.rglob("*.JPEG"))
        names = sorted({path.parent.name for path in self.paths})
        self.labels = [names.index(path.parent.name) for path in self.paths]
        self.transform = tv.Compose(
            [
                tv.RandomResizedCrop(224),
                tv.RandomHorizontalFlip(),
                tv.ToTensor(),
                tv.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with open(self.paths[index], "rb") as file:
            return self.transform(Pillow.open(file).convert("RGB")), self.labels[index]


class ListOfListsPairs:
    """Batches of anchors, then their partners: for each class a list of its images."""

    def __init__(self, labels: list[int], batch_size: int) -> None:
        self.labels, self.batch_size = labels, batch_size
        self.by_class: list[list[int]] = [[] for _ in range(max(labels) + 1)]
        for index, label in enumerate(labels):
            self.by_class[label].append(index)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.labels)))
        random.shuffle(order)
        partners = [random.choice(self.by_class[self.labels[index]]) for index in order]
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size] + partners[start : start + self.batch_size]


def counted(loader: Any) -> Epoch:
    return lambda: sum(len(images) for images, *_ in loader)


def authors(root: Path, args: argparse.Namespace) -> Epoch:
    pairs = AuthorsPairs(root)
    keys = ListOfListsPairs(pairs.labels, args.batch_size)
    return counted(DataLoader(pairs, batch_sampler=keys, num_workers=args.workers, persistent_workers=True))


def timm_folder(root: Path, args: argparse.Namespace) -> Epoch:
    """Two epochs of single images, so that as many images are loaded as in an epoch of pairs."""
    from timm.data import ImageDataset, create_loader

    loader = create_loader(
        ImageDataset(str(root)),
        (3, 224, 224),
        2 * args.batch_size,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=args.workers,
        device=torch.device("cpu"),
        pin_memory=False,
        persistent_workers=True,
    )
    inner = loader.loader  # uint8, as ours; the prefetcher's float copy would take the workers' cores
    once = counted(inner)
    return lambda: once() + once()


class TimmOnArrow(torch.utils.data.Dataset[Any]):
    def __init__(self, data: Dataset) -> None:
        from timm.data import create_transform

        self.data = data
        self.transform = create_transform(
            224, is_training=True, color_jitter=None, interpolation="bilinear", use_prefetcher=True
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        row = self.data[index]
        return self.transform(row["image"].convert("RGB")), row["label"]


def timm_arrow(data: Dataset, args: argparse.Namespace) -> Epoch:
    from timm.data.loader import fast_collate

    keys = ListOfListsPairs(data.with_format("arrow")["label"].to_pylist(), args.batch_size)
    return counted(
        DataLoader(
            TimmOnArrow(data),
            batch_sampler=keys,
            num_workers=args.workers,
            persistent_workers=True,
            collate_fn=fast_collate,
        )
    )


def dali(root: Path, args: argparse.Namespace) -> Epoch:
    """Twice as many single images as there are pairs."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=2 * args.batch_size, num_threads=args.workers, device_id=None, prefetch_queue_depth=2)
    def images() -> Any:
        files, labels = fn.readers.file(file_root=str(root), random_shuffle=True, name="files")
        crops = fn.decoders.image_random_crop(
            files, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        sized = fn.resize(crops, size=[224, 224], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(sized, horizontal=fn.random.coin_flip()), labels

    pipeline = images()
    pipeline.build()
    batches = -(-pipeline.epoch_size("files") // args.batch_size)
    return lambda: sum(len(pipeline.run()[0]) for _ in range(batches))


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


def fidelity(files: list[bytes], shown: list[bytes], with_roi: bool) -> tuple[int, float]:
    """Greatest difference in levels and mean PSNR of our crops of `shown` against Pillow's of `files`."""
    roi.enabled = with_roi
    worst, levels = [], []
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
        levels.append(decibels(difference))
    return max(worst), float(np.mean([level for level in levels if math.isfinite(level)] or [math.inf]))


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
        level, noise = pixels.get(of, (0, math.inf))
        against = [ratios(measured, rates[other]) for other in (AUTHORS, TIMM)]
        seen_as = (
            "another decoder's"
            if "DALI" in of
            else "the reference"
            if of not in pixels
            else f"{level} at most, {noise:.0f} dB"
        )
        rows.append([name, spread(measured, 0), *(spread(each) for each in against), seen_as])
        figures[name] = {"images_per_second": measured, "max_level": level, "decibels": min(noise, 999.0)}
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
