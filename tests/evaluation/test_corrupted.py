"""Corrupted test images: parsing, determinism, tables, and the library where it is installed."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from command_runs import draw_folder
from method_cases import backbone, exported

from cskd_hf import evaluate
from cskd_hf.data.corruptions import KINDS, LIBRARY, SEVERITIES, Corruption
from cskd_hf.data.sampling import Draw
from cskd_hf.errors import UserError
from cskd_hf.evaluation.corrupted import as_text, check_channels, measure
from cskd_hf.evaluation.images import data_section, load_splits
from cskd_hf.evaluation.inputs import parse_corruptions
from cskd_hf.evaluation.predictions import evaluation_images, predict_split
from cskd_hf.recipe.sections import TransformSection
from cskd_hf.runs.weights import find_weights

INSTALLED = any(own.metadata["Name"] == LIBRARY for own in importlib.metadata.distributions())
with_library = pytest.mark.skipif(not INSTALLED, reason=f"needs {LIBRARY}, cskd_hf[corruptions]")
NAMES = tuple(f"class {label}" for label in range(4))


def noise(pixels: np.ndarray, row: int) -> np.ndarray:
    return np.random.RandomState(row).randint(0, 256, pixels.shape).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("images") / "known", {"test": (3,) * 4})


def section_and_split(images) -> tuple[Any, Any]:
    weights = [find_weights(exported("test_resnet", NAMES))]
    data = data_section(weights, [f"data.dataset={images}", "data.test_split=test"])
    return data, load_splits(weights, data)[0]


TRANSFORM = TransformSection(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3)


def test_logits_are_the_same_whatever_batches_and_workers(images):
    data, split = section_and_split(images)
    model = backbone("test_resnet").eval()
    logits = [
        predict_split(
            model,
            split,
            Accelerator(),
            data.model_copy(update={"batch_size": size, "workers": workers}),
            TRANSFORM,
            corruption=noise,
        ).logits
        for size, workers in ((5, 0), (2, 2), (12, 0))
    ]
    for other in logits[1:]:
        torch.testing.assert_close(logits[0], other, rtol=0, atol=1e-5)
    assert not torch.equal(logits[0], predict_split(model, split, Accelerator(), data, TRANSFORM).logits)


@pytest.mark.parametrize(
    "corruption", [noise, *(pytest.param(Corruption(kind, 3), marks=with_library) for kind in KINDS)]
)
def test_pixels_are_the_prepared_ones_corrupted_by_row(images, corruption):
    data, split = section_and_split(images)

    def load(*rows: int, corruption: Any = None) -> torch.Tensor:
        draws = [Draw((row,), row) for row in rows]
        return evaluation_images(split, data, TRANSFORM, corruption).load(draws).images

    prepared = load(7, 3)[1].permute(1, 2, 0).numpy()
    both, alone = load(7, 3, corruption=corruption), load(3, corruption=corruption)
    assert torch.equal(both[1], alone[0])
    np.testing.assert_array_equal(alone[0].permute(1, 2, 0).numpy(), corruption(prepared, 3))
    assert not np.array_equal(alone[0].permute(1, 2, 0).numpy(), prepared)


@with_library
@pytest.mark.parametrize("size", [(28, 28), (33, 47)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_and_severity_keeps_the_shape_and_prints_nothing(size, channels, capsys):
    pixels = np.random.RandomState(0).randint(0, 256, (*size, channels)).astype(np.uint8)
    for kind in KINDS:
        for severity in SEVERITIES:
            corrupted = Corruption(kind, severity)(pixels, 0)
            assert (corrupted.shape, corrupted.dtype) == (pixels.shape, np.uint8)
            assert not np.array_equal(corrupted, pixels)
    assert capsys.readouterr().out == ""


@with_library
@pytest.mark.parametrize("kind", ["shot_noise", "frost", "jpeg_compression"])
def test_pixels_are_those_of_the_library(kind):
    import imagecorruptions

    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    key = np.random.SeedSequence((4, 9, KINDS.index(kind), 2)).generate_state(1)[0]
    np.random.seed(key)
    np.testing.assert_array_equal(Corruption(kind, 2, seed=4)(pixels, 9), imagecorruptions.corrupt(pixels, 2, kind))


@with_library
def test_row_kind_and_seed_change_the_noise_and_the_global_generator_stays():
    pixels = np.full((32, 32, 3), 128, np.uint8)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    for kind in ("gaussian_noise", "impulse_noise", "snow", "frost"):
        drawn = [Corruption(kind, 3, seed)(pixels, row) for seed, row in ((0, 0), (0, 1), (1, 0), (0, 0))]
        assert np.array_equal(drawn[0], drawn[3])
        assert not any(np.array_equal(drawn[0], other) for other in drawn[1:3])
    assert np.array_equal(state, np.random.get_state()[1])


@with_library
def test_the_command_reports_each_kind_and_severity(images, tmp_path, capsys):
    command = [exported("test_resnet", NAMES), f"data.dataset={images}", "data.workers=0"]
    command += ["--corruptions", "fog,contrast", "--severities", "5,1", "--json", str(tmp_path / "c.json")]
    assert evaluate.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert [(row["kind"], row["severity"]) for row in found["corruptions"]] == [
        ("fog", 1),
        ("fog", 5),
        ("contrast", 1),
        ("contrast", 5),
    ]
    mean = np.mean([row["metrics"]["top1_error"] for row in found["corruptions"]])
    assert found["mean_corruption_error"] == pytest.approx(mean)
    assert any(line.startswith("mCE, unnormalised: ") for line in lines)


def test_tables_hold_means_by_severity_and_by_kind():
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    metrics, scaled = measure(logits, target, 2.0)
    assert metrics["top1_error"] == 50
    assert metrics["nll"] == pytest.approx(np.log(1 + np.exp(-2)) / 2 + np.log(1 + np.exp(2)) / 2)
    assert scaled is not None
    assert scaled["ece"] == pytest.approx(100 / (1 + np.exp(-1)) - 50)
    assert measure(logits, target, None)[1] is None

    def result(kind: str | None, severity: int, error: float) -> dict[str, Any]:
        values = {"top1_error": error, "nll": error, "ece": error}
        return {"kind": kind, "severity": severity, "metrics": values, "metrics_scaled": None}

    rows = [("fog", 1, 10.0), ("fog", 5, 30.0), ("snow", 1, 20.0), ("snow", 5, 60.0)]
    text = as_text([result(None, 0, 5.0), *(result(*row) for row in rows)]).splitlines()
    assert [line.split()[:2] for line in text[2:5]] == [["1", "15"], ["5", "45"], ["mean", "30"]]
    assert [line.split() for line in text if line.startswith("fog")] == [["fog", "10", "30", "20"]] * 3
    assert any(line.startswith("mCE, unnormalised: 30,") for line in text)


@pytest.mark.parametrize(
    ("kinds", "severities", "message"),
    [
        ("mist", "1", f"--corruptions: read 'mist'; allowed: all, {', '.join(KINDS)}"),
        ("fog,", "1", f"--corruptions: read ''; allowed: all, {', '.join(KINDS)}"),
        ("fog", "0", "--severities: read '0'; write some of 1,2,3,4,5"),
        ("fog", "1,6", "--severities: read '6'; write some of 1,2,3,4,5"),
        ("all", "", "--severities: read ''; write some of 1,2,3,4,5"),
    ],
)
def test_unknown_kinds_and_severities_are_one_line(kinds, severities, message):
    with pytest.raises(UserError) as error:
        parse_corruptions(kinds, severities)
    assert str(error.value) == message


def test_without_the_library_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("cskd_hf.data.corruptions.LIBRARY", "no-such-distribution")
    with pytest.raises(UserError) as error:
        parse_corruptions("all", "1")
    assert str(error.value) == "--corruptions: needs no-such-distribution; pip install 'cskd_hf[corruptions]'"


def test_images_that_the_library_does_not_take_are_rejected():
    with pytest.raises(UserError, match=r"needs grey or RGB images; these weights take 4 channels"):
        check_channels(TransformSection(input_size=(4, 32, 32)))
