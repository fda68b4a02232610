"""timm's optimizer over the network and whatever a method adds to it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.optim import (
    Adahessian,
    Lookahead,
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_weight_decay,
)
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import OptimizerSection
from cskd_hf.recipe.suggest import did_you_mean

# torch's optimizers with a fused kernel on CPU and CUDA; no other class in timm has one. On CUDA it also saves fp16 a
# sync per step: the kernel itself checks whether the gradients are finite.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def create_optimizer(settings: OptimizerSection, model: nn.Module, module: nn.Module, lr: float) -> Any:
    """`timm.optim.create_optimizer_v2` for everything a method trains.

    timm decides weight decay and layer decay by the network's own parameter names, so it gets the network alone. A
    method's heads join as separate groups at the full learning rate.

    Args:
        model: the plain timm model.
        module: what the method built around it.
        lr: for the global batch.

    Raises:
        UserError: timm has no such optimizer, it rejects or ignores these settings, a package it needs is missing, or
            it needs second derivatives.
    """
    name = settings.opt.lower().removeprefix("lookahead_")
    if name not in list_optimizers():
        hint = did_you_mean(name, list_optimizers()) or "timm.optim.list_optimizers() names what it has"
        raise UserError(f"optimizer.opt: timm has no {settings.opt!r}; {hint}")
    if "kron" in settings.opt and find_spec("opt_einsum") is None:  # without it, its products need terabytes
        raise UserError(f"optimizer.opt: {settings.opt} needs the package opt_einsum; pip install opt_einsum")
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
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"optimizer: timm cannot make {settings.opt!r} with these settings: {error}; change them, or optimizer.opt"
        ) from error
    takes = get_optimizer_info(name)
    for key in ("momentum", "betas", "eps"):
        is_default = getattr(settings, key) == type(settings).model_fields[key].default
        if not is_default and not getattr(takes, f"has_{key}"):
            raise UserError(f"optimizer.{key}: {settings.opt} has none, so timm ignores it; leave it out")
    if isinstance(_unwrapped(optimizer), Adahessian):
        raise UserError(f"optimizer.opt: {settings.opt} needs second derivatives, which methods do not compute")
    allocate_momentum(optimizer)
    return optimizer


def allocate_momentum(optimizer: Any) -> None:
    """Give fused SGD zeros where a momentum buffer is missing, which leaves its first step unchanged.

    torch allocates it uninitialised in a group's first step. If a loss scale skips that step, the next would use what
    lies in the memory; and a group in which some parameters begin to train later would fail.
    """
    optimizer = _unwrapped(optimizer)
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        for parameter in group["params"] if group["fused"] and group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _unwrapped(optimizer: Any) -> Any:
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer._base_optimizer if isinstance(optimizer, Lookahead) else optimizer
