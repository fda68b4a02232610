"""Build what trains from a resolved recipe: batches, loader, objective; `engine/learner.py` adds the optimizer.

Training, `check --speed` and the time estimate of `reproduce --plan` all build here.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from cskd_hf.batch import NUM_VIEWS
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.draws import expected_draws
from cskd_hf.data.loaders import batch_loader, count_workers, ignore_stop_signals
from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import ClassPairSampler, ImageSampler, LastUpdateSampler
from cskd_hf.data.splits import Images, ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.distributed import synchronize_batch_norm
from cskd_hf.engine.objective import Objective
from cskd_hf.errors import UserError
from cskd_hf.methods.base import Experiment
from cskd_hf.methods.task_loss import TaskLoss
from cskd_hf.models.factory import create_backbone
from cskd_hf.models.freezing import freeze
from cskd_hf.recipe.recipe import Recipe


def build_sampler(recipe: Recipe, train: ImageSplit, num_processes: int = 1) -> ImageSampler:
    """The epoch order the method needs: single images, class-wise pairs, or each image with one of the last update.

    Raises:
        UserError: `data.singleton: error` and a class has one training image, or the method needs each image once.
    """
    data, method, seed = recipe.data, recipe.method, recipe.run.seed
    for key, once, methods in (("sampling", "instance", ("pskd",)), ("aug_repeats", 1, ("pskd", "dlb"))):
        if getattr(data, key) != once and method.name in methods:
            raise UserError(
                f"data.{key}: read {getattr(data, key)}, but {method.name} learns from the last prediction of each "
                f"image; write data.{key}={once}"
            )
    if data.sampling == "class_balanced" and isinstance(method, TaskLoss) and method.reweights:
        raise UserError(
            "data.sampling: read class_balanced, which draws equal classes and leaves nothing to "
            "method.logit_adjustment and method.class_weight_beta; leave these out, or write data.sampling=instance"
        )
    if method.views in ("same_class", "same_class_plain"):
        return ClassPairSampler(train.labels, seed, data.partner, data.singleton, data.sampling, data.aug_repeats)
    order = (data.sampling, train.labels, data.aug_repeats)
    if method.views == "last_update":
        batch_size = data.batch_size * num_processes
        dropped = len(train) % batch_size if data.drop_last else 0
        lag = batch_size * recipe.run.gradient_accumulation_steps
        return LastUpdateSampler(len(train), seed, lag, dropped, *order)
    return ImageSampler(len(train), seed, NUM_VIEWS[method.views], *order)


def build_batches(recipe: Recipe, train: ImageSplit, accelerator: Accelerator) -> GlobalBatches:
    """This rank's share of every global batch."""
    return GlobalBatches(
        build_sampler(recipe, train, accelerator.num_processes),
        recipe.data.batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        recipe.data.drop_last,
        recipe.transform.training_size,
    )


def build_loader(
    recipe: Recipe, train: ImageSplit, batches: GlobalBatches, accelerator: Accelerator
) -> DataLoader[Any]:
    """Augmented images of `batches`."""
    images = training_images(recipe, train)
    return make_loader(images, batches, recipe.data.workers, pin_memory=accelerator.device.type == "cuda")


def training_images(recipe: Recipe, train: ImageSplit) -> PairedImages:
    """Augmented images by key, with an un-augmented view where the method asks for one."""
    value_range, transform = recipe.data.value_range, recipe.transform
    plain = transform.model_copy(update={"test_input_size": None})  # as large as the view it joins
    return PairedImages(
        train,
        Transform(transform, True, value_range),
        on_corrupt="replace" if recipe.data.on_corrupt == "skip" else "error",
        plain=Transform(plain, False, value_range) if recipe.method.views == "same_class_plain" else None,
    )


def make_loader(
    images: PairedImages, batches: GlobalBatches, workers: int | Literal["auto"], pin_memory: bool
) -> DataLoader[Any]:
    """A loader of this rank's share whose workers outlive an epoch and the stop signals."""
    return batch_loader(
        images, batches, count_workers(workers), pin_memory, persistent=True, worker_init=ignore_stop_signals
    )


def describe_experiment(recipe: Recipe, images: Images) -> Experiment:
    """What a method may ask about the recipe and its images."""
    counts = expected_draws(np.bincount(images.train.labels, minlength=images.num_classes), recipe.data.sampling)
    num_epochs, names = recipe.scheduler.total_epochs, images.train.class_names
    return Experiment(len(images.train), num_epochs, names, *recipe.transform.mean_and_std, tuple(counts.tolist()))


def build_objective(recipe: Recipe, experiment: Experiment) -> Objective:
    """The method's objective over a new network, initialised from torch's global generator.

    Raises:
        UserError: timm has no such network, or the method does not support it or the experiment.
    """
    names = experiment.class_names
    model = create_backbone(recipe.model, len(names), recipe.run.grad_checkpointing, names)
    module = recipe.method.build(model, experiment)
    objective = Objective(recipe.method, module, experiment.mean, experiment.std, recipe.run.channels_last)
    if recipe.run.channels_last:
        to_channels_last(objective)
    return objective


def to_channels_last(module: nn.Module) -> None:
    """Lay out the kernels of 2-D convolutions. `Module.to` also tries those of 3-D ones, which raises an error."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def build_training_objective(recipe: Recipe, images: Images, accelerator: Accelerator) -> Objective:
    """The objective of a seeded training run, with SyncBatchNorm where the recipe asks for it."""
    set_seed(recipe.run.seed)
    objective = build_objective(recipe, describe_experiment(recipe, images))
    if recipe.run.sync_bn:
        objective.module = synchronize_batch_norm(objective.module, accelerator)
    freeze(recipe.method.export(objective.module), recipe.model.freeze)
    return objective
