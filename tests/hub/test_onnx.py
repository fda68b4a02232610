from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import timm
import torch
from command_runs import fork
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.hub.onnx import export_onnx
from cskd_hf.models.cosine import with_cosine_head
from cskd_hf.models.export import export_model
from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.sections import ModelSection, TransformSection

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NAMES = ("cat", "dog", "Ærø")
TEMPERATURE = 0.4
FILES = ["README.md", "class_map.txt", "config.json", "model.onnx", "model.safetensors"]
TRANSFORM = TransformSection(
    input_size=(3, 64, 64), crop_pct=0.9, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)


def export(folder, model=None, facts=None, **keywords):
    """Write a model folder; returns its network."""
    settings = ModelSection(**{"model_name": "test_resnet", **keywords})
    torch.manual_seed(0)
    model = create_backbone(settings, 3) if model is None else model
    facts = {"temperature": TEMPERATURE} if facts is None else facts
    export_model(model, folder, settings, TRANSFORM, NAMES, "", facts)
    return model.eval()


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(["logits", "probabilities"], {"pixel_values": images.numpy()})
    return *map(torch.from_numpy, outputs), session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize(
    "keywords",
    [
        {"model_name": "test_resnet"},
        {"model_name": "test_vit", "img_size": 64},
        {"model_name": "test_convnext"},
        {"model_name": "preactresnet10_32px"},
    ],
    ids=lambda keywords: keywords["model_name"],
)
def test_outputs_equal_pytorchs_for_any_batch_size(tmp_path, keywords):
    model = export(tmp_path / "model", **keywords)
    path = export_onnx(tmp_path / "model")
    assert path == tmp_path / "model" / "model.onnx"
    for batch in (1, 5):
        images = torch.randn(batch, 3, 64, 64)
        with torch.inference_mode():
            expected = model(images) / TEMPERATURE
        logits, probabilities, _ = run(path, images)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(probabilities, expected.softmax(dim=-1), rtol=1e-4, atol=1e-4)


def test_a_cosine_head_is_exported(tmp_path):
    model = export(tmp_path / "model", with_cosine_head(timm.create_model("test_resnet", num_classes=3)))
    images = torch.randn(2, 3, 64, 64)
    logits, _, _ = run(export_onnx(tmp_path / "model"), images)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(images) / TEMPERATURE, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("facts", "temperature"),
    [({"temperature": 1.0, "folded_temperature": TEMPERATURE}, TEMPERATURE), ({"temperature": None}, None)],
    ids=["folded", "none"],
)
def test_a_folded_or_missing_temperature_does_not_divide(tmp_path, facts, temperature):
    model = export(tmp_path / "model", facts=facts)
    images = torch.randn(2, 3, 64, 64)
    logits, _, metadata = run(export_onnx(tmp_path / "model"), images)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-4)
    assert json.loads(metadata["temperature"]) == temperature


def test_the_metadata_hold_preprocessing_and_class_names(tmp_path):
    export(tmp_path / "model")
    _, _, metadata = run(export_onnx(tmp_path / "model"), torch.zeros(1, 3, 64, 64))
    assert {name: json.loads(value) for name, value in metadata.items()} == {
        "architecture": "test_resnet",
        "labels": list(NAMES),
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "value_range": None,
        "background": "white",
        "temperature": TEMPERATURE,
    }


def test_the_file_runs_with_onnxruntime_alone(tmp_path):
    export(tmp_path / "model")
    path = export_onnx(tmp_path / "model")
    (tmp_path / "alone").mkdir()
    os.rename(path, tmp_path / "alone" / "model.onnx")
    code = """
        import sys, numpy, onnxruntime
        session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        print(session.run(["logits"], {"pixel_values": numpy.zeros((4, 3, 64, 64), numpy.float32)})[0].shape)
        assert not {"torch", "timm", "cskd_hf"} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path / "alone", capture_output=True, text=True
    )
    assert done.stdout == "(4, 3)\n", done.stderr


def test_the_same_weights_give_the_same_bytes_and_leave_no_other_file(tmp_path):
    export(tmp_path / "model")
    first = export_onnx(tmp_path / "model").read_bytes()
    assert export_onnx(tmp_path / "model").read_bytes() == first
    assert sorted(os.listdir(tmp_path / "model")) == FILES


class BatchDependent(nn.Module):
    """Tracing follows one side of the `if`: the graph is wrong for batches of more than 2."""

    def __init__(self, num_classes=3, in_chans=3, pretrained_cfg=None, **keywords):
        super().__init__()
        self.num_classes, self.num_features = num_classes, in_chans
        self.head = nn.Linear(in_chans, num_classes)

    def get_classifier(self):
        return self.head

    def forward(self, images):
        logits = self.head(images.mean(dim=(2, 3)))
        return logits if len(images) <= 2 else logits + 1


default_cfgs = generate_default_cfgs({"batch_dependent": {"classifier": "head"}})  # `register_model` reads it


@register_model
def batch_dependent(pretrained=False, **keywords):
    return build_model_with_cfg(BatchDependent, "batch_dependent", pretrained, **keywords)


def test_a_graph_that_differs_from_the_network_is_rejected_and_an_earlier_file_stays(tmp_path):
    export(tmp_path / "model", model_name="batch_dependent")
    (tmp_path / "model" / "model.onnx").write_bytes(b"the earlier")
    # The 1 that is added, over the temperature.
    with pytest.raises(RuntimeError, match=r"onnxruntime's logits differ from PyTorch's by 2\.5 on 3 images"):
        export_onnx(tmp_path / "model")
    assert (tmp_path / "model" / "model.onnx").read_bytes() == b"the earlier"
    assert sorted(os.listdir(tmp_path / "model")) == FILES


def test_a_folder_without_weights_is_a_user_error(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="timm cannot load these weights"):
        export_onnx(tmp_path)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_one_line_and_nothing_is_written(tmp_path, missing):
    export(tmp_path / "model")
    code = f"""
        import sys
        from pathlib import Path
        from cskd_hf.errors import run_command
        from cskd_hf.hub.onnx import export_onnx

        sys.modules["{missing}"] = None  # importing it fails
        run_command(lambda: export_onnx(Path("model")))
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(code), encoding="utf-8")
    done = fork(tmp_path / "program.py", folder=tmp_path)
    assert done.status == 2
    assert done.stderr.startswith(f"error: ONNX export needs {missing}: pip install cskd_hf[onnx]")
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path / "model")) == ["README.md", "class_map.txt", "config.json", "model.safetensors"]
