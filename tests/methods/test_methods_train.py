"""The methods through the real commands: train, stop, resume, evaluate, predict, check."""

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
from cskd_hf.runs.checkpoint import list_checkpoints

CLASSES = ("class 0", "class 1", "class 2")
WEIGHTS = "model/model.safetensors"
RESULTS = (WEIGHTS, "predictions.safetensors")
# A checkpoint at each of the eight updates, none of which goes.
EVERY_STEP = {"checkpoint_steps": 1, "checkpoints_total_limit": 100}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """15 images to train on: four updates an epoch."""
    return draw_folder(tmp_path_factory.mktemp("images") / "three", {"train": (5, 5, 5), "test": (2, 2, 2)})


def method_section(name: str, **settings: Any) -> dict[str, Any]:
    if "teacher" in METHODS[name].model_fields:
        settings = {"teacher": exported("test_resnet", CLASSES), **settings}
    return {"name": name, **settings}


def recipe_of(folder: Path, images: Path, name: str, teacher: str | None = None, **sections: Any) -> Path:
    method = method_section(name, **({} if teacher is None else {"teacher": teacher}))
    return write_recipe(folder / "run.yaml", images, method=method, **sections)


def stopped_at(folder: Path, step: int, to: Path) -> Path:
    """A copy of a finished run as it stood when the checkpoint of `step` had been written."""
    shutil.copytree(folder, to)
    for name in ("summary.json", "report.html", "predictions.safetensors"):
        (to / name).unlink()
    shutil.rmtree(to / "model")
    for checkpoint in list_checkpoints(to / "checkpoints"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return to


def last(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[-1]


# every method


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory, images) -> tuple[str, Path, str]:
    """A method's name, its finished run and what was said; an epoch of two updates, and an average of the weights."""
    name = request.param
    average = {"model_ema": True, "model_ema_decay": 0.5}
    recipe = recipe_of(tmp_path_factory.mktemp(name), images, name, data={"batch_size": 8}, run=average)
    done = quick(recipe, "scheduler.num_epochs=1")
    assert done.status == 0, done.stderr
    assert "Traceback" not in done.stderr
    return name, recipe.with_suffix(""), done.stdout


def test_every_method_trains_evaluates_and_says_how_many_images_an_update_takes(run):
    name, folder, stdout = run
    views = NUM_VIEWS[METHODS[name].views]
    assert f"= 8 {'images' if views == 1 else f'anchors ({8 * views} images)'}," in stdout
    (line,) = metrics_lines(folder)
    assert {"train/loss", "train/task_loss", "train/top1_error", "test/nll"} <= line.keys()
    assert summary_of(folder)["method"]["name"] == name


def test_what_every_method_leaves_is_loaded_by_timm_and_gives_the_saved_logits(run, images):
    name, folder, stdout = run
    model = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True)
    plain = timm.create_model("test_resnet", num_classes=3).state_dict().keys()
    expected = plain - {"fc.bias"} | {"fc.scale"} if name == "adacos" else plain
    assert load_file(folder / WEIGHTS).keys() == model.state_dict().keys() == expected
    # And whoever is told how to load it is told the import that this takes.
    readme = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert ("import cskd_hf.models" in readme) == ("import cskd_hf.models" in stdout) == (name == "adacos")
    out = folder / "evaluated.json"
    assert evaluate.main([str(folder), "--json", str(out)]) == 0
    numbers = json.loads(out.read_text(encoding="utf-8"))["metrics"]
    assert numbers["nll"] == pytest.approx(summary_of(folder)["metrics"]["last"]["nll"], rel=1e-5)


