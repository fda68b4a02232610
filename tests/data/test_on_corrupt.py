"""Unreadable images in a batch: reported, replaced or dropped."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from pairing_cases import DENSE, TRANSFORM, assert_equal, epoch_of, load, picture, split_of
from torch.utils.data import DataLoader

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import PairedImages, PairingCollator
from cskd_hf.data.sampling import ClassPairSampler, Draw
from cskd_hf.errors import UserError, run_command


def test_the_error_names_split_row_and_a_file_if_there_is_one():
    with pytest.raises(UserError, match=r"split 'train', row 4: unreadable"):
        load(PairedImages(split_of(DENSE, broken=[4]), TRANSFORM), [Draw((4,), 0)])
    images = PairedImages(split_of(DENSE, broken=[4], paths=True), TRANSFORM)
    load(images, [Draw((1, 6), 0)])
    for indices in [(4, 0), (0, 4), (4,)]:
        with pytest.raises(UserError, match=r"split 'train', row 4, file pic4\.png: unreadable.*data\.on_corrupt=skip"):
            load(images, [Draw((1,) * len(indices), 0), Draw(indices, 0)])


def test_the_error_names_the_row_as_stored():
    share = split_of(DENSE, broken=[7], paths=True).take(np.array([9, 7, 2]))
    for taken in (share, share.take(np.array([2, 1]))):
        with pytest.raises(UserError, match=r"row 7, file pic7\.png"):
            load(PairedImages(taken, TRANSFORM), [Draw((1,), 0)])


def test_a_workers_error_prints_the_same_line(capsys):
    images = PairedImages(split_of(DENSE, broken=[4], paths=True), TRANSFORM)

    def epoch(workers: int) -> int:
        batches = GlobalBatches(ClassPairSampler(DENSE), 4)
        list(DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=PairingCollator()))
        return 0

    printed = []
    for workers in (0, 1):
        with pytest.raises(SystemExit) as caught:
            run_command(lambda workers=workers: epoch(workers))
        assert caught.value.code == 2
        printed.append(capsys.readouterr().err)
    assert printed[0] == printed[1]
    assert printed[0].startswith("error: split 'train', row 4, file pic4.png: unreadable image")
    assert printed[0].count("\n") == 1


def test_replace_loads_the_next_readable_image_of_the_class_and_reports_the_row():
    # Class 1 has the rows 0, 2, 4, 5, 7, 9.
    images = PairedImages(split_of(DENSE, broken=[4, 5, 9]), TRANSFORM, on_corrupt="replace")
    batch = load(images, [Draw((4, 2), 100), Draw((0, 9), 200)])
    assert batch.index.tolist() == [7, 0, 2, 0]  # 4 → (5) → 7, and 9 → 0 around the end
    assert batch.target.tolist() == [1] * 4
    assert [row for row, _ in batch.skipped] == [4, 9]
    assert all("unreadable" in reason for _, reason in batch.skipped)
    for place, row, seed in [(0, 7, 100), (1, 0, 200), (2, 2, 101), (3, 0, 201)]:
        assert torch.equal(batch.images[place], TRANSFORM({"bytes": picture(row), "path": None}, seed))
    assert_equal(batch, load(images, [Draw((4, 2), 100), Draw((0, 9), 200)]))


def test_replace_preserves_batch_size_and_classes():
    images = PairedImages(split_of(DENSE, broken=[4, 5, 6]), TRANSFORM, on_corrupt="replace")
    for epoch in range(5):
        batch = load(images, epoch_of(ClassPairSampler(DENSE, seed=1), epoch))
        assert len(batch.target) == 20
        assert [DENSE[row] for row in batch.index.tolist()] == batch.target.tolist()
        assert not {4, 5, 6} & set(batch.index.tolist())
        assert {4, 5, 6} <= {row for row, _ in batch.skipped} <= {4, 5, 6}


@pytest.mark.parametrize("broken", [[3], [1, 6, 8]])
def test_a_class_without_a_readable_image_is_named(broken):
    images = PairedImages(split_of(DENSE, broken=broken), TRANSFORM, on_corrupt="replace")
    name = "c" if broken == [3] else "a"
    with pytest.raises(UserError, match=f"split 'train': class '{name}' has no readable image"):
        load(images, [Draw((broken[0],), 0)])


def test_drop_removes_the_sample_and_reports_it():
    images = PairedImages(split_of(DENSE, broken=[4, 5]), TRANSFORM, on_corrupt="drop")
    batch = load(images, [Draw((row,), 0) for row in range(10)])
    assert batch.index.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert batch.target.tolist() == [DENSE[row] for row in batch.index.tolist()]
    assert [row for row, _ in batch.skipped] == [4, 5]


def test_drop_removes_the_pair_of_an_unreadable_image():
    images = PairedImages(split_of(DENSE, broken=[4]), TRANSFORM, on_corrupt="drop")
    for first, second in pairwise([(4, 0), (1, 6), (2, 4), (7, 9)]):
        batch = load(images, [Draw(first, 0), Draw(second, 9)])
        assert batch.index.tolist() == list(first if 4 in second else second)
        assert [row for row, _ in batch.skipped] == [4]


def test_a_batch_of_dropped_samples_is_empty_and_reports_them():
    images = PairedImages(split_of(DENSE, broken=[4, 5]), TRANSFORM, on_corrupt="drop")
    batch = load(images, [Draw((4,), 0), Draw((5,), 0)])
    assert len(batch.images) == len(batch.target) == len(batch.index) == 0
    assert [row for row, _ in batch.skipped] == [4, 5]
