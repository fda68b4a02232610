"""The schedule in words: epochs count from 1, and a drop that never comes is noted."""

from __future__ import annotations

import pytest
from recipe_files import SHIPPED

from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.sections import SchedulerSection, TransformSection
from cskd_hf.report.schedule import describe_schedule, milestone_note, rate_notes, rates_by_epoch, size_note


def schedule(**settings: object) -> SchedulerSection:
    return SchedulerSection.model_validate({"num_epochs": 30} | settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sched": "multistep", "decay_milestones": (16, 24)}, "0.01 from epoch 16, 0.001 from epoch 24"),
        ({"sched": "multistep", "decay_milestones": (16,), "step_on_epochs": False}, "0.01 from epoch 17"),
        (
            {"sched": "multistep", "decay_milestones": (16,), "warmup_epochs": 2, "warmup_lr": 0.001},
            "2 warm-up epochs from 0.001, 0.01 from epoch 16",
        ),
        (
            {"sched": "step", "decay_epochs": 5.0, "decay_rate": 0.5},
            "0.05 from epoch 6, 0.025 from epoch 11, 0.0125 from epoch 16, …, 0.00313 from epoch 26",
        ),
        ({"sched": "multistep", "decay_milestones": (31,)}, "no drop"),
        ({"sched": "multistep", "decay_milestones": (24, 16)}, "0.01 from epoch 16, 0.001 from epoch 24"),
        ({"sched": "none"}, "constant"),
        ({"sched": "none", "warmup_epochs": 2, "warmup_lr": 0.001}, "2 warm-up epochs from 0.001"),
        ({"sched": "cosine", "cooldown_epochs": 2, "min_lr": 1e-5}, "cosine to 1e-05 in epoch 32"),
    ],
)
def test_the_schedule_is_described_as_timm_runs_it(settings, words):
    section = schedule(**settings)
    rates = rates_by_epoch(section, 0.1, updates_per_epoch=7)
    assert len(rates) == section.total_epochs
    assert describe_schedule(section, rates) == words


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"warmup_epochs": 30}, "warmup_epochs"),
        ({"warmup_epochs": 30, "warmup_prefix": True}, None),
        ({"warmup_epochs": 1, "warmup_lr": 0.2}, "warmup_lr"),
        ({"min_lr": 0.2}, "min_lr"),
        ({"warmup_epochs": 1, "min_lr": 0.1}, None),
        ({"cooldown_epochs": 2}, "cooldown_epochs"),
        ({"cooldown_epochs": 2, "min_lr": 1e-5}, None),
        ({"cooldown_epochs": 2, "sched": "step"}, None),
        ({"num_epochs": 1, "warmup_epochs": 1, "warmup_lr": 0.0}, "warmup_epochs"),
    ],
)
def test_a_rate_that_never_reaches_or_exceeds_the_learning_rate_or_is_zero_is_noted(settings, key):
    section = schedule(**settings)
    notes = rate_notes(section, 0.1, rates_by_epoch(section, 0.1, updates_per_epoch=7))
    assert [note.partition(":")[0] for note in notes] == [f"scheduler.{key}"] * (key is not None)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"sched": "multistep", "decay_milestones": (16, 30)}, None),
        ({"sched": "multistep", "decay_milestones": (16, 31, 40)}, "scheduler.decay_milestones: no drop at 31, 40: "),
        ({"sched": "step", "decay_epochs": 30.0}, "scheduler.decay_epochs: no drop at 30: training ends with epoch 30"),
        ({"sched": "step", "decay_epochs": 29.0}, None),
        ({"sched": "cosine"}, None),
    ],
)
def test_a_drop_after_the_last_epoch_is_noted_with_milestones_that_fit(settings, start):
    section = schedule(**settings)
    notes = milestone_note(section)
    assert [note.startswith(str(start)) for note in notes] == [True] * (start is not None)
    if notes:
        key, _, value = notes[0].rpartition("'scheduler.")[2].rstrip("'").partition("=")
        fitting = tuple(map(int, value.strip("[]").split(",")))
        assert milestone_note(schedule(**settings | {key: fitting if "[" in value else float(value)})) == []


@pytest.mark.parametrize(("steps", "noted"), [((), False), (((10, 8), (29, 16)), False), (((10, 8), (30, 16)), True)])
def test_a_size_schedule_as_long_as_the_training_is_noted(steps, noted):
    assert len(size_note(TransformSection(size_schedule=steps), schedule())) == noted


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_recipe_has_a_drop_that_never_comes(path):
    assert milestone_note(load_recipe(path).scheduler) == []
