"""Compiled graphs keep static shapes; gradients outside CUDA graphs' memory are accumulated in place."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from method_cases import batch_for, method_of, objective_of

from cskd_hf.engine import learner as module
from cskd_hf.engine.learner import build_learner, compile_objective
from cskd_hf.recipe.recipe import Recipe, parse_recipe


@pytest.fixture(autouse=True)
def _reset_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def recipe_with(**run: object) -> Recipe:
    return parse_recipe(
        {
            "data": {"dataset": "digits"},
            "model": {"model_name": "test_resnet"},
            "method": {"name": "cskd"},
            "optimizer": {"lr": 0.1},
            "scheduler": {"num_epochs": 1},
            "run": run,
        }
    )


@pytest.mark.filterwarnings("ignore")
def test_a_short_last_batch_leaves_two_static_graphs_for_all_epochs(monkeypatch):
    """By default, torch compiles the second size as a dynamic graph and uses it for every later batch."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    method = method_of("cskd")
    objective = objective_of(method)
    original = objective.compile
    monkeypatch.setattr(objective, "compile", lambda mode, **settings: original(backend=backend, **settings))
    compile_objective(recipe_with(compile=True), objective)
    for epoch in range(2):
        for size in (8, 8, 5):
            batch = batch_for(method, seed=epoch)
            part = batch._replace(
                **{name: torch.cat([getattr(batch, name)] * 4)[: 2 * size] for name in batch._fields[:3]}
            )
            objective(part)["loss"].backward()
    assert len(graphs) == 2
    inputs = [node.meta["example_value"] for graph in graphs for node in graph.graph.nodes if node.op == "placeholder"]
    assert all(isinstance(value, torch.Tensor) for value in inputs)
    assert all(isinstance(size, int) for value in inputs for size in value.shape)


class Batches:
    """The part of `GlobalBatches` that the optimizer and schedule use."""

    global_batch_size = 4

    def __len__(self) -> int:
        return 6


@pytest.mark.parametrize(
    ("compile_mode", "accumulation", "expected"),
    [("reduce-overhead", 2, False), ("reduce-overhead", 1, True), ("default", 2, True)],
)
def test_gradients_stay_allocated_only_where_cuda_graphs_meet_accumulation(
    monkeypatch, compile_mode, accumulation, expected
):
    monkeypatch.setattr(module, "compile_objective", lambda recipe, objective: None)
    recipe = recipe_with(compile=compile_mode, gradient_accumulation_steps=accumulation)
    learner = build_learner(recipe, objective_of(method_of("cskd")), Batches(), Accelerator(cpu=True))
    assert learner.set_to_none is expected
    assert all((parameter.grad is None) is expected for parameter in learner.module.parameters())


def test_gradients_allocated_ahead_sum_to_the_same():
    method = method_of("cskd")
    objective = objective_of(method)
    ahead = copy.deepcopy(objective)
    for parameter in ahead.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for one in (objective, ahead):
        for seed in (0, 1):
            torch.manual_seed(seed)
            one(batch_for(method, seed=seed))["loss"].backward()
    for (name, first), second in zip(objective.named_parameters(), ahead.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), name
