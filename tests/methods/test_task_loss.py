"""Logit adjustment and class weights; test_formulas.py compares loss and gradient with the papers' formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, Identity, backbone, batch_for, cross_entropy, objective_of, pixels

from cskd_hf.methods import METHODS, Batch, CrossEntropy
from cskd_hf.methods.task_loss import TaskLoss, class_weights

COUNTS = np.array(EXPERIMENT.class_counts)
UNEQUAL = {"logit_adjustment": 1.5, "class_weight_beta": 0.9}
RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999999])
def test_weights_have_a_mean_of_1_over_the_samples_and_go_from_equal_to_inverse_frequency(beta):
    weights = class_weights(torch.tensor(COUNTS), beta).numpy()
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)
    expected = {0.0: np.ones(NUM_CLASSES), 0.999999: COUNTS.sum() / (NUM_CLASSES * COUNTS)}
    if beta in expected:
        np.testing.assert_allclose(weights, expected[beta], rtol=1e-4)
    else:
        assert (np.diff(weights) > 0).all()  # the classes get rarer


def test_mixed_labels_are_weighed_class_by_class():
    method = CrossEntropy(**UNEQUAL, smoothing=0.2)
    z, q = RANDOM.randn(5, NUM_CLASSES), RANDOM.dirichlet([1] * NUM_CLASSES, size=5)
    module = method.build(Identity(), EXPERIMENT)
    output, loss = method.task(module, torch.tensor(z), torch.tensor(q))
    weights = class_weights(torch.tensor(COUNTS), 0.9).numpy()
    expected = cross_entropy(z + 1.5 * np.log(COUNTS / 40), weights * (0.8 * q + 0.2 / NUM_CLASSES))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(output.numpy(), z)  # not adjusted


def test_the_loss_of_a_batch_is_the_mean_over_the_ranks_shards():
    method = CrossEntropy(**UNEQUAL)
    module = method.build(Identity(), EXPERIMENT)
    images, target = pixels(RANDOM.randn(6, NUM_CLASSES)), torch.tensor([0, 0, 0, 3, 3, 1])
    batch = Batch(images, target, target)
    shards = [Batch(images[part], target[part], target[part]) for part in (slice(3), slice(3, 6))]
    losses = [method.forward_loss(module, each)["loss"].item() for each in (batch, *shards)]
    assert losses[0] == pytest.approx(np.mean(losses[1:]), rel=1e-6)
    assert abs(losses[1] - losses[2]) > 1e-2


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method, TaskLoss)])
def test_every_task_loss_changes_under_autocast_and_the_weights_keep_timms_names(name):
    plain, unequal = METHODS[name](), METHODS[name](**UNEQUAL)
    results, names = [], []
    for method in (plain, unequal):
        torch.manual_seed(0)
        objective = copy.deepcopy(objective_of(method, backbone("test_resnet")))
        with torch.autocast("cpu", torch.bfloat16):
            results.append(objective(batch_for(method, size=32)))
        names.append(list(method.export(objective.module).state_dict()))
    torch.testing.assert_close(results[0]["output"], results[1]["output"], rtol=0, atol=0)
    assert abs(results[0]["task_loss"] - results[1]["task_loss"]) > 1e-2
    assert {value.dtype for value in (results[1]["loss"], results[1]["task_loss"])} == {torch.float32}
    for term in results[0].keys() & {"kd_loss", "sample_kd_loss"}:
        assert results[0][term] == results[1][term]
    assert names[0] == names[1] == list(backbone("test_resnet").state_dict())
