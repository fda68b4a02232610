"""The code of cskd_hf/data/DROP_IN.md, run on one process and on two and compared with a plain loop."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import drop_in_blocks
import numpy as np
import pytest
import torch
from command_runs import torchrun
from drop_in_blocks import (
    BATCH_SIZE,
    FRAMEWORKS,
    HAS_TIMM_TASK,
    LABELS,
    LR,
    MOMENTUM,
    NUM_EPOCHS,
    Net,
    Rows,
    blocks,
    variables_for,
)
from torch import Tensor

from cskd_hf import ClassPairSampler, Draw

Ranks = list[dict[str, Any]]  # a framework's forwards, losses and weights on each rank


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = torchrun(drop_in_blocks.__file__, folder)
    assert done.status == 0, done.stderr
    return folder


@pytest.fixture(params=[(framework, processes) for framework in FRAMEWORKS for processes in (1, 2)], ids=str)
def run(request, folder) -> tuple[str, Ranks]:
    framework, processes = request.param
    if framework == "timm.task" and not HAS_TIMM_TASK:
        pytest.skip("this timm has no timm.task")
    return framework, [torch.load(folder / f"{processes}-{index}.pt")[framework] for index in range(processes)]


def test_the_page_has_a_block_for_each_framework():
    assert list(blocks()) == ["", *FRAMEWORKS]


def keys_of(epoch: int) -> dict[int, Draw]:
    """Anchor → the sampler's key in an epoch."""
    sampler = ClassPairSampler(LABELS, seed=0)
    sampler.set_epoch(epoch)
    return {draw.indices[0]: draw for draw in sampler}


def steps_of(ranks: Ranks) -> list[list[list[list[tuple[int, int]]]]]:
    """[epoch][step][rank]: the pairs of rows, anchor first, that were forwarded."""
    by_rank = []
    for rank in ranks:
        forwards = [rows for _, _, rows in rank["forwards"]]
        by_rank.append([list(zip(*pair, strict=True)) for pair in zip(forwards[0::2], forwards[1::2], strict=True)])
    steps = [list(step) for step in zip(*by_rank, strict=True)]
    size = math.ceil(len(LABELS) / (BATCH_SIZE * len(ranks)))
    assert len(steps) == size * NUM_EPOCHS
    return [steps[epoch * size : (epoch + 1) * size] for epoch in range(NUM_EPOCHS)]


def test_both_forwards_of_a_step_are_in_train_mode_and_only_the_first_has_a_gradient(run):
    _, ranks = run
    for rank in ranks:
        modes = [forward[:2] for forward in rank["forwards"]]
        assert modes == [(True, True), (False, True)] * (len(modes) // 2)


def test_every_forwarded_pair_is_a_key_of_the_sampler(run):
    _, ranks = run
    for epoch, steps in enumerate(steps_of(ranks)):
        keys = keys_of(epoch)
        for pair in (pair for step in steps for rank in step for pair in rank):
            assert pair == keys[pair[0]].indices
            assert LABELS[pair[0]] == LABELS[pair[1]]


def test_every_image_is_an_anchor_once_per_epoch_apart_from_padding(run):
    framework, ranks = run
    for steps in steps_of(ranks):
        anchors = Counter(anchor for step in steps for rank in step for anchor, _ in rank)
        assert set(anchors) == set(range(len(LABELS)))
        pads = len(ranks) == 2 and framework in ("Accelerate", "transformers.Trainer")
        assert anchors.total() == len(LABELS) + 2 * pads


def test_epochs_differ_in_order_and_partners(run):
    _, ranks = run
    first, second = ([rank for step in steps for rank in step] for steps in steps_of(ranks))
    assert first != second
    assert {pair for pairs in first for pair in pairs} != {pair for pairs in second for pair in pairs}


def load(row: int, seed: int) -> Tensor:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return Rows()[row][0]


def plain_loop(ranks: Ranks, momentum: float) -> tuple[list[list[float]], list[dict[str, Tensor]]]:
    """CS-KD in one process on the pairs that were forwarded: losses [step][rank] and each rank's final state.

    Gradients are averaged over the ranks; every step starts from rank 0's running statistics.
    """
    model = Net().train()
    velocity = [torch.zeros_like(weight) for weight in model.parameters()]
    losses: list[list[float]] = []
    statistics = [{name: buffer.clone() for name, buffer in model.named_buffers()}]
    for epoch, steps in enumerate(steps_of(ranks)):
        keys = keys_of(epoch)
        for step in steps:
            before = statistics[0]
            statistics = []
            gradient = [torch.zeros_like(weight) for weight in model.parameters()]
            losses.append([])
            for pairs in step:
                model.load_state_dict(before, strict=False)
                x = torch.stack([load(anchor, keys[anchor].seed) for anchor, _ in pairs])
                partner = torch.stack([load(other, keys[anchor].seed + 1) for anchor, other in pairs])
                target = torch.tensor([LABELS[anchor] for anchor, _ in pairs])
                output = model(x)
                with torch.no_grad():
                    q = (model(partner) / 4).softmax(1)
                log_p = output - output.logsumexp(1, keepdim=True)
                log_p_soft = output / 4 - (output / 4).logsumexp(1, keepdim=True)
                cross_entropy = -log_p[torch.arange(len(pairs)), target].mean()
                loss = cross_entropy + 16 * (q * (q.log() - log_p_soft)).sum(1).mean()
                losses[-1].append(loss.item())
                statistics.append({name: buffer.clone() for name, buffer in model.named_buffers()})
                for total, part in zip(gradient, torch.autograd.grad(loss, tuple(model.parameters())), strict=True):
                    total += part / len(step)
            with torch.no_grad():
                for weight, speed, slope in zip(model.parameters(), velocity, gradient, strict=True):
                    speed.mul_(momentum).add_(slope)
                    weight -= LR * speed
    return losses, [{**model.state_dict(), **own} for own in statistics]


def test_losses_weights_and_running_statistics_equal_those_of_a_plain_loop(run):
    framework, ranks = run
    losses, states = plain_loop(ranks, MOMENTUM[framework])
    for index, rank in enumerate(ranks):
        assert rank["losses"] == pytest.approx([step[index] for step in losses], rel=1e-4)
        torch.testing.assert_close(rank["weights"], states[index], rtol=1e-4, atol=1e-6)
    for name, weight in Net().named_parameters():
        assert torch.equal(ranks[0]["weights"][name], ranks[-1]["weights"][name])
        assert (ranks[0]["weights"][name] - weight).abs().max() > 1e-3


@pytest.mark.skipif(not HAS_TIMM_TASK, reason="this timm has no timm.task")
def test_the_timm_task_evaluates_averages_and_saves_the_plain_model(tmp_path):
    code, names = blocks(), variables_for("timm.task", 1, 0, tmp_path)
    exec(code[""] + code["timm.task"], names)
    task, model = names["task"], names["model"]
    task.setup_ema(decay=0.5)
    with torch.no_grad():
        model.head.bias += 1
    task.update_ema()
    average = task.get_eval_model(ema=True)
    assert task.get_eval_model() is model
    torch.testing.assert_close(average.head.bias, model.head.bias - 0.5)
    checkpoint = task.get_checkpoint_state() | task.get_checkpoint_state(ema=True)
    assert set(checkpoint["state_dict"]) == set(checkpoint["state_dict_ema"]) == set(Net().state_dict())
