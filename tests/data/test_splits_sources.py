"""Where data comes from: the Hub, the catalog, a folder, scikit-learn's digits."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_sets import load, write

from cskd_hf.data.decode import decode
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    "dataset",
    # To `datasets` the last two mean the working directory.
    [
        "cifar10",
        "./missing",
        "../missing",
        "./no/such/folder",
        "/no/such",
        "/missing",
        "~/missing",
        "imagefolder",
        "parquet",
    ],
)
def test_an_unknown_name_lists_the_catalog_in_one_line(dataset, tmp_path, monkeypatch):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cskd_hf.data.hub.snapshot_download", None)  # nor is there a network request
    with pytest.raises(UserError) as caught:
        load(dataset)
    message = str(caught.value)
    assert message.startswith(
        f"data.dataset: read {os.path.expanduser(dataset)!r}; write a folder, a Hub id (owner/name), or one of the"
    )
    assert all(name in message for name in CATALOG)
    assert len(message.splitlines()) == 1


def test_a_catalog_name_takes_precedence_over_a_folder_unless_written_with_a_dot(tmp_path, monkeypatch):
    write(tmp_path, "digits/train/a/1.jpg", "digits/train/b/1.jpg", "digits/test/a/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert load("digits").num_classes == 10
    assert load("./digits").num_classes == 2


# scikit-learn's digits


def test_digits_has_20_training_and_30_hold_out_images_per_class_and_tests_on_the_rest():
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = load("digits", holdout="holdout")
    assert np.bincount(images.train.labels).tolist() == [20] * 10
    assert np.bincount(images.holdout.labels).tolist() == [30] * 10
    splits = {"train": images.train, "holdout": images.holdout, "test": images.test}
    assert {name: len(split) for name, split in splits.items()} == CATALOG["digits"].num_images

    def identity(image: np.ndarray, label: int) -> tuple[bytes, int]:
        return image.astype(np.uint8).tobytes(), int(label)

    # The 1,797 images all differ.
    expected = [
        identity(np.round(image * 255 / 16), label) for image, label in zip(scans.images, scans.target, strict=True)
    ]
    loaded = [
        identity(np.asarray(decode(image))[:, :, 0], label)
        for split in splits.values()
        for image, label in zip(split.fetch(range(len(split))), split.labels, strict=True)
    ]
    assert len(set(expected)) == 1797
    assert sorted(loaded) == sorted(expected)


def test_digits_do_not_depend_on_the_global_generator():
    np.random.seed(1)
    first = load("digits").train
    np.random.seed(2)
    again = load("digits").train
    assert again.labels.tolist() == first.labels.tolist()
    assert again.fetch(range(200)) == first.fetch(range(200))


def test_digits_statistics_are_those_of_the_training_images():
    entry, train = CATALOG["digits"], load("digits").train
    values = np.stack([np.asarray(decode(image)) for image in train.fetch(range(200))]) / 255
    assert values.mean((0, 1, 2)) == pytest.approx(entry.mean, abs=2e-3)
    assert values.std((0, 1, 2)) == pytest.approx(entry.std, abs=2e-3)
