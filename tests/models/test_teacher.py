"""A teacher beside a student: what it is shown, that it never changes, and which teachers are refused."""

from __future__ import annotations

import json
import re
import shutil
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

from cskd_hf.errors import UserError
from cskd_hf.models.teacher import Taught, with_teacher

METHOD = method_of("distillation")
TEACHER = exported("test_resnet")


def taught(source: str = TEACHER, class_names: tuple[str, ...] = CLASSES) -> Taught:
    return with_teacher(small_network(), source, class_names, MEAN, STD)


def copy_of_the_teacher(folder: Path) -> Path:
    return shutil.copytree(TEACHER.removeprefix("local-dir:"), folder / "teacher")


def the_teacher_alone() -> Any:
    return timm.create_model(TEACHER, pretrained=True).eval()


def test_the_teacher_sees_the_students_pixels_normalised_by_its_own_mean_and_std():
    pixels = np.random.RandomState(0).randint(0, 256, (3, 3, 32, 32), dtype=np.uint8)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        channel = (1, 3, 1, 1)
        values = (pixels / 255 - np.array(mean).reshape(channel)) / np.array(std).reshape(channel)
        return torch.tensor(values, dtype=torch.float32)

    module = taught().train()
    with torch.no_grad():
        expected = the_teacher_alone()(normalised(TEACHER_MEAN, TEACHER_STD))
    torch.testing.assert_close(module.teach(normalised(MEAN, STD)), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(the_teacher_alone()(normalised(MEAN, STD)), expected, atol=0.01)


def test_the_student_alone_answers_and_changes_its_mode():
    module = taught()
    images = torch.randn(2, 3, 16, 16)
    for mode in (True, False, True):
        assert module.train(mode) is module
        assert module.model.training is mode
        assert not any(part.training for part in module.teacher.modules())
    module.eval()
    with torch.no_grad():
        assert torch.equal(module(images), module.model(images))


def test_training_steps_change_the_student_and_nothing_of_the_teacher():
    objective = objective_of(METHOD)
    module: Any = objective.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(3):
        objective.train()
        objective(batch_for(METHOD, seed=seed))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = module.state_dict()
    teachers = [name for name in before if name.startswith("teacher.")]
    assert any("running_mean" in name for name in teachers)
    assert [name for name in teachers if not torch.equal(before[name], after[name])] == []
    students = [name for name in before if name.startswith("model.")]
    assert [name for name in students if torch.equal(before[name], after[name])] == []


def test_no_gradient_flows_through_the_teacher_nor_into_it():
    module = taught()
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    assert not module.teach(images).requires_grad
    assert not [name for name, p in module.teacher.named_parameters() if p.requires_grad]
    assert all(p.requires_grad for p in module.model.parameters())


def test_a_checkpoint_brings_the_teacher_back_whatever_became_of_its_place():
    module = taught()
    held = {name: value.clone() for name, value in module.state_dict().items()}
    other = taught(exported("test_resnet", CLASSES, seed=4))
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(other.teach(images), module.teach(images))
    other.load_state_dict(held)
    assert torch.equal(other.teach(images), module.teach(images))


def test_a_teacher_without_class_names_is_taken_at_its_number_of_classes(tmp_path):
    folder = copy_of_the_teacher(tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["label_names"], config["cskd"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(taught(f"local-dir:{folder}").teach(images), taught().teach(images))


def test_building_on_the_meta_device_as_check_does_loads_the_teacher_and_moves_nothing():
    with torch.device("meta"):
        module: Any = METHOD.build(timm.create_model("test_resnet", num_classes=4), EXPERIMENT)
    assert {p.device.type for p in module.model.parameters()} == {"meta"}
    assert {p.device.type for p in module.teacher.parameters()} == {"cpu"}


# teachers that are refused


def refused(source: str, class_names: tuple[str, ...] = CLASSES) -> str:
    with pytest.raises(UserError) as caught:
        taught(source, class_names)
    said = str(caught.value)
    assert said.startswith("method.teacher: ")
    assert "\n" not in said
    return said


def test_another_number_of_classes_is_refused():
    said = refused(TEACHER, ("a", "b", "c"))
    assert f"{TEACHER} knows 4 classes, and the data has 3" in said


@pytest.mark.parametrize(
    ("names", "at"), [(("a", "c", "b", "d"), "label 1 is 'b'"), (("a", "b", "c", "e"), "label 3 is 'd'")]
)
def test_the_same_number_of_other_classes_or_another_order_is_refused_at_the_first_that_differs(names, at):
    assert at in refused(TEACHER, names)


def test_a_missing_folder_is_refused(tmp_path):
    assert "no weights that timm loads" in refused(f"local-dir:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("files", [(), ("recipe.yaml", "metrics.jsonl")])
def test_a_run_that_is_not_finished_is_refused(tmp_path, files):
    for file in files:
        (tmp_path / file).touch()
    assert f"{tmp_path}: not a finished run" in refused(str(tmp_path))


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def other_weights(folder: Path) -> None:
    shutil.copy(Path(exported("resnet10").removeprefix("local-dir:")) / "model.safetensors", folder)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def no_architecture(folder: Path) -> None:
    (folder / "config.json").write_text("{}", encoding="utf-8")


def unknown_architecture(folder: Path) -> None:
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(re.sub("test_resnet", "test_rresnet", config), encoding="utf-8")


@pytest.mark.parametrize(
    "spoil", [cut_weights, other_weights, no_weights, no_json, no_architecture, unknown_architecture]
)
def test_weights_that_cannot_be_loaded_are_refused(tmp_path, spoil):
    folder = copy_of_the_teacher(tmp_path)
    spoil(folder)
    assert "no weights that timm loads" in refused(f"local-dir:{folder}")
