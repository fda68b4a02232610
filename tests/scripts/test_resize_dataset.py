"""Copies with smaller images: content, recorded loss, resuming after a kill."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from deep_images import tiff
from originals import picture
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter
from small_sets import load

from cskd_hf.data.decode import decode
from cskd_hf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(100, 60), (60, 100), (40, 40), (32, 90), (20, 12)]  # width, height
LABELS = {"train": [0, 1, 0, 1, 1], "test": [1, 0]}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts"))
    return importlib.import_module("resize_dataset")


def photograph(number: int, width: int, height: int, kind: str = "JPEG", **options: object) -> bytes:
    draws = np.random.default_rng(number).normal(size=(height, width, 3))
    pixels = (gaussian_filter(draws, (4, 4, 0)) * 400 + 128).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def folders(root: Path) -> Path:
    number = 0
    for split, labels in LABELS.items():
        for label in labels:
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(photograph(number, *SIZES[number % len(SIZES)]))
            number += 1
    return root


def arrow(root: Path, images: list[dict[str, Any]], labels: list[int]) -> Path:
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["a", "b"])})
    splits = {
        "train": Dataset.from_dict({"image": images, "label": labels}, features=features),
        "test": Dataset.from_dict({"image": images[:2], "label": labels[:2]}, features=features),
    }
    DatasetDict(splits).save_to_disk(str(root))
    return root


def resize(script: ModuleType, *arguments: object) -> int:
    return script.main([*map(str, arguments), "--workers", "1"])


def test_a_copy_has_every_image_in_order_with_a_limited_short_side(script, tmp_path, capsys):
    source = folders(tmp_path / "in")
    assert resize(script, source, tmp_path / "out", "--short-side", 32) == 0
    before, after = load(source), load(tmp_path / "out")
    for split in ("train", "test"):
        old, new = getattr(before, split), getattr(after, split)
        assert old.labels.tolist() == new.labels.tolist()
        assert old.class_names == new.class_names == ("class 0", "class 1")
        for one, other in zip(old.fetch(range(len(old))), new.fetch(range(len(new))), strict=True):
            original, copy = decode(one), decode(other)
            assert Path(one["path"]).name == other["path"]
            if min(original.size) <= 32:
                assert other["bytes"] == Path(one["path"]).read_bytes()
                continue
            assert min(copy.size) == 32
            assert copy.width / copy.height == pytest.approx(original.width / original.height, abs=0.03)
            expected = np.asarray(original.resize(copy.size, PillowImage.Resampling.BICUBIC)).astype(int)
            assert np.abs(np.asarray(copy) - expected).mean() < 4
    assert f"data.dataset={tmp_path / 'out'}" in capsys.readouterr().out
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["dataset_dict.json", "manifest.json", "test", "train"]  # fmt: skip  # noqa: E501
    stored = load_from_disk(str(tmp_path / "out"))
    assert stored["train"].features == Features({"image": Image(), "label": ClassLabel(names=["class 0", "class 1"])})


def test_the_manifest_records_the_loss_and_a_run_notes_the_copy(script, tmp_path):
    source = folders(tmp_path / "in")
    losses = {}
    for quality in (90, 30):
        resize(script, source, tmp_path / str(quality), "--short-side", 32, "--quality", quality)
        manifest = json.loads((tmp_path / str(quality) / "manifest.json").read_text(encoding="utf-8"))
        losses[quality] = manifest["resized"]
        assert (losses[quality]["num_sampled"], losses[quality]["num_resized"]) == (5, 3)
        assert 20 < losses[quality]["least_decibels"] <= losses[quality]["mean_decibels"] < 60
        (note,) = load(tmp_path / str(quality)).notes
        assert note.startswith(f"the images are a copy with short sides of at most 32 pixels (JPEG quality {quality}: ")
    assert losses[30]["mean_decibels"] < losses[90]["mean_decibels"]
    assert load(source).notes == ()


def test_rotated_images_are_stored_upright_and_unreadable_ones_unchanged(script, tmp_path):
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    rotated, grey = photograph(1, 90, 60, exif=exif), picture(2, "PNG", "L", 50)
    deep = tiff(np.arange(6400, dtype=np.uint16).reshape(80, 80))
    transparent = picture(3, "PNG", "RGBA", 50)
    images = [{"bytes": data, "path": None} for data in (rotated, b"not an image", grey, deep, transparent)]
    source = arrow(tmp_path / "in", images, [0, 1, 0, 1, 0])
    assert resize(script, source, tmp_path / "out", "--short-side", 30) == 0
    first, second, third, *unfit = load(tmp_path / "out").train.fetch(range(5))
    assert [image["bytes"] for image in unfit] == [deep, transparent]  # a JPEG would have 8 bits and no alpha
    assert decode(first).size == (30, 45)
    assert second["bytes"] == b"not an image"
    assert decode(third).size == (30, 30)


def test_a_rerun_does_nothing_and_other_settings_are_rejected(script, tmp_path, capsys):
    source, out = folders(tmp_path / "in"), tmp_path / "out"
    resize(script, source, out, "--short-side", 32)
    written = (out / "train" / "state.json").stat().st_mtime_ns
    capsys.readouterr()
    assert resize(script, source, out, "--short-side", 32) == 0
    assert "is complete" in capsys.readouterr().out
    assert (out / "train" / "state.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="OUT is not empty"):
        resize(script, source, out, "--short-side", 31)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="OUT is not empty"):
        resize(script, source, tmp_path / "own")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="OUT is a file"):
        resize(script, source, tmp_path / "file")


@pytest.mark.slow
def test_a_killed_copy_resumes_to_the_same_bytes(script, tmp_path, monkeypatch):
    images = [{"bytes": photograph(number, 120, 90), "path": None} for number in range(40)]
    source, out = arrow(tmp_path / "in", images, [number % 2 for number in range(40)]), tmp_path / "out"
    small_shards = "import resize_dataset, sys; resize_dataset.ROWS_PER_SHARD = 4; resize_dataset.main(sys.argv[1:])"
    runner = tmp_path / "run.py"
    runner.write_text(f"if __name__ == '__main__':\n    {small_shards}\n", encoding="utf-8")
    command = [sys.executable, str(runner), str(source), str(out), "--short-side=48", "--workers=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / ".partial" / "rows" / "train-00001").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in (out / ".partial" / "train").glob("data-*.arrow")}
    assert done, "killed before the first shard was complete, or after the end"
    assert not (out / "dataset_dict.json").exists()

    monkeypatch.setattr(script, "ROWS_PER_SHARD", 4)
    with pytest.raises(UserError, match="unfinished copy of other images or settings"):
        resize(script, source, out, "--short-side", 40)
    assert resize(script, source, out, "--short-side", 48) == 0
    assert resize(script, source, tmp_path / "whole", "--short-side", 48) == 0
    for file in (tmp_path / "whole" / "train").iterdir():
        assert (out / "train" / file.name).read_bytes() == file.read_bytes()
    reused = [path for path, at in done.items() if (out / "train" / path.name).stat().st_mtime_ns == at]
    assert reused, "complete shards are not written again"


def test_a_setting_out_of_range_exits_with_status_2(script, tmp_path, capsys):
    for wrong in (["--quality", "96"], ["--short-side", "0"], ["--workers", "0"]):
        with pytest.raises(SystemExit) as caught:
            script.main([str(tmp_path), str(tmp_path / "out"), *wrong])
        assert caught.value.code == 2
        assert "--quality in 1 to 95" in capsys.readouterr().err
