"""Virtual softmax against its formula in NumPy, and the linear classifier that it and AdaCos need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, backbone, batch_for, cross_entropy, method_of

from cskd_hf.errors import UserError
from cskd_hf.methods import Batch, VirtualSoftmax

METHOD = VirtualSoftmax()


def batch_of(num: int = 6) -> Batch:
    batch = batch_for(METHOD, num)
    return batch._replace(images=batch.images / 255)


def test_the_loss_is_cross_entropy_with_one_more_logit_the_largest_at_the_weights_norm() -> None:
    model: Any = METHOD.build(backbone("preactresnet10_32px"), EXPERIMENT).eval()
    batch = batch_of()
    result = METHOD.forward_loss(model, batch)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(batch.images), pre_logits=True).double().numpy()
    weight = model.get_classifier().weight.detach().double().numpy()
    target = batch.target.numpy()
    virtual = np.linalg.norm(weight, axis=1)[target] * np.linalg.norm(features, axis=1)
    logits = features @ weight.T
    assert (virtual >= logits[np.arange(6), target]).all()
    np.testing.assert_allclose(result["output"].detach().numpy(), logits, rtol=0, atol=1e-5)
    expected = cross_entropy(np.concatenate([logits, virtual[:, None]], axis=1), target)
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_model_that_was_not_built_is_an_error() -> None:
    with pytest.raises(UserError, match=r"virtual_softmax: the classifier has a bias to train; .*method.build\("):
        METHOD.forward_loss(backbone("preactresnet10_32px"), batch_of())


def test_the_bias_stays_zero_and_keeps_timms_name() -> None:
    model: Any = METHOD.build(backbone("preactresnet10_32px"), EXPERIMENT)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    METHOD.forward_loss(model, batch_of())["loss"].backward()
    optimizer.step()
    exported: Any = METHOD.export(model)
    assert exported.state_dict().keys() == backbone("preactresnet10_32px").state_dict().keys()
    assert not exported.get_classifier().bias.any()


@pytest.mark.parametrize("name", ["virtual_softmax", "adacos"])
def test_a_classifier_that_is_not_linear_is_rejected(name: str) -> None:
    with pytest.raises(UserError, match=rf"^method\.name: {name} needs a linear classifier"):
        method_of(name).build(timm.create_model("test_resnet", num_classes=0), EXPERIMENT)


@pytest.mark.parametrize("name", ["virtual_softmax", "adacos"])
@pytest.mark.parametrize(
    ("model_name", "beside"), [("efficientvit_m0", r"head\.bn"), ("shvit_s1", r"head\.bn"), ("volo_d1_224", "aux_head")]
)
def test_a_head_with_layers_that_the_loss_would_skip_is_rejected(name: str, model_name: str, beside: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(model_name, num_classes=NUM_CLASSES)
    with pytest.raises(
        UserError, match=rf"^method\.name: {name} needs .* alone, and this model's head also has {beside};"
    ):
        method_of(name).build(model, EXPERIMENT)


def test_adacos_rejects_two_classes() -> None:
    with pytest.raises(UserError, match=r"^method\.name: adacos needs at least 3 classes"):
        method_of("adacos").build(backbone("test_resnet"), EXPERIMENT._replace(class_names=("a", "b")))
