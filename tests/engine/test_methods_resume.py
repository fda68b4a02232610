"""Every method, stopped within an epoch, resumes bit-equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_cases import method_of, small_network
from torch import nn

from cskd_hf.methods import METHODS
from cskd_hf.runs.checkpoint_folders import list_checkpoints

CLASSES = ("a", "b", "c")  # of tiny_runs.draw_split


def network() -> nn.Module:
    return small_network(len(CLASSES))


def settings_of(name: str, **settings: Any) -> dict[str, Any]:
    return {"method": method_of(name, CLASSES, **settings), "network": network}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_bit_equal(tmp_path, make_run, same_tensors, name):
    """22 images in batches of 4: six updates per epoch, the last with two images."""
    whole = make_run(**settings_of(name))
    whole.train(11)
    first = make_run(**settings_of(name))
    for stop, position in ((6, 0), (8, 8)):  # at the end of an epoch, within the second epoch
        first.train(stop - first.progress.step)
        first.save(tmp_path)
        (checkpoint,) = list_checkpoints(tmp_path)
        assert (checkpoint / "memories.safetensors").is_file() == (name in ("pskd", "dlb"))

        second = make_run(**settings_of(name), weights=1)  # loading must replace all of them
        second.load(checkpoint)
        same_tensors(second.state(), first.state())
        assert second.progress.position == position
        second.train(11 - stop)
        same_tensors(second.state(), whole.state())


def test_the_compared_state_includes_scale_memory_branches_and_teacher(make_run):
    keys = {name: set(make_run(**settings_of(name)).state()) for name in ("adacos", "pskd", "byot", "distillation")}
    assert "fc.scale" in keys["adacos"]
    assert {"memory.predictions", "memory.visits"} <= keys["pskd"]
    assert any(key.startswith("branches.") for key in keys["byot"])
    assert any(key.startswith("teacher.") for key in keys["distillation"])


def test_the_memory_stores_each_image_once_per_epoch_with_its_own_prediction(make_run):
    run = make_run(**settings_of("pskd"), dropout=0.0, lr=0.0, momentum=0.0)
    run.train(6)
    memory = run.module.memory
    predictions, visits = memory.recall(torch.arange(22))
    assert visits.tolist() == [1] * 22
    torch.testing.assert_close(predictions.sum(dim=1), torch.ones(22), rtol=0, atol=2e-3)
    # Recompute the second batch: at lr 0 its outputs depend on the batch alone.
    run.batches.start_epoch(0, 4)
    batch = next(iter(run.loader))
    mean, std = run.objective.mean, run.objective.std
    with torch.no_grad():
        output = run.module.train()((batch.images / 255 - mean) / std)
    torch.testing.assert_close(predictions[batch.index], output.softmax(dim=-1), rtol=0, atol=1e-3)
    run.train(12)
    assert memory.recall(torch.arange(22))[1].tolist() == [3] * 22


@pytest.mark.parametrize("name", METHODS)
def test_two_accumulated_batches_equal_one_of_twice_the_size(make_run, name):
    """Not if the loss depends on batch statistics or on random numbers drawn per batch."""
    batch_dependent = {"adacos", "byot", "ddgsd", "ips", "mixup", "mixup_cskd"}

    def plain() -> nn.Module:
        return small_network(len(CLASSES), norm=lambda channels: nn.GroupNorm(1, channels))

    settings = {**settings_of(name), "network": plain, "num_images": 24, "dropout": 0.0}
    once, twice = make_run(batch_size=4, **settings), make_run(batch_size=2, accumulation=2, **settings)
    once.train(6)
    twice.train(6)
    differ = [
        key
        for key, value in once.state().items()
        if not torch.allclose(
            twice.state()[key].double(), value.double(), rtol=0, atol=2e-5 if "memory" not in key else 1e-3
        )
    ]
    assert bool(differ) == (name in batch_dependent), differ
