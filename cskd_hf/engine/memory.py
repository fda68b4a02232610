"""Out of memory: report it, and measure which batch size fits on the device."""

from __future__ import annotations

import re
import traceback

import torch
from accelerate import Accelerator
from torch import nn

from cskd_hf.batch import NUM_VIEWS, Batch
from cskd_hf.engine.objective import Objective
from cskd_hf.errors import is_out_of_device_memory
from cskd_hf.recipe.recipe import Recipe


def explain_out_of_memory(error: Exception, recipe: Recipe, module: nn.Module, accelerator: Accelerator) -> str:
    """One line for the user: the device's memory, a batch size that fits, what else saves memory.

    The batch size is measured on one rank only: on several, a method's collectives would wait for the others.
    """
    traceback.clear_frames(error.__traceback__)  # they hold the failed step's activations
    batch_size, accumulation = recipe.data.batch_size, recipe.run.gradient_accumulation_steps
    fits = None
    if accelerator.num_processes == 1:
        fits = largest_batch_size(recipe, module, accelerator)
    if fits is None:
        advice = "lower data.batch_size and raise run.gradient_accumulation_steps"
    elif fits == 0:
        advice = "not even one sample fits: choose a smaller model or transform.input_size"
    else:
        steps = batch_size * accumulation // fits
        advice = f"{fits} fits, by measurement: write data.batch_size={fits} run.gradient_accumulation_steps={steps}"
    return (
        f"data.batch_size: {batch_size} does not fit into the device's memory{_memory(accelerator.device)}; {advice}, "
        "or run.grad_checkpointing=true"
    )


def explain_out_of_host_memory(error: BaseException, recipe: Recipe) -> str:
    """One line for the user: what was asked for, and the settings that need less."""
    asked = re.search(r"allocate (\d+) bytes", str(error))
    size = f" ({int(asked[1]) / 2**30:.1f} GiB asked for)" if asked else ""
    return (
        f"out of memory{size}: lower data.batch_size={recipe.data.batch_size} or data.workers, or choose an optimizer "
        f"with less state than {recipe.optimizer.opt}"
    )


def largest_batch_size(recipe: Recipe, module: nn.Module, accelerator: Accelerator) -> int:
    """The largest proper divisor of the batch size whose forward and backward fit; 0 if none does.

    A divisor, so that accumulation restores the global batch exactly.

    Gradients, running statistics and memories of predictions are overwritten: the run must be over.
    """
    # Neither compiled, which would compile again for each size, nor prepared.
    objective = Objective(recipe.method, module, *recipe.transform.mean_and_std, recipe.run.channels_last)
    objective = objective.to(accelerator.device).train()
    smaller = range(recipe.data.batch_size // 2, 0, -1)
    for batch_size in (size for size in smaller if recipe.data.batch_size % size == 0):
        objective.zero_grad(set_to_none=True)
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            _forward_backward(objective, recipe, batch_size, accelerator)
            return batch_size
        except RuntimeError as error:
            if not is_out_of_device_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what this size has allocated
    return 0


def _forward_backward(objective: Objective, recipe: Recipe, batch_size: int, accelerator: Accelerator) -> None:
    assert recipe.model.num_classes is not None
    num_images = batch_size * NUM_VIEWS[recipe.method.views]
    images = torch.zeros(num_images, *recipe.transform.input_size, dtype=torch.uint8, device=accelerator.device)
    index = torch.arange(num_images, device=accelerator.device) % batch_size
    with accelerator.autocast():
        loss = objective(Batch(images, index % recipe.model.num_classes, torch.full_like(index, -1)))["loss"]
    loss.backward()


def _memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f" ({torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB)"
