"""A run's weights load without this package and evaluate on other splits."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import (
    Result,
    environment,
    fifteen_images,
    quick,
    summary_of,
    write_recipe,
)
from safetensors.torch import load_file
from whole_runs import whole_run

images = pytest.fixture(fifteen_images, scope="module")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images) -> tuple[Path, Path, Result]:
    return whole_run(tmp_path_factory.mktemp("finished"), images, quick)


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
load("resnet18")
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
    """Exported weights, and a fresh process's logits for the test images."""
    root = tmp_path_factory.mktemp("exported")
    folders = {"preact": finished[1], "resnet18": root / "resnet18"}
    done = quick(
        write_recipe(root / "resnet18.yaml", images, method={"name": "cross_entropy"}),
        "model={model_name: resnet18, zero_init_last: false}",
        "transform={input_size: [3, 32, 32], crop_pct: 0.875}",
        "data.batch_size=5",  # 3 full batches: BatchNorm cannot train on one image of one pixel
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


@pytest.mark.parametrize("name", ["resnet18", "preact"])
def test_plain_timm_in_a_fresh_process_reproduces_the_saved_logits(loaded_elsewhere, name):
    folders, logits, _ = loaded_elsewhere
    saved = load_file(folders[name] / "predictions.safetensors")["logits"]
    assert saved.std() > 0.01
    torch.testing.assert_close(logits[name], saved, rtol=0, atol=1e-5)
    assert summary_of(folders[name])["model"]["needs_cskd_hf"] == (name == "preact")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_in_a_fresh_process_reproduces_the_saved_logits(loaded_elsewhere):
    folders, logits, labels = loaded_elsewhere
    saved = load_file(folders["resnet18"] / "predictions.safetensors")["logits"]
    torch.testing.assert_close(logits["transformers"], saved, rtol=0, atol=1e-5)
    probability = saved[0].softmax(dim=0)
    assert labels["pipeline"][0] == f"class {probability.argmax()}"
    assert labels["pipeline"][1] == pytest.approx(probability.max().item(), abs=1e-4)
