"""The third view of `same_class_plain`: the anchor through the test transform (CS-KD-E)."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage

from cskd_hf.batch import Batch
from cskd_hf.data.pairing import ClassPairSampler, Draw, PairedImages, PairingCollator
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.recipe.sections import TransformSection

SETTINGS = TransformSection(
    input_size=(3, 12, 12), scale=(0.2, 0.6), color_jitter=0.4, re_prob=1.0, crop_pct=0.8, mean=(0, 0, 0), std=(1, 1, 1)
)
TRAIN, TEST = Transform(SETTINGS, True), Transform(SETTINGS, False)


def split_of(unreadable: tuple[int, ...] = ()) -> ImageSplit:
    """Eight images of two classes."""
    encoded = []
    for row in range(8):
        buffer = io.BytesIO()
        noise = np.random.RandomState(row).randint(0, 256, (20, 30, 3), dtype=np.uint8)
        PillowImage.fromarray(noise).save(buffer, "PNG")
        encoded.append({"bytes": b"broken" if row in unreadable else buffer.getvalue(), "path": None})
    labels = np.arange(8) % 2
    features = Features({"image": Image(decode=False), "label": ClassLabel(num_classes=2)})
    dataset = Dataset.from_dict({"image": encoded, "label": labels}, features=features).select_columns(["image"])
    return ImageSplit("train", dataset, labels.astype(np.int64), ("even", "odd"), np.arange(8))


def load(
    split: ImageSplit, draws: list[Draw], on_corrupt: Literal["error", "replace", "drop"] = "error", plain: bool = True
) -> Batch:
    images = PairedImages(split, TRAIN, on_corrupt, TEST if plain else None)
    return PairingCollator()(images.__getitems__(draws))


def test_the_third_view_is_the_anchor_through_the_test_transform() -> None:
    split = split_of()
    draws = ClassPairSampler(split.labels, seed=1).draws(0, 5)
    batch = load(split, draws)
    anchors, partners, plain = batch.images.chunk(3)
    rows, partner_rows = (list(column) for column in zip(*(draw.indices for draw in draws), strict=True))
    assert batch.index.tolist() == rows + partner_rows + rows
    assert batch.target.tolist() == [row % 2 for row in rows] * 3
    for view, anchor, row in zip(plain, anchors, rows, strict=True):
        assert torch.equal(view, TEST(split.fetch([row])[0], 0))
        assert not torch.equal(view, anchor)
    assert torch.equal(torch.cat((anchors, partners)), load(split, draws, plain=False).images)  # as for CS-KD


def test_the_third_view_is_not_random() -> None:
    split = split_of()
    first, second = (load(split, [Draw((3, 5), seed)]).images for seed in (1, 2))
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[0], second[0])


def test_both_views_of_an_unreadable_anchor_show_the_same_replacement() -> None:
    split = split_of(unreadable=(2,))
    batch = load(split, [Draw((2, 6), 7), Draw((1, 3), 8)], "replace")
    assert batch.index.tolist() == [4, 1, 6, 3, 4, 1]
    assert torch.equal(batch.images[4], TEST(split.fetch([4])[0], 0))
    assert torch.equal(batch.images[0], TRAIN(split.fetch([4])[0], 7))
    assert [row for row, _ in batch.skipped] == [2]


def test_an_unreadable_partner_does_not_affect_the_anchors_views() -> None:
    split = split_of(unreadable=(6,))
    batch = load(split, [Draw((2, 6), 7)], "replace")
    assert batch.index.tolist() == [2, 0, 2]
    assert torch.equal(batch.images[2], TEST(split.fetch([2])[0], 0))


@pytest.mark.parametrize("unreadable", [2, 6])
def test_a_sample_with_an_unreadable_image_is_dropped_as_a_whole(unreadable: int) -> None:
    batch = load(split_of((unreadable,)), [Draw((2, 6), 7), Draw((1, 3), 8)], "drop")
    assert batch.index.tolist() == [1, 3, 1]
    assert batch.images.shape == (3, 3, 12, 12)
