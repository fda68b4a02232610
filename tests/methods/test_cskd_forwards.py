"""CS-KD's two forwards, and a hundred steps beside a training loop written from the paper's description."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from random_pairs import NUM_CLASSES, pairs
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from cskd_hf.engine.objective import Objective
from cskd_hf.methods import CSKD, Batch, CrossEntropy


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# two forwards


class Tiny(nn.Module):
    """BatchNorm on the pixels, a convolution, BatchNorm, a classifier; it remembers in which mode it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, NUM_CLASSES)
        self.calls: list[tuple[bool, bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.norm.training and self.norm2.training, torch.is_grad_enabled(), len(x)))
        x = self.norm2(self.conv(self.norm(x))).relu()
        return self.fc(x.mean(dim=(2, 3)))


def test_two_forwards_in_train_mode_anchors_with_gradient_then_partners_without() -> None:
    model = Tiny().train()
    result = CSKD().forward_loss(model, pairs(3))
    assert model.calls == [(True, True, 3), (True, False, 3)]
    assert all(module.training for module in model.modules())
    assert result["loss"].requires_grad
    assert torch.is_grad_enabled()


def test_no_gradient_flows_through_the_partners() -> None:
    model, batch = Tiny().train(), pairs(3)
    batch.images.requires_grad_()
    CSKD(distill_loss_weight=3.0).forward_loss(model, batch)["loss"].backward()
    assert batch.images.grad is not None
    anchors, partners = batch.images.grad.chunk(2)
    assert (partners == 0).all()
    assert (anchors.flatten(1).abs().amax(dim=1) > 0).all()


def test_the_parameters_gradient_takes_the_partners_prediction_as_constant() -> None:
    model, batch = Tiny().train(), pairs(3)
    reference = copy.deepcopy(model)
    anchors, partners = batch.images.chunk(2)
    CSKD(temperature=2.0, distill_loss_weight=3.0).forward_loss(model, batch)["loss"].backward()
    constant = reference(partners).detach()
    logits = reference(anchors)
    p, p_partner = (logits / 2).softmax(dim=-1), (constant / 2).softmax(dim=-1)
    task_loss = -logits.log_softmax(dim=-1)[torch.arange(3), batch.target[:3]].mean()
    (task_loss + 3 * 4 * (p_partner * (p_partner / p).log()).sum(dim=-1).mean()).backward()
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_partners_change_the_loss_and_get_no_cross_entropy() -> None:
    model, batch = Tiny().train(), pairs(3)
    other = batch._replace(images=torch.cat([batch.images[:3], torch.randn(3, 3, 8, 8)]))
    one = CSKD().forward_loss(model, batch)
    two = CSKD().forward_loss(model, other)
    assert torch.equal(one["output"], two["output"])
    assert torch.equal(one["task_loss"], two["task_loss"])
    assert abs(one["kd_loss"] - two["kd_loss"]) > 1e-4


def test_the_halves_are_normalised_apart() -> None:
    model, batch = Tiny().train(), pairs(3)
    batch.images[3:] += 5  # partners of other statistics
    alone, concatenated = copy.deepcopy(model), copy.deepcopy(model)
    output = CSKD().forward_loss(model, batch)["output"]
    assert torch.equal(output, alone(batch.images[:3]))
    assert not torch.allclose(output, concatenated(batch.images)[:3], atol=0.01)


def test_running_statistics_move_twice_a_step_anchors_first_and_once_for_cross_entropy() -> None:
    model, batch = Tiny().train(), pairs(3)
    batch.images[3:] = 2 * batch.images[3:] + 5
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for norm in (model.norm, plain.norm):
            norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    CSKD().forward_loss(model, batch)
    CrossEntropy().forward_loss(plain, Batch(batch.images[:3], batch.target[:3], batch.index[:3]))

    def moved(statistic: np.ndarray, of_batch: np.ndarray) -> np.ndarray:
        return 0.9 * statistic + 0.1 * of_batch

    anchors, partners = batch.images.double().numpy().reshape(2, 3, 3, 8, 8)
    channels = {"axis": (0, 2, 3)}
    mean_once = moved(np.array([1.0, -2.0, 0.5]), anchors.mean(**channels))
    mean_twice = moved(mean_once, partners.mean(**channels))
    # Unbiased, as torch keeps it.
    var_twice = moved(moved(np.ones(3), anchors.var(**channels, ddof=1)), partners.var(**channels, ddof=1))
    np.testing.assert_allclose(plain.norm.running_mean.numpy(), mean_once, rtol=1e-5)
    np.testing.assert_allclose(model.norm.running_mean.numpy(), mean_twice, rtol=1e-5)
    np.testing.assert_allclose(model.norm.running_var.numpy(), var_twice, rtol=1e-5)
    assert (plain.norm.num_batches_tracked, plain.norm2.num_batches_tracked) == (1, 1)
    assert (model.norm.num_batches_tracked, model.norm2.num_batches_tracked) == (2, 2)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_weight_zero_is_cross_entropy_bit_by_bit(autocast: bool) -> None:
    model, batch = Tiny().train(), pairs(4)
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cskd = CSKD(distill_loss_weight=0.0).forward_loss(model, batch)
        anchors = Batch(batch.images[:4], batch.target[:4], batch.index[:4])
        ce = CrossEntropy().forward_loss(plain, anchors)
    assert torch.equal(cskd["loss"], ce["loss"])
    assert cskd["kd_loss"] > 0
    cskd["loss"].backward()
    ce["loss"].backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, other.grad), name


# a hundred steps


def plain_training(model: nn.Module, batches: list[Batch], temperature: float, weight: float) -> Iterator[float]:
    """The paper's algorithm as its text has it, in plain torch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4, nesterov=False)
    model.train()
    for batch in batches:
        num = len(batch.target) // 2
        x, x_partner, y = batch.images[:num], batch.images[num:], batch.target[:num]
        logits = model(x)
        with torch.no_grad():
            partner_logits = model(x_partner)
        exponentials = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
        likelihood = (exponentials / exponentials.sum(dim=1, keepdim=True))[torch.arange(num), y]
        soft = torch.exp(logits / temperature)
        p = soft / soft.sum(dim=1, keepdim=True)
        soft_partner = torch.exp(partner_logits / temperature)
        p_partner = soft_partner / soft_partner.sum(dim=1, keepdim=True)
        divergence = (p_partner * (torch.log(p_partner) - torch.log(p))).sum(dim=1)
        loss = -torch.log(likelihood).mean() + weight * temperature**2 * divergence.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def objective_training(model: nn.Module, batches: list[Batch], temperature: float, weight: float) -> Iterator[float]:
    objective = Objective(CSKD(temperature=temperature, distill_loss_weight=weight), model).train()
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=0.03, momentum=0.9, weight_decay=1e-4, filter_bias_and_bn=False
    )
    for batch in batches:
        loss = objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 1.0), (1.0, 3.0)])
def test_a_hundred_steps_equal_a_plain_training_loop(temperature: float, weight: float) -> None:
    model = Tiny()
    reference = copy.deepcopy(model)
    prototypes = torch.randn(NUM_CLASSES, 3, 1, 1)
    data = []
    for num in itertools.islice(itertools.cycle([16, 16, 16, 5]), 100):  # a short batch now and then
        batch = pairs(num)
        data.append(batch._replace(images=batch.images + prototypes[batch.target]))
    losses = list(objective_training(model, data, temperature, weight))
    np.testing.assert_allclose(losses, list(plain_training(reference, data, temperature, weight)), rtol=1e-5)
    for (name, tensor), other in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])  # it learned: the steps were real
