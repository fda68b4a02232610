"""Methods ready to run: settings, networks, a teacher, batches, and the basic formulas in NumPy."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import timm
import torch
from process_folder import process_folder
from torch import Tensor, nn

import cskd_hf.models  # noqa: F401  (registers)
from cskd_hf.batch import NUM_VIEWS
from cskd_hf.engine.objective import Objective
from cskd_hf.methods import METHODS, Batch, Experiment, Method
from cskd_hf.models.export import export_model
from cskd_hf.models.staged import StagedNetwork
from cskd_hf.recipe.sections import ModelSection, TransformSection

CLASSES = ("a", "b", "c", "d")
NUM_CLASSES = len(CLASSES)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EXPERIMENT = Experiment(40, 5, CLASSES, MEAN, STD, class_counts=(20.0, 10.0, 8.0, 2.0))
TEACHER_MEAN, TEACHER_STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)

# Coefficients that reduce a method to cross-entropy over its supervised images; other methods have none.
ZERO: dict[str, dict[str, float]] = {
    "cross_entropy": {"smoothing": 0.0},
    "max_entropy": {"entropy_weight": 0.0},
    "ddgsd": {"distill_loss_weight": 0.0, "feature_loss_weight": 0.0},
    "byot": {"aux_loss_weight": 0.0},
    "mixup": {"mixup_alpha": 0.0},
    "distillation": {"distill_loss_weight": 0.0},
    "cskd": {"distill_loss_weight": 0.0},
    "cskd_e": {"distill_loss_weight": 0.0, "sample_loss_weight": 0.0},
    "mixup_cskd": {"mixup_alpha": 0.0, "distill_loss_weight": 0.0},
    "distillation_cskd": {"distill_loss_weight": 0.0, "class_wise_loss_weight": 0.0},
    "mutual_cskd": {"distill_loss_weight": 0.0},
    "ips": {"distill_loss_weight": 0.0, "swap_prob": 0.0},
    "pskd": {"last_alpha": 0.0},
    "tfkd_reg": {"distill_loss_weight": 0.0},
}


@functools.cache
def exported(model_name: str, class_names: tuple[str, ...] = CLASSES, seed: int = 3) -> str:
    """`local-dir:` address of exported random weights, with BatchNorm statistics of real batches."""
    torch.manual_seed(seed)
    model: Any = timm.create_model(model_name, num_classes=len(class_names))
    with_statistics(model, torch.randn(16, 3, 32, 32))
    transform = TransformSection(input_size=(3, 32, 32), mean=TEACHER_MEAN, std=TEACHER_STD)
    path = process_folder() / "model"
    export_model(model, path, ModelSection(model_name=model_name), transform, class_names, "", {})
    return f"local-dir:{path}"


def method_of(name: str, class_names: tuple[str, ...] = CLASSES, **settings: Any) -> Method:
    """A method with its default coefficients, a teacher for `class_names` if it needs one, and `settings`."""
    if "teacher" in METHODS[name].model_fields:
        settings = {"teacher": exported("test_resnet", class_names), **settings}
    if name == "ips":
        settings = {"patch_size": 4, **settings}  # some tests' images are as small as the default patch
    return METHODS[name](**settings)


needs_new_timm = pytest.mark.skipif(
    tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31), reason="needs timm 1.0.31"
)


def small_network(num_classes: int = NUM_CLASSES, norm: Any = nn.BatchNorm2d) -> StagedNetwork:
    """Four stages behind timm's interface, small enough to train in milliseconds."""
    torch.manual_seed(0)
    widths = (6, 6, 8, 8, 10)

    def stage(number: int) -> list[nn.Module]:
        stride = 1 if number == 1 else 2
        conv = nn.Conv2d(widths[number - 1], widths[number], 3, stride=stride, padding=1, bias=False)
        return [nn.Sequential(conv, norm(widths[number]), nn.ReLU())]

    stem = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), norm(widths[0]), nn.ReLU()]
    return StagedNetwork(stem, [stage(number) for number in (1, 2, 3, 4)], widths, num_classes=num_classes)


def with_statistics(network: Any, images: Tensor) -> Any:
    """Set the running statistics of `images` and a random classifier, so that outputs differ; returns eval mode."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    torch.manual_seed(5)
    with torch.no_grad():
        network.train()(images)
        network.get_classifier().weight.normal_()
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


@functools.cache
def _initial(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=NUM_CLASSES, **settings)


def backbone(name: str, **settings: Any) -> Any:
    """A timm network for `CLASSES` with the same initial weights every time."""
    return copy.deepcopy(_initial(name, **settings))


def objective_of(method: Method, network: nn.Module | None = None, experiment: Experiment = EXPERIMENT) -> Objective:
    """In train mode, around `small_network` unless another network is given."""
    module = method.build(small_network() if network is None else network, experiment)
    return Objective(method, module, MEAN, STD, channels_last=True).train()


def batch_for(method: Method, num: int = 4, size: int = 16, seed: int = 0) -> Batch:
    """`num` samples of uint8 images as the loader yields them, [anchors | partners | plain]; same anchors for all."""
    views = NUM_VIEWS[method.views]
    generators = [torch.Generator().manual_seed(seed + 1000 * view) for view in range(views)]
    shape = (num, 3, size, size)
    images = torch.cat([torch.randint(256, shape, dtype=torch.uint8, generator=generator) for generator in generators])
    target, index = torch.arange(num) % NUM_CLASSES, torch.arange(num)
    return Batch(images, target.repeat(views), index.repeat(views))


def supervised(method: Method, batch: Batch) -> Batch:
    """The images with a cross-entropy term: the anchors, or both halves."""
    if method.name in ("ddgsd", "dlb", "ips", "mutual_cskd"):
        return batch
    num = len(batch.target) // NUM_VIEWS[method.views]
    return Batch(batch.images[:num], batch.target[:num], batch.index[:num])


class Identity(nn.Module):
    """The logits are the images, one pixel per class; the pooled features are twice the logits."""

    num_classes = NUM_CLASSES

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward_features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        return 2 * maps if pre_logits else maps


def pixels(logits: np.ndarray) -> Tensor:
    """Images for which `Identity` returns these logits; they require a gradient."""
    return torch.tensor(logits, dtype=torch.float32)[:, :, None, None].requires_grad_()


# Formulas in float64


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def one_hot(target: np.ndarray, num_classes: int = NUM_CLASSES) -> np.ndarray:
    return np.eye(num_classes)[target]


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean over rows of −Σ_k q_k log p_k; `target` holds labels or rows of probabilities."""
    q = one_hot(target, logits.shape[1]) if target.ndim == 1 else target
    return float(-(q * log_softmax(logits)).sum(axis=1).mean())


def kl(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    """T² · Σ_k q_k (log q_k − log p_k), averaged over rows."""
    log_q, log_p = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return float((np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean() * temperature**2)
