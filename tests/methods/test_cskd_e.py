"""CS-KD-E against its formula in NumPy, its three forwards, and the third view that the loader makes for it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from method_cases import NUM_CLASSES, Fixed, batch_for, cross_entropy, kl, objective_of, pixels
from PIL import Image as PillowImage

from cskd_hf.data.pairing import ClassPairSampler, Draw, PairedImages, PairingCollator
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.methods import CSKD, CSKDE, Batch
from cskd_hf.recipe.sections import TransformSection

LOGITS = np.random.RandomState(0).randn(9, NUM_CLASSES) * 3
TARGET = np.tile([2, 0, 3], 3)


@pytest.mark.parametrize(("weight", "sample_weight"), [(1.0, 1.0), (3.0, 0.5), (0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_papers(temperature, weight, sample_weight):
    method = CSKDE(temperature=temperature, distill_loss_weight=weight, sample_loss_weight=sample_weight)
    images = pixels(LOGITS)
    result = method.forward_loss(Fixed(), Batch(images, torch.tensor(TARGET), torch.arange(9)))
    anchors, partners, plain = LOGITS[:3], LOGITS[3:6], LOGITS[6:]
    task, class_wise = cross_entropy(anchors, TARGET[:3]), kl(partners, anchors, temperature)
    sample = kl(plain, anchors, temperature)
    assert result["task_loss"].item() == pytest.approx(task, rel=1e-5)
    assert result["kd_loss"].item() == pytest.approx(class_wise, rel=1e-5)
    assert result["sample_kd_loss"].item() == pytest.approx(sample, rel=1e-5)
    assert result["loss"].item() == pytest.approx(task + weight * class_wise + sample_weight * sample, rel=1e-5)
    assert torch.equal(result["target"], torch.tensor(TARGET[:3]))
    result["loss"].backward()
    assert not images.grad[3:].any()  # both teachers are constants


def test_three_forwards_move_batchnorm_three_times_in_train_mode():
    objective = objective_of(CSKDE())
    objective(batch_for(CSKDE()))
    module: Any = objective.module
    assert module.stem[1].num_batches_tracked == 3


def test_without_the_sample_loss_it_is_cskd_but_for_batchnorms_third_move():
    batch = batch_for(CSKDE())
    pairs = Batch(batch.images[:8], batch.target[:8], batch.index[:8])
    one, two = objective_of(CSKDE(sample_loss_weight=0.0)), objective_of(CSKD())
    a, b = one(batch), two(pairs)
    assert torch.equal(a["loss"], b["loss"])
    assert a["sample_kd_loss"] > 0
    a["loss"].backward()
    b["loss"].backward()
    for (name, parameter), other in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name
    moved = {key for key, value in one.state_dict().items() if not torch.equal(value, two.state_dict()[key])}
    assert moved == {key for key, _ in one.named_buffers() if "running" in key or "tracked" in key}


# the un-augmented view


SETTINGS = TransformSection(
    input_size=(3, 12, 12), scale=(0.2, 0.6), color_jitter=0.4, crop_pct=0.8, mean=(0, 0, 0), std=(1, 1, 1)
)


def split_of(broken: tuple[int, ...] = ()) -> ImageSplit:
    """Eight images of two classes; `broken` ones cannot be decoded."""
    encoded = []
    for row in range(8):
        buffer = io.BytesIO()
        noise = np.random.RandomState(row).randint(0, 256, (20, 30, 3), dtype=np.uint8)
        PillowImage.fromarray(noise).save(buffer, "PNG")
        encoded.append({"bytes": b"broken" if row in broken else buffer.getvalue(), "path": None})
    labels = np.arange(8) % 2
    features = Features({"image": Image(decode=False), "label": ClassLabel(num_classes=2)})
    dataset = Dataset.from_dict({"image": encoded, "label": labels}, features=features).select_columns(["image"])
    return ImageSplit("train", dataset, labels.astype(np.int64), ("even", "odd"), np.arange(8))


def loaded(split: ImageSplit, draws: list[Draw], on_corrupt: Any = "error", plain: bool = True) -> Batch:
    transform = Transform(SETTINGS, False) if plain else None
    images = PairedImages(split, Transform(SETTINGS, True), on_corrupt, transform)
    return PairingCollator()(images.__getitems__(draws))


def test_the_third_view_is_the_anchor_through_the_test_transform():
    split = split_of()
    draws = ClassPairSampler(split.labels, seed=1).draws(0, 5)
    batch = loaded(split, draws)
    anchors, partners, plain = batch.images.chunk(3)
    assert batch.index.tolist() == [draw.indices[0] for draw in draws] + [draw.indices[1] for draw in draws] + [
        draw.indices[0] for draw in draws
    ]
    assert batch.target.tolist() == [draw.indices[0] % 2 for draw in draws] * 3
    test = Transform(SETTINGS, False)
    for row, draw in enumerate(draws):
        assert torch.equal(plain[row], test(split.fetch([draw.indices[0]])[0], 0))
        assert not torch.equal(plain[row], anchors[row])
    pairs = loaded(split, draws, plain=False)  # and the others are what CS-KD sees
    assert torch.equal(torch.cat((anchors, partners)), pairs.images)


def test_the_third_view_has_no_randomness():
    split = split_of()
    one, two = (loaded(split, [Draw((3, 5), seed)]).images for seed in (1, 2))
    assert torch.equal(one[2], two[2])
    assert not torch.equal(one[0], two[0])


def test_in_place_of_an_unreadable_anchor_both_its_views_show_the_same_other_image():
    split = split_of(broken=(2,))
    batch = loaded(split, [Draw((2, 6), 7), Draw((1, 3), 8)], "replace")
    assert batch.index.tolist() == [4, 1, 6, 3, 4, 1]
    test = Transform(SETTINGS, False)
    assert torch.equal(batch.images[4], test(split.fetch([4])[0], 0))
    assert torch.equal(batch.images[0], Transform(SETTINGS, True)(split.fetch([4])[0], 7))
    assert [row for row, _ in batch.skipped] == [2]


def test_an_unreadable_partner_leaves_the_anchors_two_views_alone():
    split = split_of(broken=(6,))
    batch = loaded(split, [Draw((2, 6), 7)], "replace")
    assert batch.index.tolist() == [2, 0, 2]
    assert torch.equal(batch.images[2], Transform(SETTINGS, False)(split.fetch([2])[0], 0))


@pytest.mark.parametrize("broken", [2, 6])
def test_a_sample_with_an_unreadable_image_is_dropped_whole(broken):
    batch = loaded(split_of(broken=(broken,)), [Draw((2, 6), 7), Draw((1, 3), 8)], "drop")
    assert batch.index.tolist() == [1, 3, 1]
    assert batch.images.shape == (3, 3, 12, 12)
