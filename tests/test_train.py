from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from command_runs import (
    Result,
    command,
    draw_folder,
    draw_image,
    environment,
    kill_within_an_epoch,
    metrics_lines,
    quick,
    summary_of,
    tree,
    write_recipe,
)
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

from cskd_hf.results.metrics import METRICS

RATES = ["top1_error", "top5_error", "nll", "brier", "ece", "adaptive_ece", "classwise_ece", "aurc", "recall_at_1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes: 15 images to train on, 9 to test."""
    return draw_folder(tmp_path_factory.mktemp("images") / "my images", {"train": (5, 5, 5), "test": (3, 3, 3)})


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


def test_a_killed_run_goes_on_to_the_same_weights_and_lines_as_one_left_alone(tmp_path, images):
    settings = ["run.checkpoint_steps=1", "model.drop_rate=0.3", "data.workers=1", "scheduler.num_epochs=3"]
    cut = write_recipe(tmp_path / "cut.yaml", images, data={"batch_size": 2})
    process = subprocess.Popen(
        [sys.executable, "-m", "cskd_hf.train", str(cut), *settings],
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    progress = kill_within_an_epoch(process, tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()

    done = quick(cut, *settings)
    assert done.status == 0, done.stderr
    assert f"resuming at step {progress['step']}, epoch {progress['epoch']}" in done.stdout
    assert quick(cut, *settings, f"run.output_dir={tmp_path / 'whole'}").status == 0
    for name in ("model/model.safetensors", "predictions.safetensors", "checkpoints/step-00000024/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    lines = metrics_lines(tmp_path / "cut")
    assert len(lines) == 3
    assert lines == metrics_lines(tmp_path / "whole")


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


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, images):
    (tmp_path / "run").write_text("mine")
    done = quick(write_recipe(tmp_path / "run.yaml", images))
    assert done.status == 2
    assert done.stderr == f"error: run.output_dir: {tmp_path / 'run'} is a file; name a folder\n"
    assert (tmp_path / "run").read_text() == "mine"


def test_an_output_folder_with_other_things_in_it_is_refused(tmp_path, images):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    done = quick(write_recipe(tmp_path / "run.yaml", images))
    assert done.status == 2
    assert "is not empty and holds no run" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "run") == ["thesis.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path, images):
    recipe = write_recipe(tmp_path / "run.yaml", images)
    (tmp_path / "closed").mkdir(mode=0o500)
    done = quick(recipe, f"run.output_dir={tmp_path / 'closed' / 'run'}")
    assert done.status == 2
    assert "cannot be written" in done.stderr


def test_an_output_folder_below_a_file_is_refused(tmp_path, images):
    (tmp_path / "file").write_text("mine")
    done = quick(write_recipe(tmp_path / "run.yaml", images), f"run.output_dir={tmp_path / 'file' / 'run'}")
    assert done.status == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


# The paper's recipes


def write_parquet(folder: Path, splits: dict[str, int], num_classes: int, labelled: bool = True) -> None:
    """A Hub set's files: `image` and `label`, the bytes inside."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"n{i:08d}" for i in range(num_classes)])})
    for number, (split, count) in enumerate(splits.items()):
        rows: dict[str, list[Any]] = {"image": [], "label": []}
        for i in range(count):
            buffer = io.BytesIO()
            draw_image(i % num_classes, 1000 * number + i, size=40).save(buffer, "JPEG")
            rows["image"].append({"bytes": buffer.getvalue(), "path": f"{i}.JPEG"})
            rows["label"].append(i % num_classes if labelled else -1)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_the_imagenet_recipe_runs_on_parquet_of_imagenets_columns_and_splits(tmp_path):
    write_parquet(tmp_path / "imagenet" / "data", {"train": 16, "validation": 8}, 4)
    write_parquet(tmp_path / "imagenet" / "data", {"test": 3}, 4, labelled=False)
    done = quick(
        "recipes/imagenet_resnet50.yaml",
        f"data.dataset={tmp_path / 'imagenet'}",
        "data.test_split=validation",
        "data.batch_size=4",
        "data.workers=0",
        "data.holdout=0.25",
        "transform.input_size=[3, 32, 32]",
        "optimizer.lr=0.001",
        "scheduler.num_epochs=1",
        f"run.output_dir={tmp_path / 'run'}",
    )
    assert done.status == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["dataset"]["images"] == {"train": 12, "holdout": 4, "test": 8}
    assert summary["model"]["num_parameters"] == 25_557_032 - 996 * 2049
    assert summary["metrics"]["temperature"] > 0
    expected = {"name": "cskd", "temperature": 4.0, "distill_loss_weight": 1.0, "batch_norm": "separate"}
    assert summary["method"] == expected


def test_the_cub_recipe_runs_on_parquet_of_cubs_columns_and_splits_without_a_temperature(tmp_path):
    write_parquet(tmp_path / "cub" / "data", {"train": 12, "test": 8}, 4)
    done = quick(
        "recipes/cub200_resnet18.yaml",
        f"data.dataset={tmp_path / 'cub'}",
        "data.batch_size=4",
        "data.workers=0",
        "transform.input_size=[3, 32, 32]",
        "optimizer.lr=0.001",
        "scheduler.num_epochs=1",
        f"run.output_dir={tmp_path / 'run'}",
    )
    assert done.status == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["dataset"]["images"] == {"train": 12, "test": 8}
    assert summary["model"]["num_parameters"] == 11_279_112 - 196 * 513
    assert summary["metrics"]["temperature"] is None
    assert summary["metrics"]["metrics_scaled"] is None
    assert set(load_file(tmp_path / "run" / "predictions.safetensors")) == {"logits", "target", "features", "row"}
    assert "no temperature was fitted" in done.stdout
    (line,) = metrics_lines(tmp_path / "run")
    assert "test/top1_error" in line


# Images that are not what they should be


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unreadable_image_stops_the_run_in_one_line_that_names_it(tmp_path, split, workers):
    folder = draw_folder(tmp_path / "images", {"train": (2, 2), "test": (2, 2)})
    broken = folder / split / "class 1" / "00.png"
    broken.write_bytes(broken.read_bytes()[:60])
    done = quick(write_recipe(tmp_path / "run.yaml", folder), f"data.workers={workers}")
    assert done.status == 2
    assert done.stderr.startswith(f"error: split {split!r}, row 2, file {broken}: unreadable image (")
    assert done.stderr.endswith("; mend or remove the file, or write data.on_corrupt=skip\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "summary.json").exists()


def test_unreadable_images_are_skipped_counted_and_reported_where_the_recipe_says_so(tmp_path):
    folder = draw_folder(tmp_path / "images", {"train": (4, 4), "test": (3, 3)})
    for broken in (folder / "train" / "class 0" / "01.png", folder / "test" / "class 1" / "02.png"):
        broken.write_bytes(b"not an image")
    done = quick(write_recipe(tmp_path / "run.yaml", folder, data={"on_corrupt": "skip"}))
    assert done.status == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["skipped_images"] == {"train": 1, "test": 1}
    assert load_file(tmp_path / "run" / "predictions.safetensors")["row"].tolist() == [0, 1, 2, 3, 4]
    skipped = {"split 'train', row 1,": "train/class 0/01.png", "split 'test', row 5,": "test/class 1/02.png"}
    for row, file in skipped.items():
        (note,) = [note for note in summary["notes"] if row in note]
        assert file in note
        assert note in done.stdout
    assert "test/class 1/02.png" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_test_split_without_a_readable_image_is_told_in_one_line(tmp_path):
    folder = draw_folder(tmp_path / "images", {"train": (2, 2), "test": (1, 1)})
    for broken in (folder / "test").rglob("*.png"):
        broken.write_bytes(b"")
    done = quick(write_recipe(tmp_path / "run.yaml", folder, data={"on_corrupt": "skip"}))
    assert done.status == 2
    assert done.stderr == "error: split 'test' has no readable image; mend its files\n"


def test_images_of_every_kind_train(tmp_path):
    folder = draw_folder(tmp_path / "odd images", {"train": (4, 4, 1), "test": (2, 2, 1)})
    place = folder / "train" / "class 0"
    draw_image(0, 1).convert("CMYK").save(place / "cmyk of mine.jpg")
    draw_image(0, 2).convert("L").save(place / "grey.png")
    draw_image(0, 3).convert("RGBA").save(place / "alpha.png")
    draw_image(0, 4).convert("P").save(place / "palette.gif")
    draw_image(0, 5).convert("1").save(place / "bits.png")
    draw_image(0, 6, size=3).save(place / "tiny.bmp")
    draw_image(0, 7).resize((90, 7)).save(place / "wide.webp")
    (place / "read me.txt").write_text("not an image, and not taken for one")
    done = quick(write_recipe(tmp_path / "a run.yaml", folder))
    assert done.status == 0, done.stderr
    summary = summary_of(tmp_path / "a run")
    assert summary["dataset"]["images"] == {"train": 16, "test": 5}
    assert summary["skipped_images"] == {"train": 0, "test": 0}
    assert "1 classes have one training image, paired with itself: class 2" in done.stdout


# Mistakes in the model section


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.model_name=resnet81", "error: model.model_name: timm has no 'resnet81'; did you mean resnet"),
        ("model.img_size=32", "error: model.img_size: test_resnet does not take it; leave it out"),
        ("model.num_classes=7", "error: model.num_classes: read 7, but the data has 3; leave it out"),
        ("model.pretrained=true", "error: model.pretrained: the weights of test_resnet could not be loaded ("),
        ("model={model_name: resnet10, pretrained: true}", "error: model.pretrained: "),
    ],
)
def test_a_model_that_cannot_be_made_is_told_in_one_line_and_nothing_is_written(tmp_path, images, override, said):
    done = quick(write_recipe(tmp_path / "run.yaml", images), override)
    assert done.status == 2
    # Libraries may warn above; what is ours is one line.
    assert done.stderr.splitlines()[-1].startswith(said)
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_weights_that_cannot_be_fetched_are_told_with_the_way_out(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), "model.pretrained=true")
    assert done.stderr.splitlines()[-1].endswith(
        "without a network, fill the Hub's cache beforehand or write model.pretrained=false"
    )


# Settings of a run


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_batch_to_be_looked_at(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), "optimizer.lr=1e30")
    assert done.status == 1
    assert done.stderr.count("\n") == 1
    assert "the loss is not finite at step " in done.stderr
    assert "Lower optimizer.lr" in done.stderr
    report = json.loads((tmp_path / "run" / "nonfinite-rank0.json").read_text(encoding="utf-8"))
    assert report["step"] >= 1
    assert not np.isfinite(float(report["terms"]["loss"]))
    assert len(report["batch"]) >= 6  # anchors and partners
    assert all("split 'train', row " in row and ".png" in row for row in report["batch"])
    assert not (tmp_path / "run" / "summary.json").exists()


def test_logits_that_are_not_finite_end_the_run_in_one_line(tmp_path, images):
    # The loss of the only update is finite; the weights it leaves behind are of no use to anybody.
    done = quick(
        write_recipe(tmp_path / "run.yaml", images),
        "optimizer.lr=1e30",
        "scheduler.num_epochs=1",
        "data.batch_size=15",
    )
    assert done.status == 1
    assert "note: epoch 1: logits of the test split are not finite" in done.stdout
    assert done.stderr.startswith("error: the logits of 9 of 9 images of the test split are not finite: training diver")
    assert done.stderr.count("\n") == 1
    (line,) = metrics_lines(tmp_path / "run")
    assert "test/nll" not in line
    assert not (tmp_path / "run" / "summary.json").exists()


def test_bf16_trains_and_exports_float32(tmp_path, images):
    for precision in ("no", "bf16"):
        recipe = write_recipe(tmp_path / f"{precision}.yaml", images)
        done = quick(recipe, f"run.mixed_precision={precision}")
        assert done.status == 0, done.stderr
    plain, mixed = metrics_lines(tmp_path / "no"), metrics_lines(tmp_path / "bf16")
    assert plain != mixed
    assert mixed[0]["train/loss"] == pytest.approx(plain[0]["train/loss"], rel=0.05)
    for name in ("model/model.safetensors", "predictions.safetensors"):
        tensors = load_file(tmp_path / "bf16" / name)
        assert {str(value.dtype) for value in tensors.values()} == {"torch.float32", "torch.int64"}
    # And what is reported is what those weights say in float32: bf16 would be a hundredth away.
    model = timm.create_model(f"local-dir:{tmp_path / 'bf16' / 'model'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    files = sorted((images / "test").rglob("*.png"))
    with torch.no_grad():
        logits = model(torch.stack([transform(PillowImage.open(file)) for file in files]))
    saved = load_file(tmp_path / "bf16" / "predictions.safetensors")["logits"]
    torch.testing.assert_close(saved, logits, rtol=0, atol=1e-5)
    settings = yaml.safe_load((tmp_path / "bf16" / "recipe.yaml").read_text(encoding="utf-8"))
    assert settings["run"]["mixed_precision"] == "bf16"


def test_tensorboard_gets_every_epoch_and_the_recipe(tmp_path, images):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = quick(write_recipe(tmp_path / "run.yaml", images), "run.report_to=[tensorboard]", "run.logging_steps=1")
    assert done.status == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "run" / "cskd_hf"))
    events.Reload()
    assert {"update/loss", "train/loss", "train/kd_loss", "test/top1_error", "lr"} <= set(events.Tags()["scalars"])
    lines = metrics_lines(tmp_path / "run")
    for name in ("train/loss", "test/nll"):  # of an epoch, and not mixed with those of an update
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert seen == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    assert [event.step for event in events.Scalars("update/loss")] == list(range(1, 9))
    (settings,) = (tmp_path / "run" / "cskd_hf").rglob("hparams.yml")
    assert yaml.safe_load(settings.read_text(encoding="utf-8"))["optimizer.lr"] == "0.01"


def test_evaluations_come_every_val_interval_and_after_the_last_epoch(tmp_path, images):
    recipe = write_recipe(tmp_path / "run.yaml", images, data={"drop_last": True})
    done = quick(recipe, "run.val_interval=2", "scheduler.num_epochs=3")
    assert done.status == 0, done.stderr
    lines = metrics_lines(tmp_path / "run")
    assert ["test/ece" in line for line in lines] == [False, True, True]
    assert [line["step"] for line in lines] == [3, 6, 9]


def test_accumulated_batches_are_told_and_counted(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), "run.gradient_accumulation_steps=2", "run.clip_grad=0.5")
    assert done.status == 0, done.stderr
    assert "4 x 1 processes x 2 accumulated = 8 anchors (16 images)" in done.stdout
    assert [line["step"] for line in metrics_lines(tmp_path / "run")] == [2, 4]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_run_trains_and_its_weights_keep_their_names(tmp_path, images):
    recipe = write_recipe(tmp_path / "run.yaml", images, data={"batch_size": 5}, scheduler={"num_epochs": 1})
    with tempfile.TemporaryDirectory() as cache:
        done = command(recipe, "run.compile=true", TORCHINDUCTOR_CACHE_DIR=cache)
    assert done.status == 0, done.stderr
    assert quick(recipe, f"run.output_dir={tmp_path / 'eager'}").status == 0
    compiled, eager = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "eager"))
    assert compiled.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-3, msg=name)


def test_the_running_average_is_what_is_evaluated_saved_and_exported(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), "run.model_ema=true", "run.model_ema_decay=0.5")
    assert done.status == 0, done.stderr
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    average, weights = (load_file(checkpoint / f"{name}.safetensors") for name in ("ema", "model"))
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], average[name]) for name in average)
    assert not torch.equal(average["conv1.0.weight"], weights["conv1.0.weight"])


def test_a_running_average_goes_on_from_where_a_stopped_run_left_it(tmp_path, images):
    """Two epochs at once, and one epoch that a forced resume makes two: the same average."""
    recipe = write_recipe(tmp_path / "run.yaml", images, scheduler={"sched": "none"})
    average = ("run.model_ema=true", "run.model_ema_decay=0.5", "run.model_ema_warmup=true")
    assert quick(recipe, *average).status == 0
    cut = f"run.output_dir={tmp_path / 'cut'}"
    assert quick(recipe, *average, cut, "scheduler.num_epochs=1").status == 0
    done = quick(recipe, *average, cut, "run.resume=force")
    assert done.status == 0, done.stderr
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optimizer.opt=adamzz"], "optimizer"),
        (["model.model_name=resnet18.foo_in1k"], "model"),
        (["model.model_name=vit_tiny_patch16_224"], "transform.input_size"),
        (["model.global_pool=foo"], "model"),
        (["model.global_pool=''"], "transform.input_size"),
        (["model.model_name=resnet18", "transform.input_size=[3, 32, 32]", "data.batch_size=7"], "data.batch_size"),
    ],
)
def test_what_cannot_train_says_so_in_one_line_before_anything_is_written(tmp_path, images, overrides, key):
    done = quick(write_recipe(tmp_path / "run.yaml", images), *overrides)
    assert done.status == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {key}"), line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_test_split_of_one_image_ends_in_a_result_without_recall(tmp_path):
    data = draw_folder(tmp_path / "images", {"train": (4, 4), "test": (1, 0)})
    done = quick(write_recipe(tmp_path / "run.yaml", data))
    assert done.status == 0, done.stderr
    assert summary_of(tmp_path / "run")["metrics"]["last"]["recall_at_1"] is None


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
