"""The preparing scripts, run here or as commands, and what must hold of the data that they leave."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Features, Image, load_from_disk
from originals import Original

from cskd_hf.data.decode import decode
from cskd_hf.data.splits import load_images
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.sections import DataSection

ROOT = Path(__file__).resolve().parents[2]


def prepare(name: str, *arguments: Any) -> int:
    main = importlib.import_module(f"prepare_{name}").main
    return main([*map(str, arguments), "--allow-other-counts"])


def command(name: str, *arguments: Any) -> list[str]:
    script = ROOT / "scripts" / f"prepare_{name}.py"
    return [sys.executable, str(script), *map(str, arguments), "--allow-other-counts"]


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def digests(out: Path) -> dict[str, str]:
    return {split: facts["sha256"] for split, facts in manifest(out)["splits"].items()}


def expected_digest(original: Original, split: str) -> str:
    """The definition in scripts/shards.py, written anew."""
    whole = b"".join(label.to_bytes(8, "little") + hashlib.sha256(image).digest()
                     for _, label, image in original.rows[split])  # fmt: skip
    return hashlib.sha256(whole).hexdigest()


def assert_whole(out: Path, original: Original) -> None:
    """Every image's name, bytes, label and split, as `datasets` and as the trainer read them."""
    opened = load_from_disk(str(out))
    assert list(opened) == list(original.rows)
    features = Features({"image": Image(), "label": ClassLabel(names=original.class_names)})
    for split, rows in original.rows.items():
        assert opened[split].features == features
        assert str(opened[split].split) == split
        stored = opened[split].cast_column("image", Image(decode=False))
        found = [(row["image"]["path"], row["label"], row["image"]["bytes"]) for row in stored]
        assert found == rows
        assert [image.size for image in opened[split]["image"]] == [decode({"bytes": b, "path": None}).size for _, _, b in rows]  # fmt: skip  # noqa: E501
    entry = CATALOG[original.name]
    keys = {"train_split": entry.train_split, "test_split": entry.test_split}
    keys |= {"image_column": entry.image_column, "label_column": entry.label_column}
    loaded = load_images(DataSection(dataset=str(out), **keys))
    assert loaded.train.class_names == loaded.test.class_names == tuple(original.class_names)
    for part, split in ((loaded.train, entry.train_split), (loaded.test, entry.test_split)):
        assert part.labels.tolist() == [label for _, label, _ in original.rows[split]]
        assert [image["bytes"] for image in part.fetch(range(len(part)))] == [b for _, _, b in original.rows[split]]
    facts = manifest(out)
    assert facts["name"] == original.name
    assert facts["classes"] == original.class_names
    assert facts["words"] == original.words
    assert {split: part["num_images"] for split, part in facts["splits"].items()} == {
        split: len(rows) for split, rows in original.rows.items()
    }
    assert digests(out) == {split: expected_digest(original, split) for split in original.rows}
    assert sorted(entry.name for entry in out.iterdir()) == sorted(
        [*original.rows, "dataset_dict.json", "manifest.json"]
    )
