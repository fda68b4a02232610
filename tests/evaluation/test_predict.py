"""The command `predict` in this process, on random weights."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import draw_image
from method_cases import CLASSES, TEACHER_MEAN, TEACHER_STD, exported, softmax
from PIL import Image
from safetensors import safe_open

from cskd_hf import predict
from cskd_hf.errors import UserError
from cskd_hf.evaluation.answers import rank_classes
from cskd_hf.models.load import load_trained

TEMPERATURE = 50.0  # the random logits are large


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights for four classes, with a temperature."""
    source = Path(exported("test_resnet").removeprefix("local-dir:"))
    folder = tmp_path_factory.mktemp("model")
    config = json.loads((source / "config.json").read_text())
    config["cskd"] = {"temperature": TEMPERATURE, "calibration": "calibrated: by the test"}
    config["pretrained_cfg"]["crop_pct"] = 1.0  # images of the input size stay as they are
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return f"local-dir:{folder}"


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Five images and a text file with an image's name, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("in", "deep, er").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "d.png", "deep, er/e.png", "deep, er/f.png")):
        draw_image(number, seed=number, size=32).save(Path("in", name))
    Path("in/c.png").write_text("no image")
    return ["in/a.png", "in/b.png", "in/d.png", "in/deep, er/e.png", "in/deep, er/f.png"]


def expected(model, paths):
    """Calibrated probabilities and features, image by image."""
    network, rows = load_trained(model).model, []
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / 255
        mean, std = (np.array(values)[:, None, None] for values in (TEACHER_MEAN, TEACHER_STD))
        with torch.inference_mode():
            maps = network.forward_features(torch.tensor((pixels - mean) / std, dtype=torch.float32)[None])
            rows.append((network.forward_head(maps)[0].numpy(), network.forward_head(maps, pre_logits=True)[0].numpy()))
    logits, features = map(np.stack, zip(*rows, strict=True))
    return softmax(logits / TEMPERATURE), features


def test_every_readable_image_of_a_folder_has_a_row_and_the_others_are_listed_at_the_end(model, images, capsys):
    probabilities, features = expected(model, images)
    options = ["--topk", "3", "--batch-size", "2", "--workers", "0"]
    assert (
        predict.main([model, "in", "gone.png", *options, "--output", "answers.csv", "--features", "f.safetensors"]) == 1
    )
    done = capsys.readouterr()
    assert done.out == ""
    assert done.err.splitlines() == [
        "calibrated: by the test",
        "error: 2 of 7 files could not be read; answers.csv has the others:",
        "  in/c.png: unreadable image (not in any format that Pillow reads)",
        "  gone.png: unreadable image ([Errno 2] No such file or directory: 'gone.png')",
    ]
    header, *rows = csv.reader(io.StringIO(Path("answers.csv").read_text()))
    assert header == ["path", "label_1", "prob_1", "label_2", "prob_2", "label_3", "prob_3"]
    assert [row[0] for row in rows] == images
    for row, probability in zip(rows, probabilities, strict=True):
        order = np.argsort(-probability)[:3]
        assert row[1::2] == [CLASSES[label] for label in order]
        assert list(map(float, row[2::2])) == pytest.approx(probability[order], rel=1e-4)
    with safe_open("f.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["paths"]) == images
        saved = file.get_tensor("features")
    assert (saved.dtype, saved.shape) == (np.float32, features.shape)
    np.testing.assert_allclose(saved, features, rtol=1e-4, atol=1e-5)


def test_table_and_json_lines_hold_the_same_answers(model, images, capsys):
    assert predict.main([model, *images[:2], "--format", "jsonl"]) == 0
    done = capsys.readouterr()
    assert done.err == "calibrated: by the test\n"
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["path"] for row in rows] == images[:2]
    assert all(len(row["labels"]) == 4 and sum(row["probs"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert predict.main([model, *images[:2]]) == 0
    lines = iter(capsys.readouterr().out.splitlines())
    assert next(lines) == "calibrated: by the test"
    for row in rows:
        assert next(lines) == row["path"]
        for label, prob in zip(row["labels"], row["probs"], strict=True):
            shown, name = next(lines).split(" %  ")
            assert name == label
            assert ">99.9" in shown if prob > 0.999 else float(shown) == pytest.approx(100 * prob, abs=0.006)


def test_classes_rank_by_their_logits_where_their_probabilities_round_to_0(model):
    trained = replace(load_trained(str(model)), class_names=("a", "b", "c"), temperature=None)
    (answer,) = rank_classes(trained, torch.tensor([[0.0, -900.0, -800.0]]), ["x"], 3)
    assert (answer.labels, answer.probs) == (["a", "c", "b"], [1.0, 0.0, 0.0])


def test_deep_images_that_come_out_nearly_black_are_noted(model, images, capsys):
    for name, greatest in (("12-bit", 4095), ("16-bit", 65535)):
        Image.fromarray(np.linspace(0, greatest, 32 * 32).reshape(32, 32).astype(np.uint16)).save(f"{name}.png")
    assert predict.main([model, "16-bit.png", *images]) == 0
    assert "note" not in capsys.readouterr().err
    assert predict.main([model, "12-bit.png"]) == 0
    assert capsys.readouterr().err == (
        "note: 16-bit images (mode I;16) come out nearly black or uniform: black is 0, white 65,535, but values are "
        "0 to 4,095 in files\n"
    )


def test_without_a_readable_image_the_files_are_listed_and_the_answers_empty(model, images, capsys):
    assert predict.main([model, "in/c.png", "--format", "csv", "--topk", "1"]) == 1
    done = capsys.readouterr()
    assert done.out == "path,label_1,prob_1\n"
    assert "error: 1 of 1 files could not be read:\n  in/c.png: " in done.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere", "in"], "nowhere: no such folder"),
        (["MODEL", "nowhere.png"], "nowhere.png: no such file"),
        (["MODEL", "in", "--output", "out/x.csv"], "--output: out is no folder"),
        (
            ["MODEL", "in", "--output", "x.json"],
            "--output: x.json: not .csv, .jsonl or .txt; write one of these, or --f",
        ),
        (["MODEL", "in", "--features", "in"], "--features: in is a folder"),
        (["MODEL", "in", "--topk", "0"], "--topk: read 0; write 1 or more"),
        (["MODEL", "in", "--workers", "-1"], "--workers: read -1; write 0 or more"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(model, images, argv, message):
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=f"^{message}"):
        predict.main([model if word == "MODEL" else word for word in argv])
    assert sorted(Path().rglob("*")) == before
