"""Keys → images: a pair is loaded as one sample, augmented from its key's seed, laid out `[anchors | partners]`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from cskd_hf.batch import Batch
from cskd_hf.data.batches import Keys
from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.sampling import ClassPairSampler, Draw, ImageSampler
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import ImageError, UserError

__all__ = ["ClassPairSampler", "Draw", "ImageSampler", "PairedImages", "PairingCollator", "Sample"]


class Sample(NamedTuple):
    """One loaded key."""

    views: tuple[torch.Tensor, ...]  # each (C, H, W): uint8 from PairedImages
    target: int
    indices: tuple[int, ...]  # the images shown: a replaced one under its replacement's row
    skipped: tuple[tuple[int, str], ...]  # unreadable images: (row, error)


def require_draw(key: object) -> None:
    """Raises UserError at the key of another sampler, such as a row number."""
    if not isinstance(key, Draw):
        raise UserError(f"key {key!r}: load pairs through DataLoader(…, sampler=ClassPairSampler(labels))")


class PairedImages(Dataset[Sample]):
    """A split as a function of keys; a batch is one read from Arrow, decoded into one buffer.

    Args:
        split: rows of encoded images and their labels.
        transform: decodes and augments an image, given a seed.
        on_corrupt: "error" raises on an unreadable image; "replace" shows the next readable image of its class by row,
            the same one on every rank; "drop" leaves the sample out of the batch (evaluation).
        plain: a transform without randomness and of the same size; if given, each sample ends with its first image
            through this transform.

    Raises:
        UserError: another `on_corrupt`, or at a key that is not a `Draw`.
        ImageError: on loading an unreadable image under "error", or a class without a readable image under "replace".

    Example:
        >>> import torch
        >>> from cskd_hf import ClassPairSampler, PairedImages, PairingCollator, load_images
        >>> from cskd_hf.data.transforms import Transform
        >>> from cskd_hf.recipe.sections import DataSection, TransformSection
        >>> columns = {"image_column": "image", "label_column": "label"}
        >>> train = load_images(DataSection(dataset="digits", train_split="train", test_split="test", **columns)).train
        >>> images = PairedImages(train, Transform(TransformSection(input_size=(3, 32, 32)), is_training=True))
        >>> sampler = ClassPairSampler(train.labels, seed=0)
        >>> loader = torch.utils.data.DataLoader(images, 16, sampler=sampler, collate_fn=PairingCollator())
        >>> batch = next(iter(loader))
        >>> batch.images.shape, batch.images.dtype
        (torch.Size([32, 3, 32, 32]), torch.uint8)
        >>> torch.equal(batch.target[:16], batch.target[16:])  # [anchors | partners]
        True
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: Transform,
        on_corrupt: Literal["error", "replace", "drop"] = "error",
        plain: Transform | None = None,
    ) -> None:
        if on_corrupt not in ("error", "replace", "drop"):
            raise UserError(f"on_corrupt: read {on_corrupt!r}; allowed: error, replace, drop")
        self.split, self.transform, self.on_corrupt, self.plain = split, transform, on_corrupt, plain

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, draw: Draw) -> Sample:
        """One key, with the pixels it has in a batch."""
        batch = self.load([draw])
        target = int(self.split.labels[draw.indices[0]])
        return Sample(tuple(batch.images), target, tuple(batch.index.tolist()), batch.skipped)

    def shape(self, draws: Sequence[Draw]) -> tuple[int, ...]:
        """(views, keys, H, W, channels) of the batch of these keys."""
        require_draw(draws[0])
        num_views = len(draws[0].indices) + (self.plain is not None)
        size = draws.size if isinstance(draws, Keys) else None
        return num_views, len(draws), *(size or self.transform.size), self.transform.channels

    def load(self, draws: Sequence[Draw], memory: torch.Tensor | None = None) -> Batch:
        """The batch of these keys, which all have the same number of images.

        Args:
            memory: (bytes,) uint8 to write the images to, unless it is too small.
        """
        shape = self.shape(draws)
        num_views, size = shape[0], math.prod(shape)
        buffer = _buffer(shape) if memory is None or len(memory) < size else memory[:size].view(shape)
        images = iter(self.split.fetch([index for draw in draws for index in draw.indices]))
        indices, skipped = np.zeros((num_views, len(draws)), dtype=np.int64), []
        columns: list[int] = []  # of the keys that are not dropped
        for column, draw in enumerate(draws):
            shown, unreadable = self._load(draw, [next(images) for _ in draw.indices], buffer[:, column])
            skipped += unreadable
            if shown:
                indices[:, column] = shown
                columns.append(column)
        if len(columns) < len(draws):
            buffer, indices = buffer[:, columns], indices[:, columns]
        rows = indices.reshape(-1)
        return Batch(
            images=buffer.flatten(0, 1).permute(0, 3, 1, 2),  # channels_last, a view
            target=torch.from_numpy(self.split.labels[rows]),
            index=torch.from_numpy(rows),
            skipped=tuple(skipped),
        )

    __getitems__ = load  # a DataLoader calls it instead of `__getitem__`

    def _load(
        self, draw: Draw, images: list[Mapping[str, Any]], views: torch.Tensor
    ) -> tuple[list[int], list[tuple[int, str]]]:
        """Write one key's views; returns the rows shown, none if the key is dropped, and the unreadable rows."""
        indices, skipped = [], []
        for number, (index, image) in enumerate(zip(draw.indices, images, strict=True)):
            try:
                # The first view uses the key's own seed: an anchor has the same pixels with and without a partner.
                self.transform.write(image, draw.seed + number, views[number])
                indices.append(index)
            except UnreadableImageError as error:
                if self.on_corrupt == "error":
                    raise ImageError(
                        f"{self.split.describe(index, image)}: {error}; repair or remove the file, or write "
                        "data.on_corrupt=skip"
                    ) from None
                skipped.append((index, str(error)))
                if self.on_corrupt == "replace":
                    indices.append(self._replace(index, draw.seed + number, views[number]))
        if len(indices) < len(draw.indices):  # "drop"
            return [], skipped
        if self.plain is not None:
            first = images[0] if indices[0] == draw.indices[0] else self.split.fetch(indices[:1])[0]
            self.plain.write(first, draw.seed, views[-1])
            indices.append(indices[0])
        return indices, skipped

    def _replace(self, index: int, seed: int, view: torch.Tensor) -> int:
        """Write the next readable image, by row, of the class of `index`; returns its row."""
        own_class = np.flatnonzero(self.split.labels == self.split.labels[index])
        at = int(np.searchsorted(own_class, index))
        for other in np.roll(own_class, -at - 1)[:-1].tolist():
            try:
                self.transform.write(self.split.fetch([other])[0], seed, view)
            except UnreadableImageError:
                continue  # reported when it comes up as an anchor
            return int(other)
        name = self.split.class_names[int(self.split.labels[index])]
        raise ImageError(f"split {self.split.name!r}: class {name!r} has no readable image; repair or remove it")


def _buffer(shape: tuple[int, ...]) -> torch.Tensor:
    """Uninitialised uint8; shared memory in a worker, which saves torch copying the batch there."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape, strides)


class PairingCollator:
    """Collates samples into a `Batch` laid out `[anchors | partners]`; passes a whole `Batch` through.

    Example:
        >>> import torch
        >>> from cskd_hf import PairingCollator
        >>> from cskd_hf.data.pairing import Sample
        >>> image = torch.zeros(3, 8, 8)
        >>> samples = [Sample((image, image + 1), target, (row, row + 1), ()) for row, target in ((0, 5), (7, 6))]
        >>> batch = PairingCollator()(samples)
        >>> batch.index.tolist(), batch.target.tolist()
        ([0, 7, 1, 8], [5, 6, 5, 6])
    """

    def __call__(self, samples: Sequence[Sample] | Batch) -> Batch:
        if isinstance(samples, Batch):
            return samples
        if isinstance(samples, Sample):
            raise UserError("batch_size: read None, which loads single pairs; write DataLoader(…, batch_size=…)")
        skipped = tuple(report for sample in samples for report in sample.skipped)
        samples = [sample for sample in samples if sample.views]  # a dropped key has none
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
