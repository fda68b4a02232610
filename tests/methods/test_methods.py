"""What every method promises, and the objective that applies it."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytest
import torch
from method_cases import MEAN, NUM_CLASSES, STD, ZERO, batch_for, method_of, objective_of, supervised
from torch import Tensor, nn

from cskd_hf.batch import NUM_VIEWS, Views
from cskd_hf.engine.objective import Objective
from cskd_hf.methods import METHODS, Batch, CrossEntropy, Method

NUM = 4

each_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# every method; on the paper's backbones in test_backbones.py


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
def test_a_few_steps_on_one_batch_lower_its_loss(name: str) -> None:
    method = method_of(name)
    objective, batch = objective_of(method), batch_for(method)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(4):
        torch.manual_seed(1)  # Mixup mixes the same every time
        loss = objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@each_method
def test_neither_the_batch_nor_the_weights_are_changed_by_a_forward(name: str) -> None:
    method = method_of(name)
    objective, batch = objective_of(method), batch_for(method)
    kept = [part.clone() for part in batch[:3]]
    weights = {key: value.clone() for key, value in objective.named_parameters()}
    objective(batch)
    assert all(torch.equal(part, before) for part, before in zip(batch[:3], kept, strict=True))
    assert [key for key, value in objective.named_parameters() if not torch.equal(value, weights[key])] == []


@each_method
def test_the_same_seed_gives_the_same_step_bit_for_bit(name: str) -> None:
    method = method_of(name)
    losses, gradients = [], []
    for _ in range(2):
        torch.manual_seed(7)  # of BYOT's branches, and of what Mixup mixes
        objective = objective_of(method)
        loss = objective(batch_for(method))["loss"]
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in objective.parameters() if p.requires_grad])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_every_method_but_two_has_coefficients_that_leave_cross_entropy_alone() -> None:
    assert METHODS.keys() - ZERO.keys() == {"virtual_softmax", "adacos"}


@pytest.mark.parametrize("name", ZERO)
def test_the_loss_of_weights_zero_is_cross_entropy_of_the_supervised_images(name: str) -> None:
    method = method_of(name, **ZERO[name])
    batch = batch_for(method)
    result = objective_of(method)(batch)
    plain = objective_of(CrossEntropy())(supervised(method, batch))
    assert torch.equal(result["target"], plain["target"])
    torch.testing.assert_close(result["loss"], plain["loss"], rtol=0, atol=1e-6)


@each_method
def test_a_method_is_frozen_named_as_listed_and_holds_no_tensors(name: str) -> None:
    method = method_of(name)
    assert method.name == name
    assert method.views in get_args(Views)
    assert not [key for key, value in method if isinstance(value, (Tensor, nn.Module))]
    with pytest.raises(ValueError, match="frozen"):
        method.name = "other"
    with pytest.raises(ValueError, match="lamda"):
        method_of(name, lamda=1.0)


def test_every_kind_of_sample_says_how_many_images_it_holds() -> None:
    assert NUM_VIEWS.keys() == set(get_args(Views))


@each_method
def test_a_methods_file_names_its_paper_and_each_field_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(sys.modules[METHODS[name].__module__])
    assert text is not None
    assert re.search(r"\*[^*]+\*,.*(19|20)\d\d,\s+https://", text, flags=re.DOTALL)  # *title*, venue year, link
    undescribed = [key for key, field in METHODS[name].model_fields.items() if key != "name" and not field.description]
    assert undescribed == []


@each_method
@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_coefficients_without_sense_are_refused(name: str, wrong: float) -> None:
    for key in [key for key, field in METHODS[name].model_fields.items() if field.annotation is float]:
        with pytest.raises(ValueError, match=key):
            method_of(name, **{key: wrong})


# the objective


class Spy(Method):
    """Keeps what it is given."""

    views: ClassVar[Views] = "single"
    seen: ClassVar[list[Batch]] = []
    name: Literal["spy"] = "spy"

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch)
        output = module(batch.images.mean(dim=(2, 3)))
        return {"loss": output.sum(), "output": output, "target": batch.target, "task_loss": output.mean()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    monkeypatch.setattr(Spy, "seen", [])
    return Spy.seen


def spied(**settings: Any) -> Objective:
    return Objective(Spy(), nn.Linear(3, NUM_CLASSES), **settings)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bytes_are_scaled_to_one_and_normalised(channels_last: bool, seen: list[Batch]) -> None:
    images = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    spied(mean=MEAN, std=STD, channels_last=channels_last)(Batch(images, torch.arange(2), torch.arange(2)))
    x = images.numpy().astype(np.float64)
    mean, std = np.array(MEAN).reshape(3, 1, 1), np.array(STD).reshape(3, 1, 1)
    assert seen[0].images.dtype == torch.float32
    np.testing.assert_allclose(seen[0].images.numpy(), (x / 255 - mean) / std, rtol=0, atol=2e-6)
    assert seen[0].images.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_images_that_arrive_as_floats_are_left_alone(dtype: torch.dtype, seen: list[Batch]) -> None:
    images = torch.randn(2, 3, 4, 4, dtype=dtype)
    objective = spied(mean=MEAN, std=STD, channels_last=True).to(dtype)
    objective(Batch(images, torch.arange(2), torch.arange(2)))
    assert seen[0].images is images


def test_labels_and_indices_reach_the_method_as_they_are(seen: list[Batch]) -> None:
    batch = Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([3, 1]), torch.tensor([70, 50]))
    spied()(batch)
    assert seen[0].target is batch.target
    assert seen[0].index is batch.index


def test_one_forward_is_one_call_of_the_method(seen: list[Batch]) -> None:
    objective, batch = spied(), Batch(torch.randn(2, 3, 4, 4), torch.arange(2), torch.arange(2))
    for calls in (1, 2, 3):
        objective(batch)
        assert len(seen) == calls


def test_the_output_is_cut_from_the_graph_and_the_loss_is_not(seen: list[Batch]) -> None:
    result = spied()(Batch(torch.randn(2, 3, 4, 4), torch.arange(2), torch.arange(2)))
    assert result.keys() == {"loss", "output", "target", "task_loss"}
    assert result["output"].grad_fn is None
    assert not result["output"].requires_grad
    assert result["loss"].grad_fn is not None


def test_the_objective_holds_the_modules_weights_and_saves_nothing_of_its_own() -> None:
    objective = spied(mean=MEAN, std=STD)
    assert set(objective.state_dict()) == {"module.weight", "module.bias"}
    assert {name for name, _ in objective.named_parameters()} == {"module.weight", "module.bias"}
    assert {name for name, _ in objective.named_buffers()} == {"mean", "std"}  # they move with it to a device
