"""The command line that the prepare_*.py scripts share: from original archives to a dataset folder.

    read the lists ─► check the counts ─► write shards ─► describe the splits ─► move into place

Every user error is one line, if possible before anything is written.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from archive_inputs import Input, expand
from dataset_folder import (
    FORMAT,
    disk_errors,
    move_into_place,
    print_result,
    read_manifest,
    workspace,
    write_manifest,
    write_splits,
)
from shards import Shard
from tqdm import tqdm

from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG


@dataclass(frozen=True)
class ImageSet:
    """The content of the archives, known before an image is read.

    Attributes:
        class_names: in the order of the labels.
        words: class name → words for it, where the archive has them.
        facts: further entries of the manifest.
    """

    class_names: list[str]
    splits: Mapping[str, Sequence[Shard]]
    words: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


Read = Callable[..., ImageSet]


class Number(NamedTuple):
    """An option of one script, a whole number above 0 that decides which images are written."""

    name: str
    default: int
    metavar: str
    help: str


def prepare(
    argv: Sequence[str] | None,
    name: str,
    doc: str | None,
    archives: Sequence[str],
    read: Read,
    workers: int = 0,
    *,
    number: Number | None = None,
    fixed_counts: bool = True,
) -> int:
    """The `main` of a script; returns the exit status.

    Args:
        doc: the script's docstring, its --help.
        archives: official file names, that of the images first; a folder that holds them may be given instead.
        read: finds the images in the trees; its second argument is the size of a shard in bytes, its third, if
            `number` is given, the value of that option.
        workers: default number of processes; 0 writes in the script's own.
        number: an option of this script alone.
        fixed_counts: there is one official version; otherwise, other counts are worth a note.

    Raises:
        UserError: the archives are not the official ones, or OUT cannot be written.
    """
    arguments = _parse(argv, name, doc, workers, number, fixed_counts)
    inputs, out = [Input(path) for path in expand(arguments.inputs, archives)], arguments.out
    options = {number.name: getattr(arguments, number.name)} if number else {}
    stamps = sorted(each.stamp for each in inputs)
    plan = {"format": FORMAT, "name": name, "inputs": stamps, "shard_size": arguments.shard_size} | options
    with disk_errors(out):
        if _is_complete(out, inputs, plan, number):
            shutil.rmtree(out / ".partial", ignore_errors=True)  # a kill at the very end leaves it
            print(f"{out} is already complete, from archives of the same size; remove it to prepare it again")
            return 0
        _require_disk(out, inputs)
        with workspace(out, plan) as partial:
            if not (partial / "dataset_dict.json").is_file():
                _write(partial, inputs, arguments, name, read, options)
            move_into_place(partial, out, list(CATALOG[name].num_images))
    manifest = read_manifest(out)
    print_result(out, manifest)
    counts = {split: each["num_images"] for split, each in manifest["splits"].items()}
    if other := _other_counts(name, counts, manifest["num_classes"]):
        print(f"note: {other}")
    return 0


def _parse(
    argv: Sequence[str] | None, name: str, doc: str | None, workers: int, number: Number | None, fixed_counts: bool
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc, epilog=f"terms: {CATALOG[name].terms}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="ARCHIVE_OR_FOLDER", help="see above")
    add("out", type=Path, metavar="OUT", help="folder to write; use it as data.dataset=./OUT")
    if number:
        text = f"{number.help} (default: {number.default})"
        option = f"--{number.name.replace('_', '-')}"
        add(option, type=int, default=number.default, metavar=number.metavar, help=text)
    counts = "accept image or class counts that differ from the official ones"
    add("--allow-other-counts", action="store_true", default=not fixed_counts, help=counts)
    add("--shard-size", type=float, default=500, metavar="MB", help="size of an Arrow file in OUT (default: 500)")
    if workers:
        add("--workers", type=int, default=workers, help=f"processes that write shards (default: {workers})")
    else:
        parser.set_defaults(workers=0)
    arguments = parser.parse_intermixed_args(argv)
    if not 1e-6 <= arguments.shard_size < math.inf:
        parser.error("--shard-size must be a number of megabytes above 0")
    if workers and arguments.workers < 1:
        parser.error("--workers must be above 0")
    if number and getattr(arguments, number.name) < 1:
        parser.error(f"--{number.name.replace('_', '-')} must be above 0")
    return arguments


def _write(
    partial: Path, inputs: Sequence[Input], arguments: Any, name: str, read: Read, options: dict[str, Any]
) -> None:
    """Write the dataset into the workspace."""
    entry, workers = CATALOG[name], arguments.workers
    total = sum(each.size for each in inputs if each.kind == "compressed")
    with tqdm(total=total, unit="B", unit_scale=True, desc="decompressing", disable=None if total else True) as bar:
        trees = [each.open(partial / f"spool-{number}.tar", bar.update) for number, each in enumerate(inputs)]
    image_set = read(trees, round(arguments.shard_size * 1e6), **options)
    class_names = image_set.class_names
    counts: dict[str, int] = {}
    for split, shards in image_set.splits.items():
        numbers = [shard.num_images for shard in shards if shard.num_images is not None]
        if len(numbers) == len(shards):  # else counted below, once the images are read
            counts[split] = sum(numbers)
    _check_counts(name, counts, len(class_names), arguments.allow_other_counts)
    splits = write_splits(partial, class_names, image_set.splits, inputs, workers, entry.terms, entry.citation)
    for each in inputs:
        if Input(each.path).stamp != each.stamp:
            raise UserError(f"{each.path} changed while it was read; rerun")
    counts = {split: each["num_images"] for split, each in splits.items()}
    _check_counts(name, counts, len(class_names), arguments.allow_other_counts)
    described = [each.describe() for each in inputs]
    write_manifest(
        partial, class_names, splits, name=name, inputs=described, words=image_set.words, **options | image_set.facts
    )


def _check_counts(name: str, counts: dict[str, int], num_classes: int, allow_other: bool) -> None:
    if (other := _other_counts(name, counts, num_classes)) and not allow_other:
        raise UserError(f"{name}: {other}; --allow-other-counts accepts them")


def _other_counts(name: str, counts: dict[str, int], num_classes: int) -> str:
    """Which counts differ from the catalog's; empty if none does."""
    entry = CATALOG[name]
    expected = [("classes", num_classes, entry.num_classes)]
    expected += [(f"{split} images", count, entry.num_images[split]) for split, count in counts.items()]
    wrong = [f"{count:,} {noun} instead of {official:,}" for noun, count, official in expected if count != official]
    return f"found {', '.join(wrong)}" if wrong else ""


