"""Prepare Stanford Dogs: original archives → a folder for `data.dataset`.

    python scripts/prepare_stanford_dogs.py images.tar lists.tar OUT

The archives are images.tar and lists.tar, from the Stanford Dogs (ImageNetDogs) page, or a folder with both or with
their unpacked content.

Splits train and test, and the order of their images, follow train_list.mat and test_list.mat; classes follow the labels
there, under the names of their folders ("n02085620-Chihuahua").
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from archive_inputs import image_folder, locate
from archives import Tree
from preparation import ImageSet, prepare
from shards import listed

from cskd_hf.errors import UserError, run_command

EXPECTED = "images.tar with Images/n02085620-Chihuahua/*.jpg and lists.tar with train_list.mat and test_list.mat"


def read_list(tree: Tree, member: str) -> list[tuple[str, str, int]]:
    """(where, file, label) of each image; labels start at 1."""
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(tree.read(member)))
        files = [str(np.asarray(file).item()) for file in content["file_list"].ravel()]
        labels = [int(label) for label in content["labels"].ravel()]
        return [(f"{member}, row {row}", *pair) for row, pair in enumerate(zip(files, labels, strict=True), 1)]
    except Exception as error:  # loadmat raises many kinds
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{member}: expected file_list and labels of one length ({reason})") from error


def read(trees: Sequence[Tree], shard_bytes: int) -> ImageSet:
    places = locate(trees, EXPECTED, "train_list.mat", "test_list.mat")
    lists = {split: read_list(*place) for split, place in zip(("train", "test"), places, strict=True)}
    entries = [entry for part in lists.values() for entry in part]
    tree, folder = image_folder(trees, EXPECTED, [(where, file) for where, file, _ in entries])
    names: dict[int, str] = {}
    for where, file, label in entries:
        name = file.rsplit("/", 1)[0]
        if names.setdefault(label, name) != name:
            raise UserError(f"{where}: {file} has label {label}, the label of {names[label]}")
    if sorted(names) != list(range(1, len(names) + 1)):
        raise UserError(f"labels: expected 1 to {len(names)} for {len(names)} classes, the highest is {max(names)}")
    class_names = [names[label] for label in sorted(names)]
    splits = {
        split: listed(tree, [(label - 1, folder + file) for _, file, label in part], shard_bytes)
        for split, part in lists.items()
    }
    words = {name: name.split("-", 1)[-1].replace("_", " ") for name in class_names}
    return ImageSet(class_names, splits, words)


def main(argv: Sequence[str] | None = None) -> int:
    return prepare(argv, "stanford_dogs", __doc__, ["images.tar", "lists.tar"], read)


if __name__ == "__main__":
    run_command(main)
