"""Compiling the whole objective, as `run.compile` does, reproduces every method's eager step."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from method_cases import backbone, batch_for, method_of, objective_of

from cskd_hf.methods import METHODS


@pytest.fixture(autouse=True)
def _reset_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def graphs_of(objective: torch.nn.Module) -> list[torch.fx.GraphModule]:
    """Compile in place, as `run.compile` does; the list collects the graphs as they are traced. They run eagerly."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    objective.compile(backend=backend)
    return graphs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_name", "batch_norm"),
    [("resnet18", "separate"), ("resnet18", "joint"), ("resnet18", "anchors_only"), ("test_vit", "separate")],
)
def test_both_forwards_compile_to_one_graph_bit_equal_to_eager(model_name, batch_norm):
    method = method_of("cskd", batch_norm=batch_norm)
    network = backbone(model_name, **({"img_size": 32} if "vit" in model_name else {}))
    eager, compiled = objective_of(method, network), objective_of(method, copy.deepcopy(network))
    graphs = graphs_of(compiled)
    for seed in (0, 1):
        results = [objective(batch_for(method, size=32, seed=seed)) for objective in (eager, compiled)]
        for result in results:
            result["loss"].backward()
        assert all(torch.equal(results[1][key], value) for key, value in results[0].items())
    assert len(graphs) == 1
    for one, two in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
    for one, two in zip(eager.buffers(), compiled.buffers(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_adds_no_graph_break(precision):
    method = method_of("cskd")
    objective = objective_of(method)
    graphs = graphs_of(objective)
    AcceleratorState._reset_state()  # precision can be set only once per process
    try:
        prepared = Accelerator(cpu=True, mixed_precision=precision).prepare(objective)
        for seed in (0, 1):
            prepared(batch_for(method, seed=seed))["loss"].backward()
    finally:
        AcceleratorState._reset_state()
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {"cutmix_alpha": 1.0} if "cutmix_alpha" in method.model_fields else {}) for name, method in METHODS.items()]
    + [("cskd", {"batch_norm": batch_norm}) for batch_norm in ("joint", "anchors_only")],
)
def test_a_compiled_step_equals_the_eager_one(name, settings):
    """Traced by torch, with its graph breaks, but without inductor's code generation."""
    method = method_of(name, **settings)
    eager = objective_of(method)
    compiled = copy.deepcopy(eager)
    names = set(compiled.state_dict())
    graphs = graphs_of(compiled)
    for seed in (0, 1):  # the second step reads state that the first updated: scale, memory
        batch = batch_for(method, seed=seed)
        results = []
        for objective in (eager, compiled):
            torch.manual_seed(seed)
            result = objective(batch)
            result["loss"].backward()
            results.append(result)
        one, two = results
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5)
    assert set(compiled.state_dict()) == names
    for (key, parameter), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        if parameter.requires_grad:
            torch.testing.assert_close(
                other.grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
            )
    for (key, buffer), other in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, rtol=1e-4, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    # One graph from uint8 images to the loss; only Mixup's draw of the mixing ratio breaks it.
    if "mixup_alpha" not in type(method).model_fields:
        assert len(graphs) == 1
    # Inductor has its own random generator: random numbers drawn inside a graph would differ from an eager run's.
    traced = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert len(traced) > 20
    assert not [target for target in traced if "rand" in target]
