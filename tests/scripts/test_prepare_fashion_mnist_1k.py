"""Fashion-MNIST with 100 training images per class, from the authors' files."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from preparations import digests, manifest, prepare, rejection
from small_sets import load

from cskd_hf.data.decode import decode
from cskd_hf.data.splits import load_images
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
NAME = "fashion_mnist_1k"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
# Of the authors' images, independent of the compression of their files.
DIGESTS = {
    "train": "ff8fd0d6d12e1472dd2fb2da585becfa102d4d5928eb97dc819471ea3b03e7f9",
    "holdout": "1c06d49de634991987c269194622ab1d730c228401c16bea43f65edb6a8ad1ef",
    "test": "cea7a0f87109b4d204fc71064ca83080fcab6f336aa30c28318e39c01f606313",
}
needs_package = pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs apt-get install dataset-fashion-mnist (31 MB)")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def scans(seed: int, per_class: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise and labels of ten classes, shuffled."""
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
    images = load(out, holdout="holdout")
    return {
        name: (np.stack([np.asarray(decode(image)) for image in split.fetch(range(len(split)))]), split.labels)
        for name, split in (("train", images.train), ("holdout", images.holdout), ("test", images.test))
    }


# Images that are not square would show swapped dimensions.
@pytest.mark.parametrize("shape", [(28, 28), (5, 7)])
def test_each_class_has_its_first_hundred_images_in_train_and_the_next_hundred_in_holdout(tmp_path, shape):
    parts = authors_files(tmp_path / "in", shape)
    assert prepare(NAME, tmp_path / "in", tmp_path / "out") == 0
    images, labels = parts["train"]
    by_class = [np.flatnonzero(labels == label) for label in range(10)]
    splits = opened(tmp_path / "out")
    for split, start in (("train", 0), ("holdout", 100)):
        rows = np.sort(np.concatenate([indices[start : start + 100] for indices in by_class]))
        assert splits[split][1].tolist() == labels[rows].tolist()
        assert np.array_equal(splits[split][0], np.repeat(images[rows][..., None], 3, axis=-1))
    assert splits["test"][1].tolist() == parts["t10k"][1].tolist()
    assert np.array_equal(splits["test"][0][..., 0], parts["t10k"][0])


def test_another_number_of_images_per_class_is_another_dataset(tmp_path):
    authors_files(tmp_path / "in")
    arguments = (NAME, tmp_path / "in", tmp_path / "out")
    assert prepare(*arguments, "--images-per-class", 3, "--allow-other-counts") == 0
    assert [len(labels) for _, labels in opened(tmp_path / "out").values()] == [30, 30, 50]
    assert manifest(tmp_path / "out")["images_per_class"] == 3
    assert "with --images-per-class 3; choose another folder" in rejection(*arguments)


def test_the_prepared_folder_has_the_splits_of_its_recipe(tmp_path):
    authors_files(tmp_path / "in")
    assert prepare(NAME, tmp_path / "in", tmp_path / "out", "--shard-size", 0.1) == 0
    assert manifest(tmp_path / "out")["splits"]["train"]["num_shards"] > 1
    assert manifest(tmp_path / "out")["classes"][0] == "T-shirt/top"
    assert entry_of(str(tmp_path / "out")) is CATALOG[NAME]
    recipe = resolve(load_recipe(f"{NAME}_test_resnet", [f"data.dataset={tmp_path / 'out'}"]))
    images = load_images(recipe.data)
    assert list(map(len, (images.train, images.holdout, images.test))) == [1000, 1000, 50]


def test_other_counts_are_rejected(tmp_path):
    authors_files(tmp_path / "in")
    message = rejection(NAME, tmp_path / "in", tmp_path / "out", any_counts=False)
    assert "found 50 test images instead of 10,000" in message


def test_without_the_files_one_line_names_the_package_to_install(tmp_path):
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


PIXELS, LABELS, FEW = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", np.zeros(3, np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (PIXELS, b"<html>", f"is damaged: {PIXELS}"),
        (PIXELS, gzip.compress(idx(FEW))[:-9], f"is damaged: {PIXELS}"),
        (PIXELS, gzip.compress(b""), f"{PIXELS} is not a complete IDX file of bytes in 3 dimensions"),
        (PIXELS, gzip.compress(idx(FEW)), f"{PIXELS} is not a complete IDX file of bytes in 3 dimensions"),
        (LABELS, gzip.compress(idx(FEW)[:-1]), f"{LABELS} is not a complete IDX file of bytes in 1 dimensions"),
        (LABELS, gzip.compress(idx(FEW)), f"{PIXELS} has 2,100 images, {LABELS} 3 labels"),
        (LABELS, gzip.compress(idx(np.full(2100, 10, np.uint8))), "labels are 0 to 9, found 10"),
    ],
    ids=["not gzip", "truncated gzip", "empty", "one dimension", "truncated IDX", "too few labels", "label 10"],
)
def test_a_damaged_file_is_named(tmp_path, name, content, reason):
    authors_files(tmp_path / "in")
    (tmp_path / "in" / name).write_bytes(content)
    assert reason in rejection(NAME, tmp_path / "in", tmp_path / "out")


@needs_package
def test_the_installed_files_give_the_splits_of_the_catalog(tmp_path):
    assert prepare(NAME, INSTALLED, tmp_path / "out", any_counts=False) == 0
    assert digests(tmp_path / "out") == DIGESTS
    splits, entry = opened(tmp_path / "out"), CATALOG[NAME]
    assert {split: len(labels) for split, (_, labels) in splits.items()} == entry.num_images
    for (_, labels), count in zip(splits.values(), (100, 100, 1000), strict=True):
        assert np.bincount(labels).tolist() == [count] * 10
    values = splits["train"][0] / 255
    assert values.mean((0, 1, 2)) == pytest.approx(entry.mean, abs=1e-3)
    assert values.std((0, 1, 2)) == pytest.approx(entry.std, abs=1e-3)
