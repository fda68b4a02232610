"""Cut a training split to a long tail: exponentially fewer images from class to class.

    python scripts/long_tail.py IN OUT --imbalance 100

IN is anything that `data.dataset` accepts. Of the K classes, sorted by their training images, class k = 0 … K − 1 gets
n_max · IMBALANCE^(−k/(K−1)) random ones, rounded down but at least 1, or all if it has fewer; n_max is the size of the
largest class. The other splits are copied whole. Images keep their order and bytes. Equal seeds draw equal images.

The cut is that of Cao, Wei, Gaidon, Arechiga, Ma, Learning Imbalanced Datasets with Label-Distribution-Aware Margin
Loss, NeurIPS 2019, https://arxiv.org/abs/1906.07413, whose classes are equal to begin with.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dataset_folder import check_new, new_folder, print_result, write_manifest, write_splits
from resize_dataset import add_data_options, open_sets
from stored_images import StoredImages, draw

from cskd_hf.errors import run_command


def long_tail(counts: np.ndarray, imbalance: float) -> np.ndarray:
    """(K,) int64: the images that each class may have, from (K,) those that it has; equal classes rank by label."""
    order = np.argsort(-counts, kind="stable")
    limit = np.empty_like(counts)
    # Rounded first, so that 500 · 100^(−½) is 50.
    sizes = counts.max() * imbalance ** -(np.arange(len(counts)) / max(len(counts) - 1, 1))
    limit[order] = np.maximum(np.floor(sizes.round(9)), 1)
    return limit


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="IN", help="anything that data.dataset accepts")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; use it as data.dataset=./OUT")
    parser.add_argument(
        "--imbalance", type=float, default=100.0, metavar="RATIO", help="largest class : smallest (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    add_data_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    if not 1 <= arguments.imbalance < float("inf") or not 0 <= arguments.seed < 2**32:
        parser.error("--imbalance must be a number from 1, --seed in 0 to 4294967295")
    check_new(arguments.out)
    train, *others = open_sets(arguments).values()
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    cut = train.take(draw(train.labels, long_tail(counts, arguments.imbalance), arguments.seed))
    with new_folder(arguments.out) as partial:
        splits = write_splits(
            partial, train.class_names, {split.name: [StoredImages(split)] for split in (cut, *others)}
        )
        shutil.rmtree(partial / "rows")
        facts = {"imbalance": arguments.imbalance, "seed": arguments.seed}
        manifest = write_manifest(partial, train.class_names, splits, name="long tail", **facts)
    print_result(arguments.out, manifest)
    left = np.bincount(cut.labels, minlength=len(counts))
    print(f"training images of a class: {np.max(left):,} to {np.min(left[counts > 0]):,}")
    return 0


if __name__ == "__main__":
    run_command(main)
