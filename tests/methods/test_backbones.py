"""One step of every method on every kind of backbone."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import timm
import torch
from method_cases import NUM_CLASSES, ZERO, backbone, batch_for, method_of, objective_of, supervised
from torch import Tensor, nn

from cskd_hf.engine.objective import Objective
from cskd_hf.methods import METHODS, Batch, CrossEntropy, Method, MutualCSKD

# The paper's two families, a convolution with LayerNorm, a transformer, and the paper's 32-pixel network; few blocks.
BACKBONES: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {"layers": (1, 1, 1, 1), "zero_init_last": False}),
    "densenet121": (32, {"block_config": (2, 2, 2, 2), "growth_rate": 8}),
    "convnext_atto": (32, {"depths": (1, 1, 1, 1)}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "preactresnet10_32px": (16, {}),
}
NUM = 2


class Step(NamedTuple):
    """One forward and backward from fresh weights."""

    model_name: str
    method: Method
    objective: Objective
    batch: Batch
    result: dict[str, Tensor]
    frozen_before: dict[str, Tensor]


def fresh(model_name: str) -> Any:
    return backbone(model_name, **BACKBONES[model_name][1])


def batch_of(method: Method, model_name: str) -> Batch:
    return batch_for(method, NUM, BACKBONES[model_name][0])


def frozen(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the frozen parameters, and of the teacher's running statistics."""
    tensors = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    tensors |= {name: buffer for name, buffer in module.named_buffers() if "teacher." in name}
    return {name: value.clone() for name, value in tensors.items()}


@pytest.fixture(scope="module", params=BACKBONES)
def model_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=METHODS)
def step(request: pytest.FixtureRequest, model_name: str) -> Step:
    method, network = method_of(request.param), fresh(model_name)
    if request.param == "byot" and not hasattr(network, "forward_intermediates"):
        pytest.skip(f"timm {timm.__version__}: {model_name} has no forward_intermediates")
    objective = objective_of(method, network)
    batch, before = batch_of(method, model_name), frozen(objective)
    torch.manual_seed(1)
    result = objective(batch)
    result["loss"].backward()
    return Step(model_name, method, objective, batch, result, before)


def test_the_loss_and_every_logged_term_are_finite_scalars(step: Step) -> None:
    for term in step.result.keys() - {"output", "target"}:
        assert step.result[term].shape == (), term
        assert step.result[term].isfinite(), term
    assert step.result["loss"].dtype == torch.float32
    assert {"loss", "task_loss", "output", "target"} <= step.result.keys()


def test_output_and_target_belong_to_the_supervised_images(step: Step) -> None:
    target = supervised(step.method, step.batch).target
    assert torch.equal(step.result["target"], target)
    assert step.result["output"].shape == (len(target), NUM_CLASSES)


def test_exactly_the_trainable_parameters_get_a_gradient(step: Step) -> None:
    parameters = dict(step.objective.named_parameters())
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    without = [name for name, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert [name for name, p in parameters.items() if not p.requires_grad and p.grad is not None] == []
    assert [name for name, p in trainable.items() if not p.grad.any()] == []  # a detached part would get zeros


def test_frozen_tensors_do_not_change(step: Step) -> None:
    after = frozen(step.objective)
    assert after.keys() == step.frozen_before.keys()
    assert [name for name, value in after.items() if not torch.equal(value, step.frozen_before[name])] == []


def test_the_exported_model_has_timms_names_and_shapes(step: Step) -> None:
    shapes = {name: value.shape for name, value in fresh(step.model_name).state_dict().items()}
    if step.method.name == "adacos":  # exported as "cosine_classifier": a scale instead of a bias
        bias = next(name for name in reversed(shapes) if name.endswith("bias"))
        del shapes[bias]
        shapes[bias.replace("bias", "scale")] = torch.Size([])
    exported = step.method.export(step.objective.module).state_dict()
    assert {name: value.shape for name, value in exported.items()} == shapes


@functools.cache
def gradient_of_cross_entropy(model_name: str, views: int) -> dict[str, Tensor]:
    """Of one image per sample, or of both."""
    objective = objective_of(CrossEntropy(), fresh(model_name))
    objective(batch_of(MutualCSKD() if views == 2 else CrossEntropy(), model_name))["loss"].backward()
    return {name: p.grad for name, p in objective.module.named_parameters()}


# DenseNet is slow and adds nothing to ResNet here.
@pytest.mark.parametrize("model_name", [name for name in BACKBONES if name != "densenet121"])
@pytest.mark.parametrize("name", ZERO)
def test_zero_coefficients_give_the_gradient_of_cross_entropy(name: str, model_name: str) -> None:
    method = method_of(name, **ZERO[name])
    batch = batch_of(method, model_name)
    objective = objective_of(method, fresh(model_name))
    objective(batch)["loss"].backward()
    gradients = {key: p.grad for key, p in method.export(objective.module).named_parameters()}
    expected = gradient_of_cross_entropy(model_name, len(supervised(method, batch).target) // NUM)
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
