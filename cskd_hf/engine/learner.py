"""Everything an update changes: the objective's weights, the optimizer, the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from timm.scheduler import create_scheduler_v2
from torch import nn

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.recipe.recipe import Recipe


@dataclass
class Learner:
    """What an update changes, before and after `accelerator.prepare`.

    Attributes:
        objective: prepared; its forward is one DDP forward.
        module: what `Method.build` returned, unwrapped: every trained weight and state.
        network: the plain timm model inside `module`, which is evaluated and exported.
        optimizer: prepared.
        scheduler: timm's, not prepared: Accelerate would step it once per rank.
    """

    objective: nn.Module
    module: nn.Module
    network: nn.Module
    optimizer: Any
    scheduler: Any


def build_learner(recipe: Recipe, objective: Objective, batches: GlobalBatches, accelerator: Accelerator) -> Learner:
    """Optimizer and schedule for an objective; compiled if the recipe asks for it, prepared by Accelerate."""
    module = objective.module
    network = recipe.method.export(module)
    accumulation = recipe.run.gradient_accumulation_steps
    lr, _ = recipe.optimizer.scaled_lr(batches.global_batch_size * accumulation)
    optimizer = create_optimizer(recipe.optimizer, network, module, lr)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        **recipe.scheduler.model_dump(exclude_none=True),
        updates_per_epoch=-(-len(batches) // accumulation),
    )
    compile_objective(recipe, objective)
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    return Learner(prepared, module, network, optimizer, scheduler)


def compile_objective(recipe: Recipe, objective: Objective) -> None:
    """Compile in place, which keeps the weights' names."""
    if recipe.run.compile:
        objective.compile(mode=None if recipe.run.compile in (True, "default") else recipe.run.compile)
