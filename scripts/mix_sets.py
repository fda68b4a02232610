"""Mix several datasets into one folder for `data.dataset`, such as the paper's hierarchy of birds, dogs and rooms.

    python scripts/mix_sets.py OUT cub200=CUB stanford_dogs=DOGS mit67=MIT67

A set is NAME=PLACE: a prepared folder, or anything else that `data.dataset` accepts. Its class `albatross` becomes
`NAME: albatross`. Classes keep the order of their set, sets the order of the arguments.

Split train has 30 random images of each class, or all if there are fewer; split test has every image. Both keep the
order and the bytes of their sets. The draw from a set depends on the seed, not on the other sets.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_folder import check_new, new_folder, print_result, write_manifest, write_splits
from shards import Shard
from stored_images import StoredImages, draw

from cskd_hf.data.splits import Images, load_images
from cskd_hf.errors import UserError, one_line, run_command
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; use it as data.dataset=./OUT")
    parser.add_argument(
        "sets", nargs="+", metavar="NAME=PLACE", help="two or more image sets; PLACE as in data.dataset"
    )
    parser.add_argument(
        "--train-images-per-class", type=int, default=30, metavar="N", help="at most this many (default: 30)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.train_images_per_class < 1 or not 0 <= arguments.seed < 2**32:
        parser.error("--train-images-per-class must be above 0, --seed in 0 to 4294967295")
    check_new(arguments.out)
    sets = {name: open_set(name, place) for name, place in parse_sets(arguments.sets).items()}
    with new_folder(arguments.out) as partial:
        manifest = write_mix(partial, sets, arguments.train_images_per_class, arguments.seed)
    print_result(arguments.out, manifest)
    return 0


def parse_sets(arguments: Sequence[str]) -> dict[str, str]:
    """Name → place."""
    sets: dict[str, str] = {}
    for argument in arguments:
        name, equals, place = (part.strip() for part in argument.partition("="))
        if not (name and equals and place):
            raise UserError(f"{argument}: write NAME=PLACE, such as cub200=./cub200")
        if ":" in name:
            raise UserError(f"{argument}: a name must not contain a colon, which separates it from the class")
        if name in sets:
            raise UserError(f"{argument}: two sets are named {name}; use different names")
        sets[name] = place
    if len(sets) < 2:
        raise UserError(f"{arguments[0]}: name two or more sets")
    return sets


def open_set(name: str, place: str) -> Images:
    """Open a set as training does, without a hold-out set; raises UserError as `load_images`."""
    try:
        return load_images(resolve_data(parse_data({"dataset": place, "holdout": 0.0}, source=name)))
    except UserError as error:
        raise UserError(f"{name}={place}: {one_line(error)}") from None


def write_mix(folder: Path, sets: dict[str, Images], per_class: int, seed: int) -> dict[str, Any]:
    """Write the dataset into an empty folder; returns its manifest."""
    class_names: list[str] = []
    shards: dict[str, list[Shard]] = {"train": [], "test": []}
    inputs = []
    for name, images in sets.items():
        train = images.train.take(draw(images.train.labels, per_class, seed))
        for split, rows in (("train", train), ("test", images.test)):
            shards[split].append(StoredImages(rows, first_label=len(class_names)))
        inputs.append({"name": name, "num_classes": images.num_classes, "train": len(train), "test": len(images.test)})
        class_names += [f"{name}: {class_name}" for class_name in images.train.class_names]
    splits = write_splits(folder, class_names, shards)
    shutil.rmtree(folder / "rows")
    facts = {"train_images_per_class": per_class, "seed": seed, "inputs": inputs}
    return write_manifest(folder, class_names, splits, name="mix", **facts)


if __name__ == "__main__":
    run_command(main)
