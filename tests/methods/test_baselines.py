"""Maximum entropy, virtual softmax and mutual CS-KD against formulas written here, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from method_cases import Fixed, cross_entropy, kl, log_softmax
from torch import Tensor, nn

import cskd_hf.models  # noqa: F401  (registers)
from cskd_hf.engine.objective import Objective
from cskd_hf.errors import UserError
from cskd_hf.methods import CSKD, DDGSD, Batch, CrossEntropy, Experiment, MaxEntropy, Method, MutualCSKD, VirtualSoftmax

NUM_CLASSES = 5
EXPERIMENT = Experiment(6, 5, tuple("abcde"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
GENERATOR = np.random.RandomState(0)
LOGITS = GENERATOR.randn(6, NUM_CLASSES).astype(np.float32) * 3
TARGET = np.array([0, 1, 2, 3, 4, 0])


def result_of(method: Method, logits: np.ndarray, target: np.ndarray) -> dict[str, Tensor]:
    images = torch.tensor(logits)[:, :, None, None].requires_grad_()
    return method.forward_loss(Fixed(), Batch(images, torch.tensor(target), torch.arange(len(target))))


def network(name: str = "preact_resnet10_32px", **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=NUM_CLASSES, **settings)


def batch_of(num: int, size: int = 16) -> Batch:
    images = torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.arange(num) % NUM_CLASSES, torch.arange(num))


# maximum entropy


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_maximum_entropy_is_cross_entropy_less_the_weighted_entropy(weight):
    p = np.exp(log_softmax(LOGITS))
    expected_entropy = float(-(p * np.log(p)).sum(axis=1).mean())
    result = result_of(MaxEntropy(entropy_weight=weight), LOGITS, TARGET)
    assert result["output_entropy"].item() == pytest.approx(expected_entropy, rel=1e-6)
    expected = cross_entropy(LOGITS, TARGET) - weight * expected_entropy
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_maximum_entropy_of_a_uniform_prediction_is_the_logarithm_of_the_number_of_classes():
    result = result_of(MaxEntropy(), np.zeros((3, NUM_CLASSES), dtype=np.float32), TARGET[:3])
    assert result["output_entropy"].item() == pytest.approx(np.log(NUM_CLASSES), rel=1e-6)


def test_maximum_entropy_stays_finite_where_a_probability_is_zero():
    logits = np.array([[1e4, 0, 0, 0, -1e4]], dtype=np.float32)
    result = result_of(MaxEntropy(), logits, TARGET[:1])
    assert result["output_entropy"].item() == 0
    assert result["loss"].isfinite()


# virtual softmax


def test_virtual_softmax_is_cross_entropy_with_one_more_logit_of_both_lengths():
    model = VirtualSoftmax().build(network(), EXPERIMENT).eval()
    batch = batch_of(6)
    result = VirtualSoftmax().forward_loss(model, batch)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(batch.images), pre_logits=True).double().numpy()
    weight = model.get_classifier().weight.detach().double().numpy()
    target = batch.target.numpy()
    virtual = np.linalg.norm(weight, axis=1)[target] * np.linalg.norm(features, axis=1)
    logits = np.concatenate([features @ weight.T, virtual[:, None]], axis=1)
    assert result["loss"].item() == pytest.approx(cross_entropy(logits, target), rel=1e-5)
    assert np.allclose(result["output"].detach().numpy(), logits[:, :-1], atol=1e-5)


def test_the_virtual_logit_is_the_largest_that_any_direction_of_the_own_weight_gives():
    model = VirtualSoftmax().build(network(), EXPERIMENT).eval()
    batch = batch_of(10)
    with torch.no_grad():
        output = model(batch.images)
        own = output.gather(1, batch.target[:, None])
        without = torch.nn.functional.cross_entropy(output, batch.target)
        loss = VirtualSoftmax().forward_loss(model, batch)["loss"]
        features = model.forward_head(model.forward_features(batch.images), pre_logits=True)
    from cskd_hf.methods.virtual_softmax import virtual_logit

    assert (virtual_logit(features, model.get_classifier().weight, batch.target) >= own - 1e-6).all()
    assert loss > without


def test_virtual_softmax_trains_no_bias_and_exports_it_as_zero_under_timms_name():
    model = VirtualSoftmax().build(network(), EXPERIMENT)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    VirtualSoftmax().forward_loss(model, batch_of(6))["loss"].backward()
    optimizer.step()
    exported = VirtualSoftmax().export(model)
    assert exported.state_dict().keys() == network().state_dict().keys()
    assert not exported.get_classifier().bias.any()


def test_virtual_softmax_refuses_a_classifier_that_is_not_linear():
    with pytest.raises(UserError, match="needs a linear classifier"):
        VirtualSoftmax().build(timm.create_model("test_resnet", num_classes=0), EXPERIMENT)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext", "densenet121_32px"])
def test_virtual_softmax_works_on_any_timm_backbone_with_a_linear_classifier(name):
    size = {"test_vit": 160, "test_convnext": 64}.get(name, 32)
    model = VirtualSoftmax().build(network(name), EXPERIMENT)
    result = VirtualSoftmax().forward_loss(model, batch_of(2, size))
    result["loss"].backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trainable)


# mutual CS-KD


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_mutual_cskd_supervises_both_halves_and_teaches_each_by_the_other(temperature, weight):
    target = np.tile(TARGET[:3], 2)
    result = result_of(MutualCSKD(temperature=temperature, distill_loss_weight=weight), LOGITS, target)
    anchors, partners = LOGITS[:3], LOGITS[3:]
    expected_kd = (kl(partners, anchors, temperature) + kl(anchors, partners, temperature)) / 2
    assert result["kd_loss"].item() == pytest.approx(expected_kd, rel=1e-5)
    assert result["loss"].item() == pytest.approx(cross_entropy(LOGITS, target) + weight * expected_kd, rel=1e-5)


def test_mutual_cskd_takes_each_teacher_as_a_constant():
    """Gradient of row i, j being the other of its pair: (p_i − onehot + λT·(softmax(z_i/T) − softmax(z_j/T))) / 2B."""
    target, temperature, weight = np.tile(TARGET[:3], 2), 4.0, 3.0
    images = torch.tensor(LOGITS)[:, :, None, None].requires_grad_()
    batch = Batch(images, torch.tensor(target), torch.arange(6))
    MutualCSKD(temperature=temperature, distill_loss_weight=weight).forward_loss(Fixed(), batch)["loss"].backward()
    own, soft = np.exp(log_softmax(LOGITS)), np.exp(log_softmax(LOGITS / temperature))
    expected = own - np.eye(NUM_CLASSES)[target] + weight * temperature * (soft - np.roll(soft, 3, axis=0))
    assert np.allclose(images.grad.flatten(1).numpy(), expected / 6, atol=1e-6)


def test_mutual_cskd_of_weight_zero_is_cross_entropy_on_all_images():
    both = []
    for method in (MutualCSKD(distill_loss_weight=0.0), CrossEntropy()):
        objective = Objective(method, network()).train()
        objective(batch_of(8))["loss"].backward()
        both.append([p.grad for p in objective.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_mutual_cskd_makes_one_forward_where_cskd_makes_two():
    moved = []
    for method in (MutualCSKD(), CSKD()):
        objective = Objective(method, network()).train()
        objective(batch_of(8))
        moved.append(objective.module.stem[1].num_batches_tracked.item())
    assert moved == [1, 2]


# DDGSD


@pytest.mark.parametrize("settings", [(1.0, 0.0, 0.0), (3.0, 1.0, 5e-4), (2.0, 0.5, 0.1)])
def test_ddgsd_is_cross_entropy_kl_both_ways_and_the_distance_of_the_mean_features(settings):
    temperature, distill, feature = settings
    method = DDGSD(temperature=temperature, distill_loss_weight=distill, feature_loss_weight=feature)
    target = np.tile(TARGET[:3], 2)
    images = torch.tensor(LOGITS)[:, :, None, None].requires_grad_()
    result = method.forward_loss(Fixed(), Batch(images, torch.tensor(target), torch.arange(6)))
    first, second = LOGITS[:3].astype(np.float64), LOGITS[3:].astype(np.float64)
    expected_kd = (kl(second, first, temperature) + kl(first, second, temperature)) / 2
    distance = float(((2 * first.mean(axis=0) - 2 * second.mean(axis=0)) ** 2).sum())
    assert result["kd_loss"].item() == pytest.approx(expected_kd, rel=1e-5)
    assert result["feature_loss"].item() == pytest.approx(distance, rel=1e-5)
    expected = cross_entropy(LOGITS, target) + distill * expected_kd + feature * distance
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_ddgsd_of_two_equal_views_is_cross_entropy_alone():
    logits, target = np.tile(LOGITS[:3], (2, 1)), np.tile(TARGET[:3], 2)
    images = torch.tensor(logits)[:, :, None, None].requires_grad_()
    result = DDGSD().forward_loss(Fixed(), Batch(images, torch.tensor(target), torch.arange(6)))
    assert result["kd_loss"].item() == pytest.approx(0, abs=1e-6)
    assert result["feature_loss"].item() == 0
    assert result["loss"].item() == pytest.approx(cross_entropy(logits, target), rel=1e-5)
