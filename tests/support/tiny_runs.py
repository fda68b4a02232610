"""A network, images and a run small enough to train in milliseconds, on any number of ranks."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from cskd_hf.batch import NUM_VIEWS
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import ClassPairSampler, ImageSampler, LastUpdateSampler
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.build import make_loader
from cskd_hf.engine.learner import Learner
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.engine.updates import Update, training_updates
from cskd_hf.methods import CSKD, Experiment, Method
from cskd_hf.models.freezing import freeze
from cskd_hf.models.memory import gather_memories
from cskd_hf.recipe.sections import OptimizerSection, RunSection, TransformSection
from cskd_hf.runs.checkpoint import load_checkpoint, save_checkpoint
from cskd_hf.runs.progress import Progress

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
TRANSFORM = TransformSection(input_size=(3, 8, 8), crop_padding=1, crop_pct=1.0, mean=MEAN, std=STD)


class TinyNet(nn.Module):
    """Two convolutions, with or without BatchNorm, behind the part of timm's interface that the engine uses."""

    def __init__(self, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_chs, out_chs in ((3, 6), (6, 8)):
            layers += [nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=not norm)]
            layers += [nn.BatchNorm2d(out_chs)] if norm else []
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(8, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x.mean(dim=(2, 3)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def draw_split(num_images: int, seed: int = 0, size: int = 10) -> ImageSplit:
    """Three classes of noise, each a little brighter in one channel."""
    random = np.random.RandomState(seed)
    labels = np.arange(num_images) % 3
    images = []
    for label in labels:
        pixels = random.randint(0, 200, (size, size, 3), dtype=np.uint8)
        pixels[..., label] += 50
        buffer = io.BytesIO()
        PillowImage.fromarray(pixels).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": Image(decode=False), "label": ClassLabel(num_classes=3)})
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features).select_columns(["image"])
    return ImageSplit("train", dataset, labels.astype(np.int64), ("a", "b", "c"), np.arange(num_images))


def use_float64(module: nn.Module) -> None:
    """Compute every layer with weights in float64, so that sums in another order agree to 1e-12.

    Losses stay in float32, as in training: each image's loss rounds the same in any batch.
    """
    for layer in module.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.data = parameter.data.double()
                assert layer.get_parameter(name).dtype == torch.float64
            for name, buffer in layer.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    layer.register_buffer(name, buffer.double())
            layer.register_forward_pre_hook(lambda _, arguments: tuple(argument.double() for argument in arguments))


@dataclass
class Run:
    """The arguments of `training_updates`, fresh for each run; `weights` seeds the initial weights."""

    num_images: int = 22
    batch_size: int = 4
    accumulation: int = 1
    workers: int = 0
    norm: bool = True
    dropout: float = 0.5
    lr: float = 0.1
    opt: str = "momentum"
    momentum: float = 0.9
    num_epochs: int = 3
    clip_grad: float | None = None
    drop_last: bool = False
    weights: int = 0
    seed: int = 5
    method: Method = field(default_factory=CSKD)
    scheduler: Callable[[Any], Any] = lambda optimizer: create_scheduler_v2(optimizer, "step", decay_epochs=9)[0]
    collate: Callable[[Any], Any] | None = None
    network: Callable[[], nn.Module] | None = None
    double: bool = False
    freeze: tuple[str, ...] | str = ()
    freeze_epochs: int = 0
    size_schedule: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        self.split = draw_split(self.num_images)
        self.accelerator = Accelerator(cpu=True)  # before `build`, which may need the number of ranks
        torch.manual_seed(self.weights)
        network = TinyNet(self.norm, self.dropout) if self.network is None else self.network()
        torch.manual_seed(self.weights)  # for the method's heads
        counts = tuple(np.bincount(self.split.labels).astype(float))
        experiment = Experiment(self.num_images, self.num_epochs, self.split.class_names, MEAN, STD, counts)
        self.module = self.method.build(network, experiment)
        if self.double:
            use_float64(self.module)
        objective = Objective(self.method, self.module, MEAN, STD)
        settings = OptimizerSection(opt=self.opt, lr=1.0, momentum=self.momentum, filter_bias_and_bn=False)
        model = self.method.export(self.module)
        freeze(model, self.freeze)
        optimizer = create_optimizer(settings, model, self.module, self.lr)
        self.schedule = self.scheduler(optimizer)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        views, world, rank = self.method.views, self.accelerator.num_processes, self.accelerator.process_index
        if views in ("same_class", "same_class_plain"):
            sampler: ImageSampler = ClassPairSampler(self.split.labels, self.seed)
        elif views == "last_update":
            sampler = LastUpdateSampler(self.num_images, self.seed, self.batch_size * world * self.accumulation)
        else:
            sampler = ImageSampler(self.num_images, self.seed, NUM_VIEWS[views])
        sizes = TRANSFORM.model_copy(update={"size_schedule": self.size_schedule})
        self.batches = GlobalBatches(sampler, self.batch_size, world, rank, self.drop_last, sizes.training_size)
        plain = Transform(TRANSFORM, False) if views == "same_class_plain" else None
        images = PairedImages(self.split, Transform(TRANSFORM, True), plain=plain)
        self.loader = make_loader(images, self.batches, self.workers, pin_memory=False)
        if self.collate is not None:
            self.loader.collate_fn = self.collate
        self.progress = Progress()

    def updates(self) -> Iterator[Update]:
        return training_updates(
            Learner(
                self.objective,
                self.module,
                self.method.export(self.module),
                self.optimizer,
                self.schedule,
                freeze_epochs=self.freeze_epochs,
            ),
            self.loader,
            self.batches,
            self.accelerator,
            self.progress,
            RunSection(gradient_accumulation_steps=self.accumulation, clip_grad=self.clip_grad, seed=self.seed),
            self.num_epochs,
        )

    def train(self, num_updates: int) -> list[Update]:
        """Up to `num_updates` further updates, fewer if training ends."""
        updates = self.updates()
        completed = list(islice(updates, num_updates))
        updates.close()
        return completed

    def save(self, folder: Path) -> None:
        """Save a checkpoint; a collective."""
        memories = gather_memories(self.module)
        if self.accelerator.is_main_process:
            save_checkpoint(folder, self.module, self.optimizer, None, self.progress, "", keep=1, memories=memories)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> None:
        self.progress = load_checkpoint(checkpoint, self.module, self.optimizer, None)

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights, buffers, optimizer state and memories; a collective."""
        tensors = {name: value.clone() for name, value in self.module.state_dict().items()}
        tensors |= gather_memories(self.module)
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v.clone() for k, v in state.items() if isinstance(v, Tensor)}
        return tensors


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def cosine(optimizer: Any) -> Any:
    """A schedule over three epochs."""
    return create_scheduler_v2(optimizer, sched="cosine", num_epochs=3)[0]
