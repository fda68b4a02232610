"""Intervals, tests and verdicts on several models, against NumPy and by hand."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
import torch
from random_logits import predictions

from cskd_hf.evaluation import weighted
from cskd_hf.evaluation.comparison import Compared, Measured, differences, holm, mcnemar, measure
from cskd_hf.evaluation.comparison_table import as_json, as_latex, as_markdown, as_text
from cskd_hf.evaluation.metrics import CALIBRATION_ERRORS, evaluate_predictions
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.evaluation.resampling import interval, p_value, resamples, swap_p_value

NAMES = tuple("abcdefg")


def measured(
    source: str = "a", noise: float = 0.0, gain: float = 0.0, temperature: float | None = None, count: int = 50
) -> Compared:
    logits, target = predictions()
    logits = logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    logits[torch.arange(203), target] += gain
    found = Predictions(logits, target, torch.arange(203), logits[:, :3].contiguous(), {})
    return measure(source, found, NAMES, temperature, "calibrated: by the test", count=count)


def test_every_metric_has_its_value_and_an_interval_around_it() -> None:
    model = measured(temperature=2.0)
    logits, target = predictions()
    assert model.last.values == evaluate_predictions(logits, target, logits[:, :3])
    assert model.scaled is not None
    assert model.scaled.values["nll"] == evaluate_predictions(logits, target, None, 2.0)["nll"]
    for name in [name for name, value in model.last.values.items() if value is not None]:
        found = model.last.interval(name)
        assert found is not None, name
        assert 0 <= found.high - found.low < 20
        assert model.last.replicated[name].shape == (50,)


@pytest.mark.parametrize(
    ("name", "value", "replicates", "expected"),
    [
        ("aurc", 93.0, [80.0, 90.0], (96.0, 100.0)),
        ("ece", 1.0, [1.5, 5.0], (0.0, 0.5)),
        ("brier", 1.5, [0.5, 1.5], (1.5, 2.0)),
        ("nll", 2.0, [1.0, 5.0], (0.0, 3.0)),
        ("nll_calibration", 0.0, [1.0, 2.0], (-2.0, -1.0)),
    ],
)
def test_intervals_end_where_a_metric_does(name, value, replicates, expected) -> None:
    measured = Measured({name: value}, {name: torch.tensor(replicates, dtype=torch.float64)})
    assert measured.interval(name) == pytest.approx(expected, abs=0.3)


def test_replicates_are_the_metric_on_images_drawn_with_replacement_and_paired_between_models() -> None:
    model, other = measured(), measured(noise=1.0)
    generator = np.random.default_rng(0)
    drawn = np.stack([generator.integers(203, size=203) for _ in range(50)])
    for each in (model, other):
        errors = 100 * (1 - each.correct.numpy()[drawn].mean(axis=1))
        assert each.last.replicated["top1_error"].numpy() == pytest.approx(errors)
    errors = [100 * (1 - each.correct.numpy()[drawn].mean(axis=1)) for each in (model, other)]
    (row,) = (row for row in differences([model, other]) if row.metric == "top1_error")
    value = other.last.values["top1_error"] - model.last.values["top1_error"]
    low, high = 2 * value - np.quantile(errors[1] - errors[0], [0.975, 0.025])
    assert (row.value, row.low, row.high) == pytest.approx((value, low, high))
    assert row.p == mcnemar(model.correct, other.correct)


def test_resamples_do_not_depend_on_their_chunks() -> None:
    whole = torch.cat(list(resamples(30, 7, seed=1, size=7)))
    assert torch.equal(whole, torch.cat(list(resamples(30, 7, seed=1, size=2))))
    assert (whole.sum(dim=1) == 30).all()


def test_the_interval_of_a_difference_misses_the_truth_in_about_5_percent_of_test_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    missed = 0
    for seed in range(300):
        gap = torch.randn(100, dtype=torch.float64, generator=generator)
        (weight,) = resamples(100, 200, seed, 200)
        low, high = interval(gap.mean().item(), weighted.mean(gap, weight))
        missed += not low <= 0 <= high
    assert 0.02 * 300 <= missed <= 0.1 * 300


def test_better_is_written_only_for_a_difference_that_the_images_show() -> None:
    worse = list(differences([measured(gain=3.0), measured()]))
    verdicts = {row.metric: row.verdict for row in worse if not row.calibrated}
    assert verdicts["top1_error"] == verdicts["nll"] == verdicts["brier"] == verdicts["recall_at_1"] == "worse"
    better = {row.metric: row.verdict for row in differences([measured(), measured(gain=3.0)])}
    assert better["top1_error"] == better["recall_at_1"] == "better"
    for row in worse:
        assert row.verdict == "" or row.low > 0 or row.high < 0
    assert {row.verdict for row in differences([measured(), measured(noise=1e-6)])} == {""}
    assert {row.p for row in differences([measured(), measured()])} == {1.0}


@pytest.mark.parametrize("images", [1, 2, 5, 6])
def test_few_images_show_no_more_than_an_exact_test_on_them(images: int) -> None:
    """Every image favours the second model: of 2^N ways to swap the answers, two are as extreme."""
    target = torch.arange(images) % 3
    logits = torch.eye(3)[target] + 0.1 * torch.rand(images, 3, generator=torch.Generator().manual_seed(0))
    models = [
        measure("", Predictions(gain * logits, target, target, None, {}), NAMES[:3], count=200) for gain in (1, 3)
    ]
    found = {row.metric: row for row in differences(models)}
    assert found["nll"].p == found["brier"].p == max(0.5 ** (images - 1), 1 / 201)
    assert found["nll"].verdict == ("better" if images == 6 else "")
    assert models[1].last.values["top1_error"] == 0
    z2 = 1.959964**2
    assert models[1].last.interval("top1_error") == pytest.approx((0, 100 * z2 / (images + z2)))  # Wilson's


def test_a_value_at_the_end_of_its_range_has_no_interval() -> None:
    """Resamples of a `debiased_ece` of 0 are above it, so all of them are reflected out of the range."""
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(200, 3, generator=generator).add(0.2)
    target = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    model = measure("", Predictions(probabilities.log(), target, target, None, {}), NAMES[:3], count=50)
    assert model.last.values["debiased_ece"] == 0
    assert model.last.replicated["debiased_ece"].max() > 1
    assert model.last.interval("debiased_ece") is None
    assert "[0, 0]" not in as_text([model], [])
    assert Measured({"ece": 1.0}, {"ece": torch.tensor([3.0, 5.0], dtype=torch.float64)}).interval("ece") is None


def test_calibrated_differences_need_both_temperatures_and_a_metric_that_depends_on_them() -> None:
    rows = list(differences([measured(temperature=2.0), measured(noise=1.0, temperature=1.5)]))
    calibrated = {row.metric for row in rows if row.calibrated}
    assert {"nll", "ece", "nll_calibration"} <= calibrated
    assert not calibrated & {"top1_error", "nll_refinement", "aurc_logit_norm", "recall_at_1"}
    assert not any(row.calibrated for row in differences([measured(), measured(noise=1.0, temperature=1.5)]))


def test_the_p_value_of_a_calibration_error_counts_the_swaps_with_as_large_a_difference() -> None:
    logits, target = (part[:10] for part in predictions())
    both = [logits.double().softmax(dim=1), (logits + torch.eye(7)[target]).double().softmax(dim=1)]
    confidence = np.array([each.amax(dim=1).numpy() for each in both])
    correct = np.array([each.argmax(dim=1).eq(target).numpy() for each in both], dtype=float)

    def ece(chosen: np.ndarray) -> float:
        p, right = (values[chosen, np.arange(10)] for values in (confidence, correct))
        gaps = (abs((right - p)[np.ceil(20 * p) == bin].sum()) for bin in range(1, 21))
        return sum(gaps) / 10

    swaps = [np.array(swap) for swap in product([0, 1], repeat=10)]
    gaps = np.array([abs(ece(swap) - ece(1 - swap)) for swap in swaps])
    answers = [[torch.from_numpy(values[model]) for values in (confidence, confidence, correct)] for model in (0, 1)]
    found = swap_p_value(CALIBRATION_ERRORS["ece"], *answers, count=4000)
    assert found == pytest.approx(np.mean(gaps >= gaps[0] - 1e-9), abs=0.03)
    right = torch.ones(50, dtype=torch.float64)
    answers = [[share * right, right, right] for share in (0.5, 1.0)]  # no swap leaves so large a difference
    assert swap_p_value(CALIBRATION_ERRORS["ece"], *answers, count=20) == 1 / 21


def test_models_calibrated_alike_rarely_differ_in_calibration_error() -> None:
    """The bootstrap would call them different in a fifth of these test sets."""
    generator, p_values = torch.Generator().manual_seed(0), []
    for _ in range(60):
        logits = 2 * torch.randn(150, 4, generator=generator)
        target = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        answers = []
        for _ in range(2):
            p, top = (0.8 * (logits + torch.randn(150, 4, generator=generator))).double().softmax(dim=1).max(dim=1)
            answers.append([p, p, (top == target).double()])
        p_values.append(swap_p_value(CALIBRATION_ERRORS["debiased_ece"], *answers, count=100))
    assert sum(p <= 0.05 for p in p_values) <= 6


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (9, 2), (5, 5), (0, 12)])
def test_mcnemars_p_value_sums_the_binomial_probabilities(only_first: int, only_second: int) -> None:
    first = torch.tensor([True] * only_first + [False] * only_second + [True, False])
    second = torch.tensor([False] * only_first + [True] * only_second + [True, False])
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(count, k) for k in range(fewer + 1)) / 2**count
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_holms_p_values_reject_what_the_step_down_procedure_rejects() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        p_values = (generator.random(5) ** 3).tolist()
        rejected = 0
        for place, p in enumerate(sorted(p_values)):
            if p > 0.05 / (5 - place):
                break
            rejected += 1
        assert sum(p <= 0.05 for p in holm(p_values)) == rejected
    assert holm([]) == []


def test_with_more_models_the_same_difference_needs_a_smaller_p_value() -> None:
    models = [measured(), *(measured(noise=0.7) for _ in range(3))]
    alone, among = (next(iter(differences(some))) for some in (models[:2], models))
    assert among.p == pytest.approx(min(1.0, 3 * alone.p))


def test_the_tables_name_models_and_hold_the_same_numbers() -> None:
    models = [measured("runs/a_b", gain=3.0), measured("runs/c")]
    rows = list(differences(models))
    text, markdown = as_text(models, rows), as_markdown(models, rows, "Models on a split")
    latex = as_latex(models, rows, "Models on a split")
    chosen = [line.split()[0] for line in as_text(models, rows, ["nll", "ece"]).splitlines() if " [" in line]
    assert {name.rstrip(",") for name in chosen} == {"nll", "ece"}
    (error,) = (row for row in rows if row.metric == "top1_error")
    assert f"{error.value:.4g} [{error.low:.4g}, {error.high:.4g}]" in text
    assert (
        f"| top1_error | 2 − 1 | {error.value:.4g} [{error.low:.4g}, {error.high:.4g}] | <0.001 | worse |" in markdown
    )
    assert "1. `runs/a_b`: calibrated: by the test" in markdown
    assert r"top1\_error & 2 $-$ 1 &" in latex
    assert "& $<$0.001 &" in latex  # OT1, LaTeX's default encoding, prints < as an inverted exclamation mark
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 2
    content = as_json(models)
    assert [each["model"] for each in content] == ["runs/a_b", "runs/c"]
    assert content[0]["metrics"] == models[0].last.values
    assert content[0]["intervals"]["nll"] == models[0].last.interval("nll")


def test_without_resamples_there_are_values_and_no_intervals_or_differences() -> None:
    models = [measured(count=0), measured(noise=1.0, count=0)]
    assert list(differences(models)) == []
    assert "[" not in as_text(models, []).split("definition")[0]
    assert models[0].last.interval("nll") is None


def test_an_end_of_an_interval_that_is_zero_but_for_rounding_is_zero() -> None:
    value, replicated = (
        100 * (0.8250 - 0.8583),
        torch.full((100,), 200 * (0.8250 - 0.8583), dtype=torch.float64) + 1e-13,
    )
    assert interval(value, replicated) == (0.0, 0.0)
    assert p_value(value, replicated) == 1.0
