"""The BatchNorm modes of CS-KD and its relatives: which images are normalised together, which update the statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_cases import backbone, batch_for, cross_entropy, kl, method_of, objective_of, small_network, supervised
from torch import Tensor, nn

from cskd_hf.methods import CSKD, CSKDE, CrossEntropy
from cskd_hf.models.layers import freeze_running_statistics

BATCH = batch_for(CSKD())


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def step(method: Any, network: Any = None) -> tuple[Any, dict[str, Any]]:
    """The objective and its result after one backward, on the same anchors for every method."""
    objective = objective_of(method, network)
    result = objective(BATCH if method.name == "cskd" else supervised(CSKD(), BATCH))
    result["loss"].backward()
    return objective, result


def statistics(objective: Any) -> dict[str, Tensor]:
    return {name: value for name, value in objective.named_buffers() if "running" in name or "tracked" in name}


def test_anchors_only_has_the_gradients_of_separate_and_the_statistics_of_cross_entropy() -> None:
    separate, first = step(CSKD())
    anchors_only, second = step(CSKD(batch_norm="anchors_only"))
    assert torch.equal(first["loss"], second["loss"])
    for parameter, other in zip(separate.parameters(), anchors_only.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    baseline, _ = step(CrossEntropy())
    actual, expected, updated_twice = statistics(anchors_only), statistics(baseline), statistics(separate)
    assert len(actual) == 15
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []
    assert [name for name in actual if torch.equal(actual[name], updated_twice[name])] == []


@pytest.mark.parametrize("name", ["preactresnet10_32px", "test_efficientnet"])  # torch's BatchNorm, and timm's own
def test_anchors_only_handles_every_kind_of_batch_norm(name: str) -> None:
    objective, _ = step(CSKD(batch_norm="anchors_only"), backbone(name))
    assert {value.item() for name, value in statistics(objective).items() if "tracked" in name} == {1}
    norms = [layer for layer in objective.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(norm.track_running_stats and norm.training for norm in norms)


def test_joint_is_one_forward_of_both_halves_with_constant_teachers() -> None:
    objective = objective_of(CSKD(batch_norm="joint", distill_loss_weight=2.0))
    images = BATCH.images / 64
    result = objective(BATCH._replace(images=images))
    with torch.no_grad():
        both = small_network().train()(images).double().numpy()
    kd = kl(both[4:], both[:4], 4.0)
    assert result["kd_loss"].item() == pytest.approx(kd, rel=1e-3)
    assert result["loss"].item() == pytest.approx(cross_entropy(both[:4], BATCH.target[:4].numpy()) + 2 * kd, rel=1e-4)
    assert result["output"].shape == (4, 4)
    assert objective.module.stem[1].num_batches_tracked == 1
    _, separate = step(CSKD(distill_loss_weight=2.0))
    assert abs(separate["loss"] - result["loss"]) > 1e-4

    without_batch_norm = objective_of(CSKD(batch_norm="joint"), small_network(norm=group_norm))
    images.requires_grad_()
    without_batch_norm(BATCH._replace(images=images))["loss"].backward()
    assert images.grad is not None
    assert images.grad[:4].any()
    assert not images.grad[4:].any()


def test_the_modes_are_equivalent_without_batch_norm() -> None:
    modes = ("separate", "anchors_only", "joint")
    losses = [step(CSKD(batch_norm=mode), small_network(norm=group_norm))[1]["loss"].item() for mode in modes]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("name", ["cskd_e", "mixup_cskd", "distillation_cskd"])
def test_every_method_with_teacher_forwards_has_the_three_modes(name: str) -> None:
    updates, losses = {}, {}
    for mode in ("separate", "anchors_only", "joint"):
        method = method_of(name, batch_norm=mode)
        objective = objective_of(method)
        torch.manual_seed(0)  # the same mixed images
        losses[mode] = objective(batch_for(method))["loss"].item()
        student: Any = method.export(objective.module)
        updates[mode] = student.stem[1].num_batches_tracked.item()
    teachers = 2 if name == "cskd_e" else 1
    learning = 2 if name == "mixup_cskd" else 1
    assert updates == {"separate": learning + teachers, "anchors_only": learning, "joint": learning}
    assert losses["separate"] == losses["anchors_only"]
    assert abs(losses["separate"] - losses["joint"]) > 1e-4


def test_statistics_are_tracked_again_after_a_forward_that_failed() -> None:
    network, untracked = small_network(), nn.BatchNorm2d(3, track_running_stats=False)

    def fail() -> None:
        with freeze_running_statistics(nn.Sequential(network, untracked)):
            assert not network.stem[1].track_running_stats
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert network.stem[1].track_running_stats
    assert not untracked.track_running_stats


def test_the_default_mode_is_that_of_the_papers_code() -> None:
    assert CSKD().batch_norm == "separate"
    with pytest.raises(ValueError, match="batch_norm"):
        method_of("cskd", batch_norm="both")


def test_cskd_e_without_its_sample_loss_is_cskd_except_for_a_third_batch_norm_update() -> None:
    batch = batch_for(CSKDE())
    three, two = objective_of(CSKDE(sample_loss_weight=0.0)), objective_of(CSKD())
    result, expected = three(batch), two(BATCH)
    assert torch.equal(result["loss"], expected["loss"])
    assert result["sample_kd_loss"] > 0
    result["loss"].backward()
    expected["loss"].backward()
    for (name, parameter), other in zip(three.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(parameter.grad, other[1].grad), name
    changed = {name for name, value in three.state_dict().items() if not torch.equal(value, two.state_dict()[name])}
    assert changed == statistics(three).keys()
