"""The methods through the real commands: train, resume, evaluate, predict, check."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_runs import draw_folder, metrics_lines, quick, summary_of, tree, write_recipe
from method_cases import exported
from safetensors.torch import load_file

from cskd_hf import check, evaluate, predict
from cskd_hf.batch import NUM_VIEWS
from cskd_hf.methods import METHODS
from cskd_hf.runs.checkpoint_folders import list_checkpoints

CLASSES = ("class 0", "class 1", "class 2")
WEIGHTS = "model/model.safetensors"
RESULTS = (WEIGHTS, "predictions.safetensors")
EVERY_STEP = {"checkpoint_steps": 1, "checkpoints_total_limit": 100}  # all eight updates
AVERAGE = {"model_ema": True, "model_ema_decay": 0.5}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 training images: four updates per epoch."""
    return draw_folder(tmp_path_factory.mktemp("images") / "three", {"train": (5, 5, 5), "test": (2, 2, 2)})


def recipe_of(folder: Path, images: Path, name: str, teacher: str | None = None, **sections: Any) -> Path:
    method = {"name": name}
    if "teacher" in METHODS[name].model_fields:
        method["teacher"] = exported("test_resnet", CLASSES) if teacher is None else teacher
    return write_recipe(folder / "run.yaml", images, method=method, **sections)


