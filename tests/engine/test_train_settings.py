"""Settings of a run: precision, logging, evaluation interval, accumulation, average, compile."""

from __future__ import annotations

import shutil
import tempfile

import pytest
import timm
import torch
import yaml
from command_runs import (
    command,
    fifteen_images,
    metrics_lines,
    quick,
    write_recipe,
)
from PIL import Image as PillowImage
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

images = pytest.fixture(fifteen_images, scope="module")


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
    # Results are computed in float32; in bf16 the logits would be off by 0.01.
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
    for name in ("train/loss", "test/nll"):  # per epoch, separate from the values per update
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    assert [event.step for event in events.Scalars("update/loss")] == list(range(1, 9))
    (settings,) = (tmp_path / "run" / "cskd_hf").rglob("hparams.yml")
    assert yaml.safe_load(settings.read_text(encoding="utf-8"))["optimizer.lr"] == "0.01"


def test_evaluation_interval_accumulation_and_average_of_one_run(tmp_path, images):
    done = quick(
        write_recipe(tmp_path / "run.yaml", images, scheduler={"num_epochs": 3}),
        *("run.val_interval=2", "run.gradient_accumulation_steps=2", "run.clip_grad=0.5"),
        *("run.model_ema=true", "run.model_ema_decay=0.5"),
    )
    assert done.status == 0, done.stderr
    assert "4 x 1 processes x 2 accumulated = 8 anchors (16 images)" in done.stdout
    lines = metrics_lines(tmp_path / "run")
    assert [(line["step"], "test/ece" in line) for line in lines] == [(2, False), (4, True), (6, True)]
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    average, weights = (load_file(checkpoint / f"{name}.safetensors") for name in ("ema", "model"))
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], average[name]) for name in average)
    assert not torch.equal(average["conv1.0.weight"], weights["conv1.0.weight"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_run_trains_and_keeps_the_weights_names(tmp_path, images):
    recipe = write_recipe(tmp_path / "run.yaml", images, data={"batch_size": 5}, scheduler={"num_epochs": 1})
    with tempfile.TemporaryDirectory() as cache:
        done = command(recipe, "run.compile=true", TORCHINDUCTOR_CACHE_DIR=cache)
    assert done.status == 0, done.stderr
    assert quick(recipe, f"run.output_dir={tmp_path / 'eager'}").status == 0
    compiled, eager = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "eager"))
    assert compiled.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-3, msg=name)
