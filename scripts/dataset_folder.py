"""The folder that `datasets.load_from_disk` opens: complete or absent, resumed after a kill.

Everything is written under OUT/.partial and moved into OUT when it is complete, `dataset_dict.json` last: no program
takes a folder without that file for a dataset.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from archive_inputs import Input
from shard_writer import ROW_BYTES, SCHEMA, rows_file, write_file, write_shards
from shards import Shard

import cskd_hf
from cskd_hf.errors import UserError
from cskd_hf.files import sync

FORMAT = 1  # of the shards; a higher number discards unfinished ones


def write_splits(
    partial: Path,
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[Shard]],
    archives: Sequence[Input] = (),
    workers: int = 0,
    description: str = "",
    citation: str = "",
) -> dict[str, dict[str, Any]]:
    """Write the shards that are not complete yet, and the JSON files that `load_from_disk` reads next to them.

    The SHA-256 of the archives is computed along the way.

    Returns:
        The manifest's entry of each split: number of images and of shards, SHA-256 of its rows.

    Raises:
        UserError: see `write_shards`, which takes `workers`.
    """
    # Written as by `datasets`; importing it takes longer than writing a small dataset.
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    schema = SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    write_shards(splits, partial, schema, archives, workers)
    entries = {}
    for split, shards in splits.items():
        digest, size = hashlib.sha256(), 0
        for number in range(len(shards)):
            rows = rows_file(partial, split, number).read_bytes()
            digest.update(rows)
            size += len(rows)
        sha256, folder = digest.hexdigest(), partial / split
        entries[split] = {"num_images": size // ROW_BYTES, "num_shards": len(shards), "sha256": sha256}
        info = {"features": features, "description": description, "citation": citation}
        write_json(folder / "dataset_info.json", info | {"homepage": "", "license": ""})
        files = [{"filename": path.name} for path in sorted(folder.glob("data-*.arrow"))]
        state: dict[str, Any] = {"_data_files": files, "_fingerprint": sha256[:16]}  # the key of the dataset's caches
        state |= {"_format_columns": None, "_format_type": None, "_format_kwargs": {}}
        write_json(folder / "state.json", state | {"_output_all_columns": False, "_split": split})
    return entries


def write_manifest(
    partial: Path, class_names: Sequence[str], splits: Mapping[str, Mapping[str, Any]], **facts: Any
) -> dict[str, Any]:
    """Write manifest.json, with `facts` as further keys, and dataset_dict.json; returns the manifest.

    Args:
        splits: what `write_splits` returned.
    """
    packages = {package: version(package) for package in ("datasets", "pyarrow", "pillow")}
    manifest = {
        "num_classes": len(class_names),
        "splits": dict(splits),
        "classes": list(class_names),
        "versions": {"cskd_hf": cskd_hf.__version__, "python": platform.python_version(), **packages},
        **facts,
    }
    write_json(partial / "manifest.json", manifest)
    write_json(partial / "dataset_dict.json", {"splits": list(splits)})
    return manifest


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def check_new(out: Path) -> None:
    """Raises UserError unless OUT is absent or an empty folder."""
    with disk_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: OUT is {'not empty' if out.is_dir() else 'a file'}; choose another folder")


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Inside, a full disk, a missing permission and the like are UserErrors that name the file, or else OUT."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{out}: the disk is full; make room and rerun") from error
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes OUT when the block ends, for a set too small to be worth resuming.

    Raises:
        UserError: the disk is full, or the like.
    """
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            partial = Path(temporary) / "set"
            partial.mkdir()
            yield partial
            os.replace(partial, out)


@contextmanager
def workspace(out: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """OUT/.partial, locked; emptied first if it was begun with another plan.

    Raises:
        UserError: another process writes there.
    """
    existed, partial = out.exists(), out / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    with open(partial / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is writing there; wait for it, or choose another folder") from None
        if (out / "dataset_dict.json").is_file():  # finished since the caller looked
            raise UserError(f"{out}: another process has just finished it; rerun to verify that it is complete")
        plan_file = partial / "plan.json"
        if not plan_file.is_file() or json.loads(plan_file.read_text(encoding="utf-8")) != plan:
            for path in [*out.iterdir(), *partial.iterdir()]:
                if path.name not in (".partial", "lock"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_file(plan_file, json.dumps(plan).encode())
        try:
            yield partial
        finally:
            for path in [*partial.glob("**/*.tmp"), *partial.glob("spool-*")]:
                path.unlink()
            if (out / "dataset_dict.json").is_file() or not any(partial.glob("rows/*")):
                shutil.rmtree(partial)
            if not existed and not any(out.iterdir()):
                out.rmdir()


def move_into_place(partial: Path, out: Path, splits: Sequence[str]) -> None:
    """Move a complete dataset from `partial` to OUT; resumes after a kill."""
    for name in itertools.chain(splits, ["manifest.json", "dataset_dict.json"]):
        if (partial / name).exists():
            os.replace(partial / name, out / name)
            sync(out)


def print_result(out: Path, manifest: Mapping[str, Any]) -> None:
    for split, entry in manifest["splits"].items():
        size = f"{entry['num_bytes'] / 1e6:,.1f} MB, " if "num_bytes" in entry else ""
        print(f"{split}: {entry['num_images']:,} images, {size}sha256 {entry['sha256']}")
    # ./ because a bare name may be the catalog's
    print(f"{manifest['num_classes']} classes; in a recipe: data.dataset={os.path.join('.', out)}")
