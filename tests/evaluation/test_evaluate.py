"""The command `evaluate` in this process, on random weights of one network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import draw_image
from method_cases import CLASSES, exported
from safetensors.torch import load_file, save_file

from cskd_hf import evaluate, predict
from cskd_hf.errors import UserError
from cskd_hf.evaluation.images import data_section, load_splits
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.weights import find_weights


def variant(folder: Path, order: list[int] | None = None, bias: float | None = None, **config: Any) -> str:
    """A copy of the weights: classes in another order, one bias set, keys of config.json changed."""
    source = Path(exported("test_resnet").removeprefix("local-dir:"))
    weights = load_file(source / "model.safetensors")
    settings = json.loads((source / "config.json").read_text())
    if order is not None:
        settings["label_names"] = [settings["label_names"][label] for label in order]
        weights |= {name: weights[name][order].contiguous() for name in ("fc.weight", "fc.bias")}
    if bias is not None:
        weights["fc.bias"][0] = bias
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings | config))
    return f"local-dir:{folder}"


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three images of each class, as an override, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate(CLASSES):
        for number in range(3):
            path = Path(f"images/test/{name}/{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_image(label, number).save(path)
    return "data.dataset=images"


def test_models_are_compared_on_the_same_images_whatever_the_order_of_their_classes(images, tmp_path, capsys):
    models = [
        variant(tmp_path / "a"),
        variant(tmp_path / "b", [3, 1, 0, 2]),
        variant(tmp_path / "c", [3, 1, 0, 2], 1e3),
    ]
    files = {name: f"compared.{name}" for name in ("json", "markdown", "latex", "html")}
    options = [word for name, file in files.items() for word in (f"--{name}", file)]
    assert evaluate.main([*models, images, "data.workers=0", "--resamples", "50", *options]) == 0
    content = json.loads(Path(files["json"]).read_text())
    first, second, third = content["models"]
    assert first["images"] == 3 * len(CLASSES)
    measured = {name: value for name, value in first["metrics"].items() if value is not None}
    assert {name: second["metrics"][name] for name in measured} == pytest.approx(measured, rel=1e-5, abs=1e-9)
    assert third["metrics"]["top1_error"] == 75.0
    assert {row["verdict"] for row in content["differences"] if row["model"] == 2} == {""}
    assert "worse" in {row["verdict"] for row in content["differences"] if row["metric"] == "nll"}
    output = capsys.readouterr().out
    assert f"on split 'test' of images: {3 * len(CLASSES)} images" in output
    assert "top1_error" in Path(files["markdown"]).read_text()
    assert Path(files["latex"]).read_text().count(r"\toprule") == 2
    page = Path(files["html"]).read_text()
    assert all(model in page for model in models)
    assert "<h2>Differences</h2>" in page
    assert "<h2>Classes that differ most</h2>" in page


def test_models_whose_classes_are_in_another_order_get_the_same_share_of_the_images(images, tmp_path):
    """A quarter of 12 images takes one of each class but one, which the order of the classes decides."""
    models = [find_weights(variant(tmp_path / name, order)) for name, order in (("a", None), ("b", [3, 1, 0, 2]))]
    data = resolve_data(DataSection(dataset="images", train_split="test", test_split=0.25))
    splits = load_splits(models, data)
    paths = [[image["path"] for image in split.fetch(range(len(split)))] for split in splits]
    assert paths[0] == paths[1]
    note = f"{models[1].source} has another order of classes than {models[0].source}, which decides the share of test "
    for split in splits:
        assert note + "images: it may have trained on some of them" in split.notes
        assert [split.class_names[label] for label in split.labels] == [Path(path).parent.name for path in paths[0]]
    assert [split.class_names for split in splits] == [CLASSES, tuple(CLASSES[label] for label in (3, 1, 0, 2))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label_names": ["x", *CLASSES[1:]]},
            f"has other classes than .*a, .*: only .*a has {CLASSES[0]}; only .*b has x",
        ),
        ({"bias": torch.nan}, r"the logits of 12 of 12 images are NaN or infinite, first of .*name others"),
        ({"bias": torch.inf}, r"the logits of 12 of 12 images are NaN or infinite"),
    ],
)
def test_a_model_that_does_not_compare_is_one_line(images, tmp_path, changes, message):
    models = [variant(tmp_path / "a"), variant(tmp_path / "b", **changes)]
    with pytest.raises(UserError, match=message) as error:
        evaluate.main([*models, images, "data.workers=0", "--json", "out.json"])
    assert "\n" not in str(error.value)
    assert not Path("out.json").exists()


def test_predict_gives_no_answer_from_weights_without_finite_logits(images, tmp_path):
    model, (image, *_) = variant(tmp_path / "a", bias=torch.nan), sorted(Path("images/test", CLASSES[0]).iterdir())
    with pytest.raises(UserError, match=r"the logits of 1 of 1 images are NaN or infinite"):
        predict.main([model, str(image), "--output", "answers.csv"])
    assert not Path("answers.csv").exists()


def test_weights_without_names_need_as_many_classes_as_the_data_or_its_numbers(images, tmp_path):
    model = variant(tmp_path / "a", label_names=None)
    for name in CLASSES[2:]:
        for file in Path("images/test", name).iterdir():
            file.unlink()
        Path("images/test", name).rmdir()
    with pytest.raises(UserError, match=r"has 2 classes, but .* has 4 without names; write data\.labels=index if"):
        evaluate.main([model, images, "data.workers=0"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.dataset=images"], "data.dataset=images: which model\\? Name a run folder"),
        (["MODEL", "model.drop_rate=0.1"], "only data\\.\\* applies"),
        (["MODEL"], "has no recipe that names the images"),
        (["MODEL", "--resamples", "-1"], "--resamples: read -1; write 0 for no intervals"),
        (["MODEL", "--metrics", "nll,acc"], "--metrics: read 'acc'; allowed: top1_error, "),
        (["MODEL", "--html", "no/page.html"], "--html: no is no folder"),
        (["MODEL", "nothing"], "nothing: no such folder; name .*timm's NETWORK\\.TAG"),
        (["MODEL", "data.dataset=images", "data.test_split=validation"], "no split 'validation'; it has test"),
        *(
            (
                ["MODEL", f"--resolution={text}"],
                f"--resolution: read '{text}'; write pixels separated by commas, such as ",
            )
            for text in ("24,", "0", "224x224", "-1")
        ),
        (["MODEL", "--severities", "1"], "--severities: write it with --corruptions"),
        (["MODEL", "MODEL", "--corruptions"], "--corruptions: takes one model; read 2"),
        (["MODEL", "--ood", "digits,"], "--ood: read an empty name; write datasets or folders separated by commas"),
        (
            ["MODEL", "--ood", "a", "--resolution", "24"],
            "--resolution: write it without --ood, in a command of its own",
        ),
        *(
            (["MODEL", "--ood", "digits", option, value], f"{option}: does not apply with --ood; leave it out")
            for option, value in (("--html", "a.html"), ("--metrics", "ece"), ("--resamples", "0"))
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_line(images, tmp_path, words, message):
    model = variant(tmp_path / "a")
    words = [model if word == "MODEL" else word.replace("data.dataset=images", images) for word in words]
    if any(word.startswith("--") for word in words):
        words.insert(1, images)
    with pytest.raises(UserError, match=message):
        evaluate.main(words)


def test_runs_with_other_test_images_are_not_compared(tmp_path):
    for name, split in (("a", "test"), ("b", "val")):
        variant(tmp_path / "model")
        (tmp_path / name).mkdir()
        (tmp_path / "model").rename(tmp_path / name / "model")
        (tmp_path / name / "recipe.yaml").write_text(f"data: {{dataset: digits, test_split: {split}}}\n")
    message = f"data.test_split: test in {tmp_path}/a, val in {tmp_path}/b, so their test images differ; "
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate.main([str(tmp_path / "a"), str(tmp_path / "b")])
    weights = [find_weights(name) for name in (variant(tmp_path / "c"), str(tmp_path / "b"))]
    data = data_section(weights, ["data.dataset=digits"])  # of a run and of weights without one: the run's
    assert (data.dataset, data.test_split) == ("digits", "val")


def test_timms_tag_is_its_repository_and_imagenets_classes_are_matched_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub/models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots/0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(snapshot.name)
    snapshot.mkdir(parents=True)
    exported_model = Path(exported("test_resnet", tuple(map(str, range(1000)))).removeprefix("local-dir:"))
    weights = load_file(exported_model / "model.safetensors")
    weights["fc.bias"][217] = 1e4  # n02102040, the English springer
    save_file(weights, snapshot / "model.safetensors")
    config = json.loads((exported_model / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**config, "label_names": None}))
    for name, count in (("n01440764", 1), ("n02102040", 3)):  # ImageNet's classes 0 and 217
        (tmp_path / "images/test" / name).mkdir(parents=True)
        for number in range(count):
            draw_image(0, number).save(tmp_path / f"images/test/{name}/{number}.png")
    output = tmp_path / "out.json"
    data = [f"data.dataset={tmp_path}/images", "data.workers=0"]
    assert evaluate.main(["test_resnet.r160_in1k", *data, "--resamples", "0", "--json", str(output)]) == 0
    content = json.loads(output.read_text())
    assert content["model"] == "hf-hub:timm/test_resnet.r160_in1k"
    assert content["metrics"]["top1_error"] == 25.0
