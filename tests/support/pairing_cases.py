"""A split of a few images, some of them broken, and helpers that load batches of it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PillowImage

from cskd_hf.batch import Batch
from cskd_hf.data.pairing import PairedImages, PairingCollator
from cskd_hf.data.sampling import Draw, ImageSampler
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.recipe.sections import TransformSection


def epoch_of(sampler: ImageSampler, epoch: int) -> list[Draw]:
    sampler.set_epoch(epoch)
    return list(sampler)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def picture(index: int) -> bytes:
    return png(np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8))


class CountedSplit(ImageSplit):
    fetched: list[list[int]] = []  # noqa: RUF012

    def fetch(self, indices: Sequence[int]):
        self.fetched.append(list(indices))
        return super().fetch(indices)


def split_of(labels: Sequence[int], broken: Sequence[int] = (), paths: bool = False) -> CountedSplit:
    """Classes 'a', 'b', …; `broken` rows hold bytes that are not an image."""
    images = [
        {"bytes": b"broken" if row in broken else picture(row), "path": f"pic{row}.png" if paths else None}
        for row in range(len(labels))
    ]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": Image(decode=False)}))
    names = tuple("abcdefghij"[: max(labels) + 1])
    split = CountedSplit("train", dataset, np.array(labels), names, np.arange(len(labels)))
    split.fetched.clear()
    return split


DENSE = [1, 0, 1, 2, 1, 1, 0, 1, 0, 1]
TRANSFORM = Transform(TransformSection(input_size=(3, 16, 16), re_prob=0.5, re_mode="pixel"), is_training=True)


def load(images: PairedImages, draws: Sequence[Draw]) -> Batch:
    return PairingCollator()(images.__getitems__(draws))


def assert_equal(left: Batch, right: Batch) -> None:
    assert torch.equal(left.images, right.images)
    assert torch.equal(left.target, right.target)
    assert torch.equal(left.index, right.index)
    assert left.skipped == right.skipped
