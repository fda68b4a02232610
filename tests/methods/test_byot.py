"""BYOT's loss from its own branches, in NumPy; what its coefficients do; what is left in the export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, batch_for, cross_entropy, kl, method_of, objective_of, settled, small_network

from cskd_hf.methods import BYOT, Batch, CrossEntropy
from cskd_hf.methods.byot import hint_loss

METHOD = method_of("byot")


def built(method: Any = METHOD) -> Any:
    """In eval mode, so that a second forward gives the same."""
    network = settled(small_network(), batch_of().images)
    torch.manual_seed(2)
    return method.build(network, EXPERIMENT).eval()


def batch_of(num: int = 5, size: int = 16) -> Batch:
    batch = batch_for(METHOD, num, size)
    return batch._replace(images=batch.images / 64)


def arrays(module: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray]]:
    with torch.no_grad():
        output, last, adapted, outputs = module(batch.images)
    deep = [[part.double().numpy() for part in parts] for parts in (adapted, outputs)]
    return output.double().numpy(), last.double().numpy(), deep[0], deep[1]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("weight", "temperature", "hint"), [(1.0, 3.0, 1e-6), (0.5, 1.0, 0.2)])
def test_the_loss_is_the_papers_of_the_three_branches(weight, temperature, hint, alpha):
    method = BYOT(aux_loss_weight=weight, distill_loss_weight=alpha, temperature=temperature, hint_loss_weight=hint)
    module, batch = built(method), batch_of()
    output, last, adapted, outputs = arrays(module, batch)
    target = batch.target.numpy()
    task = cross_entropy(output, target)
    aux_task = sum(cross_entropy(aux, target) for aux in outputs)
    aux_kd = sum(kl(output, aux, temperature) for aux in outputs)
    hints = sum(((maps - last) ** 2).sum() / len(target) for maps in adapted)
    assert len(outputs) == 3
    assert min(abs(aux_task), abs(aux_kd), abs(hints)) > 1e-2

    result = method.forward_loss(module, batch)
    assert result["task_loss"].item() == pytest.approx(task, rel=1e-5)
    assert result["aux_task_loss"].item() == pytest.approx(aux_task, rel=1e-5)
    assert result["kd_loss"].item() == pytest.approx(aux_kd, rel=1e-4)
    assert result["hint_loss"].item() == pytest.approx(hints, rel=1e-5)
    expected = task + weight * ((1 - alpha) * aux_task + alpha * aux_kd + hint * hints)
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(result["output"].detach().numpy(), output, rtol=0, atol=1e-5)


def test_the_hint_is_summed_over_the_map_and_averaged_over_the_batch():
    maps, last = torch.zeros(4, 3, 2, 2, requires_grad=True), torch.full((4, 3, 2, 2), 2.0, requires_grad=True)
    hint = hint_loss(maps, last)
    assert hint.item() == 2.0**2 * 3 * 2 * 2
    hint.backward()
    assert torch.equal(maps.grad, torch.full((4, 3, 2, 2), -2 * 2.0 / 4))
    assert last.grad is None


def gradients(method: Any, batch: Batch) -> dict[str, torch.Tensor]:
    module = built(method)
    method.forward_loss(module, batch)["loss"].backward()
    return {name: p.grad for name, p in module.named_parameters()}


def test_the_deepest_classifier_learns_from_labels_alone():
    """What it teaches is a constant to it: neither the distillation nor the hint reaches it through its own answer."""
    batch = batch_of()
    for settings in ({"distill_loss_weight": 1.0, "hint_loss_weight": 0.0}, {"hint_loss_weight": 10.0}):
        found = gradients(BYOT(**settings), batch)
        plain = objective_of(CrossEntropy(), settled(small_network(), batch.images)).eval()
        plain.method.forward_loss(plain.module, batch)["loss"].backward()
        head = dict(plain.module.named_parameters())
        # Behind the last branching point nothing but cross-entropy arrives; before it, the branches' gradients too.
        for name in ("fc.weight", "fc.bias", "stages.3.0.0.weight"):
            torch.testing.assert_close(found[f"model.{name}"], head[name].grad, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(found["model.stem.0.weight"], head["stem.0.weight"].grad, rtol=1e-2)


def test_with_alpha_one_and_no_hint_the_branches_see_no_label():
    batch = batch_of()
    other = batch._replace(target=batch.target.roll(1))
    method = BYOT(distill_loss_weight=1.0, hint_loss_weight=0.0)
    one, two = gradients(method, batch), gradients(method, other)
    branches = [name for name in one if name.startswith("branches.")]
    assert len(branches) == len(list(built().branches.parameters()))
    assert all(torch.equal(one[name], two[name]) for name in branches)
    assert not torch.equal(one["model.fc.weight"], two["model.fc.weight"])


def test_what_is_exported_is_the_very_network_without_branches():
    network = small_network()
    module = METHOD.build(network, EXPERIMENT)
    assert METHOD.export(module) is network
    assert network.state_dict().keys() == small_network().state_dict().keys()
    images = batch_of().images
    module.eval()
    with torch.no_grad():
        assert torch.equal(module(images)[0], network(images))


def test_the_branches_learn():
    torch.manual_seed(2)
    objective = objective_of(METHOD, small_network())
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        result = objective(batch_for(METHOD, 8))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.append(result["aux_task_loss"].item())
    assert losses[-1] < 0.9 * losses[0]
