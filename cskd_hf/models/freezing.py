"""Parts of a network that do not train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cskd_hf.errors import UserError
from cskd_hf.models.layers import batch_norms, classifiers
from cskd_hf.recipe.suggest import did_you_mean


def backbone_parameters(network: Any) -> list[nn.Parameter]:
    """A timm model's parameters without its classifiers'.

    Example:
        >>> import timm
        >>> network = timm.create_model("test_resnet", num_classes=2)
        >>> len(list(network.parameters())) - len(backbone_parameters(network))
        2
    """
    own = {id(parameter) for head in classifiers(network) for parameter in head.parameters()}
    return [parameter for parameter in network.parameters() if id(parameter) not in own]


def freeze(network: Any, parts: Sequence[str] | str) -> None:
    """Stop training parts of a network, as `timm.utils.freeze` does, but without replacing BatchNorm layers.

    `frozen_norms` finds those, and the export stays a stock network.

    Args:
        parts: names of modules and parameters, each with everything below it, or "backbone": all but the classifier.

    Raises:
        UserError: a part has no parameters, or nothing is left to train.
    """
    names = dict(network.named_parameters())
    if parts == "backbone":
        frozen = backbone_parameters(network)
    else:
        frozen = []
        for part in (parts,) if isinstance(parts, str) else parts:
            below = [parameter for name, parameter in names.items() if f"{name}.".startswith(f"{part.rstrip('.')}.")]
            if not below:
                raise UserError(f"model.freeze: the network has no weights in {part!r}; {_advice(names, part)}")
            frozen += below
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise UserError(f"model.freeze: read {parts}, which leaves nothing to train; leave a part out")


def _advice(names: Iterable[str], part: str) -> str:
    """What is close to a mistyped part, or the network's parts."""
    parts = list(dict.fromkeys(name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)))
    top = dict.fromkeys(name.partition(".")[0] for name in names)
    return did_you_mean(part, parts) or f"its parts are {', '.join(top)}"


def frozen_norms(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers whose own weights do not train."""
    norms = [(norm, list(norm.parameters())) for norm in batch_norms(module)]
    return [norm for norm, own in norms if own and not any(parameter.requires_grad for parameter in own)]
