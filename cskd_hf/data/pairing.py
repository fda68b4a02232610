"""Keys to images: a pair is loaded whole, augmented from its own seed, and laid out `[anchors | partners]`.

    sampler = ClassPairSampler(labels, seed=0)
    batches = GlobalBatches(sampler, batch_size=128)
    loader = DataLoader(PairedImages(split, transform), batch_sampler=batches, collate_fn=PairingCollator())

`data/sampling.py` has the keys; they can be had from here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from cskd_hf.batch import Batch
from cskd_hf.data.buffers import Parcel
from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.sampling import ClassPairSampler, Draw, ImageSampler
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import ImageError

__all__ = [
    "ClassPairSampler",
    "Draw",
    "ImageSampler",
    "PairedImages",
    "PairingCollator",
    "Sample",
]


class Sample(NamedTuple):
    """One key, loaded: its views with the images they really show."""

    views: tuple[torch.Tensor, ...]  # each (3, H, W): uint8 from PairedImages
    target: int
    indices: tuple[int, ...]
    skipped: tuple[tuple[int, str], ...]  # unreadable images: (row, what was wrong)


class PairedImages(Dataset[Sample]):
    """A split as a function of keys; a batch is one fetch from Arrow, decoded into one buffer.

    Args:
        split: rows of encoded images and their labels.
        transform: what an image goes through, with its seed.
        on_corrupt: "error" stops at an unreadable image and names it; "replace" shows the next readable image of its
            class (by row, so the same one in every process); "drop" leaves the sample out of the batch (for tests).
        plain: a transform without randomness, of the same size; where given, each sample ends with its first image
            through this one.
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: Transform,
        on_corrupt: Literal["error", "replace", "drop"] = "error",
        plain: Transform | None = None,
    ) -> None:
        self.split, self.transform, self.on_corrupt, self.plain = split, transform, on_corrupt, plain

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: Draw) -> Sample:
        """One key alone, with the pixels it has in a batch."""
        batch = self.__getitems__([draw])
        target = int(self.split.labels[draw.indices[0]])
        return Sample(tuple(batch.images), target, tuple(batch.index.tolist()), batch.skipped)

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        """The batch of these keys, all of one number of images; this is what a DataLoader calls."""
        return self.load(draws)

    def shape(self, draws: Sequence[Draw]) -> tuple[int, ...]:
        """(views, keys, H, W, 3) of the batch of these keys."""
        return len(draws[0].indices) + (self.plain is not None), len(draws), *self.transform.size, 3

    def load(self, draws: Sequence[Draw], room: torch.Tensor | None = None) -> Batch:
        """The batch of these keys.

        Args:
            room: (bytes,) uint8, where the batch shall lie; not used if it is too small for it.
        """
        shape = self.shape(draws)
        num_views, size = shape[0], math.prod(shape)
        buffer = _buffer(shape) if room is None or len(room) < size else room[:size].view(shape)
        images = iter(self.split.fetch([index for draw in draws for index in draw.indices]))
        indices, skipped = np.zeros((num_views, len(draws)), dtype=np.int64), []
        kept: list[int] = []
        for place, draw in enumerate(draws):
            shown, unreadable = self._load(draw, [next(images) for _ in draw.indices], buffer[:, place])
            skipped += unreadable
            if shown:
                indices[:, place] = shown
                kept.append(place)
        if len(kept) < len(draws):  # "drop"
            buffer, indices = buffer[:, kept], indices[:, kept]
        target = torch.from_numpy(self.split.labels[[draws[place].indices[0] for place in kept]])
        return Batch(
            images=buffer.flatten(0, 1).permute(0, 3, 1, 2),  # channels_last: a view
            target=target.repeat(num_views),
            index=torch.from_numpy(indices.reshape(-1)),
            skipped=tuple(skipped),
        )

    def _load(
        self, draw: Draw, images: list[Mapping[str, Any]], views: torch.Tensor
    ) -> tuple[list[int], list[tuple[int, str]]]:
        """Show one key in its views: which images these are, none where it is dropped; unreadable ones."""
        indices, skipped = [], []
        for number, (index, image) in enumerate(zip(draw.indices, images, strict=True)):
            try:
                # The first view's seed is the key's own, so an anchor has the same pixels with and without a partner.
                self.transform.write(image, draw.seed + number, views[number])
                indices.append(index)
            except UnreadableImageError as error:
                if self.on_corrupt == "error":
                    raise ImageError(
                        f"{self.split.describe(index, image)}: {error}; mend or remove the file, or write "
                        "data.on_corrupt=skip"
                    ) from None
                skipped.append((index, str(error)))
                if self.on_corrupt == "replace":
                    indices.append(self._another(index, draw.seed + number, views[number]))
        if len(indices) < len(draw.indices):  # "drop"
            return [], skipped
        if self.plain is not None:
            shown = images[0] if indices[0] == draw.indices[0] else self.split.fetch(indices[:1])[0]
            self.plain.write(shown, draw.seed, views[-1])
            indices.append(indices[0])
        return indices, skipped

    def _another(self, index: int, seed: int, view: torch.Tensor) -> int:
        """Show the next readable image of the class of `index`, by row, and say which it is."""
        own_class = np.flatnonzero(self.split.labels == self.split.labels[index])
        at = int(np.searchsorted(own_class, index))
        for other in np.roll(own_class, -at - 1)[:-1].tolist():
            try:
                self.transform.write(self.split.fetch([other])[0], seed, view)
            except UnreadableImageError:
                continue  # reported when its own turn as anchor comes
            return int(other)
        name = self.split.class_names[int(self.split.labels[index])]
        raise ImageError(f"split {self.split.name!r}: class {name!r} has no readable image; mend or remove it")


def _buffer(shape: tuple[int, ...]) -> torch.Tensor:
    """uint8, not filled; in a loader's process in shared memory, which would else be the second copy of the batch."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape, strides)


class PairingCollator:
    """Samples → `Batch`, laid out `[anchors | partners]` along dimension 0; what is loaded whole stays as it is."""

    def __call__(self, samples: Sequence[Sample] | Batch | Parcel) -> Batch:
        if isinstance(samples, Batch | Parcel):
            return samples  # type: ignore[return-value]  # a parcel is a batch where it arrives
        skipped = tuple(report for sample in samples for report in sample.skipped)
        samples = [sample for sample in samples if sample.views]  # "drop" leaves none
        num_views = len(samples[0].views) if samples else 0
        target = torch.tensor([sample.target for sample in samples], dtype=torch.int64)
        by_view = [sample.views[view] for view in range(num_views) for sample in samples]
        index = [sample.indices[view] for view in range(num_views) for sample in samples]
        return Batch(
            images=torch.stack(by_view) if by_view else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
            target=target.repeat(max(num_views, 1)),
            index=torch.tensor(index, dtype=torch.int64),
            skipped=skipped,
        )
