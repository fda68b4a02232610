"""Prepare ImageNet (ILSVRC 2012, 1,000 classes): original archives → a folder for `data.dataset`.

    python scripts/prepare_imagenet.py ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz OUT

The archives are ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, from image-net.org
after registration, in any order. A folder with all three will do, and so will an unpacked train/n01440764/*.JPEG with
val/*.JPEG and the devkit, or val/n01440764/*.JPEG without the devkit.

Splits train and validation. Classes are the WordNet ids in alphabetical order, the label order of torchvision, timm and
the Hub, not the devkit's ILSVRC2012_ID. Training images are ordered by class, then file name; validation images by
number. Worker processes read the class archives inside the outer one. After a kill, rerun to resume.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence

import numpy as np
from archive_inputs import lines, locate, missing_error
from archives import Tree
from preparation import ImageSet, prepare
from shards import ClassTar, ClassTars, Shard, even_parts, listed

from cskd_hf.errors import UserError, run_command

ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
CLASS_TAR = re.compile(r"(?:.*/)?(n\d{8})\.tar")
TRAIN_IMAGE = re.compile(r"(?:.*/)?train/(n\d{8})/[^/.][^/]*\.JPEG")
VAL_IMAGE = re.compile(r"(?:(?:.*/)?(n\d{8})/|(?:.*/)?)ILSVRC2012_val_(\d{8})\.JPEG")
EXPECTED = (
    "ILSVRC2012_img_train.tar of 1,000 class archives n01440764.tar, ILSVRC2012_img_val.tar of "
    "ILSVRC2012_val_00000001.JPEG and more, and ILSVRC2012_devkit_t12.tar.gz with meta.mat"
)


def read_synsets(tree: Tree, member: str) -> tuple[dict[int, str], dict[str, str]]:
    """(ILSVRC2012_ID → WordNet id, WordNet id → words) of the classes; synsets with children are no classes."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(tree.read(member)), squeeze_me=True)["synsets"])
        classes = [synset for synset in synsets if int(synset["num_children"]) == 0]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in classes}
        return wnids, {str(synset["WNID"]): str(synset["words"]) for synset in classes}
    except Exception as error:  # loadmat raises many kinds
        raise UserError(f"{member}: no list of synsets ({type(error).__name__}: {error})") from error


def train_shards(trees: Sequence[Tree], wanted: set[str], shard_bytes: int) -> tuple[list[str], Sequence[Shard]]:
    """(class names, shards) from the class archives, or from class folders.

    Args:
        wanted: WordNet ids of the devkit; empty without it.
    """
    for tree in trees:
        tars = {match[1]: name for name in tree.members if (match := CLASS_TAR.fullmatch(name))}
        images = [(match[1], name) for name in tree.members if (match := TRAIN_IMAGE.fullmatch(name))]
        wnids = sorted(tars or {wnid for wnid, _ in images})
        if not wnids:
            continue
        if wanted and wanted != set(wnids):
            different = sorted(wanted ^ set(wnids))
            names = ", ".join(different[:3]) + (", …" if len(different) > 3 else "")
            raise UserError(
                f"{tree.shown} has {len(wnids)} classes, the devkit {len(wanted)}; only one of them has {names}"
            )
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        if not tars:
            return wnids, listed(tree, sorted((labels[wnid], name) for wnid, name in images), shard_bytes)
        if tree.kind == "zip":
            raise UserError(f"{tree.shown}: archives inside a zip cannot be read in place; unzip it")
        places = []
        for wnid in wnids:
            name, member = tars[wnid], tree.members[tars[wnid]]
            path, start = (tree.path / name, 0) if tree.kind == "folder" else (tree.path, member.offset)
            places.append(ClassTar(labels[wnid], path, f"{tree.shown}: {name}", start, member.size))
        return wnids, [ClassTars(tuple(part)) for part in even_parts(places, [t.size for t in places], shard_bytes)]
    raise missing_error(trees, EXPECTED, "n01440764.tar or train/n01440764/*.JPEG")


def validation_images(trees: Sequence[Tree]) -> tuple[Tree, list[tuple[int, str, str]]]:
    """The tree of the validation images, and (number, WordNet id of its folder or "", member) of each."""
    for tree in trees:
        matches = [(VAL_IMAGE.fullmatch(name), name) for name in tree.members]
        if images := sorted((int(match[2]), match[1] or "", name) for match, name in matches if match):
            return tree, images
    raise missing_error(trees, EXPECTED, "ILSVRC2012_val_00000001.JPEG")


def read(trees: Sequence[Tree], shard_bytes: int) -> ImageSet:
    tree, images = validation_images(trees)
    wnid_of: dict[int, str] = {}  # number of a validation image → its class
    words: dict[str, str] = {}
    if all(wnid for _, wnid, _ in images):
        wnid_of = {number: wnid for number, wnid, _ in images}
    else:
        meta, truth = locate(trees, EXPECTED, "meta.mat", TRUTH)
        synsets, words = read_synsets(*meta)
        for number, (where, line) in enumerate(lines(*truth), 1):
            if not line.isdecimal() or int(line) not in synsets:
                raise UserError(f"{where}: {line!r} is not the ILSVRC2012_ID of a class in {meta[1]}")
            wnid_of[number] = synsets[int(line)]
    class_names, train = train_shards(trees, set(words), shard_bytes)
    labels = {wnid: label for label, wnid in enumerate(class_names)}
    if different := sorted(set(wnid_of) ^ {number for number, *_ in images}):
        first = f"ILSVRC2012_val_{different[0]:08d}.JPEG"
        raise UserError(
            f"{TRUTH} has {len(wnid_of):,} lines, {tree.shown} {len(images):,} images; only one of them has {first}"
        )
    if unknown := sorted(set(wnid_of.values()) - set(labels)):
        raise UserError(f"{tree.shown}: class {unknown[0]} of a validation image has no training images")
    rows = [(labels[wnid_of[number]], name) for number, _, name in images]
    return ImageSet(class_names, {"train": train, "validation": listed(tree, rows, shard_bytes)}, words)


def main(argv: Sequence[str] | None = None) -> int:
    return prepare(argv, "imagenet", __doc__, ARCHIVES, read, workers=min(8, os.cpu_count() or 1))


if __name__ == "__main__":
    run_command(main)
