"""Everything an update changes: the objective's weights, the optimizer, the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import Lookahead
from timm.scheduler import create_scheduler_v2
from torch import nn

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.models.freezing import backbone_parameters
from cskd_hf.models.layers import batch_norms
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import RunSection

# Modes of torch.compile that record CUDA graphs.
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


@dataclass
class Learner:
    """What an update changes, before and after `accelerator.prepare`.

    Attributes:
        objective: prepared; its forward is one DDP forward.
        module: what `Method.build` returned, unwrapped: every trained weight and state.
        network: the plain timm model inside `module`, which is evaluated and exported.
        optimizer: prepared.
        scheduler: timm's, not prepared: Accelerate would step it once per rank.
        set_to_none: whether `zero_grad` frees gradients, or zeroes them in place.
        freeze_epochs: epochs in which the heads train alone.
    """

    objective: nn.Module
    module: nn.Module
    network: nn.Module
    optimizer: Any
    scheduler: Any
    set_to_none: bool = True
    freeze_epochs: int = 0

    def train(self, epoch: int) -> None:
        """Train mode. While the heads train alone, the network's BatchNorm uses its running statistics."""
        self.objective.train()
        if epoch < self.freeze_epochs:
            for norm in batch_norms(self.network):
                norm.eval()

    @contextmanager
    def heads_alone(self, epoch: int) -> Iterator[None]:
        """Inside, while the heads train alone, the backbone has no gradient, so the optimizer and clipping skip it.

        The backward still computes it: DDP expects the gradients that it was built with, and the optimizer's groups and
        the compiled graph stay as they are when the backbone begins to train.
        """
        backbone = backbone_parameters(self.network) if epoch < self.freeze_epochs else []
        gradients = [parameter.grad for parameter in backbone]
        for parameter in backbone:
            parameter.grad = None
        yield
        for parameter, gradient in zip(backbone, gradients, strict=True):
            parameter.grad = gradient

    def sync_lookahead(self) -> None:
        """Continue from Lookahead's slow weights, which are evaluated, as timm's train.py does at the end of an epoch.

        Between a step and `zero_grad`: timm skips parameters without a gradient.
        """
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, Lookahead):
            optimizer.sync_lookahead()

    def keep_gradients(self) -> None:
        """Allocate gradients now and zero them in place from here on.

        With CUDA graphs, a gradient first made by a backward lies in the graph's memory pool, and the next forward
        overwrites it (pytorch/pytorch#169545): accumulation would sum garbage. One made outside is accumulated into.
        """
        self.set_to_none = False
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)


def checkpoint_bytes(module: nn.Module, network: nn.Module, optimizer: Any, settings: RunSection) -> int:
    """About the size of a checkpoint: an optimizer has no state before its first step.

    Args:
        module, network, optimizer: as in `Learner`; they may be on the meta device.
    """
    num_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    num_bytes += settings.extra_weights * sum(tensor.nbytes for tensor in network.state_dict().values())
    for group in optimizer.param_groups:
        moments = 2 if "betas" in group else 1
        num_bytes += moments * sum(parameter.nbytes for parameter in group["params"])
    return num_bytes


def build_learner(recipe: Recipe, objective: Objective, batches: GlobalBatches, accelerator: Accelerator) -> Learner:
    """Optimizer and schedule for an objective; compiled if the recipe asks for it, prepared by Accelerate."""
    module = objective.module
    network = recipe.method.export(module)
    accumulation = recipe.run.gradient_accumulation_steps
    lr, _ = recipe.optimizer.scaled_lr(batches.global_batch_size * accumulation)
    begins_later = backbone_parameters(network) if recipe.model.freeze_epochs else []
    optimizer = create_optimizer(recipe.optimizer, network, module, lr, begins_later)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        **recipe.scheduler.keywords,
        updates_per_epoch=-(-len(batches) // accumulation),
    )
    compile_objective(recipe, objective)
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    learner = Learner(prepared, module, network, optimizer, scheduler, freeze_epochs=recipe.model.freeze_epochs)
    if recipe.run.compile in CUDA_GRAPH_MODES and accumulation > 1:
        learner.keep_gradients()
    return learner


def compile_objective(recipe: Recipe, objective: Objective) -> None:
    """Compile in place, which keeps the weights' names.

    Shapes are static: a short last batch gets a second static graph, and each size of progressive resizing its own. By
    default, torch would make the graph dynamic for good. DDP's graph splitting is off: it would cut the partner's
    forward into its gradient buckets.
    """
    if recipe.run.compile:
        import torch._dynamo  # slow to import

        torch._dynamo.config.optimize_ddp = False
        torch._dynamo.config.recompile_limit += 2 * len(recipe.transform.size_schedule)  # beyond it, torch runs eagerly
        mode = None if recipe.run.compile in (True, "default") else recipe.run.compile
        objective.compile(mode=mode, dynamic=False)
