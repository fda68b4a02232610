"""Prepare MIT Indoor 67: original archive and lists → a folder for `data.dataset`.

    python scripts/prepare_mit67.py indoorCVPR_09.tar TrainImages.txt TestImages.txt OUT

The archive is indoorCVPR_09.tar and the lists are TrainImages.txt and TestImages.txt, from the Indoor Scene Recognition
page, or a folder with all three, or with the lists and the unpacked Images/.

Splits train and test, and the order of their images, follow the lists, which name 6,700 of the 15,620 images; classes
are the folders in alphabetical order. Images keep their bytes: some files named .jpg are PNG or GIF.
"""

from __future__ import annotations

from collections.abc import Sequence

from archive_inputs import image_folder, lines, locate
from archives import Tree
from preparation import ImageSet, prepare
from shards import listed

from cskd_hf.errors import UserError, run_command

EXPECTED = "indoorCVPR_09.tar with Images/airport_inside/*.jpg, and TrainImages.txt and TestImages.txt"


def read(trees: Sequence[Tree], shard_bytes: int) -> ImageSet:
    places = locate(trees, EXPECTED, "TrainImages.txt", "TestImages.txt")
    lists = {split: list(lines(*place)) for split, place in zip(("train", "test"), places, strict=True)}
    entries = [entry for part in lists.values() for entry in part]
    for where, file in entries:
        if file.count("/") != 1:
            raise UserError(f"{where}: expected class/file.jpg, found {file!r}")
    tree, folder = image_folder(trees, EXPECTED, entries)
    class_names = sorted({file.split("/")[0] for _, file in entries})
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {
        split: listed(tree, [(labels[file.split("/")[0]], folder + file) for _, file in part], shard_bytes)
        for split, part in lists.items()
    }
    return ImageSet(class_names, splits, {name: name.replace("_", " ") for name in class_names})


def main(argv: Sequence[str] | None = None) -> int:
    return prepare(argv, "mit67", __doc__, ["indoorCVPR_09.tar", "TrainImages.txt", "TestImages.txt"], read)


if __name__ == "__main__":
    run_command(main)
