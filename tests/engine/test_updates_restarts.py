"""A run depends on recipe and seed alone, not on restarts, evaluation or the caller's random state."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.scheduler import create_scheduler_v2
from tiny_runs import cosine

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import ClassPairSampler
from cskd_hf.evaluation.predictions import predict_split
from cskd_hf.methods import Batch, CrossEntropy
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.checkpoint import load_checkpoint, save_checkpoint

# Restarts


# An epoch has `batches` updates: with 5 the restart is at the end of an epoch, with 6 within one.
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("where", "batches"), [("at an epoch's end", 5), ("within an epoch", 6)])
def test_ten_updates_equal_five_then_a_restart_then_five(
    tmp_path, make_run, same_tensors, where, batches, accumulation, workers
):
    # The last batch is short, and so is the last accumulation group. The second epoch has larger images.
    settings: dict[str, Any] = {"num_images": (batches * accumulation - (accumulation == 2)) * 4 - 2}
    settings |= {"accumulation": accumulation, "workers": workers, "scheduler": cosine, "size_schedule": ((1, 5),)}
    whole = make_run(**settings)
    whole.train(10)

    first = make_run(**settings)
    last = first.train(5)[-1]
    assert last.ends_epoch == (where == "at an epoch's end")
    first.progress.totals = {} if last.ends_epoch else last.totals.read(first.accelerator)
    path = save_checkpoint(tmp_path, first.module, first.optimizer, None, first.progress, "hash", keep=1)

    second = make_run(**settings, weights=1)
    second.progress = load_checkpoint(path, second.module, second.optimizer, None)
    assert second.progress == first.progress
    assert second.progress.position == (0 if last.ends_epoch else 20 * accumulation)
    same_tensors(second.state(), first.state())
    resumed = second.train(5)

    assert [update.step for update in resumed] == [6, 7, 8, 9, 10]
    same_tensors(second.state(), whole.state())
    assert (second.progress.step, second.progress.epoch) == (10, whole.progress.epoch)
    assert (second.progress.position, second.progress.samples) == (whole.progress.position, whole.progress.samples)


def test_an_epoch_interrupted_by_a_restart_has_the_mean_loss_of_a_whole_one(tmp_path, make_run):
    whole = make_run()
    means = whole.train(6)[-1].totals.read(whole.accelerator)

    first = make_run()
    first.progress.totals = first.train(2)[-1].totals.read(first.accelerator)
    path = save_checkpoint(tmp_path, first.module, first.optimizer, None, first.progress, "hash", keep=1)
    second = make_run()
    second.progress = load_checkpoint(path, second.module, second.optimizer, None)
    last = second.train(4)[-1]

    assert last.ends_epoch
    resumed = last.totals.read(second.accelerator)
    assert resumed["samples"] == 22
    assert resumed == pytest.approx(means, rel=1e-12)


def test_a_schedule_by_updates_resumes_at_the_position_in_the_images_with_other_batches(tmp_path, make_run):
    def by_updates(per_epoch: int) -> Any:
        def schedule(optimizer: Any) -> Any:
            settings = {"num_epochs": 3, "step_on_epochs": False, "updates_per_epoch": per_epoch}
            return create_scheduler_v2(optimizer, sched="cosine", **settings)[0]

        return schedule

    small = make_run(num_images=24, batch_size=4, scheduler=by_updates(6))
    rates = [update.lr for update in small.train(18)]
    first = make_run(num_images=24, batch_size=4, scheduler=by_updates(6))
    first.train(8)
    path = save_checkpoint(tmp_path, first.module, first.optimizer, None, first.progress, "hash", keep=1)
    large = make_run(num_images=24, batch_size=8, scheduler=by_updates(3))
    large.progress = load_checkpoint(path, large.module, large.optimizer, None)
    assert [update.lr for update in large.train(5)] == pytest.approx(rates[8::2], rel=1e-6)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_restart_with_another_world_size_covers_each_remaining_sample_once(before, after, drop_last):
    labels = np.arange(53) % 4

    def batches(num_processes: int, index: int) -> GlobalBatches:
        return GlobalBatches(ClassPairSampler(labels, 3), 3, num_processes, index, drop_last)

    one = batches(before, 0)
    one.start_epoch(2)
    position, draws = 0, []
    for _ in range(3):
        total, _ = one.counts(position)
        draws += one.sampler.draws(position, position + total)
        position += total
    for start in range(position, batches(after, 0).num_samples, 3 * after):
        for index in range(after):
            rank = batches(after, index)
            rank.start_epoch(2, position)
            own = list(rank)[(start - position) // (3 * after)]
            total, count = rank.counts(start)
            assert total == min(3 * after, rank.num_samples - start)
            draws += own[:count]
    whole = ClassPairSampler(labels, 3)
    whole.set_epoch(2)
    assert draws == list(whole)[: batches(after, 0).num_samples]


def test_a_restart_whose_larger_batches_do_not_fit_the_rest_of_the_epoch_begins_the_next(tmp_path, make_run):
    # 14 images, 6 of 7 batches of 2 done: with drop_last, the remaining two images do not fill a batch of 4.
    first = make_run(num_images=14, batch_size=2, drop_last=True, num_epochs=2)
    first.train(6)
    assert first.progress.position == 12
    path = save_checkpoint(tmp_path, first.module, first.optimizer, None, first.progress, "hash", keep=1)
    second = make_run(num_images=14, batch_size=4, drop_last=True, num_epochs=2)
    second.progress = load_checkpoint(path, second.module, second.optimizer, None)
    updates = list(second.updates())
    assert [update.epoch for update in updates] == [1, 1, 1]
    assert [update.ends_epoch for update in updates] == [False, False, True]
    assert updates[-1].totals.read(second.accelerator)["samples"] == 12


def test_a_finished_run_yields_no_update(make_run):
    run = make_run(num_epochs=1)
    assert len(run.train(100)) == 6
    assert run.train(100) == []


# Random numbers


def test_evaluating_between_updates_changes_nothing(make_run, make_split, same_tensors, transform):
    quiet, watched = make_run(), make_run()
    quiet.train(8)
    holdout, logits = make_split(7, seed=1), []
    for update in watched.updates():
        predictions = predict_split(
            watched.module,
            holdout,
            watched.accelerator,
            DataSection(dataset="unused", batch_size=3, workers=0),
            transform,
            autocast=True,
        )
        watched.module.eval()  # a caller may forget to restore train mode
        logits.append(predictions.logits)
        if update.step == 8:
            break
    assert not torch.equal(logits[0], logits[-1])
    same_tensors(watched.state(), quiet.state())


def test_the_callers_random_state_does_not_influence_a_run(make_run, same_tensors):
    states = []
    for seed in (1, 2):
        run = make_run()
        for update in run.updates():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            if update.step == 7:
                break
        states.append(run.state())
    same_tensors(*states)


def test_another_seed_gives_another_run(make_run):
    runs = [make_run(seed=seed) for seed in (5, 6)]
    for run in runs:
        run.train(2)
    assert not torch.equal(runs[0].module.fc.weight, runs[1].module.fc.weight)


def test_dropout_differs_between_updates(make_run):
    # Same pixels, learning rate 0: only dropout differs between updates.
    images = torch.linspace(-2, 2, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8)
    fixed = Batch(images, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    losses = {}
    for dropout in (0.0, 0.5):
        settings: dict[str, Any] = {"num_images": 12, "lr": 0.0, "norm": False, "method": CrossEntropy()}
        run = make_run(**settings, dropout=dropout, collate=lambda _: fixed)
        losses[dropout] = {update.terms["loss"].item() for update in run.train(3)}  # one epoch
    assert len(losses[0.0]) == 1
    assert len(losses[0.5]) == 3
