"""Several image sets → one folder that `data.dataset` names: the paper's hierarchy of birds, dogs and rooms.

    python scripts/mix_sets.py OUT cub200=CUB stanford_dogs=DOGS mit67=MIT67

A set is NAME=PLACE: a folder that another script of these has made, or whatever else `data.dataset` names. Its class
`albatross` becomes `NAME: albatross`; classes stay in the order of their set, sets in the order of the arguments.

Split train has 30 random images of each class, or all of a smaller one, and split test every image, both in the order
of their sets. The draw from one set depends on the seed, not on the sets beside it. Images keep their bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from preparation import _split_digest, _state
from shards import SCHEMA, put, write_shards
from stored_images import StoredImages

import cskd_hf
from cskd_hf.data.splits import Images, load_images
from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data


def draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Indices of at most `per_class` random images of each class, ascending."""
    # RandomState's stream is frozen by NumPy: the draw is the same in every version.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, start, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(start, count)
    return np.sort(by_class[rank < per_class])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; a recipe then says data.dataset=./OUT")
    parser.add_argument("sets", nargs="+", metavar="NAME=PLACE", help="two or more image sets")
    parser.add_argument("--train-images-per-class", type=int, default=30, metavar="N", help="at most so many (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    arguments = parser.parse_intermixed_args(argv)  # options may stand anywhere
    if arguments.train_images_per_class < 1 or not 0 <= arguments.seed < 2**32:
        parser.error("--train-images-per-class is above 0, and --seed lies in 0 to 4294967295")
    out: Path = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: OUT is {'not empty' if out.is_dir() else 'a file'}; choose another folder")
    sets = {name: open_set(name, place) for name, place in parse_sets(arguments.sets).items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            partial = Path(temporary) / "set"
            partial.mkdir()
            manifest = write_mix(partial, sets, arguments.train_images_per_class, arguments.seed)
            os.replace(partial, out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
    for split, facts in manifest["splits"].items():
        print(f"{split}: {facts['num_images']:,} images, sha256 {facts['sha256']}")
    print(f"{manifest['num_classes']} classes; in a recipe: data.dataset={os.path.join('.', out)}")
    return 0


def parse_sets(arguments: Sequence[str]) -> dict[str, str]:
    """Name → place."""
    sets: dict[str, str] = {}
    for argument in arguments:
        name, equals, place = (part.strip() for part in argument.partition("="))
        if not (name and equals and place):
            raise UserError(f"{argument}: write NAME=PLACE, such as cub200=./cub200")
        if ":" in name:
            raise UserError(f"{argument}: a name has no colon, which ends it in `name: class`")
        if name in sets:
            raise UserError(f"{argument}: two sets are named {name}; name each otherwise")
        sets[name] = place
    if len(sets) < 2:
        raise UserError(f"{arguments[0]}: one set is no mix; name two or more")
    return sets


def open_set(name: str, place: str) -> Images:
    """Train and test split of a set, as training opens them.

    Raises:
        UserError: see `load_images`.
    """
    try:
        return load_images(resolve_data(parse_data({"dataset": place, "holdout": 0.0}, source=name)))
    except UserError as error:
        raise UserError(f"{name}={place}: {' '.join(str(error).split())}") from None


def write_mix(folder: Path, sets: dict[str, Images], per_class: int, seed: int) -> dict[str, Any]:
    """Write everything that `load_from_disk` reads, and the manifest, which is returned, into an empty folder."""
    class_names: list[str] = []
    shards: dict[str, list[Any]] = {"train": [], "test": []}
    inputs = []
    for name, images in sets.items():
        train = images.train.take(draw(images.train.labels, per_class, seed))
        for split, rows in (("train", train), ("test", images.test)):
            shards[split].append(StoredImages(rows, first_label=len(class_names)))
        inputs.append({"name": name, "num_classes": images.num_classes, "train": len(train), "test": len(images.test)})
        class_names += [f"{name}: {own}" for own in images.train.class_names]
    features = {"image": {"_type": "Image"}, "label": {"names": class_names, "_type": "ClassLabel"}}
    schema = SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    write_shards(shards, folder, schema, [], workers=0)
    splits: dict[str, Any] = {}
    for split, parts in shards.items():
        num_images, sha256 = _split_digest(folder, split, len(parts))
        splits[split] = {"num_images": num_images, "num_shards": len(parts), "sha256": sha256}
        info = {"features": features, "description": "", "citation": "", "homepage": "", "license": ""}
        put(folder / split / "dataset_info.json", json.dumps(info, indent=2).encode())
        put(folder / split / "state.json", json.dumps(_state(folder / split, sha256), indent=2).encode())
    shutil.rmtree(folder / "rows")
    manifest = {
        "name": "mix",
        "num_classes": len(class_names),
        "train_images_per_class": per_class,
        "seed": seed,
        "splits": splits,
        "inputs": inputs,
        "versions": {"cskd_hf": cskd_hf.__version__, "python": platform.python_version()}
        | {package: version(package) for package in ("datasets", "pyarrow")},
        "classes": class_names,
    }
    put(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False).encode(errors="replace"))
    put(folder / "dataset_dict.json", json.dumps({"splits": list(splits)}).encode())
    return manifest


if __name__ == "__main__":
    run_command(main)
