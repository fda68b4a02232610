"""Calibration maps and prediction sets in the commands `evaluate` and `predict`, from a run folder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import draw_folder
from method_cases import exported, softmax
from safetensors.torch import save_file

from cskd_hf import compare_maps, evaluate, predict
from cskd_hf.errors import UserError
from cskd_hf.evaluation.images import data_section, load_splits
from cskd_hf.recipe.recipe import dump_recipe, parse_recipe
from cskd_hf.runs.weights import find_weights

CLASSES = tuple(f"class {label}" for label in range(4))
TEMPERATURE = 50.0  # the random logits are large


def holdout(num_images: int = 300) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 100 * torch.randn(num_images, 4, generator=generator)
    target = torch.multinomial((logits / TEMPERATURE).softmax(dim=1), 1, generator=generator).flatten()
    return {"holdout_logits": logits, "holdout_target": target}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run with hold-out predictions, `run`, and images of its classes, in the working folder."""
    monkeypatch.chdir(tmp_path)
    draw_folder(Path("images"), {"test": (3,) * 4})
    shutil.copytree(exported("test_resnet", CLASSES).removeprefix("local-dir:"), "run/model")
    config = json.loads(Path("run/model/config.json").read_text(encoding="utf-8"))
    config["cskd"] = {"temperature": TEMPERATURE, "calibration": "calibrated: by the test"}
    Path("run/model/config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(holdout(), "run/predictions.safetensors")
    write_recipe({"dataset": "images"})
    return "run"


def write_recipe(data, **settings):
    recipe = {"data": data, "model": {"model_name": "test_resnet"}, "method": {"name": "cskd"}, "run": settings}
    recipe |= {"optimizer": {"lr": 0.1}, "scheduler": {"num_epochs": 1}}
    dump_recipe(parse_recipe(recipe), Path("run/recipe.yaml"))


@pytest.mark.parametrize(
    ("split", "holdout", "note"),
    [
        ("train", "holdout", "run was trained on split 'train': expect worse results on new images"),
        ("holdout", "holdout", "run fitted its temperature to split 'holdout': expect worse results on new images"),
        ("test", "holdout", None),
        ("0.1", 0.1, None),  # two shares of one size are not the same images
    ],
)
def test_images_that_a_run_has_used_are_noted(run, split, holdout, note):
    config = json.loads(Path("run/model/config.json").read_text(encoding="utf-8"))
    Path("run/model/config.json").write_text(json.dumps(config | {"label_names": [*map(str, range(10))]}))
    write_recipe({"dataset": "digits", "train_split": "train", "holdout": holdout, "test_split": "test"})
    weights = [find_weights("run")]
    (images,) = load_splits(weights, data_section(weights, [f"data.test_split={split}"]))
    assert images.notes == (() if note is None else (note,))


DATA = ("data.dataset=images", "data.workers=0")


def test_each_map_and_each_set_has_a_line_and_the_same_values_in_the_file(run, capsys):
    evaluate.main([run, *DATA, "--resamples", "0", "--json", "plain.json"])
    plain = json.loads(Path("plain.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    options = ["--calibration", "isotonic,temperature", "--conformal", "0.9,0.999", "--json", "tables.json"]
    assert evaluate.main([run, *DATA, *options]) == 0
    content = json.loads(Path("tables.json").read_text(encoding="utf-8"))
    output = capsys.readouterr().out

    none, *maps = content["maps"]
    without = [name for name, value in plain["metrics"].items() if value is not None and "recall" not in name]
    assert {name: none["metrics"][name] for name in without} == {name: plain["metrics"][name] for name in without}
    fitted = compare_maps(*holdout().values(), ["isotonic", "temperature"])
    assert [(own["map"], own["supported"], own["verdict"]) for own in maps] == [
        (own.name, own.supported, own.verdict) for own in fitted
    ]
    for own in content["maps"]:
        line = next(line for line in output.splitlines() if line.startswith(f"{own['map']} "))
        assert line.split()[1:3] == [f"{own['metrics'][name]:.4g}" for name in ("top1_error", "nll")]
        assert line.endswith(own.get("verdict", ""))
    lac, aps, none = content["conformal"]
    assert [lac["score"], aps["score"]] == ["lac", "aps"]
    assert lac["worst_class"] in CLASSES
    assert none == {"wanted": 99.9, "problem": "no sets: 300 hold-out images, fewer than the 999 it needs"}
    assert f"99.9 %: {none['problem']}" in output.splitlines()
    assert ("note: coverage below the expected range" in output) == any(
        own["found"] < own["expected"][0] for own in (lac, aps)
    )


@pytest.mark.parametrize("coverage", [0.2, 0.8])
def test_predict_writes_the_classes_of_at_least_the_hold_out_quantile(run, coverage, capsys):
    logits, target = holdout().values()
    p = softmax(logits.numpy() / TEMPERATURE)[range(300), target]
    least = np.sort(p)[300 - int(np.ceil(301 * coverage))]
    everything, sets = {}, {}
    for answers, options in ((everything, ["--topk", "4"]), (sets, ["--coverage", str(coverage)])):
        assert predict.main([run, "images", "--format", "jsonl", "--workers", "0", *options]) == 0
        done = capsys.readouterr()
        answers |= {row["path"]: row for row in map(json.loads, done.out.splitlines())}
    wanted = {path: sum(prob >= least for prob in row["probs"]) for path, row in everything.items()}
    assert {path: len(row["labels"]) for path, row in sets.items()} == wanted
    assert all(row["labels"] == everything[path]["labels"][: wanted[path]] for path, row in sets.items())
    assert done.err.splitlines()[-1] == (
        f"prediction sets with a coverage of {100 * coverage:g} %: the classes of at least {100 * least:.4g} %, "
        "from 300 hold-out images"
    )

    assert predict.main([run, "images", "--output", "sets.csv", "--workers", "0", "--coverage", str(coverage)]) == 0
    header, *rows = csv.reader(Path("sets.csv").read_text(encoding="utf-8").splitlines())
    assert len(header) == 1 + 2 * max(wanted.values())
    assert {row[0]: [cell for cell in row[1::2] if cell] for row in rows} == {
        path: row["labels"] for path, row in sets.items()
    }
    capsys.readouterr()
    assert predict.main([run, "images", "--workers", "0", "--coverage", str(coverage)]) == 0
    assert capsys.readouterr().out.count("  no class\n") == list(wanted.values()).count(0)


@pytest.mark.parametrize(
    ("settings", "choice"),
    [
        ({"selection": "best_holdout"}, "chose the epoch"),
        ({"early_stopping_patience": 2}, "decided when training stopped"),
        ({}, None),
    ],
)
def test_hold_out_images_that_chose_the_epoch_are_noted(run, settings, choice, capsys):
    write_recipe({"dataset": "images", "holdout": 0.1}, **settings)
    note = f"note: the hold-out images also {choice}: coverage and calibration may be worse on new images"
    for command, options in ((evaluate, [*DATA, "--conformal", "0.9"]), (predict, ["images", "--coverage", "0.9"])):
        assert command.main([run, *options]) == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if "hold-out images also" in line]
        assert notes == ([] if choice is None else [note])


NOWHERE = "has no hold-out predictions; name the folder of a finished run, trained with data.holdout"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["run", *DATA, "--calibration", "platt"],
            "--calibration: read 'platt'; allowed: temperature, vector, isotonic",
        ),
        (["run", *DATA, "--calibration", ""], "--calibration: read ''; allowed: temperature, vector, isotonic"),
        *(
            (
                ["run", *DATA, f"--conformal={text}"],
                f"--conformal: read '{text}'; write shares between 0 and 1, such as 0.9 or 0.8,0.9,0.95",
            )
            for text in ("90", "1", "0", "0.0", "-0.1", "0.9,", "")
        ),
        (["run", "run", *DATA, "--conformal", "0.9"], "--conformal: takes one model; read 2"),
        (
            ["run", *DATA, "--conformal", "0.9", "--resolution", "32"],
            "--resolution: write it without --conformal, in a command of its own",
        ),
        (["local-dir:run/model", *DATA, "--calibration", "vector"], f"--calibration: local-dir:run/model {NOWHERE}"),
    ],
)
def test_a_mistake_in_the_options_of_evaluate_is_one_line(run, argv, message):
    with pytest.raises(UserError) as error:
        evaluate.main(argv)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["run", "--coverage", "1.5"],
            "--coverage: read '1.5'; write shares between 0 and 1, such as 0.9 or 0.8,0.9,0.95",
        ),
        (["run", "--coverage", "0.8,0.9"], "--coverage: read '0.8,0.9'; write one share, such as 0.8"),
        (
            ["run", "--coverage", "0.9", "--topk", "1"],
            "--topk: does not apply to the sets of --coverage; write one of the two",
        ),
        (["local-dir:run/model", "--coverage", "0.9"], f"--coverage: local-dir:run/model {NOWHERE}"),
        (
            ["run", "--coverage", "0.999"],
            "--coverage: read 0.999, which needs 999 hold-out images; run has 300: write a lower one, or name a run "
            "with more",
        ),
    ],
)
def test_a_mistake_in_the_options_of_predict_is_one_line_and_writes_nothing(run, argv, message):
    with pytest.raises(UserError) as error:
        predict.main([*argv, "images", "--output", "sets.csv"])
    assert str(error.value) == message
    assert not Path("sets.csv").exists()


