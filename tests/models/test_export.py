"""Exported folders: what timm loads from them, and what never gets exported."""

from __future__ import annotations

import json
import os

import pytest
import timm
import torch
from safetensors.torch import load_file

from cskd_hf.models.export import export_model, loading_code, needs_cskd_hf, write_class_map
from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.sections import ModelSection, TransformSection

NAMES = ("cat", "dog", "eel")
FACTS = {"method": {"name": "cskd"}, "temperature": 1.25}
TRANSFORM = TransformSection(
    input_size=(3, 64, 64), crop_pct=0.9, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)


def export(folder, model=None, readme="text", transform=TRANSFORM, **keywords):
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
        {"model_name": "test_vit"},  # takes any size, built for its default
        {"model_name": "test_vit", "img_size": (32, 64), "in_chans": 1},
        {"model_name": "test_resnet", "in_chans": 4},
        {"model_name": "resnet10"},
        {"model_name": "preactresnet10_32px"},
    ],
    ids=lambda keywords: keywords["model_name"],
)
def test_timm_loads_the_exported_weights_bit_for_bit(tmp_path, keywords):
    height = 32 if keywords.get("img_size") == (32, 64) else 64
    size = (keywords.get("in_chans", 3), height, 64)
    transform = TRANSFORM.model_copy(update={"input_size": size})
    model = export(tmp_path / "model", transform=transform, **keywords).eval()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    weights = model.state_dict()
    assert weights.keys() == loaded.state_dict().keys() == load_file(tmp_path / "model" / "model.safetensors").keys()
    assert [name for name, value in loaded.state_dict().items() if not torch.equal(value, weights[name])] == []
    images = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_timm_numbers_a_split_without_images_of_one_class_by_the_class_map(tmp_path):
    export(tmp_path / "model")
    for name in ("eel", "cat"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "1.png").touch()
    class_map = tmp_path / "model" / "class_map.txt"
    dataset = timm.data.create_dataset("", tmp_path, split="test", class_map=str(class_map))
    assert [NAMES[label] for _, label in dataset.reader.samples] == ["cat", "eel"]


@pytest.mark.parametrize("name", ["cat ", "two\nlines", "carriage\rreturn", "", "\u3000cat"])
def test_no_class_map_is_written_that_timm_would_read_differently(tmp_path, name):
    write_class_map(tmp_path, ("dog", name))
    assert list(tmp_path.iterdir()) == []


def test_the_config_holds_preprocessing_and_class_names(tmp_path):
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


def test_the_config_claims_nothing_of_the_architectures_default_checkpoint(tmp_path):
    export(tmp_path / "model", model_name="resnet18")
    text = (tmp_path / "model" / "config.json").read_text()
    config = json.loads(text)
    assert config["pretrained_cfg"]["tag"] == "cskd"
    assert not {"license", "hf_hub_id", "url", "paper_ids", "paper_name", "origin_url"} & set(config["pretrained_cfg"])
    assert "finetuned_from" not in config
    # transformers passes the root's num_classes on and fails if it occurs twice.
    assert "num_classes" not in config.get("model_args", {})


def test_keywords_that_affect_training_only_are_not_exported(tmp_path):
    export(tmp_path / "model", drop_rate=0.5, zero_init_last=False)
    assert "model_args" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_random_interpolation_is_exported_as_bilinear(tmp_path):
    export(tmp_path / "model", transform=TransformSection(interpolation="random", mean=(0, 0, 0), std=(1, 1, 1)))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["pretrained_cfg"]["interpolation"] == "bilinear"


def test_a_network_that_timm_cannot_rebuild_is_rejected_and_the_previous_export_stays(tmp_path):
    export(tmp_path / "model", readme="the first")
    first = (tmp_path / "model" / "model.safetensors").read_bytes()
    torch.manual_seed(1)
    changed = timm.create_model("test_resnet", num_classes=3)
    changed.extra = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError):
        export(tmp_path / "model", model=changed, readme="the second")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "model" / "README.md").read_text() == "the first"


def test_weights_that_reload_differently_are_rejected(tmp_path, monkeypatch):
    from cskd_hf.models import export as module

    create_model = timm.create_model

    def create_and_change(*args, **kwargs):
        model = create_model(*args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).flatten()[0] += 1
        return model

    monkeypatch.setattr(module.timm, "create_model", create_and_change)
    with pytest.raises(RuntimeError, match="reloading changed the weights: "):
        export(tmp_path / "model", model=create_model("test_resnet", num_classes=3))
    assert not (tmp_path / "model").exists()


def test_a_second_export_replaces_the_first_and_leaves_no_partial_folder(tmp_path):
    (tmp_path / ".partial-model").mkdir()  # of a killed process
    (tmp_path / ".partial-model" / "junk").write_text("")
    export(tmp_path / "model", readme="the first")
    export(tmp_path / "model", readme="the second")
    assert os.listdir(tmp_path) == ["model"]
    assert sorted(os.listdir(tmp_path / "model")) == ["README.md", "class_map.txt", "config.json", "model.safetensors"]
    assert (tmp_path / "model" / "README.md").read_text() == "the second"


@pytest.mark.parametrize(
    ("name", "needs"), [("preactresnet18_32px", True), ("densenet121_32px", True), ("resnet10", False), ("vit", False)]
)
def test_the_loading_code_imports_this_package_only_if_timm_needs_it(name, needs):
    assert needs_cskd_hf(name, timm.create_model("test_resnet")) == needs
    code = loading_code("hf-hub:me/mine", needs)
    assert code.startswith("import cskd_hf.models ") == needs
    assert code.endswith('model = timm.create_model("hf-hub:me/mine", pretrained=True).eval()\n')
    compile(code, "loading code", "exec")
