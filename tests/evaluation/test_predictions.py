from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image

from cskd_hf.data.splits import ImageSplit
from cskd_hf.errors import UserError
from cskd_hf.evaluation.predictions import EvaluationStoppedError, Predictions, predict_split
from cskd_hf.recipe.sections import DataSection


@pytest.fixture
def predict(transform):
    """Predictions of a network on a split, by default in batches of three."""

    def run(network: Any, split: ImageSplit, data: Mapping[str, Any] = {}, **settings: Any) -> Predictions:
        section = DataSection.model_validate({"dataset": "unused", "batch_size": 3, "workers": 0, **data})
        return predict_split(network, split, Accelerator(cpu=True), section, transform, **settings)

    return run


def corrupt(split: ImageSplit, rows: set[int]) -> ImageSplit:
    unreadable = {"bytes": b"not an image", "path": None}
    images = [unreadable if row in rows else image for row, image in enumerate(split.dataset["image"])]
    dataset = Dataset.from_dict({"image": images}, features=split.dataset.features)
    return ImageSplit(split.name, dataset, split.labels, split.class_names, split.rows)


def test_predictions_equal_a_plain_forward_image_by_image(predict, make_network, make_split, transform):
    torch.manual_seed(0)
    network, split = make_network(dropout=0.5), make_split(11)
    network(torch.randn(8, 3, 8, 8))  # gives BatchNorm non-trivial statistics
    predictions = predict(network, split)

    network.eval()
    mean, std = (np.array(values)[:, None, None] for values in (transform.mean, transform.std))
    for row in range(11):
        with Image.open(io.BytesIO(split.dataset[row]["image"]["bytes"])) as image:
            resized = image.resize((8, 8), Image.Resampling.BILINEAR)
        pixels = (np.asarray(resized).transpose(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            maps = network.layers(torch.tensor(pixels, dtype=torch.float32)[None])
            features = maps.mean(dim=(2, 3))[0]
            logits = network.fc(features)
        torch.testing.assert_close(predictions.logits[row], logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(predictions.features[row], features, rtol=0, atol=1e-5)


class CachedLinear(torch.nn.Linear):
    """Like attention biases in timm 1.0.26: cached in eval mode until train mode."""

    cache = None

    def train(self, mode=True):
        self.cache = None if mode else self.cache
        return super().train(mode)

    def forward(self, features):
        if not self.training and self.cache is None:
            self.cache = self.weight.detach().clone()
        return torch.nn.functional.linear(features, self.weight if self.training else self.cache, self.bias)


def test_an_average_which_stays_in_eval_mode_is_evaluated_with_its_current_weights(predict, make_network, make_split):
    network, split = make_network(), make_split(4)
    network.fc = CachedLinear(8, 3, bias=False)
    network.eval()
    before = predict(network, split)
    with torch.no_grad():
        network.fc.weight.mul_(2)
    torch.testing.assert_close(predict(network, split).logits, 2 * before.logits)
    assert not network.training


def test_predictions_are_in_the_order_of_the_split(predict, make_network, make_split):
    split = make_split(11)
    predictions = predict(make_network(), split)
    assert predictions.row.tolist() == list(range(11))
    assert predictions.target.tolist() == split.labels.tolist()
    assert predictions.logits.shape == (11, 3)
    assert predictions.features.shape == (11, 8)
    assert {predictions.logits.dtype, predictions.features.dtype} == {torch.float32}
    assert {predictions.target.dtype, predictions.row.dtype} == {torch.int64}
    assert predictions.skipped == {}


@pytest.mark.parametrize(
    "settings",
    [{"data": {"batch_size": 1}}, {"data": {"batch_size": 100}}, {"data": {"workers": 2}}, {"channels_last": True}],
)
def test_batch_size_workers_and_memory_layout_do_not_matter(predict, make_network, make_split, settings):
    torch.manual_seed(0)
    network, split = make_network(), make_split(11)
    plain, other = predict(network, split), predict(network, split, **settings)
    torch.testing.assert_close(other.logits, plain.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.features, plain.features, rtol=0, atol=1e-5)
    assert other.target.tolist() == plain.target.tolist()
    assert other.row.tolist() == plain.row.tolist()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_the_statistics_are_unchanged(predict, make_network, make_split, training):
    network = make_network().train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predict(network, make_split(5))
    assert {module.training for module in network.modules()} == {training}
    assert [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])] == []


def test_skipped_images_are_reported_by_row(predict, make_network, make_split):
    torch.manual_seed(0)
    network, split = make_network(), make_split(11)
    whole = predict(network, split)
    broken = {3, 4, 5, 9}  # a whole batch, and one of another
    predictions = predict(network, corrupt(split, broken), data={"on_corrupt": "skip"})
    readable = [row for row in range(11) if row not in broken]
    assert predictions.row.tolist() == readable
    assert predictions.target.tolist() == split.labels[readable].tolist()
    torch.testing.assert_close(predictions.logits, whole.logits[readable], rtol=0, atol=1e-5)
    assert predictions.skipped.keys() == broken
    assert all("unreadable image" in reason for reason in predictions.skipped.values())


def test_an_unreadable_image_is_an_error_unless_skipped(predict, make_network, make_split):
    with pytest.raises(UserError, match=r"split 'train', row 4: unreadable image"):
        predict(make_network(), corrupt(make_split(6), {4}))


def test_a_split_without_a_readable_image_is_a_user_error(predict, make_network, make_split):
    with pytest.raises(UserError, match="split 'train' has no readable image"):
        predict(make_network(), corrupt(make_split(4), {0, 1, 2, 3}), data={"on_corrupt": "skip"})


def test_features_are_not_computed_unless_asked_for(predict, make_network, make_split):
    torch.manual_seed(0)
    network, split = make_network(), make_split(5)
    predictions = predict(network, split, with_features=False)
    assert predictions.features is None
    torch.testing.assert_close(predictions.logits, predict(network, split).logits, rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 has the setting")
def test_results_are_computed_in_true_float32_under_the_newer_settings_too(predict, make_network, make_split):
    operations = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.conv)
    network, inside = make_network(), []
    network.layers.register_forward_pre_hook(lambda *_: inside.extend(each.fp32_precision for each in operations))
    before = [operation.fp32_precision for operation in operations]
    for operation, precision in zip(operations, ("tf32", "tf32", "bf16"), strict=True):
        operation.fp32_precision = precision
    try:
        predict(network, make_split(4))
        assert set(inside) == {"ieee"}
        assert [operation.fp32_precision for operation in operations] == ["tf32", "tf32", "bf16"]
    finally:
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision


def test_a_stop_between_batches_restores_the_mode(predict, make_network, make_split):
    network = make_network().train()
    answers = iter([False, True])
    with pytest.raises(EvaluationStoppedError):
        predict(network, make_split(11), stop=lambda: next(answers))
    assert network.training


@pytest.mark.parametrize(("autocast", "expected"), [(False, False), (True, True)])
def test_results_are_computed_in_true_float32(predict, make_network, make_split, autocast, expected):
    """cuDNN and cuBLAS round the inputs of float32 convolutions and products to TF32 unless these flags are off."""
    libraries = (torch.backends.cudnn, torch.backends.cuda.matmul)
    network, flags = make_network(), []
    network.layers.register_forward_pre_hook(lambda *_: flags.extend(library.allow_tf32 for library in libraries))
    torch.set_float32_matmul_precision("medium")  # NVIDIA's containers set "high"
    try:
        predict(network, make_split(4), autocast=autocast)
        assert set(flags) == {expected}
        assert all(library.allow_tf32 for library in libraries)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
