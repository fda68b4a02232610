from __future__ import annotations

import math
import random
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import ClassPairSampler, PairingCollator
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.checkpoint import load_checkpoint, save_checkpoint
from cskd_hf.engine.loop import NonFiniteLossError
from cskd_hf.engine.predict import predict_split
from cskd_hf.methods import CSKD, Batch, CrossEntropy, Method
from cskd_hf.methods.base import Views


def cosine(optimizer: Any) -> Any:
    return create_scheduler_v2(optimizer, sched="cosine", num_epochs=3)[0]


# Resuming: 5 batches an epoch end one at the fifth update, 6 do not; twice as many where two make an update.
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("where", "batches"), [("at an epoch's end", 5), ("within an epoch", 6)])
def test_ten_updates_equal_five_and_a_restart_and_five_more(
    tmp_path, make_run, same_tensors, where, batches, accumulation, workers
):
    # The last batch is short, and so is the last group.
    settings: dict[str, Any] = {"num_images": (batches * accumulation - (accumulation == 2)) * 4 - 2}
    settings |= {"accumulation": accumulation, "workers": workers, "scheduler": cosine}
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


def test_an_epoch_cut_by_a_restart_has_the_mean_loss_of_a_whole_one(tmp_path, make_run):
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


@pytest.mark.parametrize("method", [CrossEntropy(), CSKD()], ids=lambda method: method.name)
@pytest.mark.parametrize("num_images", [24, 23, 22, 21])  # the last group holds 2 + 2, 2 + 1, 2 and 1 samples
def test_two_accumulated_batches_equal_one_of_twice_the_size(make_run, num_images, method):
    settings = {"num_images": num_images, "norm": False, "dropout": 0.0, "method": method, "double": True}
    once, twice = make_run(batch_size=4, **settings), make_run(batch_size=2, accumulation=2, **settings)
    assert len(once.train(12)) == len(twice.train(12)) == 12
    assert once.progress.samples == twice.progress.samples
    for name, value in once.state().items():
        torch.testing.assert_close(twice.state()[name], value, rtol=0, atol=1e-6, msg=name)

    def epoch(run: Any) -> dict[str, float]:
        totals = run.train(6)[-1].totals.read(run.accelerator)
        return {name: value / totals["samples"] for name, value in totals.items()}

    assert epoch(twice) == pytest.approx(epoch(once), abs=1e-6)


