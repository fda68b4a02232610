"""Detection of images of other classes: scores and rates against formulas, and the command on real networks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from command_runs import draw_folder, draw_image
from datasets import Dataset
from method_cases import exported

from cskd_hf import evaluate, ood_detection, ood_scores
from cskd_hf.errors import UserError
from cskd_hf.evaluation.images import load_ood
from cskd_hf.evaluation.ood import DETECTION, SCORES
from cskd_hf.evaluation.ood_table import compare
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection

NAMES = tuple(f"class {label}" for label in range(4))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_scores_equal_their_formulas(temperature):
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 5
    z = logits.double().numpy() / temperature
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = {
        "max_prob": p.max(axis=1),
        "max_logit": z.max(axis=1),
        "energy": np.log(np.exp(z).sum(axis=1)),
        "entropy": (p * np.log(p)).sum(axis=1),
    }
    for name, values in ood_scores(logits, temperature).items():
        np.testing.assert_allclose(values.numpy(), expected.pop(name), rtol=1e-9)
    assert not expected


def test_a_logit_of_minus_infinity_is_probability_zero():
    scores = ood_scores(torch.tensor([[0.0, -torch.inf]]))
    assert [values.item() for values in scores.values()] == [1.0, 0.0, 0.0, 0.0]


def test_images_whose_probability_rounds_to_1_are_ranked():
    inside, outside = torch.tensor([[60.0, 0.0], [50.0, 0.0]]), torch.tensor([[0.0, 40.0]])
    assert ood_scores(outside)["max_prob"].item() == 1.0
    assert compare(inside, outside, None)["scores"]["max_prob"]["auroc"] == 100.0
    one_class = compare(inside[:, :1], outside[:, :1], None)
    assert one_class["scores"]["max_prob"]["auroc"] == 50.0


def rates(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """By counting pairs and thresholds."""
    above = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
    every = np.concatenate([inside, outside])
    accepting = max(t for t in every if (inside >= t).mean() >= 0.95)
    rejecting = min(t for t in every if (outside <= t).mean() >= 0.95)

    def precision(positive: np.ndarray, negative: np.ndarray) -> float:
        steps = sorted(set(positive), reverse=True)
        found = [(positive >= t).sum() for t in steps]
        precise = [n / (n + (negative >= t).sum()) for n, t in zip(found, steps, strict=True)]
        return float(np.diff([0, *found]) @ precise / len(positive))

    return {
        "auroc": 100 * above,
        "fpr95_in": 100 * (outside >= accepting).mean(),
        "fpr95_out": 100 * (inside <= rejecting).mean(),
        "aupr_in": 100 * precision(inside, outside),
        "aupr_out": 100 * precision(-outside, -inside),
    }


@pytest.mark.parametrize("levels", [3, 20, 10_000])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_rates_equal_counts_of_pairs_and_thresholds_with_ties(levels, shift):
    random = np.random.RandomState(levels)
    inside = np.round(random.randn(61) * levels / 10)
    outside = np.round((random.randn(43) - shift) * levels / 10)
    found = ood_detection(torch.from_numpy(inside), torch.from_numpy(outside))
    assert list(found) == list(DETECTION)
    assert found == pytest.approx(rates(inside, outside))


def test_constant_and_perfect_scores():
    same = ood_detection(torch.ones(3), torch.ones(1))
    assert same == {"auroc": 50.0, "fpr95_in": 100.0, "fpr95_out": 100.0, "aupr_in": 75.0, "aupr_out": 25.0}
    apart = ood_detection(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]))
    assert apart == {"auroc": 100.0, "fpr95_in": 0.0, "fpr95_out": 0.0, "aupr_in": 100.0, "aupr_out": 100.0}
    with pytest.raises(ValueError, match="3 scores inside and 0 outside: needs one or more of each"):
        ood_detection(torch.ones(3), torch.ones(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ood")
    draw_folder(root / "known", {"train": (1,) * 4, "test": (3,) * 4})
    draw_folder(root / "splits", {"train": (1, 1), "test": (2, 3)})
    (root / "flat").mkdir()
    (root / "classes" / "other").mkdir(parents=True)
    (root / "classes" / "class 1").mkdir()
    for number, name in enumerate(("0", "1", "test")):
        draw_image(number, number).save(root / "flat" / f"{name}.png")
    (root / "table" / "data").mkdir(parents=True)
    table = {"image": [str(root / "flat" / "0.png")] * 4}
    Dataset.from_dict(table).to_parquet(str(root / "table" / "data" / "test-00000-of-00001.parquet"))
    draw_image(0, 9).save(root / "classes" / "other" / "a.png")
    draw_image(0, 8).save(root / "classes" / "class 1" / "b.png")
    (root / "empty").mkdir()
    return root


def known(folders) -> DataSection:
    return resolve_data(DataSection(dataset=str(folders / "known"), test_split="test"))


@pytest.mark.parametrize(
    ("name", "images", "class_names"),
    [
        ("splits", 5, ("class 0", "class 1")),
        ("flat", 3, ()),
        ("table", 4, ()),
        ("classes", 2, ("class 1", "other")),
        ("digits", 1297, tuple("0123456789")),
    ],
)
def test_images_of_other_classes_need_neither_labels_nor_splits(folders, name, images, class_names):
    split = load_ood(name if name == "digits" else str(folders / name), known(folders))
    assert (len(split), split.class_names) == (images, class_names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such set", "--ood: no such set: read 'no such set'; write a folder, a Hub id (owner/name), or one of"),
        ("{0}/empty", "--ood: {0}/empty: {0}/empty has no images that can be read; they lie in "),
        ("{0}/flat/0.png", "--ood: {0}/flat/0.png: {0}/flat/0.png is a file; name its folder"),
        *((own, f"--ood: {own} holds the images that the models are tested on; name other images")
          for own in ("{0}/known", "{0}/known/.", "{0}/known/test", "{0}", "{0}/known/test/class 1")),
    ],
)  # fmt: skip
def test_wrong_images_are_one_line(folders, name, message):
    with pytest.raises(UserError) as error:
        load_ood(name.format(folders), known(folders))
    assert str(error.value).startswith(message.format(folders))
    assert "\n" not in str(error.value)


def test_the_command_compares_models_and_warns_of_known_names(folders, tmp_path, capsys):
    models = [exported("test_resnet", NAMES, seed) for seed in (3, 3)]
    sets = f"{folders / 'classes'},{folders / 'flat'}"
    command = [*models, f"data.dataset={folders / 'known'}", "data.workers=0", "--ood", sets]
    assert evaluate.main([*command, "--json", str(tmp_path / "ood.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = json.loads((tmp_path / "ood.json").read_text(encoding="utf-8"))["models"]

    assert "warning: 1 of its classes have names of known ones: class 1" in lines
    assert [found["images"] for found in first["ood"]] == [2, 3]
    assert first["images"] == 12
    assert first["ood"] == second["ood"]
    for found in first["ood"]:
        assert list(found["scores"]) == list(SCORES)
        assert found["scores_scaled"] is None
        assert 25 <= found["mean_confidence"]["ood"] <= 100
    assert sum(line.startswith(("1: entropy", "2: entropy")) for line in lines) == 4


def test_an_unreadable_image_stops_or_is_counted(folders, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    draw_image(0, 1).save(tmp_path / "broken" / "a.png")
    (tmp_path / "broken" / "b.png").write_bytes(b"no image")
    command = [exported("test_resnet", NAMES), f"data.dataset={folders / 'known'}", "data.workers=0"]
    command += ["--ood", str(tmp_path / "broken"), "--json", str(tmp_path / "ood.json")]
    with pytest.raises(UserError, match=r"^split 'files', row 1, file .*b.png: .*data.on_corrupt=skip"):
        evaluate.main(command)
    evaluate.main([*command, "data.on_corrupt=skip"])
    (found,) = json.loads((tmp_path / "ood.json").read_text(encoding="utf-8"))["ood"]
    assert (found["images"], found["skipped_images"]) == (1, 1)
    assert "\nagainst split 'files' of " in (output := capsys.readouterr().out)
    assert ": 1 images, 1 unreadable skipped\n" in output
