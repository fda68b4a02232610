"""Which images are trained on, in what order, and with whom.

All randomness of the data sits here. A sampler yields keys, `Draw(indices, seed)`; a key is a pure function of
(seed, epoch, position), the same in every process, and what is loaded is a pure function of the key. So order, pairs
and pixels do not depend on the number of workers, processes or restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from cskd_hf.errors import UserError


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
