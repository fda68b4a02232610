"""Compiling the whole objective, as `run.compile` does, reproduces every method's eager step."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch._dynamo
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_runs import torchrun
from method_cases import backbone, batch_for, method_of, objective_of
from torch import nn

from cskd_hf.engine.learner import compile_objective
from cskd_hf.methods import METHODS
from cskd_hf.methods.task_loss import TaskLoss
from cskd_hf.recipe.recipe import load_recipe


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
    network = backbone(model_name, **({"img_size": 32} if "vit" in model_name else {"layers": (1, 1, 1, 1)}))
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
@torch._dynamo.config.patch(recompile_limit=8)
def test_progressive_sizes_and_short_batches_get_a_static_graph_each(monkeypatch):
    schedule = tuple((epoch, 6 + epoch) for epoch in range(1, 6))
    recipe = load_recipe("digits_test_resnet.yaml").replace(
        transform={"size_schedule": schedule}, run={"compile": True}
    )
    method, graphs = method_of("cskd"), []
    objective = objective_of(method, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)))

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compile_with = objective.compile
    monkeypatch.setattr(objective, "compile", lambda mode, dynamic: compile_with(backend=backend, dynamic=dynamic))
    compile_objective(recipe, objective)
    shapes = [(num, pixels) for _, pixels in (*schedule, (0, 16)) for num in (4, 3)]
    for num, pixels in shapes * 2:
        objective(batch_for(method, num, pixels))["loss"].backward()
    assert len(graphs) == len(shapes)  # more than torch's limit of eight


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in METHODS]
    + [("cskd", {"batch_norm": batch_norm}) for batch_norm in ("joint", "anchors_only")]
    + [("mutual_cskd", {"smoothing": 0.1, "cutmix_alpha": 1.0, "logit_adjustment": 1.0, "class_weight_beta": 0.9})]
    + [("cskd", {"bce_loss": True, "bce_target_thresh": 0.2, "bce_sum": True})],
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
    # One graph, unless mixing or IPS draws outside; torch 2.11 also breaks at the scale of AdaCos.
    breaks = (
        (isinstance(method, TaskLoss) and method.mixes)
        or name == "ips"
        or (name == "adacos" and torch.__version__ < "2.12")
    )
    if not breaks:
        assert len(graphs) == 1
    # Inductor has its own random generator: random numbers drawn inside a graph would differ from an eager run's.
    traced = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert len(traced) > 20
    assert not [target for target in traced if "rand" in target]


COMPILED = """
import copy, json, sys
from pathlib import Path
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from method_cases import batch_for, method_of, objective_of
from cskd_hf.engine.learner import compile_objective
from cskd_hf.recipe.recipe import load_recipe

small_buckets = DistributedDataParallelKwargs(bucket_cap_mb=0.01)
accelerator, graphs = Accelerator(cpu=True, kwargs_handlers=[small_buckets]), []
method = method_of("cskd")
objective = objective_of(method)
eager = copy.deepcopy(objective)

def backend(graph, _):
    graphs.append(graph)
    return graph

original = objective.compile
objective.compile = lambda mode, **settings: original(backend=backend, **settings)
compile_objective(load_recipe("digits_resnet10", ["run.compile=true"]), objective)
gradients = []
for module in (eager, objective):
    prepared = accelerator.prepare(module)
    prepared(batch_for(method, seed=accelerator.process_index))["loss"].backward()
    gradients.append([parameter.grad for parameter in module.parameters()])
found = {"graphs": len(graphs), "equal": all(map(torch.equal, *gradients)), "world": accelerator.num_processes}
Path(sys.argv[1], str(accelerator.process_index)).write_text(json.dumps(found))
accelerator.end_training()
"""


def test_a_compiled_step_under_ddp_is_one_graph_with_the_eager_gradients(tmp_path):
    """torch's own DDP optimizer would split the graph at the gradient buckets, across the partner's forward."""
    (tmp_path / "compiled.py").write_text(COMPILED, encoding="utf-8")
    done = torchrun(tmp_path / "compiled.py", tmp_path)
    assert done.status == 0, done.stderr
    for rank in ("0", "1"):
        assert json.loads((tmp_path / rank).read_text()) == {"graphs": 1, "equal": True, "world": 2}
