from __future__ import annotations

import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import metrics_lines, quick, summary_of

from cskd_hf.data.decode import decode
from cskd_hf.data.splits import load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.sections import DataSection

ROOT = Path(__file__).resolve().parents[2]
NAME = "fashion_mnist_1k"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
# Of the authors' scans, whatever the compression of their files.
DIGESTS = {
    "train": "ff8fd0d6d12e1472dd2fb2da585becfa102d4d5928eb97dc819471ea3b03e7f9",
    "holdout": "1c06d49de634991987c269194622ab1d730c228401c16bea43f65edb6a8ad1ef",
    "test": "cea7a0f87109b4d204fc71064ca83080fcab6f336aa30c28318e39c01f606313",
}
needs_package = pytest.mark.skipif(
    not INSTALLED.is_dir(), reason="the scans are not here: apt-get install dataset-fashion-mnist (31 MB)"
)


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def prepare(*arguments: Any) -> int:
    return importlib.import_module(f"prepare_{NAME}").main([*map(str, arguments)])


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def scans(seed: int, per_class: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise and labels: so many of each of ten classes, in no order."""
    random = np.random.RandomState(seed)
    labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
    return random.randint(0, 256, (len(labels), *shape), dtype=np.uint8), labels


def authors_files(root: Path, shape: tuple[int, int] = (28, 28)) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four files with 210 training images a class and 5 to test; part → (images, labels)."""
    parts = {"train": scans(0, 210, shape), "t10k": scans(1, 5, shape)}
    root.mkdir(parents=True)
    for part, (images, labels) in parts.items():
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return parts


def opened(out: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """split → (images, labels), as training reads them."""
    keys = {"image_column": "image", "label_column": "label", "holdout": "holdout"}
    found = load_images(DataSection(dataset=str(out), train_split="train", test_split="test", **keys))
    assert found.holdout is not None
    parts = {"train": found.train, "holdout": found.holdout, "test": found.test}
    images = {
        split: np.stack([np.asarray(decode(image)) for image in part.fetch(range(len(part)))])
        for split, part in parts.items()
    }
    return {split: (images[split], part.labels) for split, part in parts.items()}


# A scan that is not square shows its width and height.
@pytest.mark.parametrize("shape", [(28, 28), (5, 7)])
def test_of_each_class_the_first_hundred_are_trained_on_the_next_held_out_and_the_test_images_stay(tmp_path, shape):
    parts = authors_files(tmp_path / "in", shape)
    assert prepare(tmp_path / "in", tmp_path / "out", "--allow-other-counts") == 0
    images, labels = parts["train"]
    seen = [0] * 10
    rows: dict[str, list[int]] = {"train": [], "holdout": []}
    for row, label in enumerate(labels):
        if seen[label] < 200:
            rows["train" if seen[label] < 100 else "holdout"].append(row)
        seen[label] += 1
    found = opened(tmp_path / "out")
    for split, (expected, of) in {split: (images[kept], labels[kept]) for split, kept in rows.items()}.items():
        assert found[split][1].tolist() == of.tolist()
        assert np.array_equal(found[split][0], np.repeat(expected[..., None], 3, axis=-1))
    assert found["test"][1].tolist() == parts["t10k"][1].tolist()
    assert np.array_equal(found["test"][0][..., 0], parts["t10k"][0])


def test_the_folder_knows_what_it_is_and_trains_by_the_recipe(tmp_path):
    authors_files(tmp_path / "in")
    assert prepare(tmp_path / "in", tmp_path / "out", "--allow-other-counts", "--shard-size", 0.1) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["splits"]["train"]["num_shards"] > 1
    assert manifest["classes"][0] == "T-shirt/top"
    assert entry_of(str(tmp_path / "out")) is CATALOG[NAME]
    done = quick(
        ROOT / "recipes" / f"{NAME}_test_resnet.yaml",
        f"data.dataset={tmp_path / 'out'}",
        "data.batch_size=500",
        "data.workers=0",
        "scheduler.num_epochs=1",
        f"run.output_dir={tmp_path / 'run'}",
    )
    assert done.status == 0, done.stderr
    assert metrics_lines(tmp_path / "run")[-1]["step"] == 2
    assert summary_of(tmp_path / "run")["dataset"]["images"] == {"train": 1000, "holdout": 1000, "test": 50}


def test_other_numbers_of_images_than_the_authors_are_refused(tmp_path):
    authors_files(tmp_path / "in")
    with pytest.raises(UserError, match="found 50 test images instead of 10,000"):
        prepare(tmp_path / "in", tmp_path / "out")


def test_without_the_files_one_line_says_what_to_install(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, beginning in (
        (tmp_path / "none", f"error: {tmp_path / 'none'}: No such file or directory"),
        (tmp_path / "empty", "error: found no train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz"),
    ):
        command = [sys.executable, ROOT / "scripts" / f"prepare_{NAME}.py", folder, tmp_path / "out"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(beginning)
        assert "apt-get install dataset-fashion-mnist" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_damaged_file_is_refused_by_name(tmp_path):
    pixels, labels = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
    few = np.zeros(3, np.uint8)
    for number, (name, content, message) in enumerate(
        [
            (pixels, b"<html>", f"is damaged: {pixels}"),
            (pixels, gzip.compress(idx(few))[:-9], f"is damaged: {pixels}"),
            (pixels, gzip.compress(b""), f"{pixels} is no IDX file of bytes in 3 dimensions"),
            (pixels, gzip.compress(idx(few)), f"{pixels} is no IDX file of bytes in 3 dimensions"),
            (labels, gzip.compress(idx(few)[:-1]), f"{labels} is no IDX file of bytes in 1 dimensions"),
            (labels, gzip.compress(idx(few)), f"{pixels} has 2,100 images, {labels} 3 labels"),
            (labels, gzip.compress(idx(np.full(2100, 10, np.uint8))), "labels are 0 to 9, found 10"),
        ]
    ):
        authors_files(tmp_path / str(number))
        (tmp_path / str(number) / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            prepare(tmp_path / str(number), tmp_path / "out", "--allow-other-counts")
        assert message in str(caught.value)
        assert not (tmp_path / "out").exists()


@needs_package
def test_the_installed_scans_give_the_splits_of_the_catalog(tmp_path):
    assert prepare(INSTALLED, tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert {split: facts["sha256"] for split, facts in manifest["splits"].items()} == DIGESTS
    found, entry = opened(tmp_path / "out"), CATALOG[NAME]
    assert {split: len(labels) for split, (_, labels) in found.items()} == entry.num_images
    for (_, labels), count in zip(found.values(), (100, 100, 1000), strict=True):
        assert np.bincount(labels).tolist() == [count] * 10
    values = found["train"][0] / 255
    assert values.mean((0, 1, 2)) == pytest.approx(entry.mean, abs=1e-3)
    assert values.std((0, 1, 2)) == pytest.approx(entry.std, abs=1e-3)
