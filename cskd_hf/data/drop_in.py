"""Class-wise pairs from a dataset of your own, for your own training loop."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from cskd_hf.data.pairing import Sample
from cskd_hf.data.sampling import Draw
from cskd_hf.errors import ImageError, UserError
from cskd_hf.seeding import seeded


class MapStyleDataset(Protocol):
    """Anybody's images: row → (image, label, whatever else)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, ...]: ...


class PairedDataset(Dataset[Sample]):
    """Somebody's own labelled images as a function of keys, for a training loop of theirs.

        pairs = PairedDataset(ImageFolder(root, transform))
        sampler = ClassPairSampler(labels)
        loader = DataLoader(pairs, batch_size=128, sampler=sampler, collate_fn=PairingCollator())

    The images keep their own augmentation. While one is loaded, the generators of Python, NumPy and torch, which
    torchvision's and timm's transforms draw from, are seeded from its key: its pixels do not depend on workers,
    processes or restarts. A transform with a generator of its own is not reached.

    Args:
        dataset: row → (image, label): a tensor (C, H, W), all of one shape, normalised as the model wants it where it
            is float; an integer, the row's entry in the sampler's labels.

    Raises:
        UserError: at a key that is no `Draw`, an image that is no tensor, or a pair whose labels differ.
    """

    def __init__(self, dataset: MapStyleDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Sample:
        if not isinstance(draw, Draw):
            raise UserError(
                f"key {draw!r}: PairedDataset is read through DataLoader(…, sampler=ClassPairSampler(labels))"
            )
        views, targets = [], []
        for number, index in enumerate(draw.indices):
            with seeded(draw.seed + number):
                view, target, *_ = self.dataset[index]
            if not isinstance(view, torch.Tensor):
                raise UserError(
                    f"row {index}: read an image of type {type(view).__name__}; end its transform with a tensor"
                )
            views.append(view)
            targets.append(int(target))
        if len(set(targets)) > 1:
            # Labels in another order, or timm's ImageDataset, which shows the next row in place of an unreadable image.
            raise ImageError(
                f"rows {draw.indices}: paired as one class, loaded with labels {targets}; give ClassPairSampler the "
                "dataset's own labels, row by row, and mend or remove unreadable images"
            )
        return Sample(tuple(views), targets[0], draw.indices, ())
