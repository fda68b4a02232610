"""torch.compile of the whole objective, as `run.compile` does it, gives every method's eager step."""

from __future__ import annotations

import copy

import pytest
import torch
from method_cases import batch_for, method_of, objective_of

from cskd_hf.methods import METHODS


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {"cutmix_alpha": 1.0} if "cutmix_alpha" in method.model_fields else {}) for name, method in METHODS.items()]
    + [("cskd", {"batch_norm": "anchors_only"})],
)
def test_a_compiled_step_is_the_eager_one(name, settings):
    """As torch traces it, with its graph breaks; the code that inductor would make of it is left out."""
    method = method_of(name, **settings)
    eager = objective_of(method)
    compiled = copy.deepcopy(eager)
    names = set(compiled.state_dict())
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled.compile(backend=keep)
    for seed in (0, 1):  # the second meets what the first has left: a scale, a memory
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
    # Inductor replaces torch's generator by one of its own: a compiled run would mix what no eager run mixes.
    traced = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert len(traced) > 20
    assert not [target for target in traced if "rand" in target]
