"""Check a recipe and its data before training: counts, images, duplicates, disk and memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe

if TYPE_CHECKING:
    from cskd_hf.data.inspect import Findings, Seen
    from cskd_hf.data.splits import Images, ImageSplit


def check(recipe: Recipe, full: bool) -> int:
    """Print what is found; returns the exit status."""
    from cskd_hf.data import inspect
    from cskd_hf.data.duplicates import ALL, compare, find_duplicates, named_splits
    from cskd_hf.data.splits import load_images
    from cskd_hf.recipe.resolve import resolve

    recipe = resolve(recipe)
    images = load_images(recipe.data)
    findings = inspect.Findings()

    # where from
    say_source(recipe)

    # labels
    inspect.count(images, recipe.data, findings)
    say_counts(images, recipe)

    # images
    splits = named_splits(images)
    if full:
        seen = {name: look_at_all(name, split) for name, split in splits.items()}
        duplicates = compare(splits, {name: one.all_fingerprints() for name, one in seen.items()}, ALL)
    else:
        seen, num_bytes = inspect.look_at_samples(images)
        duplicates = find_duplicates(images, num_bytes, inspect.HASHED_BYTES["check"])
    inspect.judge(seen, recipe, findings)
    findings.problems += duplicates.problems
    findings.notes += duplicates.notes
    say_images(seen, splits, duplicates.how)

    # machine
    say_machine(recipe, images, findings)

    # verdict
    problems = findings.fatal + findings.problems
    if findings.notes:
        print("\nnotes")
        for note in findings.notes:
            print(f"  - {note}")
    print(f"\n{len(problems) or 'no'} problem{'s' * (len(problems) != 1)}" + ("" if full else _NOT_FULL))
    for number, problem in enumerate(problems, start=1):
        print(f"  {number}. {problem}")
    return 1 if problems else 0


_NOT_FULL = " in what was looked at; --full looks at everything"


def say_source(recipe: Recipe) -> None:
    from huggingface_hub import constants

    from cskd_hf.data.hub import cached_commit
    from cskd_hf.recipe.catalog import CATALOG, entry_of

    data = recipe.data
    entry, commit = entry_of(data.dataset), cached_commit(data)
    place = "ships with scikit-learn" if data.dataset == "digits" else f"folder {os.path.abspath(data.dataset)}"
    if commit is not None:
        asked = f" (revision {data.revision})" if data.revision else ""
        place = f"Hub set {entry.path if data.dataset in CATALOG and entry else data.dataset}, commit {commit}{asked}"
    print(f"{'data':11s}{data.dataset}: {place}")
    if entry is not None:
        print(f"{'':11s}split     {entry.official_split}\n{'':11s}terms     {entry.terms}")
        print(f"{'':11s}citation  {entry.citation}")
    mode = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "HF_HUB_OFFLINE is not set"
    cached = f"the set is in the cache, {constants.HF_HUB_CACHE}" if commit else "the data needs no Hub"
    print(f"{'offline':11s}{mode}; {cached}")


def say_counts(images: Images, recipe: Recipe) -> None:
    """A line a part of the data, with the sizes of its classes."""
    import numpy as np

    from cskd_hf.data.duplicates import named_splits
    from cskd_hf.data.inspect import against_catalog

    official = {split: count for split, _, count in against_catalog(images, recipe.data)}
    columns = ("split", "images", "catalog", "classes", "smallest", "median", "largest", "singletons")
    print(f"\n{'':11s}{columns[0]:12s}" + "".join(f"{column:>11s}" for column in columns[1:]))
    for name, part in named_splits(images).items():
        size = np.bincount(part.labels, minlength=images.num_classes)
        expected = official[part.name]
        numbers = [len(part), expected, (size > 0).sum(), size.min(), np.median(size), size.max(), (size == 1).sum()]
        cells = "".join(f"{'–' if number is None else format(number, ',.10g'):>11s}" for number in numbers)
        print(f"{name:11s}{part.name:12s}{cells}")
    if isinstance(recipe.data.holdout, float) and recipe.data.holdout:
        print(f"{'':11s}held out: {recipe.data.holdout:g} of each class of {images.train.name!r}, before training")


def look_at_all(name: str, split: ImageSplit) -> Seen:
    """Every image of a split, in as many processes as there are cores; a few images in memory at a time."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from cskd_hf.data.inspect import Blocks, Seen
    from cskd_hf.data.loaders import available_cores

    blocks = Blocks(split)
    total = Seen()
    with tqdm(total=len(split), desc=name, unit=" images", unit_scale=True, disable=None) as bar:
        for seen in DataLoader(blocks, batch_size=None, num_workers=min(available_cores(), len(blocks))):
            total.add(seen)
            bar.update(seen.tried)
    return total


