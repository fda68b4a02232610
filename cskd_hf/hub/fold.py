"""A fitted temperature, folded into the final linear layer: softmax of the plain logits is then calibrated.

logits / T = (W x + b) / T = (W / T) x + (b / T), so nothing that loads the weights needs to know of T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn

from cskd_hf.errors import UserError

# Of these the output is weight · x + bias and nothing else; a subclass may do more, as a cosine head does.
_LINEAR = (nn.Linear, timm.layers.Linear, nn.Conv2d)  # the last one on pooled maps of 1×1 pixel, as BiT's ResNets


def fold_temperature(model: Any, temperature: float, input_size: Sequence[int]) -> list[str]:
    """Divide weight and bias of a timm model's classifier, or of its two where it averages two, by `temperature`.

    Args:
        model: in eval mode; its weights are changed in place, or left alone where it is refused.
        temperature: T > 0.
        input_size: (channels, height, width) of the noise on which the result is tried out.

    Returns:
        The folded layers' names.

    Raises:
        UserError: the head is not linear, or shares its weights with another part of the network.
    """
    heads = final_layers(model)
    noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    before = _logits(model, noise)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for layer in heads.values():
            for parameter in layer.parameters():
                # In float64, so that the quotient is rounded once.
                parameter.copy_(parameter.double() / temperature)
    difference = (_logits(model, noise) - before / temperature).abs().max().item()
    allowed = 1e-5 * (before / temperature).abs().max().item()
    if not difference <= allowed:
        model.load_state_dict(kept)
        raise UserError(
            f"--fold-temperature: the logits of {type(model).__name__} are not linear in {', '.join(heads)} "
            f"(they differ by {difference:.2g} from the logits over T); publish without it, the card then says T"
        )
    return list(heads)


def final_layers(model: Any) -> dict[str, nn.Module]:
    """Name → layer of a timm model's classifier; two of a distilled one, whose logits are their mean.

    Raises:
        UserError: one of them is no plain linear layer, or its weights are also another layer's.
    """
    found = model.get_classifier()
    wanted = list(found) if isinstance(found, (tuple, list, nn.ModuleList)) else [found]
    layers = {name: module for name, module in model.named_modules() if any(module is head for head in wanted)}
    for head in wanted:
        if type(head) not in _LINEAR:
            raise UserError(
                f"--fold-temperature: the classifier of {type(model).__name__} is a {type(head).__name__}, not a "
                "linear layer: dividing its weights does not divide logits; publish without it, the card then says T"
            )
    owners = [
        (id(parameter), module)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)  # once for each module that holds it
    ]
    for name, layer in layers.items():
        for parameter in layer.parameters():
            if any(same == id(parameter) and module is not layer for same, module in owners):
                raise UserError(
                    f"--fold-temperature: {name} of {type(model).__name__} shares its weights with another layer, "
                    "which would be divided too; publish without it, the card then says T"
                )
    return layers


@torch.inference_mode()
def _logits(model: Any, images: Tensor) -> Tensor:
    return model(images).double()
