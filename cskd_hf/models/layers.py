"""Surgery on timm models, whose parts go by different names in every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cskd_hf.errors import UserError


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands in a model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                parent.add_module(name, new)


def linear_classifier(model: Any, method_name: str) -> nn.Linear:
    """A timm model's classifier.

    Raises:
        UserError: it is not one linear layer.
    """
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise UserError(
            f"method.name: {method_name} needs a linear classifier, and this model's is a "
            f"{type(classifier).__name__}; choose another model or method"
        )
    return classifier


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Training forwards that normalise with the batch's statistics and leave the running ones alone."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """For a backward that recomputes activations: BatchNorm's running statistics stay as the forward left them.

    A recomputed forward would move them a second time, towards the same batch. They are put back rather than switched
    off: torch compares what both forwards keep, and BatchNorm without running statistics keeps less.

    Args:
        module: what `Method.build` returned, whose network has `set_grad_checkpointing` on.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    yield
    for buffer, held in zip(buffers, before, strict=True):
        buffer.copy_(held)
