"""Check a recipe before training: its data source, counts, image files, duplicates, model, disk and memory."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch.utils.data import DataLoader
from tqdm import tqdm

from cskd_hf.checks.layout import row
from cskd_hf.data import inspect
from cskd_hf.data.decode import Conversion
from cskd_hf.data.deep import Range
from cskd_hf.data.duplicates import Diagnostics, compare, find_duplicates, named_splits, readable_size
from cskd_hf.data.hub import cached_commit
from cskd_hf.data.labels import look_alikes
from cskd_hf.data.loaders import available_cores
from cskd_hf.data.splits import Images, ImageSplit, load_images
from cskd_hf.data.statistics import Blocks, ImageStatistics
from cskd_hf.data.transforms import conversion_of
from cskd_hf.data.values import describe_values
from cskd_hf.engine.build import build_sampler, describe_experiment
from cskd_hf.engine.learner import checkpoint_bytes
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.errors import UserError
from cskd_hf.evaluation.calibration import holdout_note
from cskd_hf.models.factory import count_parameters, create_backbone
from cskd_hf.models.freezing import freeze
from cskd_hf.models.starting_weights import read_shapes
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.pretrained import find_pretrained
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.resolve import resolve

SAMPLED_FROM = 5_000  # images, of which reading a sample suffices [ours]
METRICS_MEMORY = 150 * 10**6  # chunks of rows, whatever the number of images and classes


def check(recipe: Recipe, full: bool) -> int:
    """Print a report on a recipe's data, model and disk space; returns the exit status, 1 if there are problems.

    `full` decodes every image and compares all bytes, also of `SAMPLED_FROM` images or more.

    Raises:
        UserError: the data cannot be opened.
    """
    recipe = resolve(recipe)
    images = load_images(recipe.data)
    alike = look_alikes(images.train.class_names)
    full |= sum(map(len, named_splits(images).values())) < SAMPLED_FROM
    diagnostics = Diagnostics(problems=alike, notes=[note for note in images.notes if note not in alike])
    print_source(recipe)
    inspect.check_counts(images, recipe.data, diagnostics)
    if images.holdout is not None:
        diagnostics.notes.extend(holdout_note(len(images.holdout)))
    print_counts(images, recipe)
    check_files(images, recipe, full, diagnostics)
    check_capacity(images, recipe, diagnostics)

    problems = diagnostics.fatal + diagnostics.problems
    if diagnostics.notes:
        print("\nnotes", *(f"  - {note}" for note in diagnostics.notes), sep="\n")
    scope = "" if full else " in the sample; --full reads every image"
    print(f"\n{len(problems) or 'no'} problem{'s' * (len(problems) != 1)}{scope}")
    for number, problem in enumerate(problems, start=1):
        print(f"  {number}. {problem}")
    return 1 if problems else 0


def print_source(recipe: Recipe) -> None:
    """Folder, or Hub dataset and commit; the official split, terms and citation of a catalog entry."""
    data = recipe.data
    entry, commit = entry_of(data.dataset), cached_commit(data)
    source = "ships with scikit-learn" if data.dataset == "digits" else f"folder {os.path.abspath(data.dataset)}"
    if commit is not None:
        revision = f" (revision {data.revision})" if data.revision else ""
        path = entry.path if data.dataset in CATALOG and entry else data.dataset
        source = f"Hub dataset {path}, commit {commit}{revision}"
    print(row("data", f"{data.dataset}: {source}"))
    if entry is not None:
        print(row("", f"split     {entry.official_split}", f"terms     {entry.terms}", f"citation  {entry.citation}"))
    mode = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "HF_HUB_OFFLINE is not set"
    cached = (
        f"the dataset is in the cache, {constants.HF_HUB_CACHE}" if commit else "the data does not come from the Hub"
    )
    print(row("offline", f"{mode}; {cached}"))


def print_counts(images: Images, recipe: Recipe) -> None:
    """One row for each split: images, and how they spread over the classes."""
    official = {split: count for split, _, count in inspect.catalog_counts(images, recipe.data)}
    columns = ("images", "catalog", "classes", "smallest", "median", "largest", "singletons")
    print("\n" + row("", f"{'split':12s}" + "".join(f"{column:>11s}" for column in columns)))
    for name, split in named_splits(images).items():
        size = np.bincount(split.labels, minlength=images.num_classes)
        expected = official[split.name]
        numbers = [len(split), expected, (size > 0).sum(), *np.quantile(size, (0, 0.5, 1)), (size == 1).sum()]
        cells = "".join(f"{'–' if number is None else format(number, ',.10g'):>11s}" for number in numbers)
        print(row(name, f"{split.name:12s}{cells}"))
    if isinstance(recipe.data.holdout, float) and recipe.data.holdout:
        print(row("", f"hold-out set: {recipe.data.holdout:g} of {images.train.name!r}, stratified by class"))


def check_files(images: Images, recipe: Recipe, full: bool, diagnostics: Diagnostics) -> None:
    """Decode images and compare their bytes, all or a sample; print formats and sizes."""
    splits, conversion = named_splits(images), conversion_of(recipe.transform, recipe.data.value_range)
    if full:
        stats = {name: decode_all(name, split, conversion) for name, split in splits.items()}
        compared = compare(splits, {name: each.digests for name, each in stats.items()}, diagnostics)
    else:
        stats, num_bytes = inspect.sample_statistics(images, conversion)
        compared = find_duplicates(images, num_bytes, inspect.HASH_LIMIT["check"], diagnostics)
    inspect.check_images(stats, recipe.data, recipe.transform, diagnostics)
    print_files(stats, splits, conversion.value_range)
    print(row("duplicates", compared))


def decode_all(name: str, split: ImageSplit, conversion: Conversion) -> ImageStatistics:
    """Decode a split with one worker for each core, a few images in memory at a time."""
    blocks, total = Blocks(split, conversion), ImageStatistics()
    workers = min(available_cores(), len(blocks)) if len(blocks) > 1 else 0
    with tqdm(total=len(split), desc=name, unit=" images", unit_scale=True, disable=None) as bar:
        for stats in DataLoader(blocks, batch_size=None, num_workers=workers):
            total.add(stats)
            bar.update(stats.tried)
    return total


def print_files(
    stats: Mapping[str, ImageStatistics], splits: Mapping[str, ImageSplit], value_range: Range | None
) -> None:
    def shares(counts: Counter[str]) -> str:
        return ", ".join(f"{name} {100 * number / counts.total():.3g} %" for name, number in counts.most_common())

    print()
    for name, each in stats.items():
        num_images = len(splits[name])
        scope = "every image" if each.tried == num_images else f"{each.tried} of {num_images:,} images"
        decoded = "decoded" if each.decoded == each.tried else f"opened, {each.decoded} of them decoded"
        print(row(name, f"{scope} {decoded}"))
        if each.sizes:
            width, height = each.widths_and_heights().T
            sizes = f"{width.min()}×{height.min()} to {width.max()}×{height.max()}"
            median = f"median {np.median(width):.0f}×{np.median(height):.0f}"
            print(row("", f"{shares(each.formats)}; {shares(each.modes)}; {sizes}, {median}"))
        if each.values:
            print(row("", f"pixel values: {describe_values(each.values, value_range)}"))


def check_capacity(images: Images, recipe: Recipe, diagnostics: Diagnostics) -> None:
    """Build the model without memory; compare what a run of it needs with this machine's disk and memory."""
    print()
    try:
        build_sampler(recipe, images.train)
    except UserError as error:
        diagnostics.fatal.append(str(error))
    try:
        with torch.device("meta"):  # shapes without memory
            backbone = create_backbone(recipe.model.without_weights(), images.num_classes)
            module = recipe.method.build(backbone, describe_experiment(recipe, images))
            network = recipe.method.export(module)
            freeze(network, recipe.model.freeze)
            plain = recipe.optimizer.model_copy(update={"fused": False})  # no fused kernel is for the meta device
            optimizer = create_optimizer(plain, network, module, lr=1.0)
    except UserError as error:
        diagnostics.fatal.append(str(error))
        return
    name, num_parameters = recipe.model.model_name, count_parameters(backbone)
    print(row("model", f"{name}, {num_parameters:,} parameters, {recipe.method.name}"))
    pretrained = find_pretrained(recipe.model).cfg if recipe.model.pretrained else None
    if recipe.model.checkpoint is not None:
        try:
            read_shapes(recipe.model.checkpoint)
        except UserError as error:
            diagnostics.fatal.append(str(error))
    elif pretrained is not None and pretrained.hf_hub_id and constants.HF_HUB_OFFLINE:
        source, files = pretrained.hf_hub_id, ("model.safetensors", "pytorch_model.bin")
        if not any(isinstance(try_to_load_from_cache(source, file), str) for file in files):
            problem = f"HF_HUB_OFFLINE is set, and {source} is not in {constants.HF_HUB_CACHE}"
            diagnostics.fatal.append(f"model.pretrained: {problem}")
    num_features: int = backbone.num_features  # type: ignore[assignment]
    num_test, num_holdout = len(images.test), len(images.holdout or ())
    predictions = 4 * (num_test * (images.num_classes + num_features) + num_holdout * images.num_classes)
    # On top: the copy that is written to predictions.safetensors, or Recall@1's float64 features.
    host = predictions + 4 * num_holdout * num_features + max(predictions, 8 * num_test * num_features) + METRICS_MEMORY
    checkpoint = checkpoint_bytes(module, network, optimizer, recipe.run)
    gradients = 4 * sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    sizes = (4 * num_parameters, checkpoint, checkpoint + gradients, predictions, host)
    check_disk_and_memory(recipe, *sizes, diagnostics)


