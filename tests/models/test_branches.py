"""Branches on every kind of backbone: where they stand, what shape they bring their maps to, who cannot have them."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
from method_cases import NUM_CLASSES, backbone
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.models.branches import Branch, Branched

# name: size, keywords, the stages branched from (the last one teaches), channels of the last map and its side
CASES: dict[str, tuple[int, dict[str, Any], list[int], int, int]] = {
    "resnet18": (64, {}, [1, 2, 3, 4], 512, 2),
    "densenet121": (64, {}, [1, 2, 3, 4], 1024, 2),
    "convnext_atto": (64, {}, [0, 1, 2, 3], 320, 2),
    "vit_tiny_patch16_224": (64, {"img_size": 64}, [2, 5, 8, 11], 192, 4),
    "preact_resnet10_32px": (16, {}, [1, 2, 3, 4], 512, 2),
    "test_efficientnet": (75, {}, [1, 2, 3, 4], 64, 3),  # an odd side is rounded up on the way
    "vgg11": (64, {}, [0, 2, 3, 5], 512, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_three_branches_bring_their_maps_to_the_shape_of_the_last(name):
    size, keywords, stages, channels, side = CASES[name]
    if name in ("densenet121", "vgg11"):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=NUM_CLASSES, **keywords)
    else:
        model = backbone(name, **keywords)
    device = next(model.parameters()).device
    with device:
        branched = Branched(model, "byot").eval()
        images = torch.rand(2, 3, size, size)
        with torch.no_grad():
            output, last, adapted, outputs = branched(images)
            assert output.shape == (2, NUM_CLASSES)
            if device.type != "meta":
                assert torch.equal(output, model(images))
    assert branched.stages == stages
    assert last.shape == (2, channels, side, side)
    assert [maps.shape for maps in adapted] == [last.shape] * 3
    assert [aux.shape for aux in outputs] == [(2, NUM_CLASSES)] * 3


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_without_batchnorm_in_the_backbone_no_image_changes_anothers_branches(name):
    size, keywords, *_ = CASES[name]
    torch.manual_seed(0)
    branched = Branched(backbone(name, **keywords), "byot").train()
    assert not [part for part in branched.modules() if isinstance(part, nn.BatchNorm2d)]
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        one, two = branched(images[:1])[3], branched(images)[3]
    for alone, together in zip(one, two, strict=True):
        torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-5)


def test_with_batchnorm_in_the_backbone_the_branches_have_it_too():
    branched = Branched(backbone("preact_resnet10_32px"), "byot")
    norms = [part for part in branched.branches.modules() if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm))]
    assert norms
    assert {type(norm) for norm in norms} == {nn.BatchNorm2d}


@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_a_branch_halves_as_often_as_it_is_told(halvings):
    branch = Branch(6, 10, halvings, 5, nn.BatchNorm2d)
    adapted, output = branch(torch.rand(2, 6, 16, 16))
    assert adapted.shape == (2, 10, 16 >> halvings, 16 >> halvings)
    torch.testing.assert_close(output, branch.classifier(adapted.flatten(2).mean(dim=2)))


class Bare(nn.Module):
    """Nobody's network: every model of timm 1.0.31 has what is missing here."""

    num_classes = NUM_CLASSES

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)


def stages_without_access() -> nn.Module:
    return Bare(feature_info=[{"num_chs": 8, "reduction": 2**i} for i in range(5)])


def access_without_stages() -> nn.Module:
    return Bare(forward_intermediates=lambda images, indices: (images, []))


@pytest.mark.parametrize("make", [Bare, stages_without_access, access_without_stages])
def test_a_network_without_access_to_its_stages_is_refused(make):
    with pytest.raises(UserError, match=r"^method\.name: byot needs the model's stages, and timm's Bare has no"):
        Branched(make(), "byot")


@pytest.mark.parametrize("name", ["levit_128s", "visformer_tiny"])
def test_a_network_of_fewer_than_four_stages_is_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=NUM_CLASSES)
    said = f"method.name: byot needs 4 stages, and {type(model).__name__} has 3; choose another model or method"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        Branched(model, "byot")


def test_a_copy_of_a_branched_network_is_a_network_of_its_own():
    branched = Branched(backbone("preact_resnet10_32px"), "byot").eval()
    copied = copy.deepcopy(branched)
    with torch.no_grad():
        copied.model.fc.weight.zero_()
    assert branched.model.fc.weight.any()
