"""Run the prepare_*.py scripts, in this process or as commands, and check what they write or reject."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Features, Image, load_from_disk
from originals import ORIGINALS, Original, packed
from small_sets import load

from cskd_hf.data.decode import decode
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[2]


class KilledError(Exception):
    """A stand-in for SIGKILL in the middle of a preparation."""


def prepare(name: str, *arguments: Any, any_counts: bool = True) -> int:
    options = ["--allow-other-counts"] if any_counts else []
    return importlib.import_module(f"prepare_{name}").main([*map(str, arguments), *options])


def command(name: str, *arguments: Any) -> list[str]:
    script = ROOT / "scripts" / f"prepare_{name}.py"
    return [sys.executable, str(script), *map(str, arguments), "--allow-other-counts"]


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def digests(out: Path) -> dict[str, str]:
    return {split: entry["sha256"] for split, entry in manifest(out)["splits"].items()}


def expected_digest(original: Original, split: str) -> str:
    """The digest as defined in scripts/shard_writer.py, computed independently."""
    digest = hashlib.sha256()
    for _, label, image in original.rows[split]:
        digest.update(label.to_bytes(8, "little") + hashlib.sha256(image).digest())
    return digest.hexdigest()


def assert_prepared(out: Path, original: Original) -> None:
    """Check every image's name, bytes, label and split, as `datasets` and as training read them."""
    opened = load_from_disk(str(out))
    assert list(opened) == list(original.rows)
    features = Features({"image": Image(), "label": ClassLabel(names=original.class_names)})
    for split, rows in original.rows.items():
        assert opened[split].features == features
        assert str(opened[split].split) == split
        stored = opened[split].cast_column("image", Image(decode=False))
        assert [(row["image"]["path"], row["label"], row["image"]["bytes"]) for row in stored] == rows
        sizes = [decode({"bytes": content, "path": None}).size for *_, content in rows]
        assert [image.size for image in opened[split]["image"]] == sizes
    entry = CATALOG[original.name]
    loaded = load(out, train_split=entry.train_split, test_split=entry.test_split)
    assert loaded.train.class_names == loaded.test.class_names == tuple(original.class_names)
    for part, split in ((loaded.train, entry.train_split), (loaded.test, entry.test_split)):
        assert part.labels.tolist() == [label for _, label, _ in original.rows[split]]
        assert [image["bytes"] for image in part.fetch(range(len(part)))] == [b for *_, b in original.rows[split]]
    facts = manifest(out)
    assert (facts["name"], facts["classes"], facts["words"]) == (original.name, original.class_names, original.words)
    counts = {split: entry["num_images"] for split, entry in facts["splits"].items()}
    assert counts == {split: len(rows) for split, rows in original.rows.items()}
    assert digests(out) == {split: expected_digest(original, split) for split in original.rows}
    assert {path.name for path in out.iterdir()} == {*original.rows, "dataset_dict.json", "manifest.json"}


def rejection(name: str, *arguments: Any, any_counts: bool = True, begun: bool = False) -> str:
    """The one-line error of a preparation, which must leave OUT unchanged.

    Args:
        begun: the error occurs while images are written, so complete shards remain for the next run.
    """
    out = Path(arguments[-1])
    before = sorted(out.rglob("*")) if out.is_dir() else out.exists()
    with pytest.raises(UserError) as raised:
        prepare(name, *arguments, any_counts=any_counts)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    if begun and out.exists():
        assert [path.name for path in out.iterdir()] == [".partial"]
        assert not [path for path in out.rglob("*") if path.suffix == ".tmp" or path.name.startswith("spool")]
    else:
        assert (sorted(out.rglob("*")) if out.is_dir() else out.exists()) == before
    return message


def changed(name: str, change: Callable[[Original], Any], root: Path, kind: str = "tar") -> list[Path]:
    """Archives of an original to which `change` was applied."""
    original = ORIGINALS[name]()
    change(original)
    return packed(root, original, kind)


def members_of(original: Original) -> dict[str, bytes]:
    """Members of the image archive."""
    return next(iter(original.files.values()))
