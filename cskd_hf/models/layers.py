"""A timm model's classifiers, and BatchNorm's running statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cskd_hf.errors import UserError


def classifiers(model: Any) -> list[nn.Module]:
    """A timm model's classifiers: also that of a distillation token, and VOLO's of all tokens, if it has them."""
    found = model.get_classifier()
    several = isinstance(found, (tuple, list, nn.ModuleList))
    heads = (*(found if several else (found,)), getattr(model, "aux_head", None))
    return [head for head in heads if head is not None]


def linear_classifier(model: Any, method_name: str) -> nn.Linear:
    """A timm model's classifier, which alone makes logits of what `forward_head(…, pre_logits=True)` returns.

    Raises:
        UserError: it is not a single linear layer, or the head has layers beside it: the norm of an EfficientViT-M, the
            second classifier of a VOLO. `pre_logits=True` leaves these out.
    """
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise UserError(
            f"method.name: {method_name} needs a linear classifier, and this model's is a "
            f"{type(classifier).__name__}; choose another model or method"
        )
    headless = copy.deepcopy(model)
    headless.reset_classifier(0)
    own = {f"{name}.{key}" for name, part in model.named_modules() if part is classifier for key in part.state_dict()}
    beside = sorted(model.state_dict().keys() - headless.state_dict().keys() - own)
    if beside:
        raise UserError(
            f"method.name: {method_name} needs logits from the linear classifier alone, and this model's head also has "
            f"{', '.join(dict.fromkeys(key.rpartition('.')[0] for key in beside))}; choose another model or method"
        )
    return classifier


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def freeze_running_statistics(module: nn.Module) -> Iterator[None]:
    """Training forwards inside normalise by the batch's statistics without updating the running ones."""
    norms = [norm for norm in batch_norms(module) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def restore_running_statistics(module: nn.Module) -> Iterator[None]:
    """For a backward that recomputes activations: undo its updates of the running statistics.

    The recomputed forward would update them a second time with the same batch. They are restored rather than frozen:
    torch compares the tensors saved by both forwards, and BatchNorm saves fewer without running statistics.
    """
    buffers = [buffer for norm in batch_norms(module) for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    yield
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