def _require_disk(out: Path, inputs: Sequence[Input]) -> None:
    """Require the size of the archives, twice that of a compressed one; files of an earlier run count as free."""
    parent = next(parent for parent in [out.absolute(), *out.absolute().parents] if parent.exists())
    needed = int(1.02 * sum(each.size * (2 if each.kind == "compressed" else 1) for each in inputs))
    earlier = (file for pattern in ("*.arrow", "*.tmp", "spool-*") for file in out.rglob(pattern))
    free = shutil.disk_usage(parent).free + sum(file.stat().st_size for file in earlier)
    if free < needed:
        raise UserError(f"{out}: about {needed / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free; make room")


def _is_complete(out: Path, inputs: Sequence[Input], plan: dict[str, Any], number: Number | None) -> bool:
    """Whether OUT is the dataset that would be written.

    Raises:
        UserError: OUT is neither absent, empty nor this dataset, complete or not.
    """
    for each in inputs:
        source, target = each.path.resolve(), out.resolve()
        if source == target or (each.kind == "folder" and source in target.parents):
            raise UserError(f"{out}: OUT is the input {each.path} or lies in it; choose a folder outside")
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: OUT is a file; the last argument is the folder to write")
    partial, names = out / ".partial", {path.name for path in out.iterdir()}
    if {"dataset_dict.json", "manifest.json"} <= names:
        try:
            manifest = read_manifest(out)
            name, sizes = manifest["name"], sorted(each["size"] for each in manifest["inputs"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{out} holds a dataset that no script made; choose another folder") from None
        if name != plan["name"] or sizes != sorted(each.size for each in inputs):
            raise UserError(f"{out} is a complete {name} from other archives; remove it or choose another folder")
        if number and (written := manifest.get(number.name, number.default)) != plan[number.name]:
            option = f"--{number.name.replace('_', '-')} {written}"
            raise UserError(f"{out} is a complete {name} with {option}; choose another folder")
        return True
    own = set()
    if (partial / "plan.json").is_file():
        begun = json.loads((partial / "plan.json").read_text(encoding="utf-8"))["name"]
        if begun != plan["name"]:
            raise UserError(f"{out} is an unfinished {begun}; remove it or choose another folder")
        own = {".partial", "manifest.json", *CATALOG[begun].num_images}
    elif partial.is_dir() and all(path.name.startswith(("lock", "plan.json.")) for path in partial.iterdir()):
        own = {".partial"}  # killed before it wrote its plan
    if foreign := sorted(names - own):
        raise UserError(f"{out} is not empty: it holds {', '.join(foreign[:3])}; choose another folder")
    return False
