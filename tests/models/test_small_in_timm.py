"""The small networks with timm's own tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from small_networks import ALL, LAYERS, SMALL, WIDTHS, images
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import cskd_hf.models  # noqa: F401  (registers)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_timm_lists_the_networks_without_pretrained_weights() -> None:
    assert set(ALL) <= set(timm.list_models())
    assert not set(ALL) & set(timm.list_pretrained())


@pytest.mark.parametrize("name", SMALL)
def test_the_data_config_is_the_papers(name: str) -> None:
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 32, 32), 1.0, "bilinear")


@pytest.mark.parametrize("name", SMALL)
def test_the_head_can_be_replaced_removed_and_bypassed(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval().double()
    x, width = images().double(), WIDTHS[name][-1]
    maps = model.forward_features(x)
    pooled = model.forward_head(maps, pre_logits=True)
    assert pooled.shape == (2, width) == (2, model.num_features) == (2, model.head_hidden_size)
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))

    model.reset_classifier(3)
    assert model(x).shape == (2, 3)  # in the model's dtype
    assert model.num_classes == model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, global_pool="")
    torch.testing.assert_close(model(x), maps)
    model.reset_classifier(4, global_pool="catavgmax")
    assert model.head_hidden_size == model.get_classifier().in_features == 2 * width


def test_drop_rate_acts_on_pooled_features_only_in_training() -> None:
    model = timm.create_model("preactresnet10_32px", drop_rate=0.5, num_classes=0)
    maps = torch.ones(4, 512, 2, 2)
    assert set(model.train().forward_head(maps).unique().tolist()) == {0.0, 2.0}
    assert (model.eval().forward_head(maps) == 1).all()


@pytest.mark.parametrize("name", SMALL)
def test_every_feature_interface_of_timm_returns_stem_and_stages(name: str) -> None:
    model = timm.create_model(name).eval()
    extractor = timm.create_model(name, features_only=True).eval()
    x = images()
    assert extractor.feature_info.channels() == WIDTHS[name]
    assert extractor.feature_info.reduction() == [1, 1, 2, 4, 8]
    flat = {key.replace("_", ".", 1): value for key, value in extractor.state_dict().items()}
    missing, unexpected = model.load_state_dict(flat, strict=False)
    assert (set(missing), unexpected) == ({"fc.weight", "fc.bias"}, [])

    final, features = model.forward_intermediates(x)
    assert [tuple(f.shape) for f in features] == [
        (2, width, size, size) for width, size in zip(WIDTHS[name], (32, 32, 16, 8, 4), strict=True)
    ]
    assert torch.equal(final, features[-1])
    assert torch.equal(final, model.forward_features(x))
    for feature, extracted in zip(features, extractor(x), strict=True):
        assert torch.equal(feature, extracted)

    early, (second, third) = model.forward_intermediates(x, indices=[1, 2], stop_early=True)
    assert torch.equal(second, features[1])
    assert torch.equal(third, features[2])
    assert torch.equal(early, features[2])
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert torch.equal(last, final)
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", ALL)
def test_layer_decay_gives_deeper_layers_a_higher_learning_rate(name: str) -> None:
    model = timm.create_model(name)
    optimizer = create_optimizer_v2(model, opt="momentum", lr=0.1, layer_decay=0.9)
    scales = {p: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    in_order = [scales[p] for p in model.parameters()]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) == LAYERS[name]
    assert in_order[-1] == 1


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_neither_output_nor_gradients(name: str) -> None:
    model = timm.create_model(name, num_classes=5)
    x = images(4)

    def output_and_gradients() -> list[Tensor]:
        model.zero_grad()
        logits = model(x)
        F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
        return [logits.detach(), *(p.grad for p in model.parameters())]

    expected = output_and_gradients()
    model.set_grad_checkpointing()
    torch.testing.assert_close(output_and_gradients(), expected)
    features = model.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(features[-1], model.forward_features(x))


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_model_reloads_and_adapts_to_other_channels_and_classes(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    x = images()
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))
    adapted = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=3).eval()
    torch.testing.assert_close(adapted.stem[0].weight, model.stem[0].weight.sum(dim=1, keepdim=True))
    assert adapted(x[:, :1]).shape == (2, 3)
