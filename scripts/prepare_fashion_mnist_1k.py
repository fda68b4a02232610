"""Prepare Fashion-MNIST with 100 training images per class: original files → a folder for `data.dataset`.

    python scripts/prepare_fashion_mnist_1k.py /usr/share/datasets/fashion-mnist OUT
    python scripts/prepare_fashion_mnist_1k.py /usr/share/datasets/fashion-mnist OUT --images-per-class 500 \\
        --allow-other-counts

Debian's package dataset-fashion-mnist (31 MB) installs that folder: apt-get install dataset-fashion-mnist; without
root, apt-get download dataset-fashion-mnist, then dpkg -x dataset-fashion-mnist_*.deb FOLDER. Any folder with the
authors' files will do: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and
t10k-labels-idx1-ubyte.gz.

Split test is the authors' 10,000 test images. Of their 60,000 training images, in file order, the first 100 of each
class are split train, and the next 100 of each class are split holdout, for the temperature [ours]. Images are stored
as PGM: the bytes of a PNG, and so a split's SHA-256, would depend on the encoder's version. --images-per-class changes
both numbers.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from archive_inputs import locate
from archives import Tree
from preparation import ImageSet, Number, prepare
from shards import InMemory, Row, even_parts

from cskd_hf.data.draws import rank_in_class
from cskd_hf.errors import UserError, run_command

FILES = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
PACKAGE = "apt-get install dataset-fashion-mnist puts it in /usr/share/datasets/fashion-mnist"
EXPECTED = f"a folder with {FILES[0]} and the authors' three other files ({PACKAGE})"
# From the authors' README: the files have numbers only.
CLASS_NAMES = "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"


def read_idx(tree: Tree, member: str, num_dims: int) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: the bytes 0, 0, 8, the number of dimensions, the dimensions, the data."""
    try:
        content = gzip.decompress(tree.read(member))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{tree.shown} is damaged: {member}: {error}") from error
    start = 4 + 4 * num_dims
    shape = np.frombuffer(content, ">u4", offset=4, count=num_dims).tolist() if len(content) >= start else []
    if content[:4] != bytes([0, 0, 8, num_dims]) or len(content) != start + math.prod(shape):
        raise UserError(f"{tree.shown}: {member} is not a complete IDX file of bytes in {num_dims} dimensions")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_part(trees: Sequence[Tree], part: str) -> tuple[Path, np.ndarray, list[Row]]:
    """(folder, labels, images) of one of the authors' parts, train or t10k."""
    names = [name for name in FILES if name.startswith(part)]
    (tree, pixels_file), (labels_tree, labels_file) = locate(trees, EXPECTED, *names)
    pixels, labels = read_idx(tree, pixels_file, 3), read_idx(labels_tree, labels_file, 1)
    if len(pixels) != len(labels):
        raise UserError(f"{pixels_file} has {len(pixels):,} images, {labels_file} {len(labels):,} labels")
    if len(labels) and labels.max() >= len(CLASS_NAMES):
        raise UserError(f"{labels_file}: labels are 0 to {len(CLASS_NAMES) - 1}, found {labels.max()}")
    header = b"P5 %d %d 255\n" % pixels.shape[:0:-1]
    rows = enumerate(zip(labels.tolist(), pixels, strict=True))
    return tree.path, labels, [(label, f"{part}-{row:05d}.pgm", header + scan.tobytes()) for row, (label, scan) in rows]


def read(trees: Sequence[Tree], shard_bytes: int, images_per_class: int) -> ImageSet:
    train, test = read_part(trees, "train"), read_part(trees, "t10k")

    def shards(path: Path, scans: Sequence[Row]) -> list[InMemory]:
        return [
            InMemory(path, part) for part in even_parts(scans, [len(content) for *_, content in scans], shard_bytes)
        ]

    path, labels, scans = train
    rank = rank_in_class(labels)
    splits = {}
    for split, start in (("train", 0), ("holdout", images_per_class)):
        rows = np.flatnonzero((start <= rank) & (rank < start + images_per_class))
        splits[split] = shards(path, [scans[row] for row in rows])
    splits["test"] = shards(test[0], test[2])
    return ImageSet(list(CLASS_NAMES), splits)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        per_class = Number("images_per_class", 100, "N", "images of each class for training, and for the hold-out set")
        return prepare(argv, "fashion_mnist_1k", __doc__, [], read, number=per_class)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"{error}; expected {EXPECTED}") from error
        raise


if __name__ == "__main__":
    run_command(main)
