"""What a run trains, and on what pixels, in the words of its start block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cskd_hf.methods import METHODS
from cskd_hf.models.factory import count_parameters
from cskd_hf.recipe.sections import ModelSection, TransformSection


def describe_images(transform: TransformSection) -> str:
    """Size and interpolation, and what testing does differently."""
    size = "×".join(map(str, transform.input_size))
    test_size = "×".join(map(str, transform.for_evaluation().input_size))
    shown = f"{test_size}, " if test_size != size else ""
    tested = f"crop_pct {transform.crop_pct:g} ({transform.crop_mode})"
    steps = [f"{pixels} up to epoch {last}" for last, pixels in transform.size_schedule]
    size += f" ({', '.join(steps)})" if steps else ""
    return f"{size}, {transform.interpolation}, tested at {shown}{tested}"


def describe_method(settings: Mapping[str, Any]) -> str:
    """Its name and coefficients, without those that are off by default.

    Example:
        >>> describe_method({"name": "cskd", "temperature": 4.0, "distill_loss_weight": 0.0, "smoothing": 0.0})
        'cskd, temperature 4.0, distill_loss_weight 0.0'
    """
    fields = METHODS[settings["name"]].model_fields
    chosen = {key: value for key, value in settings.items() if value or fields[key].default}
    return ", ".join(f"{key} {value}" for key, value in chosen.items()).removeprefix("name ")


def describe_network(model: ModelSection, network: nn.Module) -> str:
    """How many parameters a network has, and which of them train."""
    text = f"{model.model_name}, {count_parameters(network):,} parameters"
    if model.freeze:
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        text += f", {trained:,} of them trained"
    if model.freeze_epochs:
        text += f", the classifier alone up to epoch {model.freeze_epochs}"
    return text


def random_weights_note(model: ModelSection) -> list[str]:
    """A warning if a recipe names weights and does not load them."""
    if ":" not in model.model_name or model.from_weights:
        return []
    return [f"model.pretrained: false, so {model.model_name} names the network only; write model.pretrained=true"]
