"""A finished run: what its folder holds, who else can load its weights, and what the same command makes of it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_runs import (
    Result,
    command,
    draw_folder,
    environment,
    fifteen_images,
    metrics_lines,
    quick,
    summary_of,
    torchrun,
    tree,
    write_recipe,
)
from safetensors.torch import load_file

from cskd_hf.results.metrics import METRICS

RATES = ["top1_error", "top5_error", "nll", "brier", "ece", "adaptive_ece", "classwise_ece", "aurc", "recall_at_1"]


images = pytest.fixture(fifteen_images, scope="module")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images) -> tuple[Path, Path, Result]:
    """A whole run of the real command, with a held-out share: its recipe, its folder, what it printed."""
    recipe = write_recipe(
        tmp_path_factory.mktemp("finished") / "run.yaml",
        images,
        data={"holdout": 0.2},
        model={"model_name": "preact_resnet10_32px"},
        transform={"input_size": [3, 16, 16]},
    )
    done = command(recipe)
    assert done.status == 0, done.stderr
    return recipe, recipe.with_suffix(""), done


def test_a_run_leaves_no_process_of_its_loader(tmp_path, images):
    """Not even where something holds on to what it used; a library may keep an error, and with it every frame."""
    program = tmp_path / "program.py"
    program.write_text(
        "import gc, multiprocessing, sys\n"
        "from cskd_hf import train\n"
        "gc.disable()\n"
        "print(train.main(sys.argv[1:]), multiprocessing.active_children())\n"
    )
    done = torchrun(program, write_recipe(tmp_path / "run.yaml", images), "data.workers=2", processes=1)
    assert done.status == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_run_leaves_every_file_of_the_run_folder(finished):
    _, folder, _ = finished
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "checkpoints",
        "environment.json",
        "figures",
        "metrics.jsonl",
        "model",
        "predictions.safetensors",
        "recipe.yaml",
        "report.html",
        "summary.json",
    ]
    # 12 images to train on: 3 updates an epoch.
    assert sorted(entry.name for entry in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert sorted(entry.name for entry in (folder / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert list((folder / "figures").glob("*.png"))
    assert (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_what_is_written_can_be_read_by_whom_the_umask_lets(finished):
    _, folder, _ = finished
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert {name: oct(mode) for name, mode in modes.items() if mode != modes["recipe.yaml"]} == {}


def test_the_summary_has_the_keys_that_other_scripts_read(finished):
    _, folder, _ = finished
    summary = summary_of(folder)
    assert {key: summary[key] for key in ("seed", "epochs", "selection")} == {
        "seed": 0,
        "epochs": 2,
        "selection": "last",
    }
    assert len(bytes.fromhex(summary["recipe_hash"])) == 8
    assert summary["dataset"]["images"] == {"train": 12, "holdout": 3, "test": 9}
    assert set(summary["metrics"]) == {"last", "temperature", "metrics_scaled"}
    assert list(summary["metrics"]["last"]) == list(summary["metrics"]["metrics_scaled"]) == RATES
    throughput = summary["throughput"]
    assert {"images_per_second", "data_wait_share", "peak_memory_bytes"} <= set(throughput)
    assert throughput["images_per_second"] == pytest.approx(24 / throughput["train_seconds"])
    assert 0 < throughput["data_wait_share"] < 1
    assert throughput["peak_memory_bytes"] is None
    assert summary["skipped_images"] == {"train": 0, "holdout": 0, "test": 0}


def test_the_metrics_are_those_of_the_saved_predictions(finished):
    _, folder, _ = finished
    metrics, saved = summary_of(folder)["metrics"], load_file(folder / "predictions.safetensors")
    logits, target, features = saved["logits"], saved["target"], saved["features"]
    assert logits.shape == (9, 3)
    assert features.shape == (9, 512)
    assert target.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert saved["row"].tolist() == list(range(9))
    assert metrics["last"]["top1_error"] == pytest.approx(100 * (logits.argmax(1) != target).double().mean().item())
    for name, metric in METRICS.items():
        assert metrics["last"][name] == pytest.approx(metric.compute(logits, target, features), abs=1e-9), name
        scaled = metric.compute(logits / metrics["temperature"], target, features)
        assert metrics["metrics_scaled"][name] == pytest.approx(scaled, abs=1e-4), name
    assert saved["holdout_logits"].shape == (3, 3)


def test_there_is_one_line_of_metrics_an_epoch(finished):
    _, folder, _ = finished
    lines = metrics_lines(folder)
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 3), (1, 6)]
    for line in lines:
        assert {"lr", "train/loss", "train/task_loss", "train/kd_loss", "train/top1_error"} <= set(line)
        assert {"holdout/top1_error", "holdout/nll", "holdout/ece"} <= set(line)
        assert not [key for key in line if key.startswith("test/")]  # looked at once, at the end
        assert line["train/loss"] == pytest.approx(line["train/task_loss"] + line["train/kd_loss"], rel=1e-6)


def test_output_that_is_no_terminal_gets_lines_and_no_bars(finished):
    _, folder, (_, stdout, stderr) = finished
    assert "\r" not in stdout + stderr
    assert "\x1b" not in stdout + stderr
    assert [line[:11] for line in stdout.splitlines() if line.startswith("epoch")] == ["epoch   1/2", "epoch   2/2"]
    assert "4 x 1 processes x 1 accumulated = 4 anchors (8 images)" in stdout
    assert f'timm.create_model("local-dir:{folder}/model", pretrained=True)' in stdout
    for name in RATES:
        assert f"  {name} " in stdout


def test_the_environment_is_described_without_naming_the_machine(finished):
    recipe, folder, _ = finished
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["num_processes"] == 1
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["command"] == f"python -m cskd_hf.train {recipe}"
    assert os.uname().nodename not in json.dumps(environment | {"command": ""})


def test_the_resolved_recipe_reruns_the_run_and_the_numbers_are_the_same(finished, tmp_path):
    _, folder, _ = finished
    done = quick(folder / "recipe.yaml", f"run.output_dir={tmp_path / 'again'}")
    assert done.status == 0, done.stderr
    assert metrics_lines(tmp_path / "again") == metrics_lines(folder)
    again = summary_of(tmp_path / "again")
    assert again["metrics"] == summary_of(folder)["metrics"]
    assert again["recipe_hash"] == summary_of(folder)["recipe_hash"]


# The weights, loaded by who never heard of this package


LOADER = """
import json, sys
import timm, torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

