"""Prepare Tiny ImageNet (Stanford CS 231N): original archive → a folder for `data.dataset`.

    python scripts/prepare_tiny_imagenet.py tiny-imagenet-200.zip OUT

The archive is tiny-imagenet-200.zip, from the CS 231N course page, or the folder it unpacks to.

Splits train and valid; the test images have no public labels. Classes are the WordNet ids in alphabetical order, as in
ImageNet or a folder of classes, not in the order of wnids.txt. Training images are ordered by class, then file name;
valid images as in val_annotations.txt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from archive_inputs import columns, lines, locate, missing_error
from archives import Tree
from preparation import ImageSet, prepare
from shards import listed

from cskd_hf.errors import UserError, run_command

EXPECTED = (
    "tiny-imagenet-200.zip or its folder, with wnids.txt, words.txt, train/n01443537/images/*.JPEG, val/images/*.JPEG "
    "and val/val_annotations.txt"
)


def read(trees: Sequence[Tree], shard_bytes: int) -> ImageSet:
    wnids, words, annotations = locate(trees, EXPECTED, "wnids.txt", "words.txt", "val_annotations.txt")
    class_names = sorted(wnid for _, wnid in lines(*wnids))
    labels = {name: label for label, name in enumerate(class_names)}
    tree, root = wnids[0], wnids[1].removesuffix("wnids.txt")
    train = []
    for member in tree.members:
        if match := re.fullmatch(rf"{re.escape(root)}train/([^/]+)/images/([^/.][^/]*\.JPEG)", member):
            if match[1] not in labels:
                raise UserError(f"{member}: its class is not in {wnids[1]}")
            train.append((labels[match[1]], member))
    if not train:
        raise missing_error(trees, EXPECTED, "train/*/images/*.JPEG")
    valid = []
    for where, file, wnid in columns(*annotations, separator="\t"):
        member = f"{root}val/images/{file}"
        if wnid not in labels:
            raise UserError(f"{where}: {file} has class {wnid}, which is not in {wnids[1]}")
        if member not in tree.members:
            raise UserError(f"{where} names {file}, which is not in {tree.shown}")
        valid.append((labels[wnid], member))
    splits = {"train": listed(tree, sorted(train), shard_bytes), "valid": listed(tree, valid, shard_bytes)}
    words_of = {wnid: word for _, wnid, word in columns(*words, separator="\t") if wnid in labels}
    return ImageSet(class_names, splits, words_of)


def main(argv: Sequence[str] | None = None) -> int:
    return prepare(argv, "tiny_imagenet", __doc__, ["tiny-imagenet-200.zip"], read)


if __name__ == "__main__":
    run_command(main)
