from __future__ import annotations

import json
import shutil

import pytest
import torch
from command_runs import draw_folder
from huggingface_hub import constants
from publishable_runs import trained
from safetensors.torch import load_file, save_file

from cskd_hf.errors import UserError
from cskd_hf.hub.release import build_release, read_source
from cskd_hf.hub.verify import _compare, _test_images, verify_release
from cskd_hf.models.load import load_trained
from cskd_hf.recipe.resolve import resolve


def release_of(run, folder):
    source = read_source(run)
    model = load_trained(str(run)).model
    folder.mkdir()
    build_release(source, folder, model, "acme/x", folded=(), licence="apache-2.0", seeds=None)
    return source, model


def verify(run, release, source, model):
    said = []
    verify_release(release, run, model, resolve(source.recipe), said.append)
    return said


def test_other_weights_than_the_runs_are_found_in_a_fresh_process(tmp_path):
    source, model = release_of(trained(), tmp_path / "release")
    weights = load_file(tmp_path / "release" / "model.safetensors")
    weights["fc.bias"][1] += 1e-3
    save_file(weights, tmp_path / "release" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"timm loads something else than was trained: other values in fc\.bias; logits"
    ):
        verify(trained(), tmp_path / "release", source, model)


def test_an_architecture_that_timm_lacks_does_not_load_unless_the_release_says_what_it_needs(tmp_path):
    source, model = release_of(trained(model_name="preact_resnet10_32px"), tmp_path / "release")
    path = tmp_path / "release" / "config.json"
    config = json.loads(path.read_text())
    assert config["cskd"]["needs_cskd_hf"] is True
    config["cskd"]["needs_cskd_hf"] = False
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"timm cannot load the release in a fresh process: .*preact_resnet10_32px"):
        verify(trained(model_name="preact_resnet10_32px"), tmp_path / "release", source, model)


TOLD = {
    "names_differ": [],
    "weights_differ": [],
    "logits_difference": 0.0,
    "labels": ["a", "b"],
    "pipeline": "a",
    "settings": [[3, 48, 48], "bilinear", 1.0, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]],
}


@pytest.mark.parametrize(
    ("library", "changed", "said"),
    [
        ("timm", {"names_differ": ["fc.weight"]}, "timm .*: other tensors: fc.weight"),
        ("timm", {"logits_difference": 2e-5}, "logits differ by up to 2e-05"),
        ("timm", {"logits_difference": float("nan")}, "logits differ by up to nan"),
        ("timm", {"labels": ["b", "a"]}, "other class names"),
        ("timm", {"labels": None}, "other class names"),
        (
            "timm",
            {"settings": [[3, 48, 48], "bicubic", 1.0, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]},
            "prepared by .*bicubic",
        ),
        ("timm", {"settings": [[3, 48, 48], "bilinear", 1.0, [0, 0, 0], [0.4, 0.5, 0.6]]}, "images are prepared by"),
        ("transformers", {"pipeline": "LABEL_0"}, "the pipeline says 'LABEL_0', which is no class"),
    ],
)
def test_every_difference_is_named(library, changed, said):
    recipe = read_source(trained()).recipe.replace(transform={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    config = {"label_names": ["a", "b"]}
    _compare(TOLD, library, config, torch.ones(2, 2), recipe)
    with pytest.raises(UserError, match=said):
        _compare(TOLD | changed, library, config, torch.ones(2, 2), recipe)


def test_the_images_are_the_runs_own_with_the_logits_it_saved():
    recipe = resolve(read_source(trained()).recipe)
    images, logits = _test_images(trained(), recipe)
    assert (images.shape, images.dtype) == ((20, 3, 48, 48), torch.uint8)
    assert torch.equal(logits, load_file(trained() / "predictions.safetensors")["logits"])


def test_data_that_are_gone_or_changed_leave_that_check_out_with_the_reason(tmp_path):
    recipe = resolve(read_source(trained()).recipe)
    gone = _test_images(trained(), recipe.replace(data={"dataset": str(tmp_path / "gone" / "images")}))
    assert gone.startswith("the data cannot be read here: ")
    other = draw_folder(tmp_path / "other", {"test": [5, 6, 5, 5]})
    assert _test_images(trained(), recipe.replace(data={"dataset": str(other)})) == (
        "split 'test' has other images now than when the run was tested"
    )
    shutil.rmtree(other / "test" / "class 3")
    few = _test_images(trained(), recipe.replace(data={"dataset": str(other)}))
    assert "other images now" in few


def test_a_set_of_the_hub_is_not_downloaded_for_a_check():
    recipe, before = resolve(read_source(trained()).recipe), constants.HF_HUB_OFFLINE
    found = _test_images(trained(), recipe.replace(data={"dataset": "nobody/nothing"}))
    assert "HF_HUB_OFFLINE" in found
    assert before == constants.HF_HUB_OFFLINE
