"""Frozen parts and epochs: what stays as it was, what trains, and resuming where the backbone begins to train."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from method_cases import method_of, small_network
from tiny_runs import Run, assert_same_tensors

from cskd_hf.errors import UserError
from cskd_hf.methods import METHODS
from cskd_hf.models.freezing import backbone_parameters, freeze

CLASSES = ("a", "b", "c")
UPDATES = 3  # per epoch


def run_of(name="cskd", **settings):
    settings = {"lr": 0.05, "num_epochs": 2, "num_images": 12, **settings}
    return Run(method=method_of(name, CLASSES), network=lambda: small_network(len(CLASSES)), **settings)


def changes(run, before):
    """The names in the plain network of weights and statistics that are not as `before`."""
    network = run.method.export(run.module)
    names = {id(value): name for name, value in network.state_dict(keep_vars=True).items()}
    after = run.module.state_dict(keep_vars=True)
    return {
        names[id(after[key])] for key in after if id(after[key]) in names and not torch.equal(after[key], before[key])
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_linear_probe_trains_the_classifier_alone(name):
    run = run_of(name, freeze="backbone")
    before = run.state()
    assert len(run.train(2 * UPDATES)) == 2 * UPDATES
    changed = changes(run, before)
    assert "fc.weight" in changed
    assert {key.partition(".")[0] for key in changed} == {"fc"}


@pytest.mark.parametrize("name", METHODS)
def test_the_heads_train_alone_first_and_a_resumed_run_ends_with_the_same_weights(tmp_path, name):
    whole = run_of(name, freeze_epochs=1, clip_grad=1.0)
    before = whole.state()
    whole.train(UPDATES - 1)
    whole.save(tmp_path / "inside")
    whole.train(1)
    assert {key.partition(".")[0] for key in changes(whole, before)} == {"fc"}
    whole.save(tmp_path / "border")
    whole.train(1)
    assert {"stem.0.weight", "stem.1.running_mean", "fc.weight"} <= changes(whole, before)
    whole.train(UPDATES)
    for folder in ("inside", "border"):
        (checkpoint,) = (tmp_path / folder).iterdir()
        resumed = run_of(name, freeze_epochs=1, clip_grad=1.0)
        resumed.load(checkpoint)
        resumed.train(2 * UPDATES)
        assert_same_tensors(resumed.state(), whole.state())


@pytest.mark.parametrize("opt", ["momentum", "adamw", "lamb", "muon", "lookahead_adamw"])
def test_an_epoch_with_a_frozen_backbone_is_one_of_a_linear_probe_and_leaves_no_moments(opt):
    """The probe has no gradients of the backbone at all."""
    probe, warming = run_of(opt=opt, freeze="backbone"), run_of(opt=opt, freeze_epochs=1)
    probe.train(UPDATES)
    warming.train(UPDATES)
    assert_same_tensors(warming.module.state_dict(), probe.module.state_dict())
    backbone = backbone_parameters(warming.module)
    moments = [warming.optimizer.state.get(parameter, {}) for parameter in backbone]
    assert not any(value.any() for state in moments for key, value in state.items() if key != "slow_buffer")
    warming.train(1)
    assert len(warming.train(UPDATES)) == UPDATES - 1
    assert not any(torch.equal(a, b) for a, b in zip(backbone, backbone_parameters(probe.module), strict=True))


def test_the_clipped_norm_is_that_of_the_parts_that_train():
    run = run_of(freeze_epochs=1, clip_grad=1e-3, momentum=0.0, lr=1.0)
    before = run.state()
    run.train(1)
    after = run.state()
    moved = np.concatenate([(after[key] - before[key]).numpy().ravel() for key in ("fc.weight", "fc.bias")])
    assert np.linalg.norm(moved) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("model_name", "settings", "heads"),
    [
        ("volo_d1_224", {}, {"head", "aux_head"}),  # summed
        ("efficientformerv2_s0", {}, {"head", "head_dist"}),  # averaged
        ("efficientformerv2_s0", {"distillation": False}, {"head"}),
    ],
)
def test_a_linear_probe_trains_every_classifier_of_a_network(model_name, settings, heads):
    with torch.device("meta"):
        network = timm.create_model(model_name, num_classes=3, **settings)
    freeze(network, "backbone")
    assert {name.partition(".")[0] for name, value in network.named_parameters() if value.requires_grad} == heads


@pytest.mark.parametrize(
    ("parts", "frozen"),
    [
        (("blocks.1",), {"blocks.1"}),  # not blocks.10
        ("pos_embed", {"pos_embed"}),
        (("patch_embed.", "norm.bias"), {"patch_embed", "norm.bias"}),
        ((), set()),
    ],
)
def test_parts_are_named_as_in_the_network(parts, frozen):
    network = timm.create_model("test_vit", num_classes=3, depth=11)
    freeze(network, parts)
    for name, parameter in network.named_parameters():
        below = any(name == part or name.startswith(f"{part}.") for part in frozen)
        assert parameter.requires_grad != below, name


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (("layerr1",), r"^model\.freeze: the network has no weights in 'layerr1'; did you mean layer1, .*\?$"),
        ("block", r"^model\.freeze: .* in 'block'; its parts are conv1, bn1, layer1, layer2, layer3, layer4, fc$"),
        (("backbone", "fc"), r"^model\.freeze: the network has no weights in 'backbone'"),
        (
            ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"),
            "which leaves nothing to train; leave a part out$",
        ),
    ],
)
def test_wrong_parts_are_rejected(parts, line):
    with pytest.raises(UserError, match=line):
        freeze(timm.create_model("test_resnet", num_classes=3), parts)
