"""The backbone: `timm.create_model`, with its exceptions translated into lines about the recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.models.starting_weights import (
    StartingWeights,
    describe_loading,
    overlay_for,
    read_shapes,
    recorded_loading,
)
from cskd_hf.recipe.pretrained import find_pretrained
from cskd_hf.recipe.sections import ModelSection
from cskd_hf.recipe.suggest import did_you_mean


def create_backbone(
    settings: ModelSection, num_classes: int, grad_checkpointing: bool = False, class_names: Sequence[str] = ()
) -> nn.Module:
    """The recipe's model, with a classifier for the data's classes.

    Args:
        grad_checkpointing: recompute activations in the backward; see `layers.restore_running_statistics`.
        class_names: K of the data. The classifier of weights that come with other names, or in another order, is not
            loaded.

    Raises:
        UserError: unknown architecture, a keyword it does not take, a number of classes other than the data's,
            pretrained weights that cannot be fetched, or a network without classifier or gradient checkpointing.
    """
    model = _create(settings, num_classes, class_names)
    if grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError):  # timm raises any of them
            raise UserError(
                f"run.grad_checkpointing: timm's {settings.model_name} does not support it; leave it out"
            ) from None
    return model


def starting_weights(model: Any) -> StartingWeights | None:
    """What `create_backbone` loaded into a model; None if it started at random."""
    return getattr(model, "starting_weights", None)


def _create(settings: ModelSection, num_classes: int, class_names: Sequence[str]) -> Any:
    name, file = settings.model_name, settings.checkpoint
    if settings.num_classes is not None and settings.num_classes != num_classes:
        raise UserError(f"model.num_classes: read {settings.num_classes}, but the data has {num_classes}; leave it out")
    pretrained = find_pretrained(settings)
    _check_name(pretrained.architecture, name)
    shapes = {} if file is None else read_shapes(file)
    overlay: dict[str, Any] | None = None
    own_names = pretrained.cfg and pretrained.cfg.label_names
    other_classes = bool(own_names and class_names) and list(own_names) != list(class_names)
    if file is not None:
        overlay = overlay_for(file, shapes, pretrained.cfg)
    elif other_classes:
        overlay = {"num_classes": 0}  # timm then leaves the classifier at random
    # Without `in_chans` timm would build the network for the channels of its weights.
    keywords = {"in_chans": 3, **settings.keywords}
    try:
        with recorded_loading() as results:
            model = timm.create_model(
                name, settings.from_weights, pretrained_cfg_overlay=overlay, num_classes=num_classes, **keywords
            )
    except TypeError as error:
        # The constructor's message: "… got an unexpected keyword argument 'img_size'".
        unexpected = [keyword for keyword in keywords if f"'{keyword}'" in str(error)]
        if not unexpected:
            raise
        raise UserError(f"model.{unexpected[0]}: {name} does not take it; leave it out") from None
    except UserError as error:
        raise UserError(f"model.model_name: {error}") from None
    except (AssertionError, OSError, RuntimeError, ValueError) as error:  # timm raises any of them
        raise _explain(error, settings) from error
    if getattr(model, "num_classes", num_classes) != num_classes:
        raise UserError(f"model.model_name: {name} has no classifier: it is an encoder of features; choose another")
    model.pretrained_model_args = pretrained.model_args  # for the export; timm before 1.0.31 does not set it
    if settings.from_weights:
        start = describe_loading(model, pretrained, file, shapes, keywords, results)
        if other_classes and start.new:
            start = replace(start, adapted=("its classes have other names or another order", *start.adapted))
        model.starting_weights = start
    return model


def _check_name(architecture: str, name: str) -> None:
    if timm.is_model(architecture):
        return
    if architecture != name.split(".")[0]:
        raise UserError(f"model.model_name: timm has no {architecture!r}, the architecture of {name}")
    hint = did_you_mean(name, timm.list_models()) or "timm.list_models() lists all models"
    if "/" in name:
        hint = f"write hf-hub:{name} for a repository of the Hub, or local-dir:{name} for a folder"
    raise UserError(f"model.model_name: timm has no {name!r}; {hint}")


def _explain(error: Exception, settings: ModelSection) -> UserError:
    """What timm says of a network or weights, in one line: of weights of another shape it lists every tensor."""
    name = settings.model_name
    reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
    if settings.checkpoint is not None:
        return UserError(f"model.checkpoint: {settings.checkpoint} does not fit {name}: {reason}")
    if settings.pretrained and "size mismatch" in reason:
        return UserError(f"model: the weights of {name} do not fit the network that these settings make: {reason}")
    if settings.pretrained:
        return UserError(
            f"model.pretrained: the weights of {name} could not be loaded ({reason}); without a network, fill "
            "the Hub's cache beforehand or write model.pretrained=false"
        )
    arguments = "".join(f", {key}={value!r}" for key, value in settings.keywords.items())
    return UserError(f"model: timm cannot create {name}{arguments}: {reason}")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
