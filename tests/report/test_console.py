"""The start block warns of a batch that grew without the learning rate or past the data, and of a too long average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from summaries import make_recipe

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import ClassPairSampler
from cskd_hf.recipe.sections import RunSection
from cskd_hf.report.console import _batch_note, ema_note, last_batch_note, small_data_note


@pytest.mark.parametrize(
    ("optimizer", "run", "world", "expected"),
    [
        ({"lr": 0.1}, {}, 1, None),
        ({"lr": 0.1}, {}, 8, "8 processes make the batch 8 times the recipe's, and lr 0.1 is fixed: write"),
        ({"lr": 0.1}, {"num_processes": 8}, 8, None),
        ({"lr": None, "lr_base": 0.1}, {}, 8, None),
    ],
)
def test_a_fixed_learning_rate_on_several_processes_is_noted(optimizer, run, world, expected):
    recipe = make_recipe(Path("run")).replace(
        optimizer={"lr": None, "lr_base": None} | optimizer, run=run, data={"batch_size": 4}
    )
    batches = GlobalBatches(ClassPairSampler(np.arange(64) % 2), 4, world)
    notes = _batch_note(recipe, batches, 0.1)
    assert [note.partition(" 'opt")[0] for note in notes] == ([] if expected is None else [expected])
    if expected is not None:
        assert "optimizer.lr_base=6.4 to scale it, or run.num_processes=8" in notes[0]


@pytest.mark.parametrize(
    ("updates", "settings", "share"),
    [
        (90, {"model_ema_warmup": False}, "98 %"),
        (5_000, {"model_ema_warmup": False}, "37 %"),
        (5_000, {"model_ema_warmup": False, "model_ema": False}, None),
        (5_000, {}, None),
        (30_000, {"model_ema_warmup": False}, None),
        (90, {"model_ema_warmup": False, "model_ema_decay": 0.9}, None),
    ],
)
def test_an_average_longer_than_the_run_is_noted_with_a_decay_that_fits(updates, settings, share):
    run = RunSection.model_validate({"model_ema": True} | settings)
    notes = ema_note(run, updates)
    assert [f", {share} of" in note.replace(": ", ", ") for note in notes] == [True] * (share is not None)
    if notes:
        decay = float(notes[0].rpartition("=")[2])
        assert ema_note(run.model_copy(update={"model_ema_decay": decay}), updates) == []


@pytest.mark.parametrize(
    ("batch_size", "world", "steps", "size"),
    [(64, 1, 1, None), (65, 1, 1, 16), (32, 4, 1, 4), (32, 1, 4, 4), (500, 4, 16, 1)],
)
def test_an_update_of_more_images_than_there_are_is_noted_with_a_size_that_fits(batch_size, world, steps, size):
    recipe = make_recipe(Path("run")).replace(run={"gradient_accumulation_steps": steps})
    notes = small_data_note(recipe, GlobalBatches(ClassPairSampler(np.arange(64) % 2), batch_size, world))
    assert [note.rpartition(" ")[2] for note in notes] == ([] if size is None else [f"data.batch_size={size}"])


@pytest.mark.parametrize(
    ("images", "batch_size", "world", "drop_last", "left"),
    [
        (1730, 64, 1, False, 2),
        (1730, 64, 1, True, None),
        (1728, 64, 1, False, None),
        (1736, 64, 1, False, None),
        (1735, 64, 1, False, 7),
        (1742, 32, 2, False, 7),
        (50, 8, 1, False, None),
        (49, 8, 1, False, 1),
    ],
)
def test_a_last_batch_too_small_for_batch_norm_is_noted(images, batch_size, world, drop_last, left):
    batches = GlobalBatches(ClassPairSampler(np.arange(images) % 2), batch_size, world, drop_last=drop_last)
    recipe = make_recipe(Path("run")).replace(data={"batch_size": batch_size})
    notes = last_batch_note(recipe, batches, torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    expected = [] if left is None else [f"data.drop_last: an epoch's last batch leaves {left} of {batch_size} samples"]
    assert [note.partition(" to a process")[0] for note in notes] == expected
    assert last_batch_note(recipe, batches, torch.nn.Linear(3, 3)) == []
    assert last_batch_note(recipe, batches, torch.nn.BatchNorm2d(3).requires_grad_(False)) == []  # running statistics
