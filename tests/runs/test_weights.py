"""Weights by the name a user writes: runs, checkpoints, model folders and repositories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from method_cases import CLASSES, EXPERIMENT, MEAN, STD, exported, method_of
from timm.models import save_for_hf
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.recipe import Recipe, dump_recipe, parse_recipe
from cskd_hf.runs.checkpoint import save_checkpoint
from cskd_hf.runs.progress import Progress
from cskd_hf.runs.weights import find_weights, load_weights, read_class_names


def recipe_of(method: str = "cross_entropy") -> Recipe:
    return parse_recipe(
        {
            "data": {"dataset": "digits"},
            "transform": {"input_size": [3, 32, 32], "mean": MEAN, "std": STD},
            "model": {"model_name": "test_resnet", "num_classes": len(CLASSES), "pretrained": True},
            "method": method_of(method).model_dump(mode="json"),
            "optimizer": {"lr": 0.1},
            "scheduler": {"sched": "cosine", "num_epochs": 2},
        }
    )


def stopped_run(
    folder: Path, method: str = "cross_entropy", steps: tuple[int, ...] = (7,), ema: bool = False
) -> tuple[Path, nn.Module]:
    """The folder of an unfinished run, and the network that its newest checkpoint holds."""
    recipe = recipe_of(method)
    folder.mkdir()
    dump_recipe(recipe, folder / "recipe.yaml")
    for step in steps:
        torch.manual_seed(step)
        networks = [create_backbone(recipe.model.model_copy(update={"pretrained": False}), 4) for _ in range(1 + ema)]
        modules = [recipe.method.build(network, EXPERIMENT) for network in networks]
        optimizer = torch.optim.SGD(modules[0].parameters(), lr=0.1)
        exports = [recipe.method.export(module) for module in modules]
        average = exports[1] if ema else None
        save_checkpoint(
            folder / "checkpoints", modules[0], optimizer, None, Progress(step=step), "", 9, average, None, CLASSES
        )
    return folder, exports[-1]


@pytest.mark.parametrize(
    ("method", "ema"),
    [("cskd", False), ("cskd", True), ("adacos", False), ("byot", True), ("pskd", False), ("distillation", False)],
)
def test_an_unfinished_run_is_the_exported_network_of_its_newest_checkpoint(tmp_path, method, ema):
    run, network = stopped_run(tmp_path / "run", method, ema=ema)
    weights = find_weights(str(run))
    assert read_class_names(weights) == CLASSES
    trained = load_weights(weights)
    expected = network.state_dict()
    loaded = trained.model.state_dict()
    assert loaded.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(loaded[name], expected[name])] == []
    assert not trained.model.training
    assert (trained.class_names, trained.temperature, trained.transform.mean) == (CLASSES, None, MEAN)
    which = f"{'averaged ' if ema else ''}weights of run/checkpoints/step-00000007"
    assert trained.calibration == f"not calibrated: {which}; a temperature is fitted when training ends; T = 1"


def test_each_way_to_name_a_checkpoint(tmp_path, monkeypatch, capsys):
    run, _ = stopped_run(tmp_path / "run", steps=(5, 100))
    first, second = run / "checkpoints" / "step-00000005", run / "checkpoints" / "step-00000100"
    monkeypatch.chdir(first)
    for source, expected in ((run, (first, second)), (run / "checkpoints", (first, second)), (Path("."), (first,))):
        weights = find_weights(str(source))
        assert (weights.run, weights.checkpoints) == (run, expected)
    (second / "model.safetensors").write_bytes(b"damaged")
    assert "step-00000005" in load_weights(find_weights(str(run))).calibration
    assert "step-00000100 is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match="step-00000100: damaged; name another checkpoint"):
        load_weights(find_weights(str(second)))


def test_a_finished_run_is_its_model_and_its_checkpoints_stay_reachable(tmp_path):
    run, _ = stopped_run(tmp_path / "run")
    shutil.copytree(exported("test_resnet").removeprefix("local-dir:"), run / "model")
    assert find_weights(str(run)).checkpoints  # of a forced resume: the model is the earlier result
    (run / "summary.json").touch()
    weights = find_weights(str(run))
    assert (weights.run, weights.checkpoints) == (run, ())
    assert read_class_names(weights) == CLASSES
    assert find_weights(str(run / "checkpoints")).checkpoints


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label_names": ["cat", "dog"]}, "names 2 classes in label_names, but the network has 4; correct the list"),
        ({"label_names": ["cat"] * 4}, "config.json names two classes 'cat' in label_names; rename one"),
        ({"cskd": {"temperature": 0}}, "cskd.temperature: read 0; write a number above 0, or null"),
        ({"cskd": {"temperature": "1.5"}}, "cskd.temperature: read '1.5'; write a number"),
        ({"cskd": [1.5]}, r"cskd: read \[1.5\]; write an object, or remove it"),
        ({"pretrained_cfg": {"interpolation": "cubic"}}, "interpolation: read 'cubic'; allowed: nearest, .*bicubic"),
        ({"model_args": {"depth": 3}}, "timm cannot load these weights: .*'depth'"),
        ({"pretrained_cfg": {"input_size": [3, 32]}}, "timm cannot load these weights: "),
    ],
)
def test_weights_that_do_not_fit_their_config_are_one_line(tmp_path, changed, message):
    folder = tmp_path / "model"
    shutil.copytree(exported("test_resnet").removeprefix("local-dir:"), folder)
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    weights = find_weights(f"local-dir:{folder}")
    read = read_class_names if "two classes" in message else load_weights
    with pytest.raises(UserError, match=f"^local-dir:{folder}: .*{message}") as raised:
        read(weights)
    assert "\n" not in str(raised.value)


def test_class_names_may_be_given_by_their_numbers(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported("test_resnet").removeprefix("local-dir:"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = {str(label): CLASSES[label] for label in (2, 0, 3, 1)}
    (folder / "config.json").write_text(json.dumps(config))
    weights = find_weights(f"local-dir:{folder}")
    assert read_class_names(weights) == load_weights(weights).class_names == CLASSES


def test_weights_are_tested_at_their_test_size_as_in_timms_validate(tmp_path):
    size = {"test_input_size": (3, 48, 48), "test_crop_pct": 0.5}
    model = timm.create_model("test_resnet", num_classes=4, pretrained_cfg_overlay={"input_size": (3, 32, 32), **size})
    save_for_hf(model, tmp_path, safe_serialization=True)
    transform = load_weights(find_weights(f"local-dir:{tmp_path}")).transform
    assert (*transform.input_size, transform.crop_pct) == (3, 48, 48, 0.5)


def test_weights_without_a_classifier_are_rejected(tmp_path):
    save_for_hf(timm.create_model("test_resnet", num_classes=0), tmp_path, safe_serialization=True)
    with pytest.raises(UserError, match=r"has no classifier: it is an encoder of features; name another model$"):
        load_weights(find_weights(f"local-dir:{tmp_path}"))


def test_a_checkpoint_that_does_not_fit_the_recipe_is_one_line(tmp_path):
    run, _ = stopped_run(tmp_path / "run")
    dump_recipe(recipe_of("byot"), run / "recipe.yaml")
    with pytest.raises(UserError, match=r"step-00000007: does not fit .*recipe\.yaml: .*branches") as raised:
        load_weights(find_weights(str(run)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere: no such folder; name a run folder, a checkpoint in it, local-dir:FOLDER, hf-hub:"),
        ("file", "file: a file; name a run folder"),
        ("empty", "empty: not a run folder; name a run folder.*; the images follow: data.dataset=FOLDER to evaluate"),
        ("started", "started: neither finished nor at its first checkpoint; resume it"),
        ("started/checkpoints", "started/checkpoints: no checkpoint in it"),
        ("lone/step-00000001", r"lone/step-00000001: .* has no recipe\.yaml; a checkpoint needs the recipe"),
        ("exported", "exported: a model folder; write local-dir:exported"),
        ("local-dir:empty", r"local-dir:empty: empty has no config\.json; name a model folder: local-dir:RUN/model"),
        ("local-dir:nowhere", r"nowhere has no config\.json"),
        ("hf-hub:name", "hf-hub:name: not a repository of the Hub; write hf-hub:OWNER/NAME"),
        ("hf-hub:a/b/c", "write hf-hub:OWNER/NAME"),
        ("run.a", "run.a: no such folder, and no network of timm's; name a run folder"),
        ("resnet18.no_tag", "resnet18.no_tag: no such folder, nor such weights of timm: .*; name a run folder"),
        ("", ": not a run folder"),
    ],
)
def test_a_name_without_weights_is_one_line(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "started/checkpoints", "lone/step-00000001", "exported"):
        Path(folder).mkdir(parents=True)
    for file in ("file", "started/recipe.yaml", "exported/config.json"):
        Path(file).touch()
    with pytest.raises(UserError, match=message):
        find_weights(source)
