"""CS-KD's three ways with BatchNorm: which images are normalised together, and which move the running statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_cases import backbone, batch_for, cross_entropy, kl, method_of, objective_of, small_network, supervised
from torch import nn

from cskd_hf.methods import CSKD, CrossEntropy
from cskd_hf.models.layers import running_statistics_kept

BATCH = batch_for(CSKD())


def stepped(method: Any, network: Any = None) -> tuple[Any, dict[str, Any]]:
    objective = objective_of(method, network)
    result = objective(BATCH if method.name == "cskd" else supervised(CSKD(), BATCH))
    result["loss"].backward()
    return objective, result


def statistics(objective: Any) -> dict[str, torch.Tensor]:
    return {key: value for key, value in objective.named_buffers() if "running" in key or "tracked" in key}


def test_anchors_only_trains_as_separate_does_and_leaves_cross_entropys_running_statistics():
    separate, one = stepped(CSKD())
    anchors, two = stepped(CSKD(batch_norm="anchors_only"))
    assert torch.equal(one["loss"], two["loss"])
    for parameter, other in zip(separate.parameters(), anchors.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    plain, _ = stepped(CrossEntropy())
    found, expected = statistics(anchors), statistics(plain)
    assert len(found) == 15
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    moved_twice = statistics(separate)
    assert [key for key in found if torch.equal(found[key], moved_twice[key])] == []


@pytest.mark.parametrize("name", ["preact_resnet10_32px", "test_efficientnet"])  # torch's norms, and timm's own
def test_anchors_only_keeps_the_statistics_of_every_kind_of_batchnorm(name):
    objective, _ = stepped(CSKD(batch_norm="anchors_only"), backbone(name))
    tracked = {value.item() for key, value in statistics(objective).items() if "tracked" in key}
    assert tracked == {1}
    norms = [part for part in objective.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.track_running_stats and norm.training for norm in norms)


def test_joint_is_one_forward_of_both_whose_partners_teach_as_constants():
    method = CSKD(batch_norm="joint", distill_loss_weight=2.0)
    objective = objective_of(method)
    images = (BATCH.images / 64).requires_grad_()
    result = objective(BATCH._replace(images=images))
    with torch.no_grad():
        both = small_network().train()(images).double().numpy()
    expected_kd = kl(both[4:], both[:4], 4.0)
    assert result["kd_loss"].item() == pytest.approx(expected_kd, rel=1e-3)
    expected = cross_entropy(both[:4], BATCH.target[:4].numpy()) + 2 * expected_kd
    assert result["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert result["output"].shape == (4, 4)
    assert objective.module.stem[1].num_batches_tracked == 1
    _, apart = stepped(CSKD(distill_loss_weight=2.0))
    assert abs(apart["loss"] - result["loss"]) > 1e-4  # another algorithm


def test_joint_gives_a_partners_prediction_no_gradient():
    """Without BatchNorm, which mixes the halves, a partner's pixels reach the loss as a constant's only."""
    objective = objective_of(CSKD(batch_norm="joint"), small_network(norm=lambda channels: nn.GroupNorm(1, channels)))
    images = (BATCH.images / 64).requires_grad_()
    objective(BATCH._replace(images=images))["loss"].backward()
    assert images.grad[:4].any()
    assert not images.grad[4:].any()


def test_the_three_are_one_for_networks_without_batchnorm():
    losses = []
    for kind in ("separate", "anchors_only", "joint"):
        _, result = stepped(CSKD(batch_norm=kind), small_network(norm=lambda channels: nn.GroupNorm(1, channels)))
        losses.append(result["loss"].item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("name", ["cskd_e", "mixup_cskd", "distillation_cskd"])
def test_every_method_with_forwards_of_teachers_has_the_three(name):
    """With the same mixed images and, where there is one, the same teacher."""
    moved, losses = {}, {}
    for kind in ("separate", "anchors_only", "joint"):
        method = method_of(name, batch_norm=kind)
        objective = objective_of(method)
        batch = batch_for(method)
        torch.manual_seed(0)
        losses[kind] = objective(batch)["loss"].item()
        student = method.export(objective.module)
        moved[kind] = student.stem[1].num_batches_tracked.item()
    teachers = 2 if name == "cskd_e" else 1
    learning = 2 if name == "mixup_cskd" else 1
    assert moved == {"separate": learning + teachers, "anchors_only": learning, "joint": learning}
    assert losses["separate"] == losses["anchors_only"]
    assert abs(losses["separate"] - losses["joint"]) > 1e-4


def test_statistics_are_tracked_again_after_a_forward_that_failed():
    network = small_network()
    untracked = nn.BatchNorm2d(3, track_running_stats=False)
    module = nn.Sequential(network, untracked)

    def fail() -> None:
        with running_statistics_kept(module):
            assert not network.stem[1].track_running_stats
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert network.stem[1].track_running_stats
    assert not untracked.track_running_stats


def test_the_paper_codes_way_is_the_default():
    assert method_of("cskd").batch_norm == "separate"
    with pytest.raises(ValueError, match="batch_norm"):
        method_of("cskd", batch_norm="both")
