"""Vector scaling, isotonic calibration, and which maps a hold-out set supports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_logits import numpy_softmax, predictions
from torch import Tensor

from cskd_hf.evaluation.calibration import apply_temperature, calibrate, fit_temperature
from cskd_hf.evaluation.calibrators import FITS, compare_maps
from cskd_hf.evaluation.inputs import MAPS
from cskd_hf.evaluation.isotonic import fit_isotonic
from cskd_hf.evaluation.metrics import top_k_error
from cskd_hf.evaluation.vector_scaling import MIN_WEIGHT, fit_vector_scaling


def labelled(probabilities: Tensor, seed: int = 1) -> Tensor:
    return torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed)).flatten()


def drawn(num_images: int = 600, num_classes: int = 4) -> Tensor:
    return 3 * torch.randn(num_images, num_classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf")])
def test_a_ridge_is_a_number_from_0(ridge: float) -> None:
    with pytest.raises(ValueError, match=f"ridge is {ridge}"):
        fit_vector_scaling(*predictions(20, 2), ridge)


@pytest.mark.parametrize("ridge", [0.0, 10.0])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_vector_minimises_the_penalised_nll(ridge: float, num_classes: int) -> None:
    logits, target = predictions(120, num_classes)
    scaling = fit_vector_scaling(logits, target, ridge)
    z, relative = logits.double().numpy(), (scaling.weight * scaling.temperature - 1).numpy()
    residual = numpy_softmax(scaling(logits)) - np.eye(num_classes)[target]
    of_relative = (residual * z).sum(axis=0) / scaling.temperature + ridge * relative
    of_bias = residual.sum(axis=0) + ridge * scaling.bias.numpy()
    assert scaling.temperature == fit_temperature(logits, target)
    assert scaling.at_bound == []
    np.testing.assert_allclose([of_relative, of_bias], 0, atol=0.02)  # of sums over 120 images


def test_a_strong_ridge_is_temperature_scaling() -> None:
    logits, target = predictions()
    scaling = fit_vector_scaling(logits, target, ridge=1e9)
    torch.testing.assert_close(scaling(logits), apply_temperature(logits, scaling.temperature), rtol=1e-5, atol=1e-5)


def isotonic(p: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Isotonic regression as the largest of the smallest means of intervals, at each p; equal p are one point."""
    points, place, count = np.unique(p, return_inverse=True, return_counts=True)
    sums, counts = (np.concatenate([[0], np.cumsum(part)]) for part in (np.bincount(place, hit), count))
    means = [
        [(sums[j + 1] - sums[i]) / (counts[j + 1] - counts[i]) if j >= i else np.nan for j in range(len(points))]
        for i in range(len(points))
    ]
    return np.array([max(np.min(means[i][k:]) for i in range(k + 1)) for k in range(len(points))])[place]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_isotonic_map_is_the_closest_monotone_function_of_all_classes_probabilities(num_classes: int) -> None:
    logits, target = predictions(40, num_classes)
    logits[:6], logits[7, (target[7] + 1) % num_classes] = logits[0].clone(), -torch.inf
    p = numpy_softmax(logits)
    g = isotonic(p.ravel().round(14), np.eye(num_classes)[target].ravel()).reshape(p.shape) + p / len(target)
    mapped = fit_isotonic(logits, target)(logits)
    np.testing.assert_allclose(mapped.exp(), g / g.sum(axis=1, keepdims=True), rtol=1e-7, atol=1e-12)


def test_the_isotonic_map_changes_no_top_class_of_any_image() -> None:
    mapping = fit_isotonic(*predictions(300, 6))
    logits, target = predictions(500, 6, seed=1)
    mapped = mapping(10 * logits)
    assert mapped.isfinite().all()
    assert [top_k_error(mapped, target, k) for k in (1, 2)] == [top_k_error(logits, target, k) for k in (1, 2)]


