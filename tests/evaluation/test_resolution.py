"""The same weights on test images of several sizes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from command_runs import draw_folder
from method_cases import backbone, exported

from cskd_hf import evaluate
from cskd_hf.errors import UserError
from cskd_hf.evaluation.resolution import at_height, network_at
from cskd_hf.recipe.sections import TransformSection


def test_each_resolution_has_a_line_and_the_own_size_is_marked_with_the_metrics_of_evaluate(tmp_path, capsys):
    images = draw_folder(tmp_path / "images", {"test": (3,) * 4})
    source = Path(exported("test_resnet", tuple(f"class {label}" for label in range(4))).removeprefix("local-dir:"))
    shutil.copytree(source, tmp_path / "model")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["cskd"] = {"temperature": 50.0, "calibration": "calibrated: by the test"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [f"local-dir:{tmp_path / 'model'}", f"data.dataset={images}", "data.workers=0"]

    evaluate.main([*command, "--json", str(tmp_path / "one.json")])
    one = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    assert evaluate.main([*command, "--resolution", "24,32,24", "--json", str(tmp_path / "all.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    swept = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))

    own = swept["own_input_size"]
    assert [line.split()[0] for line in lines if "×" in line.split()[0]] == ["24×24", "32×32*"]
    assert [result["input_size"] for result in swept["resolutions"]] == [[3, 24, 24], own] == [[3, 24, 24], [3, 32, 32]]
    for metrics in ("metrics", "metrics_scaled"):
        smaller, same = (result[metrics] for result in swept["resolutions"])
        assert {name: value for name, value in same.items() if "recall" not in name} == {
            name: value for name, value in one[metrics].items() if "recall" not in name
        }
        assert smaller["nll"] != same["nll"]
    assert lines[-2] == one["calibration"] == swept["calibration"]


def test_the_width_stays_in_proportion():
    transform = TransformSection(input_size=(1, 32, 48), test_input_size=(1, 40, 60), crop_pct=0.9)
    smaller = at_height(transform.for_evaluation(), 20)
    assert (smaller.input_size, smaller.for_evaluation().input_size, smaller.crop_pct) == (
        (1, 20, 30),
        (1, 20, 30),
        0.9,
    )


def test_a_fixed_grid_is_resized_and_the_original_stays():
    model = backbone("test_vit", img_size=32, dynamic_img_size=False).eval()
    before = copy.deepcopy(model.state_dict())
    larger, same = (network_at(model, TransformSection(input_size=(3, size, size))) for size in (64, 32))
    images = torch.rand(2, 3, 64, 64)
    assert larger(images).shape == (2, 4)
    assert torch.equal(same(images[..., :32, :32]), model(images[..., :32, :32]))
    assert larger.pos_embed.shape[1] - 1 == 4 * (model.pos_embed.shape[1] - 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_size_that_the_network_does_not_take_is_rejected():
    model = torch.nn.Conv2d(3, 4, kernel_size=9)
    with pytest.raises(UserError, match=r"^--resolution: the model does not run on images of 8×8: .*; leave it out$"):
        network_at(model, TransformSection(input_size=(3, 8, 8)))
