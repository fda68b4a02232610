"""A network, images and a run small enough to train in milliseconds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage
from torch import Tensor, nn

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.load import ImageSplit
from cskd_hf.data.pairing import ClassPairSampler, ImageSampler, PairedImages
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.loop import Progress, Update, make_loader, training_updates
from cskd_hf.engine.objective import Objective
from cskd_hf.methods import CSKD, Method
from cskd_hf.recipe_sections import TransformSection

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
    """Noise, a little brighter in the channel of its class; three classes."""
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


@dataclass
class Run:
    """Everything `training_updates` takes, made anew for each run; `weights` is the seed of the initial ones."""

    num_images: int = 22
    batch_size: int = 4
    accumulation: int = 1
    workers: int = 0
    norm: bool = True
    dropout: float = 0.5
    lr: float = 0.1
    momentum: float = 0.9
    num_epochs: int = 3
    clip_grad: float | None = None
    drop_last: bool = False
    weights: int = 0
    seed: int = 5
    method: Method = field(default_factory=CSKD)
    scheduler: Callable[[Any], Any] = lambda _: None
    collate: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        self.split = draw_split(self.num_images)
        torch.manual_seed(self.weights)
        self.module = TinyNet(self.norm, self.dropout)
        objective = Objective(self.method, self.module, MEAN, STD)
        optimizer = torch.optim.SGD(self.module.parameters(), lr=self.lr, momentum=self.momentum)
        self.schedule = self.scheduler(optimizer)
        self.accelerator = Accelerator(cpu=True)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        if self.method.views == "same_class":
            sampler: ImageSampler = ClassPairSampler(self.split.labels, self.seed)
        else:
            sampler = ImageSampler(self.num_images, self.seed)
        self.batches = GlobalBatches(sampler, self.batch_size, drop_last=self.drop_last)
        images = PairedImages(self.split, Transform(TRANSFORM, True))
        self.loader = make_loader(images, self.batches, self.workers, pin_memory=False)
        if self.collate is not None:
            self.loader.collate_fn = self.collate
        self.progress = Progress()

    def updates(self) -> Iterator[Update]:
        return training_updates(
            self.objective,
            self.optimizer,
            self.schedule,
            self.loader,
            self.batches,
            self.accelerator,
            self.progress,
            num_epochs=self.num_epochs,
            gradient_accumulation_steps=self.accumulation,
            clip_grad=self.clip_grad,
            seed=self.seed,
        )

    def train(self, num_updates: int) -> list[Update]:
        """So many further updates, or fewer where training is over."""
        updates = self.updates()
        done = list(islice(updates, num_updates))
        updates.close()
        return done

    def state(self) -> dict[str, Tensor]:
        """Copies of every weight, buffer and momentum."""
        tensors = {name: value.clone() for name, value in self.module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v.clone() for k, v in state.items() if isinstance(v, Tensor)}
        return tensors


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture
def make_run() -> type[Run]:
    return Run


@pytest.fixture
def make_split() -> Callable[..., ImageSplit]:
    return draw_split


@pytest.fixture
def make_network() -> type[TinyNet]:
    return TinyNet


@pytest.fixture
def transform() -> TransformSection:
    return TRANSFORM


@pytest.fixture
def same_tensors() -> Callable[[dict[str, Tensor], dict[str, Tensor]], None]:
    return assert_same_tensors
