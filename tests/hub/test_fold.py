from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.hub.fold import fold_temperature
from cskd_hf.models.cosine import with_cosine_head

SIZE = (3, 64, 64)
# Architecture, and the layers that make its logits.
FAMILIES = {
    "resnet18": ["fc"],
    "densenet121": ["classifier"],
    "convnext_atto": ["head.fc"],
    "vit_tiny_patch16_224": ["head"],
    "efficientnet_b0": ["classifier"],
    "regnetx_002": ["head.fc"],
    "mobilenetv3_small_050": ["classifier"],
    "swin_tiny_patch4_window7_224": ["head.fc"],
    "mixer_s32_224": ["head"],
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "resnetv2_50x1_bit": ["head.fc"],
    "preact_resnet10_32px": ["fc"],
}
FIXED_GRID = ("vit", "swin", "mixer", "deit")


def a_model(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **({"img_size": 64} if name.startswith(FIXED_GRID) else {}))
    for layer in final_layers(model).values():  # some start at zero
        nn.init.normal_(layer.weight, std=0.1)
        nn.init.normal_(layer.bias)
    return model.eval()


@torch.inference_mode()
def logits(model):
    return model(torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("temperature", [0.37, 2.6])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_logits_are_divided_and_the_predictions_stay(name, temperature):
    model = a_model(name)
    before, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    assert fold_temperature(model, temperature, SIZE) == FAMILIES[name]
    after = logits(model)
    expected = before.double() / temperature
    assert (after - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert torch.equal(after.argmax(dim=1), before.argmax(dim=1))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])}
    assert changed == {f"{layer}.{part}" for layer in FAMILIES[name] for part in ("weight", "bias")}
    for key in changed:  # rounded once
        assert torch.equal(model.state_dict()[key], (weights[key].double() / temperature).float())


class Capped(nn.Module):
    """Logits that are no linear function of the last layer's output."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return torch.tanh(self.fc(x.mean(dim=(2, 3))))


class Tied(Capped):
    """The classifier's weights are also an embedding's."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.embedding.weight = self.fc.weight

    def forward(self, x):
        return self.fc(x.mean(dim=(2, 3)))


class Deep(Capped):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Capped(), "logits of Capped are not linear in fc"),
        (Tied(), "fc of Tied shares its weights with another layer"),
        (Deep(), "classifier of Deep is a Sequential, not a linear layer"),
        (with_cosine_head(timm.create_model("test_resnet", num_classes=4)), "is a CosineLinear, not a linear layer"),
        (timm.create_model("levit_128s", num_classes=4), "is a NormLinear, not a linear layer"),
        (timm.create_model("test_resnet", num_classes=0), "is a Identity, not a linear layer"),
    ],
)
def test_a_head_whose_weights_are_not_its_logits_is_refused_and_left_alone(model, said):
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as caught:
        fold_temperature(model, 2.0, SIZE)
    assert str(caught.value).startswith("--fold-temperature: ")
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []
