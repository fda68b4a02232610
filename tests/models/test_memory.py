"""The memory of predictions on one process; on two, in test_methods_distributed.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from method_cases import small_network
from torch import nn

from cskd_hf.engine.objective import Objective
from cskd_hf.methods import PSKD
from cskd_hf.models.memory import PredictionMemory, Remembering, gather_memories, memories, scatter_memories


def probabilities(num: int, num_classes: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, num_classes, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def test_an_empty_memory_knows_nothing_and_has_seen_nobody():
    predictions, visits = PredictionMemory(7, 5).recall(torch.tensor([0, 6, 3]))
    assert predictions.shape == (3, 5)
    assert predictions.dtype == torch.float32
    assert not predictions.any()
    assert visits.tolist() == [0, 0, 0]


def test_what_is_told_of_an_image_comes_back_for_that_image_in_half_precision():
    memory, told = PredictionMemory(7, 5), probabilities(3)
    memory.remember(torch.tensor([6, 0, 3]), told)
    predictions, visits = memory.recall(torch.tensor([0, 1, 3, 6, 5]))
    half = told.half().float()
    assert torch.equal(predictions[[0, 2, 3]], half[[1, 2, 0]])
    assert not predictions[[1, 4]].any()
    assert visits.tolist() == [1, 0, 1, 1, 0]


def test_the_last_prediction_counts_and_visits_are_counted():
    memory = PredictionMemory(4, 5)
    for seed in range(3):
        memory.remember(torch.tensor([2, 1]), probabilities(2, seed=seed))
    memory.remember(torch.tensor([1]), probabilities(1, seed=9))
    predictions, visits = memory.recall(torch.arange(4))
    assert visits.tolist() == [0, 4, 3, 0]
    assert torch.equal(predictions[1], probabilities(1, seed=9)[0].half().float())
    assert torch.equal(predictions[2], probabilities(2, seed=2)[0].half().float())


def test_an_image_twice_in_a_batch_is_one_visit():
    memory = PredictionMemory(4, 5)
    memory.remember(torch.tensor([2, 2, 1]), probabilities(3))
    assert memory.recall(torch.tensor([1, 2]))[1].tolist() == [1, 1]


def test_every_image_has_a_row_of_its_own():
    memory, told = PredictionMemory(7, 5), probabilities(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    for start in (0, 3, 6):
        memory.remember(order[start : start + 3], told[order[start : start + 3]])
    assert torch.equal(memory.recall(torch.arange(7))[0], told.half().float())


def test_padding_is_nobodys_and_answers_nothing():
    memory = PredictionMemory(4, 5)
    memory.remember(torch.tensor([-1, 3]), probabilities(2))
    predictions, visits = memory.recall(torch.tensor([-1, 3]))
    assert visits.tolist() == [0, 1]
    assert not predictions[0].any()
    assert memory.recall(torch.arange(4))[1].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("num", [1, 2, 7])
def test_what_is_gathered_fills_another_memory(num):
    memory, other = PredictionMemory(num, 5), PredictionMemory(num, 5)
    memory.remember(torch.arange(num), probabilities(num))
    memory.remember(torch.tensor([num - 1]), probabilities(1, seed=4))
    whole = memory.gather()
    assert (whole["predictions"].shape, whole["predictions"].dtype) == ((num, 5), torch.float16)
    assert (whole["visits"].shape, whole["visits"].dtype) == ((num,), torch.int32)
    other.remember(torch.arange(num), probabilities(num, seed=8))
    other.scatter(whole)
    for mine, theirs in zip(memory.recall(torch.arange(num)), other.recall(torch.arange(num)), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_gathered_is_a_copy():
    memory = PredictionMemory(2, 5)
    whole = memory.gather()
    memory.remember(torch.arange(2), probabilities(2))
    assert not whole["visits"].any()


def test_the_memories_of_a_module_go_by_their_names():
    module = nn.ModuleDict({"one": PredictionMemory(3, 2), "two": Remembering(nn.Linear(1, 1), 4, 2, 5)})
    assert memories(module).keys() == {"one", "two.memory"}
    module["two"].memory.remember(torch.tensor([3]), probabilities(1, 2))
    whole = gather_memories(module)
    assert whole.keys() == {f"{name}.{key}" for name in ("one", "two.memory") for key in ("predictions", "visits")}
    fresh: Any = nn.ModuleDict({"one": PredictionMemory(3, 2), "two": Remembering(nn.Linear(1, 1), 4, 2, 5)})
    scatter_memories(fresh, whole)
    assert fresh["two"].memory.recall(torch.arange(4))[1].tolist() == [0, 0, 0, 1]
    assert fresh["one"].recall(torch.arange(3))[1].tolist() == [0, 0, 0]


def test_a_module_without_a_memory_has_none_to_gather():
    assert gather_memories(small_network()) == {}


def test_neither_the_weights_file_nor_ddp_nor_the_optimizer_sees_the_memory():
    remembering = Remembering(small_network(), 9, 4, 5)
    assert remembering.state_dict().keys() == {f"model.{key}" for key in small_network().state_dict()}
    assert len(list(remembering.parameters())) == len(list(small_network().parameters()))
    objective = Objective(PSKD(), remembering)
    buffers = {name for name, _ in objective.named_buffers()}
    ignored = set(objective._ddp_params_and_buffers_to_ignore)
    assert ignored == {name for name in buffers if "memory" in name}
    assert len(ignored) == 2


def test_a_copy_remembers_for_itself():
    remembering = Remembering(small_network(), 3, 5, 5)
    copied = copy.deepcopy(remembering)
    copied.memory.remember(torch.arange(3), probabilities(3))
    assert not remembering.memory.visits.any()
