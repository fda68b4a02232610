"""An update is plain SGD over all samples of an accumulation group, clipped, at the scheduled learning rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.scheduler import create_scheduler_v2
from tiny_runs import cosine

from cskd_hf.methods import CSKD, CrossEntropy


@pytest.mark.parametrize("method", [CrossEntropy(), CSKD()], ids=lambda method: method.name)
@pytest.mark.parametrize("num_images", [24, 23, 22, 21])  # the last group holds 2 + 2, 2 + 1, 2 and 1 samples
def test_two_accumulated_batches_equal_one_of_twice_the_size(make_run, num_images, method):
    """Also with clipping, which sees the gradient of the whole group."""
    settings = {"num_images": num_images, "norm": False, "dropout": 0.0, "method": method, "double": True}
    settings["clip_grad"] = 1e-2
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


def test_clip_grad_bounds_the_norm_of_a_step(make_run):
    lengths = {}
    for clip in (None, 1e-3):
        run = make_run(momentum=0.0, lr=1.0, clip_grad=clip)
        before = torch.cat([parameter.detach().clone().flatten() for parameter in run.module.parameters()])
        run.train(1)
        after = torch.cat([parameter.detach().flatten() for parameter in run.module.parameters()])
        lengths[clip] = (after - before).norm().item()
    assert lengths[None] > 0.01
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_drop_last_drops_the_short_batch(make_run):
    whole = make_run(num_epochs=1)
    assert [update.ends_epoch for update in whole.updates()] == [False] * 5 + [True]
    assert whole.progress.samples == 22
    run = make_run(drop_last=True, num_epochs=1)
    updates = list(run.updates())
    assert len(updates) == 5
    assert updates[-1].ends_epoch
    assert updates[-1].totals.read(run.accelerator)["samples"] == 20
    assert (run.progress.epoch, run.progress.position, run.progress.samples) == (1, 0, 20)


# Schedules


def test_an_epoch_schedule_changes_the_rate_every_epoch(make_run):
    run = make_run(scheduler=cosine)
    rates = [(update.epoch, update.lr) for update in run.updates()]
    assert len(rates) == 18
    assert [lr for _, lr in rates] == pytest.approx([0.05 * (1 + math.cos(math.pi * e / 3)) for e, _ in rates])


def test_an_update_schedule_changes_the_rate_every_update(make_run):
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


def test_without_a_schedule_the_rate_is_constant(make_run):
    assert {update.lr for update in make_run().updates()} == {0.1}
