"""BYOT's loss from its branches, in NumPy; its gradients; its export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, batch_for, cross_entropy, kl, objective_of, small_network, with_statistics

from cskd_hf.methods import BYOT, Batch, CrossEntropy
from cskd_hf.methods.byot import hint_loss


def batch_of(num: int = 5, size: int = 16) -> Batch:
    batch = batch_for(BYOT(), num, size)
    return batch._replace(images=batch.images / 64)


def build(method: BYOT) -> Any:
    """In eval mode, so that a second forward gives the same output."""
    network = with_statistics(small_network(), batch_of().images)
    torch.manual_seed(2)
    return method.build(network, EXPERIMENT).eval()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("weight", "temperature", "hint"), [(1.0, 3.0, 0.03), (0.5, 1.0, 0.2)])
def test_the_loss_is_the_authors(weight: float, temperature: float, hint: float, alpha: float) -> None:
    method = BYOT(aux_loss_weight=weight, distill_loss_weight=alpha, temperature=temperature, hint_loss_weight=hint)
    module, batch = build(method), batch_of()
    with torch.no_grad():
        output, last, adapted, outputs = module(batch.images)
    z, target = output.double().numpy(), batch.target.numpy()
    branch_logits = [aux.double().numpy() for aux in outputs]
    assert (len(branch_logits), len(adapted)) == (3, 2)  # no hint for the shallowest branch
    terms = {
        "task_loss": cross_entropy(z, target),
        "aux_task_loss": sum(cross_entropy(aux, target) for aux in branch_logits),
        "kd_loss": sum(kl(z, aux, temperature) for aux in branch_logits) / temperature**2,
        "hint_loss": sum(np.linalg.norm((features - last).double().numpy()) for features in adapted),
    }
    assert min(terms.values()) > 1e-2
    result = method.forward_loss(module, batch)
    assert {name: result[name].item() for name in terms} == pytest.approx(terms, rel=1e-4)
    branches = (1 - alpha) * terms["aux_task_loss"] + alpha * terms["kd_loss"] + hint * terms["hint_loss"]
    assert result["loss"].item() == pytest.approx(terms["task_loss"] + weight * branches, rel=1e-5)
    np.testing.assert_allclose(result["output"].detach().numpy(), z, rtol=0, atol=1e-5)


def test_the_hint_is_the_norm_over_features_and_batch_and_has_a_constant_teacher() -> None:
    features, last = torch.zeros(4, 9, requires_grad=True), torch.full((4, 9), 2.0, requires_grad=True)
    hint = hint_loss([features], last, torch.arange(4))
    assert hint.item() == pytest.approx(2 * 6)
    hint.backward()
    torch.testing.assert_close(features.grad, torch.full((4, 9), -1 / 6))
    assert last.grad is None
    features.grad = None
    hint_loss([features, features], torch.zeros(4, 9), torch.arange(4)).backward()  # the root of zero
    assert not features.grad.any()


def gradients(method: BYOT, batch: Batch) -> dict[str, torch.Tensor]:
    module = build(method)
    method.forward_loss(module, batch)["loss"].backward()
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("method", [BYOT(distill_loss_weight=1.0, hint_loss_weight=0.0), BYOT(hint_loss_weight=10.0)])
def test_the_deepest_classifier_learns_from_labels_alone(method: BYOT) -> None:
    batch = batch_of()
    actual = gradients(method, batch)
    plain = objective_of(CrossEntropy(), with_statistics(small_network(), batch.images)).eval()
    plain(batch)["loss"].backward()
    expected = {name: p.grad for name, p in plain.module.named_parameters()}
    # After the last branching point only cross-entropy arrives; before it, the branches' gradients, too.
    for name in ("fc.weight", "fc.bias", "stages.3.0.0.weight"):
        torch.testing.assert_close(actual[f"model.{name}"], expected[name], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(actual["model.stem.0.weight"], expected["stem.0.weight"], rtol=1e-2)


def test_with_alpha_one_and_no_hint_the_branches_do_not_depend_on_the_labels() -> None:
    batch = batch_of()
    method = BYOT(distill_loss_weight=1.0, hint_loss_weight=0.0)
    first, second = gradients(method, batch), gradients(method, batch._replace(target=batch.target.roll(1)))
    branches = [name for name in first if name.startswith(("branches.", "hints."))]
    assert len(branches) > 30
    assert all(torch.equal(first[name], second[name]) for name in branches)
    assert not torch.equal(first["model.fc.weight"], second["model.fc.weight"])


def test_the_exported_model_is_the_network_itself_without_branches() -> None:
    network = small_network()
    module = BYOT().build(network, EXPERIMENT).eval()
    assert BYOT().export(module) is network
    assert network.state_dict().keys() == small_network().state_dict().keys()
    images = batch_of().images
    with torch.no_grad():
        assert torch.equal(module(images)[0], network(images))


def test_the_branches_learn() -> None:
    torch.manual_seed(2)
    objective = objective_of(BYOT())
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        result = objective(batch_for(BYOT(), 8))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.append(result["aux_task_loss"].item())
    assert losses[-1] < 0.9 * losses[0]
