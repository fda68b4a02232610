"""Prepare CUB-200-2011 (Caltech-UCSD Birds): original archive → a folder for `data.dataset`.

    python scripts/prepare_cub200.py CUB_200_2011.tgz OUT

The archive is CUB_200_2011.tgz, from CaltechDATA or the Perona lab's page, or the folder it unpacks to.

Splits train and test follow train_test_split.txt, images the order of images.txt, classes the order and names of
classes.txt ("001.Black_footed_Albatross").
"""

from __future__ import annotations

from collections.abc import Sequence

from archive_inputs import columns, image_folder, locate
from archives import Tree
from preparation import ImageSet, prepare
from shards import listed

from cskd_hf.errors import UserError, run_command

EXPECTED = (
    "CUB_200_2011.tgz or its folder, with images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and "
    "images/001.Black_footed_Albatross/*.jpg"
)
SPLITS = {"1": "train", "0": "test"}


def read(trees: Sequence[Tree], shard_bytes: int) -> ImageSet:
    files = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    images, classes, split_of, names = (list(columns(*place)) for place in locate(trees, EXPECTED, *files))
    labels = {number: label for label, (_, number, _) in enumerate(names)}
    class_of = {image: number for _, image, number in classes}
    part_of = {image: part for _, image, part in split_of}
    tree, folder = image_folder(trees, EXPECTED, [(where, file) for where, _, file in images])
    rows: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
    for where, image, file in images:
        number, part = class_of.get(image), part_of.get(image)
        if number not in labels or part not in SPLITS:
            raise UserError(
                f"{where}: image {image} has class {number} and split {part}, which are not in the other lists"
            )
        rows[SPLITS[part]].append((labels[number], folder + file))
    class_names = [name for _, _, name in names]
    words = {name: name.split(".", 1)[-1].replace("_", " ") for name in class_names}
    return ImageSet(class_names, {split: listed(tree, part, shard_bytes) for split, part in rows.items()}, words)


def main(argv: Sequence[str] | None = None) -> int:
    return prepare(argv, "cub200", __doc__, ["CUB_200_2011.tgz"], read)


if __name__ == "__main__":
    run_command(main)
