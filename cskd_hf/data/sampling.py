"""Which images are trained on, in what order, and with which partners.

All randomness of the data lives here. A sampler yields keys, `Draw(indices, seed)`. A key is a pure function of
(seed, epoch, position) and identical on every rank; what is loaded is a pure function of the key. Order, pairs and
pixels therefore do not depend on the number of workers or ranks, or on restarts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from cskd_hf.data.draws import Sampling, augmentation_seeds, dense, draws_per_class, rank_in_class
from cskd_hf.errors import UserError

if TYPE_CHECKING:
    import torch


class Draw(NamedTuple):
    """A key: the images of one sample and the seed of their augmentation.

    Example:
        >>> from cskd_hf import ClassPairSampler
        >>> draw = next(iter(ClassPairSampler([0, 1, 0, 1])))
        >>> anchor, partner = draw.indices
    """

    indices: tuple[int, ...]
    seed: int


class ImageSampler:
    """Every image once per epoch, shuffled: keys of one view, or of several views of the same image.

    It shuffles exactly as a `ClassPairSampler` of the same seed, so a baseline sees CS-KD's anchors in the same order
    with the same pixels.

    Args:
        num_images: N.
        seed: the recipe's seed.
        views: how often an image appears in its sample.
        sampling: "instance", every image once per epoch; "class_balanced" or "sqrt" draw N images in the shares of
            `draws_per_class`, each image of a class as often as any other, give or take one.
        labels: (N,) integer class of each image, unless `sampling` is "instance".
        aug_repeats: r, repeated augmentation: an epoch of N samples shows the first N / r images of its order, r times
            each, one after the other, as timm's `RepeatAugSampler` does.

    Raises:
        UserError: no images, an unknown `sampling`, no label per image where it needs them, or `aug_repeats` below 1.

    Example:
        >>> from cskd_hf import ImageSampler
        >>> sampler = ImageSampler(num_images=4, seed=0, views=2)
        >>> sampler.set_epoch(1)
        >>> sorted(draw.indices for draw in sampler)
        [(0, 0), (1, 1), (2, 2), (3, 3)]
    """

    def __init__(
        self,
        num_images: int,
        seed: int = 0,
        views: int = 1,
        sampling: Sampling = "instance",
        labels: Sequence[int] | np.ndarray | None = None,
        aug_repeats: int = 1,
    ) -> None:
        if num_images < 1:
            raise UserError("no images to sample from; pass one label per training image")
        if sampling not in get_args(Sampling):
            raise UserError(f"sampling: read {sampling!r}; allowed: {', '.join(get_args(Sampling))}")
        if aug_repeats < 1:
            raise UserError(f"aug_repeats: read {aug_repeats}; write 1 or more")
        self.num_images, self.seed, self.views = num_images, seed, views
        self.sampling, self.aug_repeats = sampling, aug_repeats
        if sampling != "instance":
            if labels is None or len(labels) != num_images:
                raise UserError(f"labels: sampling={sampling!r} needs the class of each of {num_images:,} images")
            self._class_of = dense(np.asarray(labels))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Reshuffle; the order depends on (seed, epoch) alone."""
        self.epoch, self.shown = epoch, False
        self._draw_epoch(self._random(epoch))

    def _random(self, epoch: int) -> np.random.RandomState:
        # RandomState, not Generator: NumPy has frozen its stream, so upgrading between two restarts of a run does not
        # change its data.
        return np.random.RandomState([self.seed, epoch])

    def _draw_epoch(self, random: np.random.RandomState) -> None:
        self._views = (self._shuffled(random),) * self.views

    def _shuffled(self, random: np.random.RandomState) -> np.ndarray:
        # int32 halves the memory; a set of 2³¹ images would not fit the labels either.
        order = np.arange(self.num_images, dtype=np.int32)
        random.shuffle(order)
        if self.sampling != "instance":
            count = np.bincount(self._class_of)
            rounds, rest = np.divmod(draws_per_class(count, self.sampling, random), np.maximum(count, 1))
            repeats = rounds[self._class_of] + (rank_in_class(self._class_of, order) < rest[self._class_of])
            order = np.repeat(order, repeats[order])
            random.shuffle(order)
        return np.repeat(order[: -(-self.num_images // self.aug_repeats)], self.aug_repeats)[: self.num_images]

    def draws(self, start: int, stop: int) -> list[Draw]:
        """The keys at the positions [start, stop) of this epoch."""
        stop = min(stop, self.num_images)
        seeds = augmentation_seeds(self.seed, self.epoch, start, stop).tolist()
        columns = [view[start:stop].tolist() for view in self._views]
        return [Draw(indices, seed) for indices, seed in zip(zip(*columns, strict=True), seeds, strict=True)]

    def warn_if_shown(self) -> None:
        """Warn if an epoch repeats: unlike torch's samplers, this one reshuffles only in `set_epoch`."""
        if self.shown:
            warnings.warn(
                f"the sampler starts epoch {self.epoch} again, with the same order, partners and pixels; call "
                "set_epoch(epoch) before each epoch",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[Draw]:
        self.warn_if_shown()
        for start in range(0, self.num_images, 1024):
            for draw in self.draws(start, start + 1024):
                yield draw
                self.shown = True  # also where the caller ends an epoch early


class LastUpdateSampler(ImageSampler):
    """Images in an `ImageSampler`'s order as x, each with the image that was x one update earlier, also across epochs.

    An image is thus x once, and comes again `lag` positions later under another augmentation. The first update of a run
    has no predecessor and repeats its own images.

    Args:
        num_images, seed, sampling, labels, aug_repeats: as for `ImageSampler`.
        lag: samples per update, over all ranks.
        dropped: samples at the end of each epoch that `data.drop_last` leaves out.

    Example:
        >>> from cskd_hf.data.sampling import LastUpdateSampler
        >>> order = [draw.indices for draw in LastUpdateSampler(num_images=6, seed=0, lag=2)]
        >>> [x for x, _ in order[:4]] == [last for _, last in order[2:]]
        True
    """

    def __init__(
        self,
        num_images: int,
        seed: int = 0,
        lag: int = 1,
        dropped: int = 0,
        sampling: Sampling = "instance",
        labels: np.ndarray | None = None,
        aug_repeats: int = 1,
    ) -> None:
        self.stop = num_images - dropped
        self.lag = min(lag, self.stop)
        super().__init__(num_images, seed, views=2, sampling=sampling, labels=labels, aug_repeats=aug_repeats)

    def _draw_epoch(self, random: np.random.RandomState) -> None:
        order = self._shuffled(random)
        last = order[: self.lag]
        if self.epoch > 0:
            last = self._shuffled(self._random(self.epoch - 1))[self.stop - self.lag : self.stop]
        self._views = (order, np.concatenate((last, order[: self.num_images - self.lag])))


class ClassPairSampler(ImageSampler):
    """Every image once per epoch as anchor x, each with a partner x′ from its class.

    One sort of the labels and one vectorised draw per epoch; no Python object is made for an image before its key is
    requested.

    Args:
        labels: (N,) integer class of each image.
        seed: the recipe's seed.
        partner: "any" draws uniformly from the class with replacement, x included (the paper); "not_self" draws
            uniformly from the other images of the class.
        singleton: with "not_self", a class of one image is paired with itself ("self") or rejected ("error").
        sampling, aug_repeats: of the anchors, as for `ImageSampler`. Each repeat has a partner of its own.

    Raises:
        UserError: no labels, labels that are not integers, or a class of one image under `singleton="error"`.

    Example:
        >>> from cskd_hf import ClassPairSampler
        >>> labels = [0, 1, 0, 1, 1]
        >>> sampler = ClassPairSampler(labels, seed=0)
        >>> sampler.set_epoch(1)
        >>> anchors, partners = zip(*(draw.indices for draw in sampler))
        >>> sorted(anchors)
        [0, 1, 2, 3, 4]
        >>> all(labels[x] == labels[partner] for x, partner in zip(anchors, partners))
        True
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray | torch.Tensor,
        seed: int = 0,
        partner: Literal["any", "not_self"] = "any",
        singleton: Literal["self", "error"] = "self",
        sampling: Sampling = "instance",
        aug_repeats: int = 1,
    ) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"labels: read {labels.dtype} of shape {labels.shape}; pass one integer class per image")
        if partner not in ("any", "not_self"):
            raise UserError(f"partner: read {partner!r}; allowed: any, not_self")
        if singleton not in ("self", "error"):
            raise UserError(f"singleton: read {singleton!r}; allowed: self, error")
        self.partner = partner
        self._class_of = dense(labels)
        self._by_class = np.argsort(self._class_of, kind="stable").astype(np.int32)
        self._count = np.bincount(self._class_of).astype(np.int32)
        self._start = (np.cumsum(self._count) - self._count).astype(np.int32)
        if partner == "not_self":
            if singleton == "error" and (self._count == 1).any():
                alone = labels[self._by_class[self._start[self._count == 1]]]
                raise UserError(
                    f"{len(alone)} classes have one training image and no partner for it: labels {alone[:10].tolist()}"
                    f"{'…' if len(alone) > 10 else ''}; add images, or write data.singleton=self"
                )
            self._rank = rank_in_class(self._class_of).astype(np.int32)
        super().__init__(len(labels), seed, views=2, sampling=sampling, labels=labels, aug_repeats=aug_repeats)

    def _draw_epoch(self, random: np.random.RandomState) -> None:
        super()._draw_epoch(random)
        anchor = self._views[0]
        own_class = self._class_of[anchor]
        count = self._count[own_class]
        choices = count if self.partner == "any" else np.maximum(count - 1, 1)
        uniform = random.random_sample(self.num_images)
        uniform *= choices
        rank = uniform.astype(np.int32)  # of the partner within the class
        if self.partner == "not_self":
            rank += (rank >= self._rank[anchor]) & (count > 1)  # step over x itself
        rank += self._start[own_class]
        self._views = (anchor, self._by_class[rank])