def test_a_run_without_usable_hold_out_predictions_is_one_line(run):
    command = [run, "images", "--coverage", "0.9"]
    saved = Path("run/predictions.safetensors")
    tensors = holdout()
    tensors["holdout_logits"][3] = torch.nan
    save_file(tensors, saved)
    with pytest.raises(UserError, match=r"^--coverage: the logits of 1 of 300 hold-out images of .* are not finite; "):
        predict.main(command)
    save_file({"logits": torch.zeros(1, 4)}, saved)
    with pytest.raises(UserError, match=r"^--coverage: run was trained without a hold-out set; name a run with"):
        predict.main(command)
    saved.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"^--coverage: .*predictions\.safetensors cannot be read: .*; restore it, or"):
        predict.main(command)
    saved.unlink()
    Path("run/checkpoints/step-00000001").mkdir(parents=True)
    Path("run/recipe.yaml").write_text("data: {dataset: images}\n")
    with pytest.raises(UserError) as error:
        predict.main(command)
    assert str(error.value) == f"--coverage: run {NOWHERE}"


def test_maps_need_finite_hold_out_logits_and_sets_do_not(run):
    tensors = holdout()
    tensors["holdout_logits"][3, 0] = -torch.inf
    save_file(tensors, "run/predictions.safetensors")
    with pytest.raises(UserError, match=r"^--calibration: the logits of 1 of 300 hold-out images of .* leave it out"):
        evaluate.main([run, *DATA, "--calibration", "isotonic"])
    assert evaluate.main([run, *DATA, "--conformal", ".5"]) == 0