SUPPORTED = {
    "temperature": lambda logits: (logits / 2).softmax(dim=1),
    "vector": lambda logits: (logits / 2 + torch.tensor([1.5, 0.0, 0.0, -1.5])).softmax(dim=1),
    "isotonic": lambda logits: 0.8 * (2 * logits).softmax(dim=1) + 0.05,  # a fifth of the labels are wrong
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_supported_if_the_labels_follow_it(name: str) -> None:
    logits = drawn()
    fitted = compare_maps(logits, labelled(SUPPORTED[name](logits)))
    assert [own.name for own in fitted] == list(MAPS) == list(FITS)
    assert {own.name for own in fitted if own.supported} == {"temperature", name}
    for own in fitted:
        kind, _, reason = own.verdict.partition(": ")
        assert kind == ("supported" if own.supported else "not supported")
        assert own.name == "temperature" or reason.startswith("cross-validated hold-out NLL")
        assert own.supported == (not reason.endswith(", not lower by one standard error"))


def test_the_cross_validated_nll_is_that_of_images_left_out_of_the_fit() -> None:
    """With a ridge of 10 on 250 images of 25 classes, vector scaling fits its own images better, but not others."""
    logits = drawn(250, 25)
    target = labelled(logits.softmax(dim=1))
    scaling, temperature = fit_vector_scaling(logits, target), fit_temperature(logits, target)
    own, reference = (
        torch.nn.functional.cross_entropy(rows, target) for rows in (scaling(logits), logits.double() / temperature)
    )
    assert own < reference - 0.02
    (vector,) = compare_maps(logits, target, ["vector"])
    assert " NLL +0." in vector.verdict
    assert not vector.supported


def test_a_single_mistake_supports_no_larger_map() -> None:
    """The folds without it would be scaled by a temperature of almost 0, at which it costs whole nats."""
    logits, target = 0.3 * drawn(400), torch.arange(400) % 4
    logits[torch.arange(400), target] += 4 + 6 * torch.rand(400, generator=torch.Generator().manual_seed(1))
    target[0] += 1
    temperature, *larger = compare_maps(logits, target)
    assert temperature.supported
    for own in larger:
        verdict = "not supported: 320 of the 400 hold-out images determine no temperature to compare with"
        assert own.verdict == verdict


def test_copies_of_the_hold_out_images_support_no_map() -> None:
    logits = drawn(250, 25)
    target = labelled(logits.softmax(dim=1))
    once, copied = (compare_maps(logits.repeat(n, 1), target.repeat(n), ["isotonic", "vector"]) for n in (1, 4))
    assert [own.supported for own in copied] == [own.supported for own in once] == [False, False]


@pytest.mark.parametrize("num_images", [1, 18, 199])
def test_a_hold_out_set_without_a_temperature_supports_no_map(num_images: int) -> None:
    logits = drawn(num_images)
    target = labelled(logits.softmax(dim=1))
    reason = calibrate(logits, target).verdict.removeprefix("not calibrated: ").removesuffix("; T = 1")
    assert {own.verdict for own in compare_maps(logits, target)} == {f"not supported: {reason}"}


def test_vector_scaling_needs_all_classes_and_weights_above_their_bound() -> None:
    logits = drawn()
    missing = labelled((logits / 2).softmax(dim=1))
    missing[missing == 3] = 0
    reversed_class = labelled((logits / 2 * torch.tensor([1.0, 1.0, 1.0, -1.0])).softmax(dim=1))
    (seen, _), (bound, _) = (
        compare_maps(logits, target, ["vector", "isotonic"]) for target in (missing, reversed_class)
    )
    assert seen.verdict == "not supported: the hold-out images show 3 of 4 classes, and vector scaling needs all"
    assert bound.verdict == "not supported: the weights of 1 of 4 classes are at their lower bound"
    scaling = fit_vector_scaling(logits, reversed_class)
    assert scaling.at_bound == [3]
    assert scaling.weight[3].item() == pytest.approx(MIN_WEIGHT / scaling.temperature)