def check_disk_and_memory(
    recipe: Recipe, model: int, checkpoint: int, device: int, predictions: int, host: int, diagnostics: Diagnostics
) -> None:
    """Compare estimates with what is free.

    Args:
        model, checkpoint, predictions: bytes of the exported weights, a checkpoint and predictions.safetensors.
        device: bytes on the device, without activations.
        host: bytes of the predictions and of computing their metrics, in each process.
    """
    num_checkpoints = recipe.run.checkpoints_total_limit + 1  # the oldest is deleted once the newest is complete
    disk = checkpoint * num_checkpoints + model + predictions
    folder = Path(recipe.run.output_dir or "runs").absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    written = f"{num_checkpoints} checkpoints of {readable_size(checkpoint)}, weights, predictions"
    print(row("disk", f"about {readable_size(disk)} for a run: {written};", f"{readable_size(free)} free at {folder}"))
    on_device = f"{readable_size(device)} on the device for weights, gradients, optimizer, plus activations"
    on_host = f"{readable_size(host)} for predictions and their metrics, of {readable_size(memory)} on this machine"
    print(row("memory", f"{on_device};", on_host))
    if disk > free:
        diagnostics.problems.append(
            f"a run writes about {readable_size(disk)}; {folder} has {readable_size(free)} free"
        )
    if host > memory:
        diagnostics.problems.append(
            f"the predictions and their metrics need {readable_size(host)} of memory; this machine has "
            f"{readable_size(memory)}"
        )
