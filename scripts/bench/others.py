"""Image loaders in common use, for loader.py to compare with."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image as Pillow
from torch.utils.data import DataLoader
from torchvision import transforms as tv

Epoch = Callable[[], int]  # loads an epoch, returns the number of images


class AuthorsPairs(torch.utils.data.Dataset[Any]):
    """As ImageFolder: open, convert, torchvision's transforms, floats."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.rglob("*.JPEG"))
        names = sorted({path.parent.name for path in self.paths})
        self.labels = [names.index(path.parent.name) for path in self.paths]
        self.transform = tv.Compose(
            [
                tv.RandomResizedCrop(224),
                tv.RandomHorizontalFlip(),
                tv.ToTensor(),
                tv.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with open(self.paths[index], "rb") as file:
            return self.transform(Pillow.open(file).convert("RGB")), self.labels[index]


class ListOfListsPairs:
    """Batches of anchors, then their partners, drawn from a list of images for each class."""

    def __init__(self, labels: list[int], batch_size: int) -> None:
        self.labels, self.batch_size = labels, batch_size
        self.by_class: list[list[int]] = [[] for _ in range(max(labels) + 1)]
        for index, label in enumerate(labels):
            self.by_class[label].append(index)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.labels)))
        random.shuffle(order)
        partners = [random.choice(self.by_class[self.labels[index]]) for index in order]
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size] + partners[start : start + self.batch_size]


def counted(loader: Any) -> Epoch:
    return lambda: sum(len(images) for images, *_ in loader)


def authors(root: Path, args: argparse.Namespace) -> Epoch:
    pairs = AuthorsPairs(root)
    keys = ListOfListsPairs(pairs.labels, args.batch_size)
    return counted(DataLoader(pairs, batch_sampler=keys, num_workers=args.workers, persistent_workers=True))


def timm_folder(root: Path, args: argparse.Namespace) -> Epoch:
    """Two epochs of single images, as many images as in one epoch of pairs."""
    from timm.data import ImageDataset, create_loader

    loader = create_loader(
        ImageDataset(str(root)),
        (3, 224, 224),
        2 * args.batch_size,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=args.workers,
        device=torch.device("cpu"),
        pin_memory=False,
        persistent_workers=True,
    )
    inner = loader.loader  # uint8, like ours; the prefetcher's float copy would compete for the workers' cores
    once = counted(inner)
    return lambda: once() + once()


class TimmOnArrow(torch.utils.data.Dataset[Any]):
    def __init__(self, data: Dataset) -> None:
        from timm.data import create_transform

        self.data = data
        self.transform = create_transform(
            224, is_training=True, color_jitter=None, interpolation="bilinear", use_prefetcher=True
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        row = self.data[index]
        return self.transform(row["image"].convert("RGB")), row["label"]


def timm_arrow(data: Dataset, args: argparse.Namespace) -> Epoch:
    from timm.data.loader import fast_collate

    keys = ListOfListsPairs(data.with_format("arrow")["label"].to_pylist(), args.batch_size)
    return counted(
        DataLoader(
            TimmOnArrow(data),
            batch_sampler=keys,
            num_workers=args.workers,
            persistent_workers=True,
            collate_fn=fast_collate,
        )
    )


def dali(root: Path, args: argparse.Namespace) -> Epoch:
    """Twice as many single images as there are pairs."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=2 * args.batch_size, num_threads=args.workers, device_id=None, prefetch_queue_depth=2)
    def images() -> Any:
        files, labels = fn.readers.file(file_root=str(root), random_shuffle=True, name="files")
        crops = fn.decoders.image_random_crop(
            files, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        sized = fn.resize(crops, size=[224, 224], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(sized, horizontal=fn.random.coin_flip()), labels

    pipeline = images()
    pipeline.build()
    batches = -(-pipeline.epoch_size("files") // args.batch_size)
    return lambda: sum(len(pipeline.run()[0]) for _ in range(batches))
