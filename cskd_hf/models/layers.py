"""Surgery on timm models, whose parts go by different names in every family."""

from __future__ import annotations

from typing import Any

from torch import nn

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
