"""A non-finite loss stops the run before the optimizer steps and names the term and the batch."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskd_hf.batch import Views
from cskd_hf.data.pairing import PairingCollator
from cskd_hf.engine.failures import NonFiniteWeightsError, check_weights
from cskd_hf.engine.updates import NonFiniteLossError
from cskd_hf.methods import Batch, CrossEntropy, Method


class Poisoned:
    """A collator that normalises, as the objective would, and puts a NaN into one image."""

    def __init__(self, row: int) -> None:
        self.row, self.collate = row, PairingCollator()

    def __call__(self, samples: Any) -> Batch:
        batch = self.collate(samples)
        images = batch.images.float() / 255
        images[batch.index == self.row, 0, 0, 0] = torch.nan
        return batch._replace(images=images)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "place", [9, 14]
)  # in the third and the fourth batch: first and second of their accumulation group
def test_a_nan_pixel_stops_the_run_before_the_optimizer_steps(make_run, same_tensors, place, accumulation):
    settings: dict[str, Any] = {"norm": False, "method": CrossEntropy(), "accumulation": accumulation}
    run = make_run(**settings)
    run.batches.start_epoch(0)
    row = run.batches.sampler.draws(place, place + 1)[0].indices[0]
    run = make_run(**settings, collate=Poisoned(row))
    done, before = 0, run.state()

    def train() -> None:
        nonlocal done, before
        for update in run.updates():
            done, before = update.step, run.state()

    with pytest.raises(NonFiniteLossError, match="loss = nan") as caught:
        train()
    assert done == place // 4 // accumulation
    assert caught.value.step == run.progress.step == done
    assert f"step {done}:" in str(caught.value)
    assert row in caught.value.batch.index.tolist()
    assert math.isnan(caught.value.terms["task_loss"])
    same_tensors(run.state(), before)
    assert run.progress.position == 4 * accumulation * done


class WithPenalty(Method):
    """A finite loss and a logged term that is infinite from the third call on."""

    views: ClassVar[Views] = "single"
    name: Literal["penalty"] = "penalty"
    calls: ClassVar[list[int]] = []

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.calls.append(len(batch.target))
        output = module(batch.images)
        penalty = torch.tensor(math.inf if len(self.calls) > 2 else 0.0)
        return {
            "loss": F.cross_entropy(output, batch.target),
            "output": output,
            "target": batch.target,
            "penalty": penalty,
        }


def test_the_non_finite_term_is_named(make_run):
    WithPenalty.calls.clear()
    run = make_run(method=WithPenalty())
    with pytest.raises(NonFiniteLossError) as caught:
        run.train(6)
    assert str(caught.value) == "step 2: penalty = inf"
    assert math.isfinite(caught.value.terms["loss"])


class WithVerticalTangent(CrossEntropy):
    """A finite loss whose gradient is not: that of a square root at zero."""

    name: Literal["tangent"] = "tangent"  # type: ignore[assignment]

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        result = super().forward_loss(module, batch)
        return {**result, "loss": result["loss"] + (0 * result["loss"]).sqrt()}


def test_a_loss_scale_that_skips_every_step_is_not_taken_for_training(make_run, same_tensors):
    run = make_run(method=WithVerticalTangent())
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    run.optimizer = run.accelerator.prepare(run.optimizer.optimizer)
    before = dict(run.module.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    run.train(13)
    check_weights(run.module, run.accelerator.scaler, 13)  # a scale of 2⁻¹³ may recover
    run.train(1)
    same_tensors(dict(run.module.named_parameters()), before)
    with pytest.raises(NonFiniteWeightsError, match=r"fp16 are not finite at step 14, even at a loss scale of 6e-05$"):
        check_weights(run.module, run.accelerator.scaler, 14)