def say_images(seen: dict[str, Seen], splits: dict[str, ImageSplit], compared: str) -> None:
    import numpy as np

    def shares(counts: dict[str, int]) -> str:
        most = sorted(counts.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * number / sum(counts.values()):.3g} %" for name, number in most)

    print()
    for name, one in seen.items():
        whole = "every image" if one.tried == len(splits[name]) else f"{one.tried} of {len(splits[name]):,} images"
        decoded = "decoded" if one.decoded == one.tried else f"opened, {one.decoded} of them decoded whole"
        print(f"{name:11s}{whole} {decoded}")
        if one.sizes:
            width, height = one.widths_and_heights().T
            print(
                f"{'':11s}{shares(one.formats)}; {shares(one.modes)}; {width.min()}×{height.min()} to "
                f"{width.max()}×{height.max()}, median {np.median(width):.0f}×{np.median(height):.0f}"
            )
    print(f"{'twice':11s}{compared}")


def say_machine(recipe: Recipe, images: Images, findings: Findings) -> None:
    """The model, and what a run of it writes and holds."""
    import torch
    from huggingface_hub import constants, try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    from cskd_hf.data.duplicates import readable_size
    from cskd_hf.engine.build import build_sampler, describe_experiment
    from cskd_hf.models.factory import count_parameters, create_backbone

    run = recipe.run
    print()
    try:
        build_sampler(recipe, images.train)
    except UserError as error:
        findings.fatal.append(str(error))
    try:
        with torch.device("meta"):  # shapes without memory
            settings = recipe.model.model_copy(update={"pretrained": False})
            model = create_backbone(settings, images.num_classes)
            num_features: int = model.num_features  # type: ignore[assignment]
            module = recipe.method.build(model, describe_experiment(recipe, images))
    except UserError as error:
        findings.fatal.append(str(error))
        return
    print(f"{'model':11s}{recipe.model.model_name}, {count_parameters(model):,} parameters, {recipe.method.name}")
    weights = get_pretrained_cfg(recipe.model.model_name) if recipe.model.pretrained else None
    if weights is not None and weights.hf_hub_id and constants.HF_HUB_OFFLINE:
        files = ("model.safetensors", "pytorch_model.bin")
        if not any(isinstance(try_to_load_from_cache(weights.hf_hub_id, file), str) for file in files):
            findings.fatal.append(
                f"model.pretrained: HF_HUB_OFFLINE is set, and {weights.hf_hub_id} is not in {constants.HF_HUB_CACHE}"
            )

    # Adam and its kin keep two numbers a parameter, the others one.
    states = 2 if "ada" in recipe.optimizer.opt.lower() or "lamb" in recipe.optimizer.opt.lower() else 1
    held = 4 * count_parameters(module)
    checkpoint = held * (1 + states)
    held_out = 0 if images.holdout is None else len(images.holdout)
    predictions = 4 * (len(images.test) * (images.num_classes + num_features) + held_out * images.num_classes)
    # One more than is kept: the new one is complete before an old one goes.
    need = checkpoint * (run.checkpoints_total_limit + 1) + 4 * count_parameters(model) + predictions
    folder = Path(run.output_dir or "runs").absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(
        f"{'disk':11s}about {readable_size(need)} for a run: {run.checkpoints_total_limit + 1} checkpoints of "
        f"{readable_size(checkpoint)}, weights, predictions;\n{'':11s}{readable_size(free)} free at {folder}"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(
        f"{'memory':11s}{readable_size(checkpoint + held)} on the device for weights, gradients and optimizer, "
        f"before activations;\n{'':11s}{readable_size(predictions)} for predictions, of {readable_size(memory)} here"
    )
    if need > free:
        findings.problems.append(
            f"a run writes about {readable_size(need)}, but {folder} has {readable_size(free)} free"
        )
    if predictions > memory:
        findings.problems.append(f"the predictions, {readable_size(predictions)}, do not fit into memory")
