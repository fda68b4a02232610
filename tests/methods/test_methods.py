"""What every method promises, and the objective that applies it."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import cskd_hf.models  # noqa: F401  (registers)
from cskd_hf.engine.objective import Objective
from cskd_hf.methods import METHODS, Batch, Experiment, Method
from cskd_hf.methods.base import Views

NUM_CLASSES = 4
NUM = 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EXPERIMENT = Experiment(40, 5, ("a", "b", "c", "d"), MEAN, STD)

each_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def backbone() -> nn.Module:
    return timm.create_model("preact_resnet10_32px", num_classes=NUM_CLASSES)


def batch_for(method: type[Method], num: int = NUM) -> Batch:
    """Bytes as the loader hands them over: `num` images, or `num` pairs as [anchors | partners]."""
    target = torch.arange(num) % NUM_CLASSES
    index = torch.arange(num)
    if method.views != "single":
        target, index = target.repeat(2), index.repeat(2)
    return Batch(torch.randint(256, (len(target), 3, 16, 16), dtype=torch.uint8), target, index)


def objective_of(name: str) -> Objective:
    method = METHODS[name](**({"teacher": TEACHER} if "teacher" in METHODS[name].model_fields else {}))
    return Objective(method, method.build(backbone(), EXPERIMENT), MEAN, STD, channels_last=True).train()


# every method


@each_method
def test_a_step_gives_a_finite_loss_the_supervised_logits_and_scalars_to_log(name: str) -> None:
    result = objective_of(name)(batch_for(METHODS[name]))
    assert result.keys() >= {"loss", "output", "target"}
    assert result["loss"].requires_grad
    assert result["output"].shape == (len(result["target"]), NUM_CLASSES)
    assert torch.equal(result["target"][:NUM], torch.arange(NUM) % NUM_CLASSES)
    for term in result.keys() - {"output", "target"}:
        assert result[term].shape == (), term
        assert result[term].isfinite(), term


@each_method
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    objective = objective_of(name)
    objective(batch_for(METHODS[name]))["loss"].backward()
    trainable = {key: p for key, p in objective.named_parameters() if p.requires_grad}
    assert [key for key, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    exported = {id(p) for p in objective.method.export(objective.module).parameters() if p.requires_grad}
    reached = {id(p) for p in trainable.values() if p.grad is not None and p.grad.any()}
    assert exported <= reached


@each_method
def test_the_loss_is_float32_under_autocast(name: str) -> None:
    objective = objective_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        result = objective(batch_for(METHODS[name]))
    result["loss"].backward()
    assert result["loss"].dtype == torch.float32
    assert result["loss"].isfinite()


@each_method
def test_what_is_exported_is_plain_timms(name: str) -> None:
    objective = objective_of(name)
    exported = objective.method.export(objective.module)
    plain = backbone()
    shapes = {key: tensor.shape for key, tensor in plain.state_dict().items()}
    assert {key: tensor.shape for key, tensor in exported.state_dict().items()} == shapes
    plain.load_state_dict(exported.state_dict())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(images), plain.eval()(images))


@each_method
def test_a_few_steps_on_one_batch_lower_its_loss(name: str) -> None:
    objective, batch = objective_of(name), batch_for(METHODS[name])
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(4):
        loss = objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@each_method
def test_a_method_is_frozen_named_as_listed_and_holds_no_tensors(name: str) -> None:
    method = METHODS[name]()
    assert method.name == name
    assert method.views in ("single", "same_class", "same_image")
    assert not [key for key, value in method if isinstance(value, (Tensor, nn.Module))]
    with pytest.raises(ValueError, match="frozen"):
        method.name = "other"
    with pytest.raises(ValueError, match="lamda"):
        METHODS[name](lamda=1.0)  # type: ignore[call-arg]


@each_method
def test_a_methods_file_names_its_paper_and_each_field_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(sys.modules[METHODS[name].__module__])
    assert text is not None
    assert re.search(r"\*[^*]+\*,.*(19|20)\d\d,\s+https://", text, flags=re.DOTALL)  # *title*, venue year, link
    undescribed = [key for key, field in METHODS[name].model_fields.items() if key != "name" and not field.description]
    assert undescribed == []


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