def train(recipe: Path, *overrides: str) -> str:
    done = quick(recipe, *overrides)
    assert done.status == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def copy_stopped_at(folder: Path, step: int, to: Path) -> Path:
    """A copy of a finished run as it was right after the checkpoint of `step`."""
    shutil.copytree(folder, to)
    for name in ("summary.json", "report.html", "predictions.safetensors"):
        (to / name).unlink()
    shutil.rmtree(to / "model")
    for checkpoint in list_checkpoints(to / "checkpoints"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return to


def last_checkpoint(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[-1]


def assert_resumes_to_the_same_bits(whole: Path, step: int, to: Path) -> None:
    folder = copy_stopped_at(whole, step, to)
    assert f"resuming at step {step}, " in train(whole / "recipe.yaml", f"run.output_dir={folder}")
    checkpoint = last_checkpoint(whole)
    files = [*RESULTS, *(f"checkpoints/{checkpoint.name}/{file.name}" for file in checkpoint.glob("*.safetensors"))]
    assert [file for file in files if (folder / file).read_bytes() != (whole / file).read_bytes()] == []
    assert metrics_lines(folder) == metrics_lines(whole)


# Every method


@pytest.fixture(scope="module", params=METHODS)
def run(request: Any, tmp_path_factory: pytest.TempPathFactory, images: Path) -> tuple[str, Path, str]:
    """A method's name, its finished run of one epoch with a weight average, and its output."""
    name = request.param
    recipe = recipe_of(tmp_path_factory.mktemp(name), images, name, data={"batch_size": 8}, run=AVERAGE)
    return name, recipe.with_suffix(""), train(recipe, "scheduler.num_epochs=1")


def test_every_method_trains_and_prints_its_global_batch(run: tuple[str, Path, str]) -> None:
    name, folder, stdout = run
    views = NUM_VIEWS[METHODS[name].views]
    assert f"= 8 {'images' if views == 1 else f'anchors ({8 * views} images)'}\n" in stdout
    (line,) = metrics_lines(folder)
    assert {"train/loss", "train/task_loss", "train/top1_error", "test/nll"} <= line.keys()
    assert summary_of(folder)["method"]["name"] == name


def test_every_methods_weights_load_in_timm_and_give_the_saved_metrics(run: tuple[str, Path, str]) -> None:
    name, folder, stdout = run
    model = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True)
    plain = timm.create_model("test_resnet", num_classes=3).state_dict().keys()
    expected = plain - {"fc.bias"} | {"fc.scale"} if name == "adacos" else plain
    assert load_file(folder / WEIGHTS).keys() == model.state_dict().keys() == expected
    readme = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert ("import cskd_hf.models" in readme) == ("import cskd_hf.models" in stdout) == (name == "adacos")
    out = folder / "evaluated.json"
    assert evaluate.main([str(folder), "--json", str(out)]) == 0
    metrics = json.loads(out.read_text(encoding="utf-8"))["metrics"]
    assert metrics["nll"] == pytest.approx(summary_of(folder)["metrics"]["last"]["nll"], rel=1e-5)


def test_the_weight_average_is_of_the_exported_network(run: tuple[str, Path, str]) -> None:
    name, folder, _ = run
    average, trained, weights = (
        load_file(file)
        for file in (*(last_checkpoint(folder) / f"{part}.safetensors" for part in ("ema", "model")), folder / WEIGHTS)
    )
    assert average.keys() == weights.keys()
    assert all(torch.equal(average[key], weights[key]) for key in average)
    prefix = "model." if name in ("byot", "distillation", "distillation_cskd", "pskd", "dlb") else ""
    assert {key.removeprefix(prefix) for key in trained if key.startswith(prefix)} == average.keys()
    assert not torch.equal(average["conv1.0.weight"], trained[f"{prefix}conv1.0.weight"])
    others = {"byot": {"branches", "hints"}, "distillation": {"teacher"}, "distillation_cskd": {"teacher"}}
    assert {key.partition(".")[0] for key in trained if not key.startswith(prefix)} == others.get(name, set())


@pytest.mark.parametrize("name", METHODS)
def test_check_accepts_every_method(tmp_path: Path, images: Path, capsys: Any, name: str) -> None:
    status = check.main([str(recipe_of(tmp_path, images, name))])
    output = capsys.readouterr().out
    assert status == 0, output
    assert re.search(rf"^model +test_resnet, [\d,]+ parameters, {name}$", output, flags=re.MULTILINE)
    assert "no problems" in output


# Resuming


@pytest.fixture(scope="module")
def pskd(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    recipe = recipe_of(tmp_path_factory.mktemp("pskd"), images, "pskd", run=EVERY_STEP)
    train(recipe)
    return recipe.with_suffix("")


@pytest.fixture(scope="module")
def adacos(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """With the ResNet-10 that is exported as a ResNet-18 with other layers."""
    model = {"model_name": "resnet10", "zero_init_last": False}
    folder = tmp_path_factory.mktemp("adacos")
    recipe = recipe_of(folder, images, "adacos", model=model, data={"holdout": 0.2}, run=EVERY_STEP)
    train(recipe)
    return recipe.with_suffix("")


def test_a_weight_average_beside_branches_resumes_to_the_same_bits(tmp_path: Path, images: Path) -> None:
    train(recipe_of(tmp_path, images, "byot", run=AVERAGE | EVERY_STEP))
    assert_resumes_to_the_same_bits(tmp_path / "run", 6, tmp_path / "again")


def test_a_resumed_student_keeps_the_teacher_it_started_with(tmp_path: Path, images: Path, pskd: Path) -> None:
    teacher = shutil.copytree(pskd, tmp_path / "teacher")
    train(recipe_of(tmp_path, images, "distillation", str(teacher), run=EVERY_STEP))
    checkpoint, weights = (
        load_file(file) for file in (last_checkpoint(tmp_path / "run") / "model.safetensors", teacher / WEIGHTS)
    )
    assert all(torch.equal(checkpoint[f"teacher.{key}"], value) for key, value in weights.items())
    other = exported("test_resnet", CLASSES, seed=4).removeprefix("local-dir:")
    shutil.copy(Path(other) / "model.safetensors", teacher / "model")
    assert_resumes_to_the_same_bits(tmp_path / "run", 3, tmp_path / "again")


# AdaCos


def test_a_cosine_resnet10_is_exported_as_a_resnet18_with_a_cosine_head(adacos: Path) -> None:
    config = json.loads((adacos / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "cosine_classifier"
    assert config["model_args"] == {"backbone": "resnet18", "layers": [1, 1, 1, 1]}
    weights, checkpoint = load_file(adacos / WEIGHTS), load_file(last_checkpoint(adacos) / "model.safetensors")
    assert weights.keys() == checkpoint.keys()
    assert torch.equal(weights["fc.scale"], checkpoint["fc.scale"])


def test_predict_gives_the_probabilities_of_a_cosine_network(adacos: Path, images: Path, capsys: Any) -> None:
    file = sorted((images / "test" / "class 1").glob("*.png"))[0]
    assert predict.main([str(adacos), str(file)]) == 0
    output = capsys.readouterr().out
    percent = [float(share) for share in re.findall(r"^ +([\d.]+) %  class \d$", output, flags=re.MULTILINE)]
    logits, targets = (load_file(adacos / "predictions.safetensors")[key] for key in ("logits", "target"))
    temperature = summary_of(adacos)["metrics"]["temperature"] or 1.0
    expected = 100 * (logits[targets.tolist().index(1)] / temperature).softmax(dim=-1).sort(descending=True).values
    assert percent == pytest.approx(expected.tolist(), abs=0.02)


# Errors


@pytest.mark.parametrize("name", ["distillation", "distillation_cskd"])
def test_an_unusable_teacher_is_reported_in_one_line_before_anything_is_written(
    tmp_path: Path, images: Path, name: str
) -> None:
    recipe = recipe_of(tmp_path, images, name, f"local-dir:{tmp_path / 'nowhere'}")
    before = tree(tmp_path)
    done = quick(recipe)
    assert done.status == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: method.teacher: ")
    assert "timm cannot load these weights" in line
    assert tree(tmp_path) == before


def test_check_lists_an_unsuitable_teacher_and_network_among_the_problems(
    tmp_path: Path, images: Path, capsys: Any
) -> None:
    assert check.main([str(recipe_of(tmp_path, images, "distillation", exported("test_resnet")))]) == 1
    assert re.search(r"^  1\. method\.teacher: .* has 4 classes", capsys.readouterr().out, flags=re.MULTILINE)
    assert check.main([str(recipe_of(tmp_path, images, "byot", model={"model_name": "levit_128s"}))]) == 1
    assert "1. method.name: byot needs 4 stages" in capsys.readouterr().out
