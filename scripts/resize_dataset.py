"""Copy an image set as smaller JPEGs, which load faster.

    python scripts/resize_dataset.py IN OUT --short-side 256 --quality 90

IN is anything that `data.dataset` accepts: a folder, a prepared set, a Hub id. OUT has the layout that the prepare_*.py
scripts write and records which catalog set it was copied from. Images that are small enough, have alpha or more than
8 bits are copied unchanged, and so are unreadable ones, which training then reports as usual.

Several processes write the shards; rerun the same command to resume. The manifest records the loss, as PSNR of a sample
of stored images against their originals resized to the same size. The report of a run states that a copy was used. A
training crop loses more than that: it is cut from fewer pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dataset_folder import (
    FORMAT,
    check_new,
    disk_errors,
    move_into_place,
    print_result,
    read_manifest,
    workspace,
    write_manifest,
    write_splits,
)
from datasets import load_from_disk
from PIL import Image
from stored_images import StoredImages

from cskd_hf.data.decode import UnreadableImageError, decode, fits_jpeg
from cskd_hf.data.duplicates import read_content
from cskd_hf.data.fingerprint import fingerprint
from cskd_hf.data.loaders import available_cores
from cskd_hf.data.splits import ImageSplit, load_images
from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe.catalog import catalog_name
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data

ROWS_PER_SHARD = 4096
SAMPLE_SIZE = 200


def resized(picture: Image.Image, short_side: int) -> Image.Image | None:
    """The picture with this short side and the same aspect ratio; None if it is small enough already."""
    if min(picture.size) <= short_side:
        return None
    scale = short_side / min(picture.size)
    width, height = (max(short_side, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def resized_bytes(image: Mapping[str, Any], short_side: int, quality: int) -> bytes:
    """An upright RGB JPEG (4:2:0) of this quality; the image's own bytes if it is small enough or `fits_jpeg` is false.

    Raises:
        UnreadableImageError: the image cannot be decoded.
    """
    small = resized(decode(image), short_side) if fits_jpeg(image) else None
    if small is None:
        return read_content(image)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, subsampling=2)
    return buffer.getvalue()


def psnr(image: Mapping[str, Any], stored: bytes, short_side: int) -> float:
    """PSNR in dB of the stored image against the original resized alike; inf if they are equal."""
    if not fits_jpeg(image):
        return math.inf
    original = decode(image)
    expected = np.asarray(resized(original, short_side) or original, dtype=np.float32)
    error = float(np.square(np.asarray(decode({"bytes": stored, "path": None}), dtype=np.float32) - expected).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@dataclass(frozen=True)
class ResizedImages(StoredImages):
    """A shard of images that are resized as they are read; one that cannot be decoded keeps its bytes."""

    short_side: int = 256
    quality: int = 90

    def content(self, row: int, image: Mapping[str, Any]) -> bytes:
        try:
            return resized_bytes(image, self.short_side, self.quality)
        except UnreadableImageError:
            return super().content(row, image)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="IN", help="anything that data.dataset accepts")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; use it as data.dataset=./OUT")
    parser.add_argument(
        "--short-side", type=int, default=256, metavar="PIXELS", help="maximum short side (default: 256)"
    )
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 95 (default: 90)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    add_data_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.short_side < 1 or not 1 <= arguments.quality <= 95 or arguments.workers < 1:
        parser.error("--short-side and --workers must be above 0, --quality in 1 to 95")
    out: Path = arguments.out
    splits = open_sets(arguments)
    plan = {
        "format": FORMAT,
        "name": catalog_name(arguments.dataset) or "resized",
        "short_side": arguments.short_side,
        "quality": arguments.quality,
        "splits": {name: fingerprint(split) for name, split in splits.items()},
    }
    with disk_errors(out):
        if is_done(out, plan):
            print(f"{out} is complete: nothing to do; remove it to write it again")
            return 0
        with workspace(out, plan) as partial:
            if not (partial / "dataset_dict.json").is_file():
                write_copy(partial, splits, plan, arguments.workers)
            move_into_place(partial, out, list(splits))
    manifest = read_manifest(out)
    loss = manifest["resized"]
    print(
        f"loss: {loss['mean_decibels']:.1f} dB PSNR (minimum {loss['least_decibels']:.1f}) over {loss['num_sampled']} "
        f"sampled images, {loss['num_resized']} of them resized"
        if loss["num_resized"]
        else "loss: none, no sampled image was resized"
    )
    print_result(out, manifest)
    return 0


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options that `open_sets` reads."""
    for key in ("train-split", "test-split", "holdout", "image-column", "label-column", "revision"):
        parser.add_argument(f"--{key}", metavar="NAME", help=f"as data.{key.replace('-', '_')}")


