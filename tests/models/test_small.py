"""The paper's networks against its parameter counts, and against functional definitions of their forward pass."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from small_networks import ALL, SMALL, images
from torch import Tensor, nn

import cskd_hf.models  # noqa: F401  (registers)
from cskd_hf.errors import UserError
from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.sections import ModelSection


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomize_norms(model: nn.Module) -> None:
    """Give every BatchNorm different weights and statistics, so that swapping or omitting one changes the output."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)


class Layers:
    """The layers as functions of a state dict, by the name of their weights."""

    def __init__(self, state: dict[str, Tensor], training: bool) -> None:
        self.state = {name: tensor.clone() for name, tensor in state.items()}  # BatchNorm updates its statistics here
        self.training = training

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn_relu(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias, training=self.training))

    def pool_linear(self, x: Tensor) -> Tensor:
        return F.linear(x.mean(dim=(2, 3)), self.state["fc.weight"], self.state["fc.bias"])


def reference_preact(layers: Layers, x: Tensor, blocks: int) -> Tensor:
    x = layers.bn_relu(layers.conv(x, "stem.0"), "stem.1")
    for stage in range(4):
        for block in range(blocks):
            name = f"stages.{stage}.{block}"
            first_of_later_stage = stage > 0 and block == 0
            stride = 2 if first_of_later_stage else 1
            preact = layers.bn_relu(x, f"{name}.bn1")
            out = layers.conv(preact, f"{name}.conv1", stride)
            out = layers.conv(layers.bn_relu(out, f"{name}.bn2"), f"{name}.conv2")
            x = out + (layers.conv(preact, f"{name}.downsample", stride) if first_of_later_stage else preact)
    return layers.pool_linear(x)


def reference_densenet(layers: Layers, x: Tensor) -> Tensor:
    x = layers.conv(x, "stem.0")
    for stage, depth in enumerate((6, 12, 24, 16)):
        first = 0
        if stage > 0:
            transition = f"stages.{stage}.0"
            x = layers.conv(layers.bn_relu(x, f"{transition}.0"), f"{transition}.2")
            x = F.avg_pool2d(x, kernel_size=2)
            first = 1
        for layer in range(first, first + depth):
            name = f"stages.{stage}.{layer}"
            out = layers.conv(layers.bn_relu(x, f"{name}.bn1"), f"{name}.conv1")
            out = layers.conv(layers.bn_relu(out, f"{name}.bn2"), f"{name}.conv2")
            x = torch.cat([out, x], dim=1)
    return layers.pool_linear(layers.bn_relu(x, "stages.3.17.0"))


REFERENCES = {
    "preactresnet18_32px": lambda layers, x: reference_preact(layers, x, blocks=2),
    "preactresnet10_32px": lambda layers, x: reference_preact(layers, x, blocks=1),
    "densenet121_32px": reference_densenet,
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", SMALL)
def test_output_and_running_statistics_match_the_definition(name: str, training: bool) -> None:
    model = timm.create_model(name, num_classes=7).train(training)
    randomize_norms(model)
    layers = Layers(model.state_dict(), training)
    x = images(4)
    with torch.no_grad():
        expected = REFERENCES[name](layers, x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    for key, tensor in model.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(tensor, layers.state[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("preactresnet18_32px", 100, 11_217_444),
        ("preactresnet18_32px", 200, 11_268_744),
        ("preactresnet10_32px", 100, 4_946_724),
        ("densenet121_32px", 100, 7_048_548),
        ("densenet121_32px", 200, 7_151_048),
        ("resnet10", 200, 5_008_392),
        ("resnet18", 200, 11_279_112),
        ("densenet121", 200, 7_158_856),
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnext101_32x4d", 1000, 44_177_704),
    ],
)
def test_the_parameter_count_is_the_papers(name: str, num_classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=num_classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("size", [16, 32, 47])
@pytest.mark.parametrize("name", SMALL)
def test_images_of_16_pixels_or_more_give_logits(name: str, size: int) -> None:
    model = timm.create_model(name, num_classes=5, in_chans=1).eval()
    assert model(images(size=size, in_chans=1)).shape == (2, 5)


@pytest.mark.parametrize("name", SMALL)
def test_layers_have_pytorchs_default_initialisation(name: str) -> None:
    """Kaiming-uniform with a = √5: uniform within ± 1 / √fan_in."""
    for module in timm.create_model(name).modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5
            torch.testing.assert_close(module.weight.abs().max().item(), bound, rtol=0.02, atol=0)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = timm.create_model(name, num_classes=5, **({"zero_init_last": False} if name == "resnet10" else {}))
    F.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_resnet10_is_timms_resnet18_with_one_block_per_stage() -> None:
    model = timm.create_model("resnet10", num_classes=5).eval()
    twin = timm.create_model("resnet18", layers=(1, 1, 1, 1), num_classes=5).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    x = images(size=64)
    assert torch.equal(model(x), twin(x))
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 224, 224)


@pytest.mark.parametrize("name", timm.list_models("*_enc"))
def test_an_encoder_without_classifier_is_rejected(name):
    with torch.device("meta"), pytest.raises(UserError, match=f"model_name: {name} has no classifier"):
        create_backbone(ModelSection(model_name=name), num_classes=3)
