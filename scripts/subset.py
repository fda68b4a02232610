"""Cut an image set: fewer classes, fewer training images of each, or a long tail.

    python scripts/subset.py IN OUT --classes 20
    python scripts/subset.py IN OUT --classes 20 --skip-classes 20      # twenty others, to fine-tune on
    python scripts/subset.py IN OUT --images-per-class 10
    python scripts/subset.py IN OUT --imbalance 100

IN is anything that `data.dataset` accepts. --classes draws classes; all splits lose the others. The other options cut
the training split alone, by drawing images; the other splits are copied. Images keep their order and bytes. Equal seeds
draw the same classes and images.

Of the K classes, sorted by their training images, --imbalance leaves class k = 0 … K − 1 n_max · IMBALANCE^(−k/(K−1))
images, rounded down but at least 1, or all if it has fewer; n_max is the size of the largest class. This is the cut of
Cao, Wei, Gaidon, Arechiga, Ma, Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019,
https://arxiv.org/abs/1906.07413, whose classes are equal to begin with.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from dataset_folder import check_new, new_folder, print_result, write_manifest, write_splits
from resize_dataset import add_data_options, open_sets
from stored_images import StoredImages, draw

from cskd_hf.data.splits import ImageSplit
from cskd_hf.errors import run_command


def long_tail(counts: np.ndarray, imbalance: float) -> np.ndarray:
    """(K,) int64: the images that each class may have, from (K,) those that it has; equal classes rank by label."""
    order = np.argsort(-counts, kind="stable")
    limit = np.empty_like(counts)
    # Rounded first, so that 500 · 100^(−½) is 50.
    sizes = counts.max() * imbalance ** -(np.arange(len(counts)) / max(len(counts) - 1, 1))
    limit[order] = np.maximum(np.floor(sizes.round(9)), 1)
    return limit


def of_classes(split: ImageSplit, labels: np.ndarray) -> ImageSplit:
    """The images of these classes, which are numbered in this order."""
    number = np.full(len(split.class_names), -1)
    number[labels] = np.arange(len(labels))
    rest = split.take(np.flatnonzero(number[split.labels] >= 0))
    return replace(rest, labels=number[rest.labels], class_names=tuple(split.class_names[label] for label in labels))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="IN", help="anything that data.dataset accepts")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; use it as data.dataset=./OUT")
    parser.add_argument("--classes", type=int, metavar="K", help="number of classes (default: all)")
    parser.add_argument("--skip-classes", type=int, default=0, metavar="S", help="leave out the first S of the draw")
    parser.add_argument("--images-per-class", type=int, metavar="N", help="at most, for training (default: all)")
    parser.add_argument("--imbalance", type=float, default=1.0, metavar="RATIO", help="largest class : smallest")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    add_data_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    if not 1 <= arguments.imbalance < float("inf") or not 0 <= arguments.seed < 2**32:
        parser.error("--imbalance must be a number from 1, --seed in 0 to 4294967295")
    if arguments.images_per_class is not None and arguments.images_per_class < 1:
        parser.error("--images-per-class must be above 0")
    check_new(arguments.out)
    splits = list(open_sets(arguments).values())
    num_classes, skip = len(splits[0].class_names), arguments.skip_classes
    wanted = num_classes - skip if arguments.classes is None else arguments.classes
    if skip < 0 or not 0 < wanted <= num_classes - skip:
        parser.error(f"--classes, --skip-classes: read {wanted} and {skip}; the dataset has {num_classes} classes")
    if wanted < num_classes:
        # NumPy guarantees RandomState's stream: every version draws the same.
        drawn = np.random.RandomState(arguments.seed).permutation(num_classes)[skip : skip + wanted]
        splits = [of_classes(split, np.sort(drawn)) for split in splits]
    train, *others = splits
    limit = np.bincount(train.labels, minlength=len(train.class_names))
    if arguments.images_per_class is not None:
        limit = np.minimum(limit, arguments.images_per_class)
    if arguments.imbalance > 1:
        limit = np.minimum(limit, long_tail(limit, arguments.imbalance))
    cut = train.take(draw(train.labels, limit, arguments.seed))
    with new_folder(arguments.out) as partial:
        shards = {split.name: [StoredImages(split)] for split in (cut, *others)}
        entries = write_splits(partial, cut.class_names, shards)
        shutil.rmtree(partial / "rows")
        options = ("classes", "skip_classes", "images_per_class", "imbalance", "seed")
        facts = {name: getattr(arguments, name) for name in options}
        manifest = write_manifest(partial, cut.class_names, entries, name="subset", subset=facts)
    print_result(arguments.out, manifest)
    left = limit[limit > 0].tolist()
    print(f"{len(limit):,} classes; training images of a class: {max(left):,} to {min(left):,}")
    return 0


if __name__ == "__main__":
    run_command(main)
