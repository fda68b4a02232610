"""What the prepare_*.py scripts share: their arguments, finding lists in archives, and the steps from one to the other.

    read the lists ─► check the counts ─► write shards ─► describe the splits ─► move into place

Everything a user can get wrong is said in one line, before anything is written where that is possible.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from archive_inputs import Input, expand
from archives import Tree
from shards import ROW_BYTES, SCHEMA, Shard, put, rows_file, sync, write_shards
from tqdm import tqdm

import cskd_hf
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG

FORMAT = 1  # of the shards; a higher number makes unfinished ones start anew


@dataclass(frozen=True)
class ImageSet:
    """What a script finds in the archives before an image is read.

    Attributes:
        class_names: in the order of the labels.
        words: class name → what people call it, where the archive says.
    """

    class_names: list[str]
    splits: dict[str, list[Shard]]
    words: dict[str, str] = field(default_factory=dict)


# The command


def prepare(
    argv: Sequence[str] | None,
    name: str,
    doc: str | None,
    archives: Sequence[str],
    read: Callable[[Sequence[Tree], int], ImageSet],
    workers: int = 0,
) -> int:
    """Everything a script does.

    Args:
        archives: official file names, that of the images first: looked for in a folder given instead.
        read: finds the image set in the trees; its second argument is the size of a shard.
        workers: default number of processes; 0 if the set needs no others.
    """
    entry = CATALOG[name]
    parser = argparse.ArgumentParser(
        description=doc, epilog=f"terms: {entry.terms}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="ARCHIVE_OR_FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; a recipe then says data.dataset=./OUT")
    parser.add_argument("--allow-other-counts", action="store_true", help="accept a part of the set: other numbers of images or classes than the official ones")  # fmt: skip  # noqa: E501
    parser.add_argument("--shard-size", type=float, default=500, metavar="MB", help="of one file of OUT (500)")
    if workers:
        parser.add_argument("--workers", type=int, default=workers, help=f"processes that write shards ({workers})")
    arguments = parser.parse_intermixed_args(argv)  # options may stand anywhere
    if arguments.shard_size <= 0 or (workers and arguments.workers < 1):
        parser.error("--shard-size and --workers are above 0")
    inputs, out = [Input(path) for path in expand(arguments.inputs, archives)], arguments.out
    plan = {
        "format": FORMAT,
        "name": name,
        "inputs": sorted(each.stamp for each in inputs),
        "shard_size": arguments.shard_size,
    }
    if _check_out(out, inputs, plan):
        shutil.rmtree(out / ".partial", ignore_errors=True)  # left by a kill at the very end
        print(f"{out} is whole already, of archives of the same size: nothing to do; remove it to prepare it again")
        return 0
    _require_disk(out, inputs)
    try:
        with _workspace(out, plan) as partial:
            if not (partial / "dataset_dict.json").is_file():
                _prepare(inputs, partial, arguments, name, read, workers and arguments.workers)
            _place(partial, out, list(entry.num_images))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
        raise UserError(f"{out}: the disk is full; make room and run again: what is done is kept") from error
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    for split, facts in manifest["splits"].items():
        print(f"{split}: {facts['num_images']:,} images, sha256 {facts['sha256']}")
    print(
        f"{manifest['num_classes']} classes; in a recipe: data.dataset={os.path.join('.', out)}"
    )  # a bare name may be the catalog's
    return 0


def _prepare(inputs: Sequence[Input], partial: Path, arguments: Any, name: str, read: Any, workers: int) -> None:
    entry = CATALOG[name]
    packed = sum(each.size for each in inputs if each.kind == "compressed")
    with tqdm(total=packed, unit="B", unit_scale=True, desc="decompressing", disable=None if packed else True) as bar:
        trees = [each.open(partial / f"spool-{number}.tar", bar.update) for number, each in enumerate(inputs)]
    image_set = read(trees, round(arguments.shard_size * 1e6))
    known = {split: [shard.num_images for shard in shards] for split, shards in image_set.splits.items()}
    counts = {split: sum(numbers) for split, numbers in known.items() if None not in numbers}
    _check_counts(name, counts, len(image_set.class_names), arguments.allow_other_counts)

    # What `datasets` itself writes; importing it takes longer than writing a small set does.
    features = {"image": {"_type": "Image"}, "label": {"names": image_set.class_names, "_type": "ClassLabel"}}
    schema = SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    write_shards(image_set.splits, partial, schema, inputs, workers)
    for each in inputs:
        if Input(each.path).stamp != each.stamp:
            raise UserError(f"{each.path} changed while it was read; run again")
    splits: dict[str, Any] = {}
    for split, shards in image_set.splits.items():
        counts[split], sha256 = _split_digest(partial, split, len(shards))
        splits[split] = {"num_images": counts[split], "num_shards": len(shards), "sha256": sha256}
    _check_counts(name, counts, len(image_set.class_names), arguments.allow_other_counts)
    for split, facts in splits.items():
        info = {"features": features, "description": entry.terms, "citation": entry.citation}
        info |= {"homepage": "", "license": ""}
        put(partial / split / "dataset_info.json", json.dumps(info, indent=2).encode())
        put(partial / split / "state.json", json.dumps(_state(partial / split, facts["sha256"]), indent=2).encode())
    manifest = {
        "name": name,
        "num_classes": len(image_set.class_names),
        "splits": splits,
        "inputs": [each.describe() for each in inputs],
        "versions": {"cskd_hf": cskd_hf.__version__, "python": platform.python_version()}
        | {package: version(package) for package in ("datasets", "pyarrow")},
        "classes": image_set.class_names,
        "words": image_set.words,
    }
    put(partial / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False).encode(errors="replace"))
    put(partial / "dataset_dict.json", json.dumps({"splits": list(splits)}).encode())


def _check_counts(name: str, counts: dict[str, int], num_classes: int, allow_other: bool) -> None:
    entry = CATALOG[name]
    found = [(f"{split} images", count, entry.num_images[split]) for split, count in counts.items()]
    wrong = [
        f"{count:,} {what} instead of {official:,}"
        for what, count, official in [("classes", num_classes, entry.num_classes), *found]
        if count != official
    ]
    if wrong and not allow_other:
        raise UserError(f"{name}: found {', '.join(wrong)}; --allow-other-counts takes them as they are")


def _require_disk(out: Path, inputs: Sequence[Input]) -> None:
    """As much as the archives take, a compressed one twice; what an earlier run wrote counts as free."""
    there = next(parent for parent in [out.absolute(), *out.absolute().parents] if parent.exists())
    needed = int(1.02 * sum(each.size * (2 if each.kind == "compressed" else 1) for each in inputs))
    earlier = (file for pattern in ("*.arrow", "*.tmp", "spool-*") for file in out.rglob(pattern))
    free = shutil.disk_usage(there).free + sum(file.stat().st_size for file in earlier)
    if free < needed:
        raise UserError(f"{out}: about {needed / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free")


def _check_out(out: Path, inputs: Sequence[Input], plan: dict[str, Any]) -> bool:
    """True if OUT is what would be written.

    Raises:
        UserError: OUT is anything but absent, empty, or this set unfinished.
    """
    for each in inputs:
        source, target = each.path.resolve(), out.resolve()
        if source == target or (each.kind == "folder" and source in target.parents):
            raise UserError(f"{out}: OUT is the input {each.path} or lies in it; choose a folder outside")
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: OUT is a file; the last argument is the folder to write")
    partial, held = out / ".partial", sorted(entry.name for entry in out.iterdir())
    if {"dataset_dict.json", "manifest.json"} <= set(held):
        try:
            manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
            name, sizes = manifest["name"], sorted(each["size"] for each in manifest["inputs"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{out} is not empty: it holds a dataset of another origin; choose another folder"
            ) from None
        if name == plan["name"] and sizes == sorted(each.size for each in inputs):
            return True
        raise UserError(f"{out} is a finished {name} of other archives; remove it or choose another folder")
    ours = set()
    if (partial / "plan.json").is_file():
        begun = json.loads((partial / "plan.json").read_text(encoding="utf-8"))["name"]
        if begun != plan["name"]:
            raise UserError(f"{out} is an unfinished {begun}; remove it or choose another folder")
        ours = {".partial", "manifest.json", *CATALOG[begun].num_images}
    elif partial.is_dir() and all(entry.name.startswith(("lock", "plan.json.")) for entry in partial.iterdir()):
        ours = {".partial"}  # killed as it began
    if strange := sorted(set(held) - ours):
        raise UserError(f"{out} is not empty: it holds {', '.join(strange[:3])}; choose another folder")
    return False


@contextmanager
def _workspace(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """OUT/.partial, for one process at a time; emptied if it was begun from other inputs."""
    existed, partial = out.exists(), out / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    with open(partial / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another preparation is writing there") from None
        if (out / "dataset_dict.json").is_file():  # it ended between our look at OUT and our lock
            raise UserError(f"{out}: another preparation has just finished it; run again to see that it is whole")
        begun = partial / "plan.json"
        if not begun.is_file() or json.loads(begun.read_text(encoding="utf-8")) != plan:
            for entry in [*out.iterdir(), *partial.iterdir()]:
                if entry.name not in (".partial", "lock"):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            put(begun, json.dumps(plan).encode())
        try:
            yield partial
        finally:
            for left in [*partial.glob("**/*.tmp"), *partial.glob("spool-*")]:
                left.unlink()
            finished = (out / "dataset_dict.json").is_file()
            if finished or not any(partial.glob("rows/*")):
                shutil.rmtree(partial)
            if not existed and not any(out.iterdir()):
                out.rmdir()


def _split_digest(partial: Path, split: str, num_shards: int) -> tuple[int, str]:
    """(number of images, SHA-256) of a split whose shards are all done."""
    digest, size = hashlib.sha256(), 0
    for content in (rows_file(partial, split, number).read_bytes() for number in range(num_shards)):
        digest.update(content)
        size += len(content)
    return size // ROW_BYTES, digest.hexdigest()


def _state(folder: Path, sha256: str) -> dict[str, Any]:
    """What `load_from_disk` reads beside the shards. A dataset's fingerprint is the key of its caches."""
    state: dict[str, Any] = dict.fromkeys(("_format_columns", "_format_type"))
    state |= {"_format_kwargs": {}, "_output_all_columns": False, "_split": folder.name, "_fingerprint": sha256[:16]}
    state["_data_files"] = [{"filename": path.name} for path in sorted(folder.glob("data-*.arrow"))]
    return state


def _place(partial: Path, out: Path, splits: Sequence[str]) -> None:
    """Move what is whole into place; started again after a kill, go on where it stopped."""
    for name in itertools.chain(splits, ["manifest.json", "dataset_dict.json"]):
        if (partial / name).exists():
            os.replace(partial / name, out / name)
            sync(out)