def test_an_epoch_of_updates_is_plain_sgd_and_its_mean_loss_is_the_mean_over_samples(make_run):
    run = make_run(norm=False, dropout=0.0, method=CrossEntropy(), momentum=0.0)
    plain = make_run(norm=False, dropout=0.0).module
    losses, wrong = [], []
    run.batches.start_epoch(0)
    for draws in run.batches:
        samples = [run.loader.dataset[draw] for draw in draws]
        images = torch.stack([sample.views[0] for sample in samples]).float() / 255
        images = (images - run.objective.mean) / run.objective.std
        target = torch.tensor([sample.target for sample in samples])
        output = plain(images)
        each = F.cross_entropy(output, target, reduction="none")
        losses += each.tolist()
        wrong += (output.argmax(dim=1) != target).tolist()
        plain.zero_grad()
        each.mean().backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= run.lr * parameter.grad

    *_, last = run.train(6)
    assert last.ends_epoch
    totals = last.totals.read(run.accelerator)
    assert totals["samples"] == len(losses) == 22
    assert totals["loss"] / 22 == pytest.approx(np.mean(losses), abs=1e-6)
    assert totals["top1_error"] / 22 == pytest.approx(100 * np.mean(wrong), abs=1e-4)
    for parameter, expected in zip(run.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


class Poisoned:
    """Normalises as the objective would, and gives one image of the set a NaN pixel."""

    def __init__(self, row: int) -> None:
        self.row, self.collate = row, PairingCollator()

    def __call__(self, samples: Any) -> Batch:
        batch = self.collate(samples)
        images = batch.images.float() / 255
        images[batch.index == self.row, 0, 0, 0] = torch.nan
        return batch._replace(images=images)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("place", [9, 14])  # in the third and the fourth batch: the first and second of their group
def test_a_nan_pixel_stops_the_run_before_the_optimizer_steps(make_run, same_tensors, place, accumulation):
    settings: dict[str, Any] = {"norm": False, "method": CrossEntropy(), "accumulation": accumulation}
    run = make_run(**settings)
    run.batches.start_epoch(0)
    row = run.batches.sampler.draws(place, place + 1)[0].indices[0]
    run = make_run(**settings, collate=Poisoned(row))
    done, before = 0, run.state()

    def train() -> None:
        nonlocal done, before
        for update in run.updates():
            done, before = update.step, run.state()

    with pytest.raises(NonFiniteLossError, match="loss = nan") as caught:
        train()
    assert done == place // 4 // accumulation
    assert caught.value.step == run.progress.step == done
    assert f"step {done}:" in str(caught.value)
    assert row in caught.value.batch.index.tolist()
    assert math.isnan(caught.value.terms["task_loss"])
    same_tensors(run.state(), before)
    assert run.progress.position == 4 * accumulation * done


def test_a_learning_rate_that_diverges_stops_the_run_with_the_last_weights_kept(make_run, same_tensors):
    run = make_run(norm=False, lr=1e25)
    before, steps = run.state(), 0

    def train() -> None:
        nonlocal before, steps
        for update in run.updates():
            before, steps = run.state(), update.step

    with pytest.raises(NonFiniteLossError) as caught:
        train()
    assert 1 <= steps < 5
    assert caught.value.step == steps
    same_tensors(run.state(), before)


class WithPenalty(Method):
    """A finite loss beside a term that is infinite from the third call on."""

    views: ClassVar[Views] = "single"
    name: Literal["penalty"] = "penalty"
    calls: ClassVar[list[int]] = []

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.calls.append(len(batch.target))
        output = module(batch.images)
        penalty = torch.tensor(math.inf if len(self.calls) > 2 else 0.0)
        return {
            "loss": F.cross_entropy(output, batch.target),
            "output": output,
            "target": batch.target,
            "penalty": penalty,
        }


def test_the_term_that_is_not_finite_is_the_one_named(make_run):
    WithPenalty.calls.clear()
    run = make_run(method=WithPenalty())
    with pytest.raises(NonFiniteLossError) as caught:
        run.train(6)
    assert str(caught.value) == "step 2: penalty = inf"
    assert math.isfinite(caught.value.terms["loss"])


def test_clip_grad_bounds_the_length_of_a_step(make_run):
    lengths = {}
    for clip in (None, 1e-3):
        run = make_run(momentum=0.0, lr=1.0, clip_grad=clip)
        before = torch.cat([parameter.detach().clone().flatten() for parameter in run.module.parameters()])
        run.train(1)
        after = torch.cat([parameter.detach().flatten() for parameter in run.module.parameters()])
        lengths[clip] = (after - before).norm().item()
    assert lengths[None] > 0.01
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_clip_grad_sees_the_gradient_of_the_whole_group(make_run):
    settings = {"norm": False, "dropout": 0.0, "momentum": 0.0, "lr": 1.0, "clip_grad": 1e-2, "num_images": 24}
    once, twice = make_run(batch_size=4, **settings), make_run(batch_size=2, accumulation=2, **settings)
    once.train(6)
    twice.train(6)
    for name, value in once.state().items():
        torch.testing.assert_close(twice.state()[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_schedule_by_epochs_moves_the_rate_at_each_epoch(make_run):
    run = make_run(scheduler=cosine)
    rates = [(update.epoch, update.lr) for update in run.updates()]
    assert len(rates) == 18
    assert [lr for _, lr in rates] == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 3)) for e, _ in rates])


def test_a_schedule_by_updates_moves_the_rate_at_each_update(make_run):
    def schedule(optimizer: Any) -> Any:
        return create_scheduler_v2(optimizer, sched="cosine", num_epochs=3, step_on_epochs=False, updates_per_epoch=3)[
            0
        ]

    run = make_run(scheduler=schedule, accumulation=2)
    rates = [update.lr for update in run.updates()]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 9)) for step in range(9)])


