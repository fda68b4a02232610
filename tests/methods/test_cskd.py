"""CS-KD against the paper's formulas in NumPy, its two forwards, and a training loop written from its description."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from cskd_hf.engine.objective import Objective
from cskd_hf.methods import CSKD, Batch, CrossEntropy
from cskd_hf.methods.cskd import class_wise_kd_loss

NUM_CLASSES = 5
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# the paper's formulas


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def cls_loss(logits: np.ndarray, partner_logits: np.ndarray, temperature: float) -> float:
    """L_cls: KL(P(· given x′) ‖ P(· given x)), the sum over classes of p′·log(p′ / p), averaged over the batch."""
    p_partner, p = softmax(partner_logits / temperature), softmax(logits / temperature)
    return float((p_partner * np.log(p_partner / p)).sum() / len(logits))


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(target)), target]).mean())


class Fixed(nn.Module):
    """Answers with given logits, one after the other."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = iter(logits)

    def forward(self, images: Tensor) -> Tensor:
        logits = next(self.logits)
        assert len(images) == len(logits)
        return logits


def pairs(num: int = 3, size: int = 8, target: Tensor | None = None) -> Batch:
    """[anchors | partners] of random images."""
    target = torch.randint(NUM_CLASSES, (num,)) if target is None else target
    return Batch(torch.randn(2 * num, 3, size, size), torch.cat([target, target]), torch.arange(2 * num))


def step(
    logits: Tensor, partner_logits: Tensor, target: Tensor, temperature: float, weight: float
) -> dict[str, Tensor]:
    method = CSKD(temperature=temperature, distill_loss_weight=weight)
    return method.forward_loss(Fixed(logits, partner_logits), pairs(len(target), target=target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_papers_formula(temperature: float, weight: float, dtype: torch.dtype) -> None:
    logits, partner_logits = (3 * torch.randn(2, 6, NUM_CLASSES)).to(dtype)
    target = torch.tensor([0, 4, 2, 2, 1, 3])
    result = step(logits, partner_logits, target, temperature, weight)
    z, z_partner = logits.double().numpy(), partner_logits.double().numpy()
    task_loss = cross_entropy(z, target.numpy())
    kd_loss = temperature**2 * cls_loss(z, z_partner, temperature)
    assert kd_loss > 0.5  # else nothing would be compared
    assert result["task_loss"].item() == pytest.approx(task_loss, rel=1e-5)
    assert result["kd_loss"].item() == pytest.approx(kd_loss, rel=1e-5)
    assert result["loss"].item() == pytest.approx(task_loss + weight * kd_loss, rel=1e-5)
    assert all(result[name].dtype == torch.float32 for name in ("loss", "task_loss", "kd_loss"))
    assert result["output"] is logits
    assert torch.equal(result["target"], target)


def test_the_partners_distribution_is_the_first_argument_of_the_divergence() -> None:
    # The partner is sure of one class, the anchor of none: KL(sure ‖ even) is log 2, KL(even ‖ sure) is far more.
    even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[20.0, 0.0]])
    assert class_wise_kd_loss(even, sure, 1.0).item() == pytest.approx(np.log(2), rel=1e-6)
    assert class_wise_kd_loss(sure, even, 1.0).item() == pytest.approx(10 - np.log(2), rel=1e-6)
    assert step(even, sure, torch.tensor([0]), 1.0, 1.0)["kd_loss"].item() == pytest.approx(np.log(2), rel=1e-6)


def test_equal_predictions_cost_nothing_whatever_is_added_to_the_logits() -> None:
    logits = torch.randn(4, NUM_CLASSES)
    assert class_wise_kd_loss(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert class_wise_kd_loss(logits, logits + 7, 4.0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("copies", [2, 8])
def test_the_divergence_is_averaged_over_the_batch_and_summed_over_the_classes(copies: int) -> None:
    logits, partner_logits = torch.randn(2, 1, NUM_CLASSES)
    one = class_wise_kd_loss(logits, partner_logits, 2.0).item()
    many = class_wise_kd_loss(logits.repeat(copies, 1), partner_logits.repeat(copies, 1), 2.0).item()
    assert many == pytest.approx(one, rel=1e-5)
    # Each class split into equal parts leaves Σ p′ log(p′ / p) as it is; a mean over classes would shrink.
    split = class_wise_kd_loss(logits.repeat(1, copies), partner_logits.repeat(1, copies), 2.0).item()
    assert split == pytest.approx(one, rel=1e-5)


def test_scaling_logits_with_the_temperature_scales_the_loss_with_its_square() -> None:
    logits, partner_logits = torch.randn(2, 4, NUM_CLASSES)
    one = class_wise_kd_loss(logits, partner_logits, 1.0).item()
    assert class_wise_kd_loss(4 * logits, 4 * partner_logits, 4.0).item() == pytest.approx(16 * one, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_t_times_the_difference_of_probabilities_over_b(temperature: float) -> None:
    logits, partner_logits = 3 * torch.randn(2, 6, NUM_CLASSES)
    logits.requires_grad_()
    partner_logits.requires_grad_()
    class_wise_kd_loss(logits, partner_logits, temperature).backward()
    z, z_partner = logits.detach().double().numpy(), partner_logits.detach().double().numpy()
    expected = temperature * (softmax(z / temperature) - softmax(z_partner / temperature)) / 6
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=1e-6)
    assert partner_logits.grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_stay_finite(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0, 0, 0], [-1e4, 1e4, 1e4, 0, 0]], dtype=dtype, requires_grad=True)
    partner_logits = torch.tensor([[-1e4, 1e4, 0, 0, 0], [-1e4, -1e4, -1e4, -1e4, 1e4]], dtype=dtype)
    result = step(logits, partner_logits, torch.tensor([1, 4]), temperature, 1.0)
    result["loss"].backward()
    # p′ is one-hot: the divergence is the cross-entropy with it, (2e4 + 1e4) / 2 over T, times T².
    assert result["kd_loss"].item() == pytest.approx(1.5e4 * temperature, rel=0.01)
    assert result["loss"].isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": float("inf")}, {"distill_loss_weight": -1.0}, {"T": 4.0}]
)
def test_coefficients_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CSKD(**settings)  # type: ignore[arg-type]


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
