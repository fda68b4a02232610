"""A student with its teacher: the teacher's input, its immutability, and the teachers that are rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from method_cases import (
    CLASSES,
    EXPERIMENT,
    MEAN,
    STD,
    TEACHER_MEAN,
    TEACHER_STD,
    batch_for,
    exported,
    method_of,
    objective_of,
    small_network,
)
from safetensors.torch import save_file

from cskd_hf.errors import UserError
from cskd_hf.hub.fold import fold_temperature
from cskd_hf.models.teacher import ModelWithTeacher, with_teacher

METHOD = method_of("distillation")
TEACHER = exported("test_resnet")


def build(source: str = TEACHER, class_names: tuple[str, ...] = CLASSES) -> ModelWithTeacher:
    return with_teacher(small_network(), source, class_names, MEAN, STD)


def copy_teacher(folder: Path) -> Path:
    return shutil.copytree(TEACHER.removeprefix("local-dir:"), folder / "teacher")


def test_the_teacher_gets_the_students_pixels_normalised_by_its_own_mean_and_std() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (3, 3, 32, 32), dtype=np.uint8)

    def normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        channel = (1, 3, 1, 1)
        values = (pixels / 255 - np.array(mean).reshape(channel)) / np.array(std).reshape(channel)
        return torch.tensor(values, dtype=torch.float32)

    teacher: Any = timm.create_model(TEACHER, pretrained=True).eval()
    with torch.no_grad():
        expected = teacher(normalise(TEACHER_MEAN, TEACHER_STD))
        assert not torch.allclose(teacher(normalise(MEAN, STD)), expected, atol=0.01)
    torch.testing.assert_close(build().train().teacher_output(normalise(MEAN, STD)), expected, rtol=0, atol=1e-4)


def test_a_teacher_with_a_folded_temperature_gives_its_logits_before_calibration(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 32, 32)
    expected = build().teacher_output(images)
    folder = copy_teacher(tmp_path)
    folded, _ = fold_temperature(timm.create_model(TEACHER, pretrained=True).eval(), 2.5, (3, 32, 32))
    save_file(folded.state_dict(), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["cskd"] = {"temperature": 1.0, "folded_temperature": 2.5}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.testing.assert_close(build(f"local-dir:{folder}").teacher_output(images), expected)


def test_forward_and_mode_are_the_students() -> None:
    module = build()
    images = torch.randn(2, 3, 16, 16)
    for mode in (True, False, True):
        assert module.train(mode) is module
        assert module.model.training is mode
        assert not any(layer.training for layer in module.teacher.modules())
    module.eval()
    with torch.no_grad():
        assert torch.equal(module(images), module.model(images))


def test_training_changes_the_student_and_nothing_in_the_teacher() -> None:
    objective = objective_of(METHOD)
    module: Any = objective.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(3):
        objective.train()
        objective(batch_for(METHOD, seed=seed))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
    assert any(name.startswith("teacher.") and "running_mean" in name for name in before)
    assert changed == {name for name in before if name.startswith("model.")}


def test_no_gradient_flows_through_or_into_the_teacher() -> None:
    module = build()
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    assert not module.teacher_output(images).requires_grad
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert all(p.requires_grad for p in module.model.parameters())


def test_the_state_dict_holds_the_teacher() -> None:
    module, other = build(), build(exported("test_resnet", CLASSES, seed=4))
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(other.teacher_output(images), module.teacher_output(images))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.teacher_output(images), module.teacher_output(images))


def test_a_teacher_without_class_names_is_accepted_by_its_number_of_classes(tmp_path: Path) -> None:
    folder = copy_teacher(tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["label_names"], config["cskd"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(build(f"local-dir:{folder}").teacher_output(images), build().teacher_output(images))


def test_building_on_the_meta_device_loads_the_teacher_on_the_cpu() -> None:
    with torch.device("meta"):
        module: Any = METHOD.build(timm.create_model("test_resnet", num_classes=4), EXPERIMENT)
    assert {p.device.type for p in module.model.parameters()} == {"meta"}
    assert {p.device.type for p in module.teacher.parameters()} == {"cpu"}


# Rejected teachers


def rejection(source: str, class_names: tuple[str, ...] = CLASSES) -> str:
    with pytest.raises(UserError, match=r"^method\.teacher: .*$") as caught:
        build(source, class_names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b", "c"), "{} has 4 classes, and the data has 3"),
        (("a", "c", "b", "d"), "label 1 is 'b' in {} and 'c' in the data"),
        (("a", "b", "c", "e"), "label 3 is 'd' in {} and 'e' in the data"),
    ],
)
def test_other_classes_are_rejected_at_the_first_difference(names: tuple[str, ...], message: str) -> None:
    assert message.format(TEACHER) in rejection(TEACHER, names)


def test_a_teacher_of_images_with_other_channels_is_rejected() -> None:
    with pytest.raises(UserError, match=r"takes images of 3 channels, and transform\.input_size has 1; train"):
        with_teacher(small_network(), TEACHER, CLASSES, MEAN[:1], STD[:1])


@pytest.mark.parametrize("files", [(), ("recipe.yaml", "metrics.jsonl")])
def test_an_unfinished_run_is_rejected(tmp_path: Path, files: tuple[str, ...]) -> None:
    for file in files:
        (tmp_path / file).touch()
    assert f"{tmp_path}: not a finished run" in rejection(str(tmp_path))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def swap_weights(folder: Path) -> None:
    shutil.copy(Path(exported("resnet10").removeprefix("local-dir:")) / "model.safetensors", folder)


def rename_architecture(folder: Path) -> None:
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace("test_resnet", "test_rresnet"), encoding="utf-8")


@pytest.mark.parametrize(
    "spoil",
    [
        shutil.rmtree,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
        lambda folder: (folder / "config.json").write_text("{}", encoding="utf-8"),
        truncate,
        swap_weights,
        rename_architecture,
    ],
    ids=["no folder", "no weights", "invalid JSON", "no architecture", "truncated", "other weights", "unknown name"],
)
def test_weights_that_timm_cannot_load_are_rejected(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    folder = copy_teacher(tmp_path)
    spoil(folder)
    assert "timm cannot load these weights" in rejection(f"local-dir:{folder}")
