"""Which images are trained on, in what order, and with whom.

All randomness of the data sits here. A sampler yields keys, `Draw(indices, seed)`; a key is a pure function of
(seed, epoch, position), the same in every process, and what is loaded is a pure function of the key. So order, pairs
and pixels do not depend on the number of workers, processes or restarts.

    sampler = ClassPairSampler(labels, seed=0)
    batches = GlobalBatches(sampler, batch_size=128)
    loader = DataLoader(PairedImages(split, transform), batch_sampler=batches, collate_fn=PairingCollator())
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.load import ImageSplit
from cskd_hf.data.transforms import Transform, seeded
from cskd_hf.errors import ImageError, UserError
from cskd_hf.methods.base import Batch


class Draw(NamedTuple):
    """A key: the images of one sample, and the seed of their augmentation."""

    indices: tuple[int, ...]
    seed: int


def _augmentation_seeds(seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
    """63-bit seeds for the positions [start, stop): SplitMix64's finaliser over (seed, epoch, position).

    Hashing positions rather than drawing from a stream means that none is kept and any is reached at once.
    """
    position = np.arange(start, stop, dtype=np.uint64)
    word = np.full(1, seed, dtype=np.uint64)
    for part in (np.full(1, epoch, dtype=np.uint64), position):
        word = (word + np.uint64(0x9E3779B97F4A7C15)) ^ (part * np.uint64(0xD1342543DE82EF95))
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word = word ^ (word >> np.uint64(31))
    return word >> np.uint64(1)


def _dense(labels: np.ndarray) -> np.ndarray:
    """Labels as small non-negative integers: NumPy's stable sort of 16 bits is a radix sort, 15 times faster."""
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if highest - lowest < 2**16:
        return (labels - lowest).astype(np.uint16)
    return np.unique(labels, return_inverse=True)[1].astype(np.int32)


class ImageSampler:
    """Every image once an epoch, shuffled: keys of one view, or of `views` views of the same image.

    Args:
        num_images: N.
        seed: the recipe's seed.
        views: how often an image appears in its own sample.

    Shuffles exactly as `ClassPairSampler` of the same seed, so a baseline sees the anchors of CS-KD in their order and
    with their pixels.
    """

    def __init__(self, num_images: int, seed: int = 0, views: int = 1) -> None:
        if num_images < 1:
            raise UserError("no images to sample from")
        self.num_images, self.seed, self.views = num_images, seed, views
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew; an epoch's order depends on nothing that came before."""
        self.epoch = epoch
        # RandomState rather than Generator: NumPy has frozen its stream, so an upgrade between two restarts of a run
        # does not change its data.
        self._draw_epoch(np.random.RandomState([self.seed, epoch]))

    def _draw_epoch(self, random: np.random.RandomState) -> None:
        # int32 halves what an epoch keeps; a set of 2³¹ images would not fit the labels either.
        order = np.arange(self.num_images, dtype=np.int32)
        random.shuffle(order)
        self._views = (order,) * self.views

    def draws(self, start: int, stop: int) -> list[Draw]:
        """The keys at the positions [start, stop) of this epoch."""
        stop = min(stop, self.num_images)
        seeds = _augmentation_seeds(self.seed, self.epoch, start, stop).tolist()
        columns = [view[start:stop].tolist() for view in self._views]
        return [Draw(indices, seed) for indices, seed in zip(zip(*columns, strict=True), seeds, strict=True)]

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[Draw]:
        for start in range(0, self.num_images, 1024):
            yield from self.draws(start, start + 1024)


