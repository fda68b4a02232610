"""The backbone: `timm.create_model`, with its exceptions translated into lines about the recipe."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import ModelSection


def create_backbone(settings: ModelSection, num_classes: int, grad_checkpointing: bool = False) -> nn.Module:
    """The recipe's model, with a classifier for the data's classes.

    Args:
        grad_checkpointing: recompute activations in the backward; see `layers.restore_running_statistics`.

    Raises:
        UserError: unknown architecture, a keyword it does not take, a number of classes other than the data's,
            pretrained weights that cannot be fetched, or a network without gradient checkpointing.
    """
    model = _create(settings, num_classes)
    if grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError):  # timm raises any of them
            raise UserError(
                f"run.grad_checkpointing: timm's {settings.model_name} does not support it; leave it out"
            ) from None
    return model


def _create(settings: ModelSection, num_classes: int) -> Any:
    name = settings.model_name
    if settings.num_classes is not None and settings.num_classes != num_classes:
        raise UserError(f"model.num_classes: read {settings.num_classes}, but the data has {num_classes}; leave it out")
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all models"
        raise UserError(f"model.model_name: timm has no {name!r}; {hint}")
    keywords = settings.model_dump(exclude={"model_name", "pretrained", "num_classes"}, exclude_none=True)
    try:
        return timm.create_model(name, pretrained=settings.pretrained, num_classes=num_classes, **keywords)
    except TypeError as error:
        # The constructor's message: "… got an unexpected keyword argument 'img_size'".
        unexpected = [keyword for keyword in keywords if f"'{keyword}'" in str(error)]
        if not unexpected:
            raise
        raise UserError(f"model.{unexpected[0]}: {name} does not take it; leave it out") from None
    except UserError as error:
        raise UserError(f"model.model_name: {error}") from None
    except (AssertionError, OSError, RuntimeError, ValueError) as error:  # timm raises any of them
        reason = " ".join(str(error).split()) or type(error).__name__
        if settings.pretrained:
            raise UserError(
                f"model.pretrained: the weights of {name} could not be loaded ({reason}); without a network, fill "
                "the Hub's cache beforehand or write model.pretrained=false"
            ) from error
        arguments = "".join(f", {key}={value!r}" for key, value in keywords.items())
        raise UserError(f"model: timm cannot create {name}{arguments}: {reason}") from error


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
