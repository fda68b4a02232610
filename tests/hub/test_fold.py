from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.hub.fold import fold_temperature
from cskd_hf.models.cosine import with_cosine_head

SIZE = (3, 64, 64)
# Architecture → the layers that compute its logits.
FAMILIES = {
    "test_resnet": ["fc"],
    "test_convnext": ["head.fc"],
    "test_vit": ["head"],
    "mobilenetv3_small_050": ["classifier"],
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "volo_d1_224": ["aux_head", "head"],
    "resnetv2_50x1_bit": ["head.fc"],
    "preactresnet10_32px": ["fc"],
}
FIXED_GRID = ("test_vit", "deit", "volo")


@torch.inference_mode()
def logits(model):
    return model(torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_divided_and_predictions_do_not_change(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **({"img_size": 64} if name.startswith(FIXED_GRID) else {})).eval()
    for layer in FAMILIES[name]:  # some heads are initialised to zero
        nn.init.normal_(model.get_submodule(layer).weight, std=0.1)
        nn.init.normal_(model.get_submodule(layer).bias)
    before = model.state_dict()
    for temperature in (0.37, 2.6):
        folded, layers = fold_temperature(model, temperature, SIZE)
        assert layers == FAMILIES[name]
        expected = logits(model).double() / temperature
        assert (logits(folded) - expected).abs().max() <= 2e-6 * expected.abs().max()
        assert torch.equal(logits(folded).argmax(dim=1), logits(model).argmax(dim=1))
        changed = {key for key, value in folded.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
        for key in changed:  # rounded once
            assert torch.equal(folded.state_dict()[key], (before[key].double() / temperature).float())


class Capped(nn.Module):
    """Logits that are not linear in the last layer's output."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return torch.tanh(self.fc(x.mean(dim=(2, 3))))


class Tied(Capped):
    """Another layer shares the classifier's weights."""

    def forward(self, x):
        return self.fc(x.mean(dim=(2, 3)) + self.fc.weight.mean(dim=0))


class Deep(Capped):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (Capped(), "fc (Linear)"),
        (Tied(), "fc (Linear)"),
        (Deep(), "fc (Sequential)"),
        (with_cosine_head(timm.create_model("test_resnet", num_classes=4)), "fc (CosineLinear)"),
        (timm.create_model("levit_128s", num_classes=4, img_size=64), "head, head_dist (NormLinear)"),
        (timm.create_model("test_resnet", num_classes=0), "fc (Identity)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_head_that_is_not_linear_is_rejected(model, head):
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        fold_temperature(model, 2.0, SIZE)
    assert str(caught.value).startswith("--fold-temperature: the logits of ")
    assert f"are not linear in {head}: folded, they differ by" in str(caught.value)
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []
