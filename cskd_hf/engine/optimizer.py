"""The optimizer: timm's, over the network's parameters and over what a method adds to them."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import OptimizerSection

# Those of torch's optimizers that update all weights by one kernel, on a CPU as on CUDA; no other class of timm's does.
# On CUDA it also spares fp16 a wait a step: the kernel itself looks whether the gradients are finite.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def create_optimizer(settings: OptimizerSection, model: nn.Module, module: nn.Module, lr: float) -> Any:
    """`timm.optim.create_optimizer_v2` for what a method trains.

    timm asks the network itself which parameters go without weight decay and how deep each lies, by the network's own
    names. So it is asked about the network alone, and a method's heads join as groups of their own, at the full rate.

    Args:
        model: the timm model inside.
        module: what the method built around it.
        lr: of the global batch.

    Raises:
        UserError: timm has no such optimizer, or it does not take these settings.
    """
    try:
        keywords = settings.model_dump(exclude_none=True, exclude={"lr_base", "fused"}) | {"lr": lr}
        if settings.fused:
            keywords["fused"] = True
        optimizer = create_optimizer_v2(model, **keywords)
        if settings.fused is None and type(optimizer) in _FUSED:
            optimizer = create_optimizer_v2(model, **keywords, fused=True)
        own = {id(parameter) for parameter in model.parameters()}
        added = nn.ParameterList(
            parameter for parameter in module.parameters() if parameter.requires_grad and id(parameter) not in own
        )
        if len(added) and settings.filter_bias_and_bn:
            for group in param_groups_weight_decay(added, settings.weight_decay):
                optimizer.add_param_group(group)
        elif len(added):
            optimizer.add_param_group({"params": list(added), "weight_decay": settings.weight_decay})
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"optimizer: timm cannot make {settings.opt!r} with these settings: {error}; "
            "timm.optim.list_optimizers() names what it has"
        ) from error
    return optimizer
