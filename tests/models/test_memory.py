"""The memory of predictions in one process; on two ranks in tests/methods/test_methods_distributed.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from method_cases import small_network
from torch import nn

from cskd_hf.engine.objective import Objective
from cskd_hf.methods import PSKD
from cskd_hf.models.memory import ModelWithMemory, PredictionMemory, gather_memories, memories, scatter_memories


def probabilities(num: int, num_classes: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, num_classes, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def test_an_empty_memory_returns_zeros():
    predictions, visits = PredictionMemory(7, 5).recall(torch.tensor([0, 6, 3]))
    assert predictions.shape == (3, 5)
    assert predictions.dtype == torch.float32
    assert not predictions.any()
    assert visits.tolist() == [0, 0, 0]


def test_predictions_come_back_for_their_image_in_half_precision():
    memory, stored = PredictionMemory(7, 5), probabilities(3)
    memory.remember(torch.tensor([6, 0, 3]), stored)
    predictions, visits = memory.recall(torch.tensor([0, 1, 3, 6, 5]))
    half = stored.half().float()
    assert torch.equal(predictions[[0, 2, 3]], half[[1, 2, 0]])
    assert not predictions[[1, 4]].any()
    assert visits.tolist() == [1, 0, 1, 1, 0]


def test_the_last_prediction_replaces_earlier_ones_and_visits_are_counted():
    memory = PredictionMemory(4, 5)
    for seed in range(3):
        memory.remember(torch.tensor([2, 1]), probabilities(2, seed=seed))
    memory.remember(torch.tensor([1]), probabilities(1, seed=9))
    predictions, visits = memory.recall(torch.arange(4))
    assert visits.tolist() == [0, 4, 3, 0]
    assert torch.equal(predictions[1], probabilities(1, seed=9)[0].half().float())
    assert torch.equal(predictions[2], probabilities(2, seed=2)[0].half().float())


def test_an_image_twice_in_a_batch_counts_as_one_visit():
    memory = PredictionMemory(4, 5)
    memory.remember(torch.tensor([2, 2, 1]), probabilities(3))
    assert memory.recall(torch.tensor([1, 2]))[1].tolist() == [1, 1]


def test_padding_is_neither_stored_nor_returned():
    memory = PredictionMemory(4, 5)
    memory.remember(torch.tensor([-1, 3]), probabilities(2))
    predictions, visits = memory.recall(torch.tensor([-1, 3]))
    assert visits.tolist() == [0, 1]
    assert not predictions[0].any()
    assert memory.recall(torch.arange(4))[1].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("num", [1, 2, 7])
def test_scatter_restores_what_gather_returned(num):
    memory, other = PredictionMemory(num, 5), PredictionMemory(num, 5)
    memory.remember(torch.arange(num), probabilities(num))
    memory.remember(torch.tensor([num - 1]), probabilities(1, seed=4))
    gathered = memory.gather()
    assert (gathered["predictions"].shape, gathered["predictions"].dtype) == ((num, 5), torch.float16)
    assert (gathered["visits"].shape, gathered["visits"].dtype) == ((num,), torch.int32)
    other.remember(torch.arange(num), probabilities(num, seed=8))
    other.scatter(gathered)
    for first, second in zip(memory.recall(torch.arange(num)), other.recall(torch.arange(num)), strict=True):
        assert torch.equal(first, second)


def test_gather_returns_a_copy():
    memory = PredictionMemory(2, 5)
    gathered = memory.gather()
    memory.remember(torch.arange(2), probabilities(2))
    assert not gathered["visits"].any()


def test_memories_are_gathered_and_scattered_by_name():
    module = nn.ModuleDict({"one": PredictionMemory(3, 2), "two": ModelWithMemory(nn.Linear(1, 1), 4, 2, 5)})
    assert memories(module).keys() == {"one", "two.memory"}
    module["two"].memory.remember(torch.tensor([3]), probabilities(1, 2))
    gathered = gather_memories(module)
    assert gathered.keys() == {f"{name}.{key}" for name in ("one", "two.memory") for key in ("predictions", "visits")}
    fresh: Any = nn.ModuleDict({"one": PredictionMemory(3, 2), "two": ModelWithMemory(nn.Linear(1, 1), 4, 2, 5)})
    scatter_memories(fresh, gathered)
    assert fresh["two"].memory.recall(torch.arange(4))[1].tolist() == [0, 0, 0, 1]
    assert fresh["one"].recall(torch.arange(3))[1].tolist() == [0, 0, 0]


def test_a_module_without_a_memory_gathers_nothing():
    assert gather_memories(small_network()) == {}


def test_state_dict_ddp_and_optimizer_ignore_the_memory():
    module = ModelWithMemory(small_network(), 9, 4, 5)
    assert module.state_dict().keys() == {f"model.{key}" for key in small_network().state_dict()}
    assert len(list(module.parameters())) == len(list(small_network().parameters()))
    objective = Objective(PSKD(), module)
    buffers = {name for name, _ in objective.named_buffers()}
    ignored = set(objective._ddp_params_and_buffers_to_ignore)
    assert ignored == {name for name in buffers if "memory" in name}
    assert len(ignored) == 2


def test_a_deep_copy_has_its_own_memory():
    module = ModelWithMemory(small_network(), 3, 5, 5)
    copied = copy.deepcopy(module)
    copied.memory.remember(torch.arange(3), probabilities(3))
    assert not module.memory.visits.any()
