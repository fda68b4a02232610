"""From a resolved recipe to what trains: the order of its images, their loader, the objective."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from cskd_hf.batch import NUM_VIEWS
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.loaders import batch_loader, count_workers, ignore_stop_signals
from cskd_hf.data.pairing import ClassPairSampler, ImageSampler, PairedImages
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.objective import Objective
from cskd_hf.methods.base import Experiment
from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.recipe import Recipe


def make_sampler(recipe: Recipe, train: ImageSplit) -> ImageSampler:
    """The order that the method's views ask for: images, or images with their partners.

    Raises:
        UserError: `data.singleton` refuses a class of one image.
    """
    if recipe.method.views in ("same_class", "same_class_plain"):
        return ClassPairSampler(train.labels, recipe.run.seed, recipe.data.partner, recipe.data.singleton)
    return ImageSampler(len(train), recipe.run.seed, NUM_VIEWS[recipe.method.views])


def training_loader(recipe: Recipe, train: ImageSplit, batches: GlobalBatches, pin_memory: bool) -> DataLoader[Any]:
    """Augmented images in `batches`; with one un-augmented, where the method looks at such."""
    plain = Transform(recipe.transform, False) if recipe.method.views == "same_class_plain" else None
    images = PairedImages(
        train,
        Transform(recipe.transform, True),
        on_corrupt="replace" if recipe.data.on_corrupt == "skip" else "error",
        plain=plain,
    )
    return make_loader(images, batches, recipe.data.workers, pin_memory)


def make_experiment(recipe: Recipe, train: ImageSplit) -> Experiment:
    """What of the recipe and its images a method may ask for."""
    mean, std = recipe.transform.mean, recipe.transform.std
    assert mean is not None, "the recipe is not resolved"
    assert std is not None, "the recipe is not resolved"
    return Experiment(len(train), recipe.scheduler.total_epochs, train.class_names, mean, std)


def build_objective(recipe: Recipe, experiment: Experiment) -> Objective:
    """The method's objective over a new network; weights are drawn from torch's generator.

    Raises:
        UserError: timm has no such network; the method does not go with it, or with the experiment.
    """
    model = create_backbone(recipe.model, len(experiment.class_names), recipe.run.grad_checkpointing)
    module = recipe.method.build(model, experiment)
    objective = Objective(recipe.method, module, experiment.mean, experiment.std, recipe.run.channels_last)
    if recipe.run.channels_last:
        objective.to(memory_format=torch.channels_last)
    return objective


def compile_objective(recipe: Recipe, objective: Objective) -> None:
    """As `run.compile` asks; in place, so that the weights' names stay as they are."""
    if recipe.run.compile:
        objective.compile(mode=None if recipe.run.compile in (True, "default") else recipe.run.compile)


def make_loader(
    images: PairedImages,
    batches: GlobalBatches,
    workers: int | Literal["auto"],
    pin_memory: bool,
) -> DataLoader[Any]:
    """A loader over this process's share; start it anywhere with `batches.start_epoch`."""
    return batch_loader(
        images, batches, count_workers(workers), pin_memory, persistent=True, worker_init=ignore_stop_signals
    )