def test_the_running_average_is_of_what_is_exported(run):
    name, folder, _ = run
    average, trained = load_file(last(folder) / "ema.safetensors"), load_file(last(folder) / "model.safetensors")
    exported_weights = load_file(folder / WEIGHTS)
    assert average.keys() == exported_weights.keys()
    assert all(torch.equal(average[key], exported_weights[key]) for key in average)
    inside = "model." if name in ("byot", "distillation", "distillation_cskd", "pskd") else ""
    assert {key.removeprefix(inside) for key in trained if key.startswith(inside)} == average.keys()
    assert not torch.equal(average["conv1.0.weight"], trained[f"{inside}conv1.0.weight"])
    others = {"byot": {"branches"}, "distillation": {"teacher"}, "distillation_cskd": {"teacher"}}.get(name, set())
    assert {key.partition(".")[0] for key in trained if not key.startswith(inside)} == others


# AdaCos


@pytest.fixture(scope="module")
def adacos(tmp_path_factory, images) -> Path:
    """On the ResNet-10 that is exported as a ResNet-18 of other layers; a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("adacos")
    model = {"model_name": "resnet10", "zero_init_last": False}
    done = quick(recipe_of(folder, images, "adacos", model=model, data={"holdout": 0.2}, run=EVERY_STEP))
    assert done.status == 0, done.stderr
    return folder / "run"


def test_a_cosine_resnet10_is_exported_as_the_stock_network_under_a_cosine_head(adacos):
    config = json.loads((adacos / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "cosine_classifier"
    assert config["model_args"] == {"backbone": "resnet18", "layers": [1, 1, 1, 1]}
    saved, checkpoint = load_file(adacos / WEIGHTS), load_file(last(adacos) / "model.safetensors")
    assert saved.keys() == checkpoint.keys()
    assert torch.equal(saved["fc.scale"], checkpoint["fc.scale"])


def test_predict_names_classes_with_a_cosine_network(adacos, images, capsys):
    file = sorted((images / "test" / "class 1").glob("*.png"))[0]
    assert predict.main([str(adacos), str(file)]) == 0
    said = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"^ +([\d.]+) %  class \d$", said, flags=re.MULTILINE)]
    logits, targets = (load_file(adacos / "predictions.safetensors")[key] for key in ("logits", "target"))
    temperature = summary_of(adacos)["metrics"]["temperature"]
    expected = 100 * (logits[targets.tolist().index(1)] / temperature).softmax(dim=-1).sort(descending=True).values
    assert shares == pytest.approx(expected.tolist(), abs=0.02)


# resuming


@pytest.fixture(scope="module")
def pskd(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("pskd")
    done = quick(recipe_of(folder, images, "pskd", run=EVERY_STEP))
    assert done.status == 0, done.stderr
    return folder / "run"


# Within an epoch, at its end, within the second, and before the results.
@pytest.mark.parametrize(("name", "step"), [("pskd", 1), ("pskd", 4), ("pskd", 6), ("pskd", 8), ("adacos", 4)])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(request, tmp_path, name, step):
    whole: Path = request.getfixturevalue(name)
    folder = stopped_at(whole, step, tmp_path / "run")
    done = quick(whole / "recipe.yaml", f"run.output_dir={folder}")
    assert done.status == 0, done.stderr
    assert f"resuming at step {step}, " in done.stdout
    files = [*RESULTS, *(f"checkpoints/{last(whole).name}/{file.name}" for file in last(whole).glob("*.safetensors"))]
    assert len(files) == (4 if name == "pskd" else 3)
    for file in files:
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    assert metrics_lines(folder) == metrics_lines(whole)


def test_a_running_average_goes_on_to_the_same_bits_beside_branches(tmp_path, images):
    average = {"model_ema": True, "model_ema_decay": 0.5, **EVERY_STEP}
    assert quick(recipe_of(tmp_path, images, "byot", run=average)).status == 0
    whole = tmp_path / "run"
    folder = stopped_at(whole, 6, tmp_path / "again")
    done = quick(whole / "recipe.yaml", f"run.output_dir={folder}")
    assert done.status == 0, done.stderr
    for file in (*RESULTS, f"checkpoints/{last(whole).name}/ema.safetensors"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


# teachers


def test_a_run_folder_is_a_teacher_and_its_student_goes_on_with_the_teacher_it_began_with(tmp_path, images, pskd):
    teacher = shutil.copytree(pskd, tmp_path / "teacher")
    done = quick(recipe_of(tmp_path, images, "distillation", str(teacher), run=EVERY_STEP))
    assert done.status == 0, done.stderr
    whole = tmp_path / "run"
    held, trained = load_file(last(whole) / "model.safetensors"), load_file(teacher / WEIGHTS)
    assert all(torch.equal(held[f"teacher.{key}"], value) for key, value in trained.items())
    other = exported("test_resnet", CLASSES, seed=4).removeprefix("local-dir:")
    shutil.copy(Path(other) / "model.safetensors", teacher / "model")  # the place now holds another
    folder = stopped_at(whole, 3, tmp_path / "again")
    done = quick(whole / "recipe.yaml", f"run.output_dir={folder}")
    assert done.status == 0, done.stderr
    for file in RESULTS:
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


def bad_teachers(folder: Path) -> dict[str, tuple[str, str]]:
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "recipe.yaml").touch()
    return {
        "other number": (exported("test_resnet"), "knows 4 classes, and the data has 3"),
        "other order": (exported("test_resnet", ("class 0", "class 2", "class 1")), "label 1 is 'class 2' for "),
        "missing": (f"local-dir:{folder / 'nowhere'}", "no weights that timm loads"),
        "unfinished": (str(folder / "unfinished"), "not a finished run"),
        "offline": ("hf-hub:nobody/nothing", "no weights that timm loads"),
    }


@pytest.mark.parametrize("name", ["distillation", "distillation_cskd"])
@pytest.mark.parametrize("kind", ["other number", "other order", "missing", "unfinished", "offline"])
def test_a_teacher_that_will_not_do_is_told_in_one_line_and_nothing_is_written(tmp_path, images, name, kind):
    teacher, said = bad_teachers(tmp_path)[kind]
    recipe = recipe_of(tmp_path, images, name, teacher)
    before = tree(tmp_path)
    done = quick(recipe)
    assert done.status == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: method.teacher: ")
    assert said in line
    assert tree(tmp_path) == before


def test_a_recipe_without_a_teacher_says_which_key_is_missing(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images, method={"name": "distillation"}))
    assert done.status == 2
    assert re.search(r"^error: .*method\.teacher: ", done.stderr)


# check


@pytest.mark.parametrize("name", METHODS)
def test_check_builds_every_method_without_memory_for_its_weights(tmp_path, images, capsys, name):
    status = check.main([str(recipe_of(tmp_path, images, name))])
    said = capsys.readouterr().out
    assert status == 0, said
    assert re.search(rf"^model +test_resnet, [\d,]+ parameters, {name}$", said, flags=re.MULTILINE)
    assert "no problems" in said


def test_check_lists_a_teacher_that_will_not_do_among_the_problems(tmp_path, images, capsys):
    assert check.main([str(recipe_of(tmp_path, images, "distillation", exported("test_resnet")))]) == 1
    assert re.search(r"^  1\. method\.teacher: .* knows 4 classes", capsys.readouterr().out, flags=re.MULTILINE)


def test_check_says_that_a_network_has_too_few_stages(tmp_path, images, capsys):
    recipe = recipe_of(tmp_path, images, "byot", model={"model_name": "levit_128s"})
    assert check.main([str(recipe)]) == 1
    assert "1. method.name: byot needs 4 stages" in capsys.readouterr().out


# unreadable images


def test_the_un_augmented_view_goes_along_where_an_unreadable_image_is_replaced(tmp_path):
    folder = draw_folder(tmp_path / "images", {"train": (4, 4), "test": (2, 2)})
    (folder / "train" / "class 0" / "01.png").write_bytes(b"not an image")
    done = quick(recipe_of(tmp_path, folder, "cskd_e", data={"on_corrupt": "skip"}))
    assert done.status == 0, done.stderr
    assert summary_of(tmp_path / "run")["skipped_images"]["train"] == 1
