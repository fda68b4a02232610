"""The README's section "In your own loop": its text, run on one process and on two, compared with a plain loop."""

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
    names_of,
)
from torch import Tensor

from cskd_hf.data.pairing import ClassPairSampler, Draw

Ran = list[dict[str, Any]]  # a framework's forwards, losses and weights on each process


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = torchrun(drop_in_blocks.__file__, folder)
    assert done.status == 0, done.stderr
    return folder


@pytest.fixture(params=[(framework, processes) for framework in FRAMEWORKS for processes in (1, 2)], ids=str)
def run(request, folder) -> tuple[str, Ran]:
    framework, processes = request.param
    if framework == "timm.task" and not HAS_TIMM_TASK:
        pytest.skip("this timm has no timm.task")
    return framework, [torch.load(folder / f"{processes}-{index}.pt")[framework] for index in range(processes)]


def test_a_block_is_found_for_each_framework():
    assert list(blocks()) == ["", *FRAMEWORKS]


def keys_of(epoch: int) -> dict[int, Draw]:
    """By anchor: the sampler's keys of an epoch."""
    sampler = ClassPairSampler(LABELS, seed=0)
    sampler.set_epoch(epoch)
    return {draw.indices[0]: draw for draw in sampler}


def steps_of(ran: Ran) -> list[list[list[list[tuple[int, int]]]]]:
    """[epoch][step][process]: the pairs of rows, anchor first, that were forwarded."""
    by_process = []
    for process in ran:
        forwards = [rows for _, _, rows in process["forwards"]]
        by_process.append([list(zip(*pair, strict=True)) for pair in zip(forwards[0::2], forwards[1::2], strict=True)])
    steps = [list(step) for step in zip(*by_process, strict=True)]
    size = math.ceil(len(LABELS) / (BATCH_SIZE * len(ran)))
    assert len(steps) == size * NUM_EPOCHS
    return [steps[epoch * size : (epoch + 1) * size] for epoch in range(NUM_EPOCHS)]


def test_both_forwards_of_a_step_are_in_train_mode_and_only_the_first_has_a_gradient(run):
    _, ran = run
    for process in ran:
        modes = [forward[:2] for forward in process["forwards"]]
        assert modes == [(True, True), (False, True)] * (len(modes) // 2)


def test_every_pair_that_is_forwarded_is_one_of_the_samplers_and_so_of_one_class(run):
    _, ran = run
    for epoch, steps in enumerate(steps_of(ran)):
        keys = keys_of(epoch)
        for pair in (pair for step in steps for process in step for pair in process):
            assert pair == keys[pair[0]].indices
            assert LABELS[pair[0]] == LABELS[pair[1]]


def test_every_image_is_anchor_once_an_epoch_but_for_what_evens_the_processes_out(run):
    framework, ran = run
    for steps in steps_of(ran):
        anchors = Counter(anchor for step in steps for process in step for anchor, _ in process)
        assert set(anchors) == set(range(len(LABELS)))
        pads = len(ran) == 2 and framework in ("Accelerate", "transformers.Trainer")
        assert anchors.total() == len(LABELS) + 2 * pads


def test_the_second_epoch_has_another_order_and_other_partners(run):
    _, ran = run
    first, second = ([process for step in steps for process in step] for steps in steps_of(ran))
    assert first != second
    assert {pair for pairs in first for pair in pairs} != {pair for pairs in second for pair in pairs}


def load(row: int, seed: int) -> Tensor:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return Rows()[row][0]


def plain_loop(ran: Ran, momentum: float) -> tuple[list[list[float]], list[dict[str, Tensor]]]:
    """CS-KD on one process, of the pairs that were forwarded: the losses [step][process], each process's last state.

    Gradients are averaged over the processes; each takes its step from the first one's running statistics.
    """
    model = Net().train()
    velocity = [torch.zeros_like(weight) for weight in model.parameters()]
    losses: list[list[float]] = []
    statistics = [{name: buffer.clone() for name, buffer in model.named_buffers()}]
    for epoch, steps in enumerate(steps_of(ran)):
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


def test_losses_weights_and_running_statistics_are_those_of_a_plain_loop_of_two_forwards(run):
    framework, ran = run
    losses, states = plain_loop(ran, MOMENTUM[framework])
    for index, process in enumerate(ran):
        assert process["losses"] == pytest.approx([step[index] for step in losses], rel=1e-4)
        torch.testing.assert_close(process["weights"], states[index], rtol=1e-4, atol=1e-6)
    for name, weight in Net().named_parameters():
        assert torch.equal(ran[0]["weights"][name], ran[-1]["weights"][name])
        assert (ran[0]["weights"][name] - weight).abs().max() > 1e-3


@pytest.mark.skipif(not HAS_TIMM_TASK, reason="this timm has no timm.task")
def test_the_timm_task_evaluates_averages_and_saves_the_model_itself(tmp_path):
    code, names = blocks(), names_of("timm.task", 1, 0, tmp_path)
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
