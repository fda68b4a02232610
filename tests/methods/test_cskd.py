"""CS-KD's two forwards, and a hundred steps in float64 beside a loop written from the paper."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from method_cases import NUM_CLASSES
from torch import Tensor, nn

from cskd_hf.engine.objective import Objective
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.methods import CSKD, Batch, CrossEntropy
from cskd_hf.recipe.sections import OptimizerSection


class Tiny(nn.Module):
    """BatchNorm of the pixels, a convolution, BatchNorm, a classifier; records the mode of every forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, NUM_CLASSES)
        self.calls: list[tuple[bool, bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.norm.training and self.norm2.training, torch.is_grad_enabled(), len(x)))
        x = self.norm2(self.conv(self.norm(x))).relu()
        return self.fc(x.mean(dim=(2, 3)))


def random_pairs(num: int) -> Batch:
    target = torch.randint(NUM_CLASSES, (num,))
    return Batch(torch.randn(2 * num, 3, 8, 8), target.repeat(2), torch.arange(2 * num))


def test_anchors_are_forwarded_with_gradient_then_partners_without_both_in_train_mode() -> None:
    model, batch = Tiny().train(), random_pairs(3)
    batch.images.requires_grad_()
    result = CSKD(distill_loss_weight=3.0).forward_loss(model, batch)
    assert model.calls == [(True, True, 3), (True, False, 3)]
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    result["loss"].backward()
    assert batch.images.grad is not None
    assert batch.images.grad[:3].flatten(1).any(dim=1).all()
    assert not batch.images.grad[3:].any()


def test_both_halves_update_the_running_statistics_anchors_first() -> None:
    model, batch = Tiny().train(), random_pairs(3)
    batch.images[3:] = 2 * batch.images[3:] + 5
    start = np.array([1.0, -2.0, 0.5])
    with torch.no_grad():
        model.norm.running_mean.copy_(torch.tensor(start))
    CSKD().forward_loss(model, batch)

    anchors, partners = batch.images.double().numpy().reshape(2, 3, 3, 8, 8)
    channels: dict[str, Any] = {"axis": (0, 2, 3)}
    mean = 0.9 * (0.9 * start + 0.1 * anchors.mean(**channels)) + 0.1 * partners.mean(**channels)
    # torch tracks the unbiased variance.
    var = 0.9 * (0.9 + 0.1 * anchors.var(**channels, ddof=1)) + 0.1 * partners.var(**channels, ddof=1)
    np.testing.assert_allclose(model.norm.running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(model.norm.running_var.numpy(), var, rtol=1e-5)
    assert (model.norm.num_batches_tracked, model.norm2.num_batches_tracked) == (2, 2)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_weight_zero_is_bitwise_cross_entropy(autocast: bool) -> None:
    model, batch = Tiny().train(), random_pairs(4)
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cskd = CSKD(distill_loss_weight=0.0).forward_loss(model, batch)
        baseline = CrossEntropy().forward_loss(plain, Batch(batch.images[:4], batch.target[:4], batch.index[:4]))
    assert torch.equal(cskd["loss"], baseline["loss"])
    assert cskd["kd_loss"] > 0
    cskd["loss"].backward()
    baseline["loss"].backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def paper_loss(logits: Tensor, partner_logits: Tensor, y: Tensor, temperature: float, weight: float) -> Tensor:
    """The formulas of the paper's text."""
    likelihood = (logits.exp() / logits.exp().sum(dim=1, keepdim=True))[torch.arange(len(y)), y]
    soft, soft_partner = ((rows / temperature).exp() for rows in (logits, partner_logits))
    p, p_partner = (rows / rows.sum(dim=1, keepdim=True) for rows in (soft, soft_partner))
    divergence = (p_partner * (p_partner / p).log()).sum(dim=1)
    return -likelihood.log().mean() + weight * temperature**2 * divergence.mean()


def torch_loss(logits: Tensor, partner_logits: Tensor, y: Tensor, temperature: float, weight: float) -> Tensor:
    """The same of torch's own functions: equal to the last bit, which a chaotic training needs."""
    log_p, q = F.log_softmax(logits / temperature, dim=1), F.softmax(partner_logits / temperature, dim=1)
    return F.cross_entropy(logits, y) + weight * (F.kl_div(log_p, q, reduction="batchmean") * temperature**2)


def plain_training(
    model: nn.Module, batches: list[Batch], lr: float, loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Iterator[float]:
    """The algorithm of the paper's text in plain torch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4, nesterov=False)
    model.train()
    for batch in batches:
        num = len(batch.target) // 2
        logits = model(batch.images[:num])
        with torch.no_grad():
            partner_logits = model(batch.images[num:])
        loss = loss_of(logits, partner_logits, batch.target[:num])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def objective_training(model: nn.Module, batches: list[Batch], lr: float, **settings: float) -> Iterator[float]:
    objective = Objective(CSKD(**settings), model).train()
    section = OptimizerSection(lr=lr, momentum=0.9, weight_decay=1e-4, filter_bias_and_bn=False)
    optimizer = create_optimizer(section, model, model, lr)
    for batch in batches:
        loss = objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def float64_batches(sizes: Iterable[int]) -> list[Batch]:
    prototypes = torch.randn(NUM_CLASSES, 3, 1, 1)
    batches = [random_pairs(num) for num in sizes]
    return [batch._replace(images=(batch.images + prototypes[batch.target]).double()) for batch in batches]


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 1.0), (1.0, 3.0)])
def test_a_hundred_steps_equal_the_papers_formulas(temperature: float, weight: float) -> None:
    model = Tiny().double()
    reference = copy.deepcopy(model)
    batches = float64_batches(itertools.islice(itertools.cycle([16, 16, 16, 5]), 100))  # some batches are short
    losses = list(objective_training(model, batches, 0.03, temperature=temperature, distill_loss_weight=weight))
    loss_of = functools.partial(paper_loss, temperature=temperature, weight=weight)
    np.testing.assert_allclose(losses, list(plain_training(reference, batches, 0.03, loss_of)), rtol=1e-12)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=1e-12)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])  # the model learned, so the steps were real


@pytest.mark.parametrize("steps", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["preactresnet18_32px", "preactresnet10_32px", "densenet121_32px"])
def test_steps_of_the_papers_networks_equal_a_plain_training_loop(name: str, steps: int) -> None:
    lr = 0.001  # so few images diverge at more
    model = timm.create_model(name, num_classes=NUM_CLASSES).double()
    reference = copy.deepcopy(model)
    batches = float64_batches(itertools.islice(itertools.cycle([2, 3]), steps))
    losses = list(objective_training(model, batches, lr, temperature=4.0, distill_loss_weight=1.0))
    assert np.isfinite(losses).all()
    loss_of = functools.partial(torch_loss, temperature=4.0, weight=1.0)
    np.testing.assert_allclose(losses, list(plain_training(reference, batches, lr, loss_of)), rtol=1e-12)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=1e-12)
