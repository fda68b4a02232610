"""The objective: normalisation, one call of the method per forward, no state beyond the module's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import timm
import torch
from method_cases import MEAN, NUM_CLASSES, STD, backbone
from torch import Tensor, nn

from cskd_hf.batch import Views
from cskd_hf.engine.objective import Objective, check_bf16_on_cpu, dry_run
from cskd_hf.errors import UserError
from cskd_hf.methods import CSKD, DDGSD, Batch, CrossEntropy, Method
from cskd_hf.recipe.sections import TransformSection


class Spy(Method):
    """Records its batches."""

    views: ClassVar[Views] = "single"
    batches: ClassVar[list[Batch]] = []
    name: Literal["spy"] = "spy"

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.batches.append(batch)
        output = module(batch.images.mean(dim=(2, 3)))
        return {"loss": output.sum(), "output": output, "target": batch.target, "task_loss": output.mean()}


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    monkeypatch.setattr(Spy, "batches", [])
    return Spy.batches


def objective_of(**settings: Any) -> Objective:
    return Objective(Spy(), nn.Linear(3, NUM_CLASSES), **settings)


def batch_of(images: Tensor) -> Batch:
    return Batch(images, torch.tensor([3, 1]), torch.tensor([70, 50]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_uint8_images_are_scaled_and_normalised(channels_last: bool, batches: list[Batch]) -> None:
    images = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    objective_of(mean=MEAN, std=STD, channels_last=channels_last)(batch_of(images))
    x = images.numpy().astype(np.float64)
    mean, std = np.array(MEAN).reshape(3, 1, 1), np.array(STD).reshape(3, 1, 1)
    assert batches[0].images.dtype == torch.float32
    np.testing.assert_allclose(batches[0].images.numpy(), (x / 255 - mean) / std, rtol=0, atol=2e-6)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float_images_labels_and_indices_are_passed_on_unchanged(dtype: torch.dtype, batches: list[Batch]) -> None:
    batch = batch_of(torch.randn(2, 3, 4, 4, dtype=dtype))
    objective_of(mean=MEAN, std=STD, channels_last=True).to(dtype)(batch)
    assert all(passed is original for passed, original in zip(batches[0][:3], batch[:3], strict=True))


def test_one_forward_is_one_call_of_the_method_with_a_detached_output(batches: list[Batch]) -> None:
    result = objective_of()(batch_of(torch.randn(2, 3, 4, 4)))
    assert len(batches) == 1
    assert result.keys() == {"loss", "output", "target", "task_loss"}
    assert not result["output"].requires_grad
    assert result["loss"].grad_fn is not None


@pytest.mark.parametrize("settings", [{}, {"mean": MEAN}, {"std": STD}])
def test_uint8_images_without_mean_and_std_are_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"mean, std: none, but the images are uint8"):
        objective_of(**settings)(batch_of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)))


# As Accelerate's dispatch_batches and DataParallel split two pairs of classes 3 and 1, and an ordinary loader's batch.
@pytest.mark.parametrize("target", [[3, 1, 3], [3, 1], [3, 1, 1, 3]])
@pytest.mark.parametrize("compiled", [False, True])
def test_images_that_are_not_whole_pairs_are_an_error_or_a_loss_of_nan(target: list[int], compiled: bool) -> None:
    objective = Objective(CSKD(), nn.Sequential(nn.Flatten(), nn.Linear(3, NUM_CLASSES)))
    images = torch.rand(4, 3, 1, 1)
    assert objective(Batch(images, torch.tensor([3, 1, 3, 1]), torch.arange(4)))["loss"].isfinite()
    batch = Batch(images[: len(target)], torch.tensor(target), torch.arange(len(target)))
    if not compiled or len(target) % 2:
        with pytest.raises(UserError, match=r"not 2 views of each sample.*dispatch_batches"):
            objective(batch)
    else:  # as on an accelerator
        assert torch.compile(objective, backend="eager")(batch)["loss"].isnan()


@pytest.mark.parametrize("compiled", [False, True])
def test_two_views_of_one_image_have_one_index(compiled: bool) -> None:
    objective = Objective(DDGSD(), timm.create_model("test_resnet", num_classes=NUM_CLASSES))
    images, target = torch.rand(4, 3, 32, 32), torch.tensor([3, 1, 3, 1])
    assert objective(Batch(images, target, torch.tensor([5, 6, 5, 6])))["loss"].isfinite()
    pairs = Batch(images, target, torch.tensor([5, 6, 5, 7]))
    if not compiled:
        with pytest.raises(UserError, match=r"not 2 views of each sample.*ImageSampler\(…, views=2\)"):
            objective(pairs)
    else:
        assert torch.compile(objective, backend="eager")(pairs)["loss"].isnan()


@pytest.mark.parametrize(
    "wrap", [tuple, list, Batch._asdict, lambda batch: batch.images], ids=["tuple", "list", "dict", "tensor"]
)
def test_other_inputs_than_a_batch_are_an_error_that_names_the_fix(wrap: Any, batches: list[Batch]) -> None:
    with pytest.raises(UserError, match=r"batch: its type is (tuple|list|dict|Tensor); write Batch\("):
        objective_of(mean=MEAN, std=STD)(wrap(batch_of(torch.rand(2, 3, 4, 4))))


@pytest.mark.parametrize("wrap", [lambda logits: (logits,), lambda logits: {"logits": logits}], ids=["tuple", "dict"])
def test_a_model_that_returns_more_than_logits_is_an_error_that_names_the_fix(wrap: Any) -> None:
    class Model(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return wrap(images.flatten(1))

    with pytest.raises(TypeError, match=r"the model returns a (tuple|dict); wrap it"):
        Objective(CrossEntropy(), Model())(batch_of(torch.rand(2, 3, 4, 4)))


def test_mean_and_std_in_0_to_255_are_an_error() -> None:
    with pytest.raises(UserError, match=r"mean: read \(124, 116, 104\); write numbers from 0 to 1"):
        objective_of(mean=(124, 116, 104), std=STD)


def test_the_objective_holds_the_modules_weights_and_saves_nothing_else() -> None:
    objective = objective_of(mean=MEAN, std=STD)
    assert set(objective.state_dict()) == {"module.weight", "module.bias"}
    assert {name for name, _ in objective.named_parameters()} == {"module.weight", "module.bias"}
    assert {name for name, _ in objective.named_buffers()} == {
        "mean",
        "std",
    }  # buffers: they move to the device with it


def test_a_size_that_the_model_does_not_take_is_rejected_wherever_the_schedule_has_it():
    fixed = Objective(CrossEntropy(), backbone("test_vit", img_size=32, dynamic_img_size=False), MEAN, STD)
    for steps, rejected in ((((1, 32),), False), (((1, 16),), True), (((1, 32), (2, 16), (3, 24)), True)):
        transform = TransformSection(input_size=(3, 32, 32), size_schedule=steps)
        error = r"^transform.size_schedule: the model does not run on images of 16×16: "
        with pytest.raises(UserError, match=error) if rejected else nullcontext():
            dry_run(fixed, transform, 1, NUM_CLASSES, torch.device("cpu"))


def test_bf16_on_a_cpu_is_rejected_where_a_convolution_strides_past_the_width_of_its_input():
    objective = Objective(CrossEntropy(), timm.create_model("test_resnet", num_classes=NUM_CLASSES), MEAN, STD)
    for height, width in ((32, 32), (16, 64)):
        check_bf16_on_cpu(objective, TransformSection(input_size=(3, height, width)))
    for height, width in ((16, 16), (64, 16)):
        message = rf"read bf16, .* of layer4\.0\.conv1 wrong .* {height}×{width}; write run\.mixed_precision=no"
        with pytest.raises(UserError, match=message):
            check_bf16_on_cpu(objective, TransformSection(input_size=(3, height, width)))
