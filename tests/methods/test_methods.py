"""The contract of a method, for every method; on real backbones in test_backbones.py."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, get_args

import pytest
import torch
from method_cases import ZERO, backbone, batch_for, method_of, objective_of, supervised
from torch import Tensor, nn

from cskd_hf.batch import NUM_VIEWS, Views
from cskd_hf.methods import METHODS, CrossEntropy

each_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@each_method
def test_the_loss_is_float32_under_autocast(name: str) -> None:
    method = method_of(name)
    objective = objective_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        result = objective(batch_for(method))
    result["loss"].backward()
    assert result["loss"].dtype == torch.float32
    assert result["loss"].isfinite()


@each_method
def test_a_float64_models_losses_are_float64(name: str) -> None:
    method = method_of(name)
    objective, batch = objective_of(method).double(), batch_for(method)
    result = objective(batch._replace(images=batch.images.double() / 255))
    losses = {key: value for key, value in result.items() if key.endswith("loss")}
    assert {key: value.dtype for key, value in losses.items()} == dict.fromkeys(losses, torch.float64)
    rounded = [key for key, value in losses.items() if value == value.float() != 0]  # DLB's first step has no teacher
    assert rounded == []


@each_method
def test_a_few_steps_on_one_batch_reduce_its_loss(name: str) -> None:
    method = method_of(name)
    objective, batch = objective_of(method), batch_for(method)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(4):
        torch.manual_seed(1)  # the same mixture every time
        loss = objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@each_method
def test_a_forward_changes_neither_the_batch_nor_the_weights(name: str) -> None:
    method = method_of(name)
    objective, batch = objective_of(method), batch_for(method)
    before = [tensor.clone() for tensor in batch[:3]]
    weights = {key: value.clone() for key, value in objective.named_parameters()}
    objective(batch)
    assert all(torch.equal(tensor, original) for tensor, original in zip(batch[:3], before, strict=True))
    assert [key for key, value in objective.named_parameters() if not torch.equal(value, weights[key])] == []


@each_method
def test_a_step_updates_the_batch_norm_of_a_head_as_often_as_the_others(name: str) -> None:
    method = method_of(name)
    objective = objective_of(method, backbone("mobilenetv4_conv_small_035"))
    objective(batch_for(method, size=32))
    states = method.export(objective.module).state_dict().items()
    updates = {key: value.item() for key, value in states if key.endswith("num_batches_tracked")}
    assert "norm_head.num_batches_tracked" in updates
    forwards = {"cskd": 2, "distillation_cskd": 2, "dlb": 2, "cskd_e": 3, "mixup_cskd": 3}
    assert set(updates.values()) == {forwards.get(name, 1)}


@each_method
def test_the_same_seed_gives_the_same_step_bit_for_bit(name: str) -> None:
    method = method_of(name)
    losses, gradients = [], []
    for _ in range(2):
        torch.manual_seed(7)  # BYOT's branches and Mixup's mixture
        objective = objective_of(method)
        loss = objective(batch_for(method))["loss"]
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in objective.parameters() if p.requires_grad])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_all_but_three_methods_have_coefficients_that_reduce_them_to_cross_entropy() -> None:
    """DLB normalises its halves separately."""
    assert METHODS.keys() - ZERO.keys() == {"virtual_softmax", "adacos", "dlb"}


@pytest.mark.parametrize("name", ZERO)
def test_zero_coefficients_give_the_cross_entropy_of_the_supervised_images(name: str) -> None:
    method = method_of(name, **ZERO[name])
    batch = batch_for(method)
    result = objective_of(method)(batch)
    plain = objective_of(CrossEntropy())(supervised(method, batch))
    assert torch.equal(result["target"], plain["target"])
    torch.testing.assert_close(result["loss"], plain["loss"], rtol=0, atol=1e-6)


MIXING = {"mixup_alpha": 0.5, "cutmix_alpha": 1.0}


@pytest.mark.parametrize(
    ("name", "settings", "cost"),
    [
        *((name, {}, None) for name in METHODS),
        ("cskd", {}, 4 / 3),
        ("cskd", {"batch_norm": "joint"}, 2),
        ("cskd_e", {"batch_norm": "joint"}, 3),
        ("distillation_cskd", {"batch_norm": "joint"}, 2 + 1 / 3),
        ("cross_entropy", MIXING, 1),
        ("cskd", MIXING, 2 + 1 / 3),
        ("cskd_e", MIXING, 2 + 2 / 3),
        ("mutual_cskd", MIXING, 4),
    ],
)
def test_the_cost_counts_a_third_for_a_forward_and_one_with_its_backward(name: str, settings: Any, cost: Any) -> None:
    method = method_of(name, **settings)
    objective, batch, counted = objective_of(method), batch_for(method, num=4), 0.0

    def count(layer: nn.Module, inputs: Any) -> None:
        nonlocal counted
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3:  # a network's first, the teacher's included
            counted += len(inputs[0]) * (1 if torch.is_grad_enabled() else 1 / 3)

    with torch.nn.modules.module.register_module_forward_pre_hook(count):
        objective(batch)
    assert method.cost == pytest.approx(counted / 4)
    assert cost in (None, pytest.approx(method.cost))


@each_method
def test_a_method_is_frozen_strict_and_without_tensors(name: str) -> None:
    method = method_of(name)
    assert method.name == name
    assert method.views in get_args(Views)
    assert not [key for key, value in method if isinstance(value, Tensor | nn.Module)]
    with pytest.raises(ValueError, match="frozen"):
        method.name = "other"
    with pytest.raises(ValueError, match="lamda"):
        method_of(name, lamda=1.0)


def test_the_number_of_views_is_known_for_every_kind_of_sample() -> None:
    assert NUM_VIEWS.keys() == set(get_args(Views))


@each_method
def test_the_file_cites_its_paper_and_every_field_has_a_docstring(name: str) -> None:
    text = inspect.getdoc(sys.modules[METHODS[name].__module__])
    assert text is not None
    assert re.search(r"\*[^*]+\*,.*(19|20)\d\d,\s+https://", text, flags=re.DOTALL)  # *title*, venue year, link
    fields = METHODS[name].model_fields
    assert [key for key, field in fields.items() if key != "name" and not field.description] == []


@each_method
def test_the_recipe_schema_describes_the_method_without_its_python_example(name: str) -> None:
    description = METHODS[name].model_json_schema()["description"]
    assert description
    assert ">>>" not in description


@each_method
@pytest.mark.parametrize("wrong", [-1e9, float("nan"), float("inf")])
def test_invalid_coefficients_are_rejected(name: str, wrong: float) -> None:
    for key in [key for key, field in METHODS[name].model_fields.items() if field.annotation is float]:
        with pytest.raises(ValueError, match=key):
            method_of(name, **{key: wrong})
        if "temperature" in key:
            with pytest.raises(ValueError, match=key):
                method_of(name, **{key: 0.0})
