"""The cosine classifier, and the architecture under which timm reloads it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_runs import environment
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config

from cskd_hf.models.cosine import CosineLinear, has_cosine_head, with_cosine_head
from cskd_hf.models.export import export_model
from cskd_hf.models.factory import create_backbone
from cskd_hf.models.load import load_trained
from cskd_hf.recipe.sections import ModelSection, TransformSection

TRANSFORM = TransformSection(input_size=(3, 48, 48), crop_pct=1.0, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
NAMES = ("cat", "dog", "eel")
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet10": {"zero_init_last": False},
    "test_vit": {"img_size": 48, "global_pool": "avg"},
    "preactresnet10_32px": {"drop_rate": 0.1},
}


@pytest.mark.parametrize(("num_classes", "scale"), [(2, math.log(2)), (3, math.log(2)), (200, math.log(199))])
def test_the_scale_starts_at_root_two_times_ln_k_minus_one(num_classes, scale):
    layer = CosineLinear(7, num_classes)
    assert layer.scale.item() == pytest.approx(math.sqrt(2) * scale)
    assert layer.bias is None
    assert set(layer.state_dict()) == {"weight", "scale"}
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_a_cosine_head_reuses_the_linear_classifiers_weights():
    model = timm.create_model("test_resnet", num_classes=3)
    weight = model.get_classifier().weight
    assert not has_cosine_head(model)
    assert with_cosine_head(model) is model
    assert has_cosine_head(model)
    assert model.get_classifier().weight is weight


def test_a_cosine_head_is_created_on_the_device_of_its_network():
    with torch.device("meta"):
        model = timm.create_model("test_resnet", num_classes=3)
    with_cosine_head(model)
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, tuple[Path, Any]]:
    """Exported folder and network, by backbone."""
    exports = {}
    for name, keywords in BACKBONES.items():
        settings = ModelSection(model_name=name, **keywords)
        torch.manual_seed(0)
        model: Any = with_cosine_head(create_backbone(settings, 3))
        model.get_classifier().scale.fill_(7.5)
        folder = tmp_path_factory.mktemp(name) / "model"
        export_model(model.eval(), folder, settings, TRANSFORM, NAMES, "", {"temperature": 1.5})
        exports[name] = folder, model
    return exports


LOADER = """
import json, sys
folders, out = json.loads(sys.argv[1])
import timm, torch
from safetensors.torch import save_file
try:
    timm.create_model(f"local-dir:{folders['resnet10']}", pretrained=True)
except RuntimeError as error:
    assert "Unknown model (cosine_classifier)" in str(error)
else:
    raise AssertionError("timm knew the architecture without cskd_hf")
import cskd_hf.models
logits = {}
for name, folder in folders.items():
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        logits[name] = model(torch.linspace(-2, 2, 2 * 3 * 48 * 48).view(2, 3, 48, 48))
save_file(logits, out)
assert not [name for name in sys.modules if name.startswith(("cskd_hf.methods", "cskd_hf.engine", "accelerate"))]
"""


def test_a_fresh_process_loads_every_backbone_after_importing_the_models_and_not_before(exports, tmp_path):
    folders = {name: str(folder) for name, (folder, _) in exports.items()}
    out = tmp_path / "logits.safetensors"
    command = [sys.executable, "-c", LOADER, json.dumps([folders, str(out)])]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    images = torch.linspace(-2, 2, 2 * 3 * 48 * 48).view(2, 3, 48, 48)
    for name, (_, model) in exports.items():
        with torch.no_grad():
            expected = model(images)
        assert expected.abs().max() <= 7.5 * (1 + 1e-6)
        assert torch.equal(load_file(out)[name], expected), name


@pytest.mark.parametrize("name", BACKBONES)
def test_the_config_names_the_backbone_and_its_preprocessing(exports, name):
    folder, _ = exports[name]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "cosine_classifier"
    expected = {
        "resnet10": {"backbone": "resnet18", "layers": [1, 1, 1, 1]},
        "test_vit": {"backbone": "test_vit", "img_size": 48, "global_pool": "avg"},
        "preactresnet10_32px": {"backbone": "preactresnet10_32px"},
    }
    assert config["model_args"] == expected[name]
    data_config = resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert tuple(data_config["input_size"]) == (3, 48, 48)
    assert (tuple(data_config["mean"]), tuple(data_config["std"])) == (TRANSFORM.mean, TRANSFORM.std)


@pytest.mark.parametrize("name", BACKBONES)
def test_load_trained_returns_names_and_temperature_of_a_cosine_network(exports, name):
    folder, model = exports[name]
    trained = load_trained(f"local-dir:{folder}")
    assert trained.class_names == NAMES
    assert trained.temperature == 1.5
    assert has_cosine_head(trained.model)
    assert trained.model.get_classifier().scale.item() == 7.5
    assert trained.model.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", BACKBONES)
def test_fine_tuning_and_feature_extraction_use_the_trained_features(exports, name):
    folder, model = exports[name]
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5).eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert loaded(images).shape == (2, 5)
        assert torch.equal(loaded.forward_features(images), model.forward_features(images))
        features = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        assert torch.equal(features(images), model.forward_head(model.forward_features(images), pre_logits=True))


def test_weights_without_a_scale_are_rejected(exports, tmp_path):
    folder, _ = exports["resnet10"]
    weights = load_file(folder / "model.safetensors")
    del weights["fc.scale"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(Exception, match=r"fc\.scale"):
        load_trained(f"local-dir:{tmp_path}")
