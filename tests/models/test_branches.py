"""BYOT's branches on every kind of backbone: their stages, shapes and norms."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
from method_cases import NUM_CLASSES, backbone, needs_new_timm
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.models.branches import Branch, ModelWithBranches

# name: image size, keywords, the branches' stages and the last one, channels of the last map
CASES: dict[str, tuple[int, dict[str, Any], list[int], int]] = {
    "resnet18": (64, {}, [1, 2, 3, 4], 512),
    "densenet121": (64, {}, [1, 2, 3, 4], 1024),
    "convnext_atto": (64, {}, [0, 1, 2, 3], 320),
    "vit_tiny_patch16_224": (64, {"img_size": 64}, [2, 5, 8, 11], 192),
    "preactresnet10_32px": (16, {}, [1, 2, 3, 4], 512),
    "test_efficientnet": (75, {}, [1, 2, 3, 4], 64),  # odd sides are rounded up
    "vgg11": (64, {}, [0, 2, 3, 5], 512),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_new_timm if name in ("densenet121", "vgg11") else ()) for name in CASES]
)
def test_three_branches_adapt_their_features_to_the_shape_of_the_last(name: str) -> None:
    size, keywords, stages, channels = CASES[name]
    on_meta = name in ("densenet121", "vgg11")  # too slow otherwise
    with torch.device("meta" if on_meta else "cpu"):
        model = timm.create_model(name, num_classes=NUM_CLASSES) if on_meta else backbone(name, **keywords)
        branched = ModelWithBranches(model, "byot").eval()
        images = torch.rand(2, 3, size, size)
        with torch.no_grad():
            output, last, hints, outputs = branched(images)
            assert on_meta or torch.equal(output, model(images))
    assert output.shape == (2, NUM_CLASSES)
    assert branched.stages == stages
    assert last.shape == (2, channels)
    assert [hint.shape for hint in hints] == [last.shape] * 2  # none for the shallowest
    assert [aux.shape for aux in outputs] == [(2, NUM_CLASSES)] * 3


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_on_a_backbone_without_batch_norm_the_branches_do_not_depend_on_the_batch(name: str) -> None:
    size, keywords, *_ = CASES[name]
    torch.manual_seed(0)
    branched = ModelWithBranches(backbone(name, **keywords), "byot").train()
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        for alone, together in zip(branched(images[:1])[3], branched(images)[3], strict=True):
            torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-5)


def test_on_a_backbone_with_batch_norm_the_branches_have_it_too() -> None:
    branched = ModelWithBranches(backbone("preactresnet10_32px"), "byot")
    norms = [layer for layer in branched.branches.modules() if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm)]
    assert {type(norm) for norm in norms} == {nn.BatchNorm2d}


@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_a_branch_halves_the_resolution_as_often_as_requested(halvings: int) -> None:
    branch = Branch(6, 10, halvings, 5, nn.BatchNorm2d)
    images = torch.rand(2, 6, 16, 16)
    adapted, (features, output) = branch.adapt(images), branch.eval()(images)
    assert adapted.shape == (2, 10, 16 >> halvings, 16 >> halvings)
    torch.testing.assert_close(features, branch.adapt(images).flatten(2).mean(dim=2))
    torch.testing.assert_close(output, branch.classifier(features))


def test_a_network_without_access_to_its_stages_is_rejected() -> None:
    with pytest.raises(
        UserError, match=r"^method\.name: byot needs the model's stages: .* no attribute 'feature_info'"
    ):
        ModelWithBranches(nn.Linear(1, 1), "byot")


@pytest.mark.parametrize("name", ["levit_128s", pytest.param("visformer_tiny", marks=needs_new_timm)])
def test_a_network_with_fewer_than_four_stages_is_rejected(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=NUM_CLASSES)
    message = f"method.name: byot needs 4 stages, and {type(model).__name__} has 3; choose another model or method"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        ModelWithBranches(model, "byot")


def test_a_deep_copy_shares_no_weights() -> None:
    branched = ModelWithBranches(backbone("preactresnet10_32px"), "byot")
    copied = copy.deepcopy(branched)
    with torch.no_grad():
        copied.model.fc.weight.zero_()
    assert branched.model.fc.weight.any()