def test_a_milestone_lowers_the_rate_one_epoch_before_it(make_run):
    def schedule(optimizer: Any) -> Any:
        return create_scheduler_v2(optimizer, sched="multistep", num_epochs=3, decay_milestones=[2], decay_rate=0.1)[0]

    rates = {update.epoch: update.lr for update in make_run(scheduler=schedule).updates()}
    assert rates == pytest.approx({0: 0.1, 1: 0.01, 2: 0.01})


def test_without_a_schedule_the_rate_stays(make_run):
    assert {update.lr for update in make_run().updates()} == {0.1}


def test_evaluating_between_updates_changes_nothing(make_run, make_split, same_tensors, transform):
    quiet, watched = make_run(), make_run()
    quiet.train(8)
    held, seen = make_split(7, seed=1), []
    for update in watched.updates():
        predictions = predict_split(
            watched.module,
            held,
            Transform(transform, False),
            watched.accelerator,
            batch_size=3,
            workers=0,
            mean=transform.mean,
            std=transform.std,
            channels_last=False,
            skip_corrupt=False,
            autocast=True,
        )
        watched.module.eval()  # a caller may leave it like that
        seen.append(predictions.logits)
        if update.step == 8:
            break
    assert not torch.equal(seen[0], seen[-1])
    same_tensors(watched.state(), quiet.state())


def test_the_callers_own_random_streams_do_not_influence_a_run(make_run, same_tensors):
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


def test_another_seed_is_another_run(make_run):
    runs = [make_run(seed=seed) for seed in (5, 6)]
    for run in runs:
        run.train(2)
    assert not torch.equal(runs[0].module.fc.weight, runs[1].module.fc.weight)


def test_dropout_draws_anew_at_each_update(make_run):
    # The same pixels at a rate of zero: only dropout can tell the updates apart.
    images = torch.linspace(-2, 2, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8)
    fixed = Batch(images, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    losses = {}
    for dropout in (0.0, 0.5):
        settings: dict[str, Any] = {"num_images": 12, "lr": 0.0, "norm": False, "method": CrossEntropy()}
        run = make_run(**settings, dropout=dropout, collate=lambda _: fixed)
        losses[dropout] = {update.terms["loss"].item() for update in run.train(3)}  # one epoch
    assert len(losses[0.0]) == 1
    assert len(losses[0.5]) == 3


def test_drop_last_leaves_the_short_batch_out(make_run):
    run = make_run(drop_last=True, num_epochs=1)
    updates = list(run.updates())
    assert len(updates) == 5
    assert updates[-1].ends_epoch
    assert updates[-1].totals.read(run.accelerator)["samples"] == 20
    assert (run.progress.epoch, run.progress.position, run.progress.samples) == (1, 0, 20)


def test_without_drop_last_the_short_batch_is_an_update_of_its_own(make_run):
    run = make_run(num_epochs=1)
    updates = list(run.updates())
    assert [update.ends_epoch for update in updates] == [False] * 5 + [True]
    assert run.progress.samples == 22


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_restart_on_other_processes_covers_each_remaining_sample_once(before, after, drop_last):
    labels = np.arange(53) % 4

    def batches(num_processes: int, index: int) -> GlobalBatches:
        return GlobalBatches(ClassPairSampler(labels, 3), 3, num_processes, index, drop_last)

    one = batches(before, 0)
    one.start_epoch(2)
    position, seen = 0, []
    for _ in range(3):
        total, _ = one.counts(position)
        seen += one.sampler.draws(position, position + total)
        position += total
    for start in range(position, batches(after, 0).num_samples, 3 * after):
        for index in range(after):
            rank = batches(after, index)
            rank.start_epoch(2, position)
            own = list(rank)[(start - position) // (3 * after)]
            total, count = rank.counts(start)
            assert total == min(3 * after, rank.num_samples - start)
            seen += own[:count]
    whole = ClassPairSampler(labels, 3)
    whole.set_epoch(2)
    assert seen == list(whole)[: batches(after, 0).num_samples]


def test_a_restart_whose_larger_batches_leave_nothing_of_the_epoch_begins_the_next(tmp_path, make_run):
    # 14 images: 7 batches of 2, of which 6 are done; with drop_last, 4 a batch leave the last two out.
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


def test_a_finished_run_has_no_further_update(make_run):
    run = make_run(num_epochs=1)
    assert len(run.train(100)) == 6
    assert run.train(100) == []
