"""An image set → a smaller copy that loads faster: short sides of at most so many pixels, JPEG.

    python scripts/resize_dataset.py IN OUT --short-side 256 --quality 90

IN is whatever `data.dataset` names: a folder in any form that training takes, a prepared set, a Hub id. OUT opens as
those of the prepare_*.py scripts do, and knows which catalog set it is a copy of. Images that are not larger keep their
bytes; unreadable ones too, so that training says of them what it says of the original.

It is written in shards by several processes; after a kill, the same command goes on. The manifest says what was lost:
the PSNR of a sample of stored images against their originals made smaller likewise. Training's report then says that
the copy was used. What a training crop loses is more: it is cut out of fewer pixels.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dataset_folder import FORMAT, describe, move_into_place, print_result, read_manifest, workspace, write_splits
from datasets import load_from_disk
from stored_images import StoredImages

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.loaders import available_cores
from cskd_hf.data.resizing import resized_bytes, stored_decibels
from cskd_hf.data.splits import ImageSplit, fingerprint, load_images
from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.recipe import parse_recipe
from cskd_hf.recipe.resolve import resolve

ROWS_A_SHARD = 4096
SAMPLED = 200


@dataclass(frozen=True)
class Smaller(StoredImages):
    """A shard of images made smaller as they are read; one that cannot be decoded keeps its bytes."""

    short_side: int = 256
    quality: int = 90

    def content(self, row: int, image: Mapping[str, Any]) -> bytes:
        try:
            return resized_bytes(image, self.short_side, self.quality)
        except UnreadableImageError:
            return super().content(row, image)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="IN", help="what data.dataset would be")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; a recipe then says data.dataset=./OUT")
    parser.add_argument("--short-side", type=int, default=256, metavar="PIXELS", help="at most so many (256)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 95 (90)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (all cores)")
    for key in ("train-split", "test-split", "holdout", "image-column", "label-column", "revision"):
        parser.add_argument(f"--{key}", metavar="NAME", help=f"as data.{key.replace('-', '_')}")
    arguments = parser.parse_intermixed_args(argv)  # options may stand anywhere
    if arguments.short_side < 1 or not 1 <= arguments.quality <= 95 or arguments.workers < 1:
        parser.error("--short-side and --workers are above 0, and --quality lies in 1 to 95")
    out: Path = arguments.out
    splits = open_sets(arguments)
    entry = entry_of(arguments.dataset)
    plan = {
        "format": FORMAT,
        "name": next((name for name, other in CATALOG.items() if other is entry), "resized"),
        "short_side": arguments.short_side,
        "quality": arguments.quality,
        "splits": {name: fingerprint(split) for name, split in splits.items()},
    }
    if is_done(out, plan):
        print(f"{out} is whole already: nothing to do; remove it to write it again")
        return 0
    try:
        with workspace(out, plan) as partial:
            if not (partial / "dataset_dict.json").is_file():
                write_copy(partial, splits, plan, arguments.workers)
            move_into_place(partial, out, list(splits))
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}; what is done is kept") from error
    manifest = read_manifest(out)
    lost = manifest["resized"]
    print(
        f"lost: {lost['mean_decibels']:.1f} dB PSNR (least {lost['least_decibels']:.1f}) over {lost['num_sampled']} "
        f"sampled images, of which {lost['num_resized']} were larger"
        if lost["num_resized"]
        else "lost: nothing, no sampled image was larger"
    )
    print_result(out, manifest)
    return 0


def open_sets(arguments: argparse.Namespace) -> dict[str, ImageSplit]:
    """The splits as training opens them, without a held-out share: that is taken anew from the copy.

    Raises:
        UserError: see `load_images`.
    """
    keys = ("dataset", "train_split", "test_split", "holdout", "image_column", "label_column", "revision")
    settings = {
        "data": {key: getattr(arguments, key) for key in keys if getattr(arguments, key) is not None},
        "model": {"model_name": "none: nothing is trained"},
        "method": {"name": "cross_entropy"},
        "optimizer": {"lr": 1.0},
        "scheduler": {"num_epochs": 1},
    }
    data = resolve(parse_recipe(settings, source="command line")).data
    images = load_images(data if isinstance(data.holdout, str) else data.model_copy(update={"holdout": 0.0}))
    splits = [images.train, images.test, *([] if images.holdout is None else [images.holdout])]
    return {split.name: split for split in splits}


def is_done(out: Path, plan: dict[str, Any]) -> bool:
    """True if OUT is what would be written.

    Raises:
        UserError: OUT is anything but absent, empty, or this copy unfinished.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: OUT is a file; choose a folder")
    held = sorted(entry.name for entry in out.iterdir())
    if not held:
        return False
    begun, finished = out / ".partial" / "plan.json", out / "manifest.json"
    if begun.is_file():
        if json.loads(begun.read_text(encoding="utf-8")) != plan:
            raise UserError(f"{out} is an unfinished copy of other images or settings; remove it or choose another")
        return False
    if finished.is_file() and "dataset_dict.json" in held:
        with suppress(ValueError, KeyError, TypeError):  # not one of ours: refused below
            if json.loads(finished.read_text(encoding="utf-8"))["resized"]["plan"] == plan:
                return True
    raise UserError(f"{out} is not empty: it holds {', '.join(held[:3])}; choose another folder")