class ClassPairSampler(ImageSampler):
    """Every image once an epoch as anchor x, each with a partner x′ drawn from its class.

    Args:
        labels: (N,) integer class of each image.
        seed: the recipe's seed.
        partner: "any" draws uniformly from the class, with replacement, x itself included (the paper);
            "not_self" draws uniformly from the others.
        singleton: what "not_self" does with a class of one image: "self" pairs it with itself, "error" stops.

    Raises:
        UserError: no labels, labels that are not integers, or a class of one image where that is an error.

    Partners come from one sort of the labels, kept as order, start and count of each class, and one vectorised draw an
    epoch; no Python object is made per image before it is asked for.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | torch.Tensor,
        seed: int = 0,
        partner: Literal["any", "not_self"] = "any",
        singleton: Literal["self", "error"] = "self",
    ) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"labels: read {labels.dtype} of shape {labels.shape}; one integer class an image is needed"
            )
        if partner not in ("any", "not_self"):
            raise UserError(f"partner: read {partner!r}; allowed: any, not_self")
        if singleton not in ("self", "error"):
            raise UserError(f"singleton: read {singleton!r}; allowed: self, error")
        self.partner = partner
        self._class_of = _dense(labels)
        self._by_class = np.argsort(self._class_of, kind="stable").astype(np.int32)
        self._count = np.bincount(self._class_of).astype(np.int32)
        self._start = (np.cumsum(self._count) - self._count).astype(np.int32)
        if partner == "not_self":
            if singleton == "error" and (self._count == 1).any():
                alone = labels[self._by_class[self._start[self._count == 1]]]
                raise UserError(
                    f"{len(alone)} classes have one training image, no partner for it: labels {alone[:10].tolist()}"
                    f"{'…' if len(alone) > 10 else ''}; add images, or write data.singleton=self"
                )
            # Where each image stands within its class: a partner is drawn among the other count − 1 places.
            self._rank = np.empty(len(labels), dtype=np.int32)
            self._rank[self._by_class] = np.arange(len(labels), dtype=np.int32) - np.repeat(self._start, self._count)
        super().__init__(len(labels), seed=seed, views=2)

    def _draw_epoch(self, random: np.random.RandomState) -> None:
        super()._draw_epoch(random)
        anchor = self._views[0]
        own_class = self._class_of[anchor]
        count = self._count[own_class]
        others = count if self.partner == "any" else np.maximum(count - 1, 1)
        uniform = random.random_sample(self.num_images)
        uniform *= others
        place = uniform.astype(np.int32)
        if self.partner == "not_self":
            place += (place >= self._rank[anchor]) & (count > 1)  # step over x itself
        place += self._start[own_class]
        self._views = (anchor, self._by_class[place])


class Sample(NamedTuple):
    """One key, loaded: its views with the images they really show."""

    views: tuple[torch.Tensor, ...]  # each (3, H, W) uint8
    target: int
    indices: tuple[int, ...]
    skipped: tuple[tuple[int, str], ...]  # unreadable images: (row, what was wrong)


class PairedImages(Dataset[Sample]):
    """A split as a function of keys; one fetch from Arrow a batch, anchors and partners together.

    Args:
        split: rows of encoded images and their labels.
        transform: (encoded image, seed) → (3, H, W) uint8.
        on_corrupt: "error" stops at an unreadable image and names it; "replace" shows the next readable image of its
            class (by row, so the same one in every process); "drop" leaves the sample out of the batch (for tests).
        plain: a transform without randomness; where given, each sample ends with its first image through this one.
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
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        images = iter(self.split.fetch([index for draw in draws for index in draw.indices]))
        return [self._load(draw, [next(images) for _ in draw.indices]) for draw in draws]

    def _load(self, draw: Draw, images: list[Any]) -> Sample:
        views, indices, skipped = [], [], []
        for number, (index, image) in enumerate(zip(draw.indices, images, strict=True)):
            try:
                # The first view's seed is the key's own, so an anchor has the same pixels with and without a partner.
                views.append(self.transform(image, draw.seed + number))
                indices.append(index)
            except UnreadableImageError as error:
                if self.on_corrupt == "error":
                    raise ImageError(
                        f"{self.split.describe(index, image)}: {error}; mend or remove the file, or write "
                        "data.on_corrupt=skip"
                    ) from None
                skipped.append((index, str(error)))
                if self.on_corrupt == "replace":
                    view, other = self._another(index, draw.seed + number)
                    views.append(view)
                    indices.append(other)
        if len(views) < len(draw.indices):  # "drop"
            views, indices = [], []
        elif self.plain is not None:
            shown = images[0] if indices[0] == draw.indices[0] else self.split.fetch(indices[:1])[0]
            views.append(self.plain(shown, draw.seed))
            indices.append(indices[0])
        target = int(self.split.labels[draw.indices[0]])
        return Sample(tuple(views), target, tuple(indices), tuple(skipped))

    def _another(self, index: int, seed: int) -> tuple[torch.Tensor, int]:
        """The next readable image of the class of `index`, by row."""
        own_class = np.flatnonzero(self.split.labels == self.split.labels[index])
        at = int(np.searchsorted(own_class, index))
        for other in np.roll(own_class, -at - 1)[:-1].tolist():
            try:
                return self.transform(self.split.fetch([other])[0], seed), other
            except UnreadableImageError:
                continue  # reported when its own turn as anchor comes
        name = self.split.class_names[int(self.split.labels[index])]
        raise ImageError(f"split {self.split.name!r}: class {name!r} has no readable image; mend or remove it")


class PairingCollator:
    """Samples → `Batch`, laid out `[anchors | partners]` along dimension 0."""

    def __call__(self, samples: Sequence[Sample]) -> Batch:
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
