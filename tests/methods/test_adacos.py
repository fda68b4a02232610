"""AdaCos: its scale and loss against the paper's formulas in NumPy, and when the scale is updated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, backbone, batch_for, cross_entropy, method_of, objective_of

from cskd_hf.engine.objective import Objective
from cskd_hf.methods import Batch
from cskd_hf.methods.adacos import adaptive_scale

METHOD = method_of("adacos")
INITIAL_SCALE = math.sqrt(2) * math.log(NUM_CLASSES - 1)


def expected_scale(cosine: np.ndarray, target: np.ndarray, scale: float) -> float:
    """ln(mean_i Σ_{k≠y} exp(s · cos θ_{i,k})) / cos(min(π/4, median_i θ_{i,y}))."""
    cosine = cosine.astype(np.float64)
    own = np.arange(len(target)), target
    others = np.exp(scale * cosine)
    others[own] = 0
    angle = min(math.pi / 4, float(np.median(np.arccos(cosine[own]))))
    return math.log(others.sum(axis=1).mean()) / math.cos(angle)


@pytest.mark.parametrize("own", [0.95, 0.2, None])  # cos θ_{i,y}: an angle below π/4, one above, random
@pytest.mark.parametrize("scale", [1.5, 9.0, 200.0])
@pytest.mark.parametrize(("num", "num_classes"), [(8, 5), (7, 100), (1, 5), (6, 2), (1, 2)])
def test_the_scale_is_the_papers_and_a_constant(num: int, num_classes: int, scale: float, own: float | None) -> None:
    random = np.random.RandomState(0)
    cosine, target = random.uniform(-1, 1, (num, num_classes)), random.randint(num_classes, size=num)
    if own is not None:
        cosine[np.arange(num), target] = own + random.uniform(-0.02, 0.02, num)
    tensor = torch.tensor(cosine, dtype=torch.float32, requires_grad=True)
    updated = adaptive_scale(tensor, torch.tensor(target), torch.tensor(scale), torch.arange(num))
    assert (updated.shape, updated.dtype, updated.requires_grad) == ((), torch.float32, False)
    assert updated.item() == pytest.approx(expected_scale(cosine, target, scale), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("own", [1.0, -1.0])
def test_a_cosine_rounded_beyond_one_gives_no_nan(own: float) -> None:
    cosine = torch.full((3, 4), 0.1)
    cosine[:, 0] = own * (1 + 1e-6)
    assert adaptive_scale(cosine, torch.zeros(3, dtype=torch.int64), torch.tensor(3.0), torch.arange(3)).isfinite()


def cosine_of(model: Any, images: torch.Tensor) -> np.ndarray:
    """cos θ in float64 from the pooled features and the classifier's weights."""
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True).double().numpy()
    weight = model.get_classifier().weight.detach().double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T


def build() -> Any:
    """In eval mode, so that a second forward gives the same output."""
    return METHOD.build(backbone("preactresnet10_32px"), EXPERIMENT).eval()


def batch_of(num: int = 6, seed: int = 0) -> Batch:
    batch = batch_for(METHOD, num, seed=seed)
    return batch._replace(images=batch.images / 255)


def test_the_loss_uses_the_scale_of_its_own_batch_which_follows_from_the_previous_one() -> None:
    model = build()
    scale = model.get_classifier().scale
    assert scale.item() == pytest.approx(INITIAL_SCALE, rel=1e-6)
    scale.fill_(30.0)
    before = 30.0
    for seed in range(2):
        batch = batch_of(seed=seed)
        cosine, target = cosine_of(model, batch.images), batch.target.numpy()
        after = expected_scale(cosine, target, before)
        assert abs(after - before) > 0.1
        result = METHOD.forward_loss(model, batch)
        assert result["scale"].item() == pytest.approx(after, rel=1e-4)
        assert scale.item() == pytest.approx(after, rel=1e-4)
        np.testing.assert_allclose(result["output"].detach().numpy(), after * cosine, rtol=0, atol=1e-4)
        assert result["loss"].item() == pytest.approx(cross_entropy(after * cosine, target), rel=1e-4)
        before = after


def test_the_gradient_treats_the_scale_as_a_constant() -> None:
    model, batch = build(), batch_of()
    scale = expected_scale(cosine_of(model, batch.images), batch.target.numpy(), model.get_classifier().scale.item())
    METHOD.forward_loss(model, batch)["loss"].backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    features = model.forward_head(model.forward_features(batch.images), pre_logits=True)
    weight = model.get_classifier().weight
    logits = scale * (features / features.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
    (logits.logsumexp(dim=1) - logits[torch.arange(6), batch.target]).mean().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-6)


def test_only_training_steps_update_the_scale_and_inference_returns_scaled_cosines() -> None:
    objective = objective_of(METHOD, backbone("preactresnet10_32px"))
    model: Any = objective.module
    objective(batch_for(METHOD))
    updated = model.get_classifier().scale.clone()
    assert updated != pytest.approx(INITIAL_SCALE)
    images = batch_of().images
    model.eval()
    with torch.no_grad():
        output = model(images)
    np.testing.assert_allclose(output.numpy(), updated.item() * cosine_of(model, images), rtol=0, atol=1e-5)
    model.train()(images)
    assert torch.equal(model.get_classifier().scale, updated)


def test_bf16_leaves_the_cosines_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = Objective(METHOD, build())(batch_of())["output"]
    assert output.dtype == torch.float32
    assert (output.bfloat16().float() != output).any()  # not rounded to bfloat16
