"""AdaCos: the scale and the loss against the paper's formulas in NumPy, and when the scale moves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, backbone, batch_for, cross_entropy, method_of, objective_of
from torch import nn

from cskd_hf.engine.objective import Objective
from cskd_hf.errors import UserError
from cskd_hf.methods import AdaCos, Batch
from cskd_hf.methods.adacos import adaptive_scale

METHOD = method_of("adacos")


def expected_scale(cosine: np.ndarray, target: np.ndarray, scale: float) -> float:
    """ln(mean_i Σ_{k≠y} exp(s · cos θ_{i,k})) / cos(min(π/4, median_i θ_{i,y}))."""
    cosine = cosine.astype(np.float64)
    own = np.arange(len(target)), target
    others = np.exp(scale * cosine)
    others[own] = 0
    angle = min(math.pi / 4, float(np.median(np.arccos(cosine[own]))))
    return math.log(others.sum(axis=1).mean()) / math.cos(angle)


def cosines(num: int, num_classes: int, own: float | None = None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random cosines; `own` is that between each image and its class."""
    random = np.random.RandomState(seed)
    cosine, target = random.uniform(-1, 1, (num, num_classes)), random.randint(num_classes, size=num)
    if own is not None:
        cosine[np.arange(num), target] = own + random.uniform(-0.02, 0.02, num)
    return torch.tensor(cosine, dtype=torch.float32), torch.tensor(target)


@pytest.mark.parametrize("own", [0.95, 0.2, None])  # an angle below π/4, one above, any
@pytest.mark.parametrize("scale", [1.5, 9.0, 200.0])
@pytest.mark.parametrize(("num", "num_classes"), [(8, 5), (7, 100), (1, 5), (6, 2), (1, 2)])
def test_the_scale_is_the_papers(num: int, num_classes: int, scale: float, own: float | None) -> None:
    cosine, target = cosines(num, num_classes, own)
    found = adaptive_scale(cosine, target, torch.tensor(scale), torch.arange(len(target)))
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected_scale(cosine.numpy(), target.numpy(), scale), rel=1e-5, abs=1e-5)


def test_the_scale_is_a_constant() -> None:
    cosine, target = cosines(4, 5)
    assert not adaptive_scale(
        cosine.requires_grad_(), target, torch.tensor(3.0), torch.arange(len(target))
    ).requires_grad


@pytest.mark.parametrize("own", [1.0, -1.0])
def test_rounding_beyond_one_gives_no_nan(own: float) -> None:
    cosine = torch.full((3, 4), 0.1)
    cosine[:, 0] = own * (1 + 1e-6)
    assert adaptive_scale(cosine, torch.zeros(3, dtype=torch.int64), torch.tensor(3.0), torch.arange(3)).isfinite()


def cosine_of(model: Any, images: torch.Tensor) -> np.ndarray:
    """cos θ from the network's pooled features and its classifier's weights, in float64."""
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True).double().numpy()
    weight = model.get_classifier().weight.detach().double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T


def built(name: str = "preact_resnet10_32px") -> Any:
    return METHOD.build(backbone(name), EXPERIMENT).eval()  # BatchNorm as a constant, so that a second forward is equal


def batch_of(num: int = 6, seed: int = 0) -> Batch:
    batch = batch_for(METHOD, num, seed=seed)
    return batch._replace(images=batch.images / 255)


def test_the_loss_is_cross_entropy_at_the_scale_of_that_very_batch_which_follows_from_the_one_before() -> None:
    model = built()
    scale = model.get_classifier().scale
    assert scale.item() == pytest.approx(math.sqrt(2) * math.log(NUM_CLASSES - 1), rel=1e-6)
    scale.fill_(30.0)
    before = 30.0
    for seed in range(2):
        batch = batch_of(seed=seed)
        cosine, target = cosine_of(model, batch.images), batch.target.numpy()
        after = expected_scale(cosine, target, before)
        assert abs(after - before) > 0.1  # else nothing would be told apart
        result = METHOD.forward_loss(model, batch)
        assert result["scale"].item() == pytest.approx(after, rel=1e-4)
        assert scale.item() == pytest.approx(after, rel=1e-4)
        np.testing.assert_allclose(result["output"].detach().numpy(), after * cosine, rtol=0, atol=1e-4)
        assert result["loss"].item() == pytest.approx(cross_entropy(after * cosine, target), rel=1e-4)
        before = after


def test_the_gradient_takes_the_scale_as_a_constant() -> None:
    model, batch = built(), batch_of()
    scale = expected_scale(cosine_of(model, batch.images), batch.target.numpy(), model.get_classifier().scale.item())
    METHOD.forward_loss(model, batch)["loss"].backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    features = model.forward_head(model.forward_features(batch.images), pre_logits=True)
    weight = model.get_classifier().weight
    logits = scale * (features / features.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
    (logits.logsumexp(dim=1) - logits[torch.arange(6), batch.target]).mean().backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


def test_only_training_moves_the_scale_and_a_test_gives_scaled_cosines() -> None:
    objective = objective_of(METHOD, backbone("preact_resnet10_32px"))
    model: Any = objective.module
    objective(batch_for(METHOD))
    moved = model.get_classifier().scale.clone()
    assert moved != pytest.approx(math.sqrt(2) * math.log(NUM_CLASSES - 1))
    images = batch_of().images
    model.eval()
    with torch.no_grad():
        output = model(images)
    np.testing.assert_allclose(output.numpy(), moved.item() * cosine_of(model, images), rtol=0, atol=1e-5)
    model.train()(images)
    assert torch.equal(model.get_classifier().scale, moved)


def test_neither_the_length_of_the_features_nor_that_of_the_weights_changes_a_logit() -> None:
    model, images = built(), batch_of().images
    with torch.no_grad():
        before = model(images)
        model.get_classifier().weight *= torch.tensor([0.1, 2.0, 3.0, 50.0])[:, None]
        torch.testing.assert_close(model(images), before, rtol=0, atol=1e-5)
    assert before.abs().max() <= model.get_classifier().scale * (1 + 1e-6)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_adacos_works_on_any_timm_backbone_with_a_linear_classifier(name: str) -> None:
    objective = objective_of(METHOD, timm.create_model(name, num_classes=NUM_CLASSES))
    objective(batch_for(METHOD, 2, {"test_vit": 160}.get(name, 64)))["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())
    assert not isinstance(objective.module.get_classifier().bias, nn.Parameter)


def test_a_classifier_that_is_not_linear_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.name: adacos needs a linear classifier"):
        AdaCos().build(timm.create_model("test_resnet", num_classes=0), EXPERIMENT)


def test_half_precision_leaves_the_cosines_in_float32() -> None:
    model, batch = built(), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        result = Objective(METHOD, model)(batch)
    # The features are bfloat16's; what the head makes of them is not rounded once more.
    assert result["output"].dtype == torch.float32
    assert len(result["output"].bfloat16().float().eq(result["output"]).nonzero()) < result["output"].numel()
