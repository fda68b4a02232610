"""Fold a fitted temperature into the classifier, so that the softmax of the plain logits is calibrated.

logits / T = (W x + b) / T = (W / T) x + (b / T): whatever loads the weights need not know T.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cskd_hf.errors import UserError
from cskd_hf.models.layers import classifiers


def fold_temperature(model: Any, temperature: float, input_size: Sequence[int]) -> tuple[Any, list[str]]:
    """Divide the parameters of a timm model's classifier by `temperature`; checked on noise of `input_size` (C, H, W).

    The model, in eval mode, is left unchanged.

    Returns:
        A folded copy of the model, and the names of the folded layers: distilled networks and VOLO combine two.

    Raises:
        UserError: the logits are not linear in the classifier's parameters, as with a cosine head or an MLP.
    """
    folded = copy.deepcopy(model)
    heads = classifiers(folded)
    names = [name for name, module in folded.named_modules() if any(module is head for head in heads)]
    with torch.no_grad():
        for head in heads:
            for parameter in head.parameters():
                parameter.copy_(parameter.double() / temperature)  # float64: the quotient is rounded once
    noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    expected = _logits(model, noise) / temperature
    difference = (_logits(folded, noise) - expected).abs().max().item()
    if not difference <= 1e-5 * expected.abs().max().item():
        raise UserError(
            f"--fold-temperature: the logits of {type(model).__name__} are not linear in {', '.join(names)} "
            f"({type(heads[0]).__name__}): folded, they differ by {difference:.2g} from the logits over T; "
            "publish without it: the card then states T"
        )
    return folded, names


@torch.inference_mode()
def _logits(model: Any, images: Tensor) -> Tensor:
    return model(images).double()
