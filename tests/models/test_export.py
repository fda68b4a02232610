from __future__ import annotations

import json
import os

import pytest
import timm
import torch
from safetensors.torch import load_file

from cskd_hf.models.export import export_model, loading_code, needs_cskd_hf
from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.sections import ModelSection, TransformSection

NAMES = ("cat", "dog", "eel")
FACTS = {"method": {"name": "cskd"}, "temperature": 1.25}
TRANSFORM = TransformSection(
    input_size=(3, 64, 64), crop_pct=0.9, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)


def export(folder, model=None, readme="read me", transform=TRANSFORM, **keywords):
    settings = ModelSection(**{"model_name": "test_resnet", **keywords})
    torch.manual_seed(0)
    model = create_backbone(settings, 3) if model is None else model
    export_model(model, folder, settings, transform, NAMES, readme, FACTS)
    return model


@pytest.mark.parametrize(
    "keywords",
    [
        {"model_name": "test_resnet", "drop_rate": 0.5, "zero_init_last": False},
        {"model_name": "test_vit", "img_size": 64, "global_pool": "avg", "drop_path_rate": 0.1},
        {"model_name": "resnet10"},
        {"model_name": "preact_resnet10_32px"},
    ],
    ids=lambda keywords: keywords["model_name"],
)
def test_what_is_exported_loads_through_timm_bit_for_bit(tmp_path, keywords):
    model = export(tmp_path / "model", **keywords).eval()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    weights = model.state_dict()
    assert weights.keys() == loaded.state_dict().keys() == load_file(tmp_path / "model" / "model.safetensors").keys()
    assert [name for name, value in loaded.state_dict().items() if not torch.equal(value, weights[name])] == []
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_the_config_says_how_to_prepare_an_image_and_what_the_classes_are(tmp_path):
    export(tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    settings = timm.data.resolve_model_data_config(loaded)
    assert tuple(settings["input_size"]) == (3, 64, 64)
    assert tuple(settings["mean"]) == (0.1, 0.2, 0.3)
    assert tuple(settings["std"]) == (0.4, 0.5, 0.6)
    assert (settings["crop_pct"], settings["interpolation"], settings["crop_mode"]) == (0.9, "bicubic", "center")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["label_names"] == list(NAMES)
    assert config["cskd"] == FACTS
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 3


def test_nothing_of_the_architectures_default_checkpoint_is_claimed(tmp_path):
    export(tmp_path / "model", model_name="resnet18")
    text = (tmp_path / "model" / "config.json").read_text()
    config = json.loads(text)
    assert config["pretrained_cfg"]["tag"] == "cskd"
    assert not {"license", "hf_hub_id", "url", "paper_ids", "paper_name", "origin_url"} & set(config["pretrained_cfg"])
    assert "finetuned_from" not in config
    # transformers is handed num_classes from the root, and fails where it comes a second time.
    assert "num_classes" not in config.get("model_args", {})


def test_training_only_keywords_are_left_to_who_fine_tunes(tmp_path):
    export(tmp_path / "model", drop_rate=0.5, zero_init_last=False)
    assert "model_args" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_random_interpolation_is_bilinear_in_tests(tmp_path):
    export(tmp_path / "model", transform=TransformSection(interpolation="random", mean=(0, 0, 0), std=(1, 1, 1)))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["pretrained_cfg"]["interpolation"] == "bilinear"


def test_channels_last_weights_are_exported(tmp_path):
    settings = ModelSection(model_name="test_resnet")
    model = create_backbone(settings, 3).to(memory_format=torch.channels_last)
    export_model(model, tmp_path / "model", settings, TRANSFORM, NAMES, "", FACTS)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(value.is_contiguous() for value in saved.values())
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, saved[name])] == []


def test_a_network_changed_after_it_was_made_is_refused_and_the_earlier_export_stays(tmp_path):
    export(tmp_path / "model", readme="the first")
    first = (tmp_path / "model" / "model.safetensors").read_bytes()
    torch.manual_seed(1)
    changed = timm.create_model("test_resnet", num_classes=3)
    changed.extra = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError):
        export(tmp_path / "model", model=changed, readme="the second")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "model" / "README.md").read_text() == "the first"


def test_weights_that_do_not_come_back_equal_are_refused(tmp_path, monkeypatch):
    from cskd_hf.models import export as module

    create_model = timm.create_model

    def spoilt(*args, **kwargs):
        model = create_model(*args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).flatten()[0] += 1
        return model

    monkeypatch.setattr(module.timm, "create_model", spoilt)
    with pytest.raises(RuntimeError, match="weights changed"):
        export(tmp_path / "model", model=create_model("test_resnet", num_classes=3))
    assert not (tmp_path / "model").exists()


def test_a_second_export_replaces_the_first_and_leaves_nothing_beside_it(tmp_path):
    (tmp_path / ".partial-model").mkdir()  # left by a kill
    (tmp_path / ".partial-model" / "junk").write_text("")
    export(tmp_path / "model", readme="the first")
    export(tmp_path / "model", readme="the second")
    assert os.listdir(tmp_path) == ["model"]
    assert sorted(os.listdir(tmp_path / "model")) == ["README.md", "config.json", "model.safetensors"]
    assert (tmp_path / "model" / "README.md").read_text() == "the second"


@pytest.mark.parametrize(
    ("name", "needs"), [("preact_resnet18_32px", True), ("densenet121_32px", True), ("resnet10", False), ("vit", False)]
)
def test_the_loading_code_imports_this_package_only_where_timm_alone_would_fail(name, needs):
    assert needs_cskd_hf(name, timm.create_model("test_resnet")) == needs
    code = loading_code("hf-hub:me/mine", needs)
    assert code.startswith("import cskd_hf.models ") == needs
    assert code.endswith('model = timm.create_model("hf-hub:me/mine", pretrained=True).eval()\n')
    compile(code, "loading code", "exec")