def open_sets(arguments: argparse.Namespace) -> dict[str, ImageSplit]:
    """The splits as training opens them, without a hold-out share, which is taken from the copy."""
    keys = ("dataset", "train_split", "test_split", "holdout", "image_column", "label_column", "revision")
    settings = {key: value for key, value in vars(arguments).items() if key in keys and value is not None}
    data = resolve_data(parse_data(settings, source="command line"))
    images = load_images(data if isinstance(data.holdout, str) else data.model_copy(update={"holdout": 0.0}))
    splits = [images.train, images.test, *([] if images.holdout is None else [images.holdout])]
    return {split.name: split for split in splits}


def is_done(out: Path, plan: dict[str, Any]) -> bool:
    """Whether OUT is this copy, complete.

    Raises:
        UserError: OUT is anything but absent, empty, or this copy.
    """
    partial_plan, manifest = out / ".partial" / "plan.json", out / "manifest.json"
    if partial_plan.is_file():
        if json.loads(partial_plan.read_text(encoding="utf-8")) != plan:
            raise UserError(f"{out} is an unfinished copy of other images or settings; remove it or choose another")
        return False
    if manifest.is_file() and (out / "dataset_dict.json").is_file():
        with suppress(ValueError, KeyError, TypeError):  # another kind of manifest: rejected below
            if json.loads(manifest.read_text(encoding="utf-8"))["resized"]["plan"] == plan:
                return True
    check_new(out)
    return False


def write_copy(partial: Path, splits: dict[str, ImageSplit], plan: dict[str, Any], workers: int) -> None:
    """Write the files that `load_from_disk` reads and the manifest."""
    class_names = list(next(iter(splits.values())).class_names)
    shards: dict[str, list[Any]] = {}
    for name, split in splits.items():
        size = _mean_bytes(split)
        starts = range(0, len(split), ROWS_PER_SHARD)
        rows = [np.arange(start, min(start + ROWS_PER_SHARD, len(split))) for start in starts]
        shards[name] = [
            ResizedImages(split.take(part), size * len(part), short_side=plan["short_side"], quality=plan["quality"])
            for part in rows
        ]
    # Threads of this process finish one or two shards before other processes would have started.
    entries = write_splits(partial, class_names, shards, workers=workers if sum(map(len, shards.values())) > 2 else 0)
    for name, entry in entries.items():
        entry["num_bytes"] = sum(file.stat().st_size for file in (partial / name).glob("*.arrow"))
    inputs = [{"name": name, "size": len(split)} for name, split in splits.items()]
    resized = measure_loss(next(iter(splits.values())), partial, plan)
    write_manifest(partial, class_names, entries, name=plan["name"], inputs=inputs, words={}, resized=resized)


def _mean_bytes(split: ImageSplit) -> int:
    sample = split.fetch(np.unique(np.linspace(0, len(split) - 1, 50).astype(int)).tolist())
    return round(statistics.mean(len(image["bytes"] or b"") or 100_000 for image in sample))


def measure_loss(split: ImageSplit, partial: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The manifest's `resized`: settings, and PSNR over a sample of the training images."""
    rows = np.unique(np.linspace(0, len(split) - 1, SAMPLE_SIZE).astype(int)).tolist()
    stored = load_from_disk(str(partial / split.name)).with_format("arrow")
    decibels = []
    for row in rows:
        content = stored[row : row + 1]["image"].to_pylist()[0]["bytes"]
        try:
            decibels.append(psnr(split.fetch([row])[0], content, plan["short_side"]))
        except UnreadableImageError:
            continue
    lossy = [value for value in decibels if math.isfinite(value)]
    return {
        "short_side": plan["short_side"],
        "quality": plan["quality"],
        "num_sampled": len(decibels),
        "num_resized": len(lossy),
        "mean_decibels": statistics.mean(lossy) if lossy else None,
        "least_decibels": min(lossy, default=None),
        "plan": plan,
    }


if __name__ == "__main__":
    run_command(main)