def write_copy(partial: Path, splits: dict[str, ImageSplit], plan: dict[str, Any], workers: int) -> None:
    """Write everything that `load_from_disk` reads, and the manifest."""
    class_names = list(next(iter(splits.values())).class_names)
    shards: dict[str, list[Any]] = {}
    for name, split in splits.items():
        size = _mean_bytes(split)
        starts = range(0, len(split), ROWS_A_SHARD)
        rows = [np.arange(start, min(start + ROWS_A_SHARD, len(split))) for start in starts]
        shards[name] = [
            Smaller(split.take(part), size * len(part), short_side=plan["short_side"], quality=plan["quality"])
            for part in rows
        ]
    # One or two shards are written by threads of this process before other processes would have begun.
    facts = write_splits(partial, class_names, shards, workers=workers if sum(map(len, shards.values())) > 2 else 0)
    for name, entry in facts.items():
        entry["num_bytes"] = sum(file.stat().st_size for file in (partial / name).glob("*.arrow"))
    manifest = {
        "name": plan["name"],
        "resized": loss(next(iter(splits.values())), partial, plan),
        "inputs": [{"name": name, "size": len(split)} for name, split in splits.items()],
        "words": {},
    }
    describe(partial, class_names, facts, manifest)


def _mean_bytes(split: ImageSplit) -> int:
    sample = split.fetch(np.unique(np.linspace(0, len(split) - 1, 50).astype(int)).tolist())
    return round(statistics.mean(len(image["bytes"] or b"") or 100_000 for image in sample))


def loss(split: ImageSplit, partial: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the copy: settings, and PSNR over a sample of the training images."""
    rows = np.unique(np.linspace(0, len(split) - 1, SAMPLED).astype(int)).tolist()
    stored = load_from_disk(str(partial / split.name)).with_format("arrow")
    found = []
    for row in rows:
        content = stored[row : row + 1]["image"].to_pylist()[0]["bytes"]
        try:
            found.append(stored_decibels(split.fetch([row])[0], content, plan["short_side"]))
        except UnreadableImageError:
            continue
    lossy = [value for value in found if math.isfinite(value)]
    return {
        "short_side": plan["short_side"],
        "quality": plan["quality"],
        "num_sampled": len(found),
        "num_resized": len(lossy),
        "mean_decibels": statistics.mean(lossy) if lossy else None,
        "least_decibels": min(lossy, default=None),
        "plan": plan,
    }


if __name__ == "__main__":
    run_command(main)