folders, files, target, with_transformers = json.loads(sys.argv[1])
logits, labels = {}, {}
def load(name):
    model = timm.create_model(f"local-dir:{folders[name]}/model", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        logits[name] = model(torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))
for name in ("resnet18", "resnet10"):
    load(name)
if with_transformers:
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
    folder = f"{folders['resnet18']}/model"
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor([Image.open(file).convert("RGB") for file in files], return_tensors="pt")
        logits["transformers"] = model(**pixels).logits
    found = pipeline("image-classification", model=folder)(Image.open(files[0]).convert("RGB"))
    labels["pipeline"] = [found[0]["label"], found[0]["score"]]
assert not [name for name in sys.modules if name.startswith("cskd_hf")]
import cskd_hf.models
load("preact")
save_file({name: value.contiguous() for name, value in logits.items()}, target)
print(json.dumps(labels))
"""


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory, images, finished) -> tuple[dict[str, Path], dict[str, torch.Tensor], Any]:
    """Exported weights, and the logits on the test images that a fresh process gets from them."""
    root = tmp_path_factory.mktemp("exported")
    folders = {"preact": finished[1]}
    for name in ("resnet18", "resnet10"):
        folders[name] = root / name
        done = quick(
            write_recipe(root / f"{name}.yaml", images, method={"name": "cross_entropy"}),
            f"model={{model_name: {name}, zero_init_last: false}}",
            "transform={input_size: [3, 32, 32], crop_pct: 0.875}",
            "data.batch_size=5",  # 3 full batches: one image alone has no variance over its single pixel
            "scheduler.num_epochs=1",
        )
        assert done.status == 0, done.stderr
    files = [str(path) for path in sorted((images / "test").rglob("*.png"))]
    with_transformers = importlib.util.find_spec("transformers") is not None
    job = json.dumps([{k: str(v) for k, v in folders.items()}, files, str(root / "logits"), with_transformers])
    script = root / "loader.py"
    script.write_text(LOADER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), job], env=environment(), cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folders, load_file(root / "logits"), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["resnet18", "resnet10", "preact"])
def test_plain_timm_in_a_fresh_process_gets_the_saved_logits(loaded_elsewhere, name):
    folders, logits, _ = loaded_elsewhere
    saved = load_file(folders[name] / "predictions.safetensors")["logits"]
    assert saved.std() > 0.01
    torch.testing.assert_close(logits[name], saved, rtol=0, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_in_a_fresh_process_gets_the_saved_logits(loaded_elsewhere):
    folders, logits, labels = loaded_elsewhere
    saved = load_file(folders["resnet18"] / "predictions.safetensors")["logits"]
    torch.testing.assert_close(logits["transformers"], saved, rtol=0, atol=1e-5)
    probability = saved[0].softmax(dim=0)
    assert labels["pipeline"][0] == f"class {probability.argmax()}"
    assert labels["pipeline"][1] == pytest.approx(probability.max().item(), abs=1e-4)


def test_only_the_networks_that_timm_lacks_ask_for_this_package(loaded_elsewhere):
    folders, _, _ = loaded_elsewhere
    assert {name: summary_of(folder)["model"]["needs_cskd_hf"] for name, folder in folders.items()} == {
        "preact": True,
        "resnet18": False,
        "resnet10": False,
    }


def test_evaluate_measures_any_split_of_classes_that_the_weights_know(tmp_path, finished):
    from cskd_hf import evaluate

    _, folder, _ = finished
    val = draw_folder(tmp_path / "elsewhere", {"val": (0, 3, 2)})  # no class 0, and no training split
    out = tmp_path / "result.json"
    argv = [f"local-dir:{folder / 'model'}", f"data.dataset={val}", "data.test_split=val", "--json", str(out)]
    assert evaluate.main([*argv, "data.workers=0"]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["images"] == 5
    assert evaluate.main([str(folder), "data.test_split=train", "data.workers=0"]) == 0


# The same command again


def test_a_finished_run_is_told_and_not_touched(finished):
    recipe, folder, _ = finished
    before = tree(folder)
    done = quick(recipe)
    assert done.status == 0, done.stderr
    assert f"{folder} is finished" in done.stdout
    assert "top1_error" in done.stdout
    assert tree(folder) == before


def test_settings_that_change_no_number_do_not_make_another_recipe(finished):
    recipe, folder, _ = finished
    before = tree(folder)
    done = quick(recipe, "data.workers=1", "run.logging_steps=1", "run.checkpoint_steps=2")
    assert done.status == 0, done.stderr
    assert "is finished" in done.stdout
    assert tree(folder) == before


def test_a_missing_report_of_a_finished_run_is_written_again(finished, tmp_path):
    recipe, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "report.html").unlink()
    done = quick(recipe, f"run.output_dir={copy}")
    assert done.status == 0, done.stderr
    assert (copy / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_run_killed_among_its_results_finishes_them_from_its_last_checkpoint(finished, tmp_path):
    recipe, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("summary.json", "report.html", "predictions.safetensors"):
        (copy / name).unlink()
    shutil.rmtree(copy / "model")
    done = quick(recipe, f"run.output_dir={copy}")
    assert done.status == 0, done.stderr
    assert "resuming at step 6, epoch 2" in done.stdout
    for name in ("model/model.safetensors", "predictions.safetensors", "metrics.jsonl"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    assert summary_of(copy)["metrics"] == summary_of(folder)["metrics"]


def test_a_damaged_checkpoint_costs_an_epoch_and_no_digit(finished, tmp_path):
    recipe, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "summary.json").unlink()
    weights = copy / "checkpoints" / "step-00000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = quick(recipe, f"run.output_dir={copy}")
    assert done.status == 0, done.stderr
    assert "step-00000006 is damaged" in done.stderr
    assert "resuming at step 3, epoch 1" in done.stdout
    assert (copy / "model" / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    assert metrics_lines(copy) == metrics_lines(folder)


def test_with_every_checkpoint_damaged_the_run_does_not_silently_start_anew(finished, tmp_path):
    recipe, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "summary.json").unlink()
    for weights in (copy / "checkpoints").rglob("model.safetensors"):
        weights.unlink()
    done = quick(recipe, f"run.output_dir={copy}")
    assert done.status == 2
    assert "every checkpoint is damaged" in done.stderr.splitlines()[-1]


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(finished):
    recipe, folder, _ = finished
    before = tree(folder)
    done = quick(recipe, "optimizer.lr=0.02", "method.temperature=2.0")
    assert done.status == 2
    assert done.stderr.splitlines() == [
        f"error: run.output_dir: {folder} holds a run of another recipe; name another folder, or write "
        "run.resume=force to go on with this one",
        "error: method.temperature: 4.0 in the folder, 2.0 now",
        "error: optimizer.lr: 0.01 in the folder, 0.02 now",
    ]
    assert tree(folder) == before


def test_resume_force_goes_on_with_the_changed_recipe(finished, tmp_path):
    recipe, folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    changed = ["scheduler={sched: none, num_epochs: 3}", "optimizer.lr=0.5"]
    done = quick(recipe, f"run.output_dir={copy}", "run.resume=force", *changed)
    assert done.status == 0, done.stderr
    assert "resuming at step 6, epoch 2" in done.stdout
    lines = metrics_lines(copy)
    assert lines[:2] == metrics_lines(folder)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[2]["lr"] == 0.5
    assert summary_of(copy)["epochs"] == 3
    assert yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))["optimizer"]["lr"] == 0.5


def test_resume_never_refuses_a_folder_that_holds_a_run(finished):
    recipe, folder, _ = finished
    before = tree(folder)
    done = quick(recipe, "run.resume=never")
    assert done.status == 2
    assert done.stderr.startswith("error: run.resume: never, but ")
    assert tree(folder) == before
