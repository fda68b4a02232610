"""The runs of test_invariants.py: eight anchors per update, split over W ranks, batches of B and A accumulation steps.

    torchrun --nproc_per_node=W eight_anchors.py OUT

Writes OUT/WxBxA.json for every B and A with W · B · A = 8: each update's pairs and loss, and the final weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from method_cases import small_network
from tiny_runs import Run
from torch import nn

ANCHORS = 8
NUM_IMAGES = 22  # per epoch, two updates of eight and one of six; 4x1x2 pads the latter with two repeated pairs


def network() -> nn.Module:
    """GroupNorm and no dropout: an image's output does not depend on the rest of the batch."""
    return small_network(3, norm=lambda channels: nn.GroupNorm(1, channels))


def train(world: int, batch_size: int, accumulation: int) -> dict[str, Any]:
    """Two epochs; for each update its pairs, sorted, without padding, and the epoch's mean loss so far."""
    run = Run(num_images=NUM_IMAGES, batch_size=batch_size, accumulation=accumulation, network=network, num_epochs=2)
    assert run.accelerator.num_processes == world
    pairs_of_update: list[tuple[int, int]] = []

    def record(_: nn.Module, inputs: Any) -> None:
        anchors, partners = inputs[0].index.chunk(2)
        # -1 marks padding: a rank without a share of the batch repeats a pair at weight zero.
        pairs_of_update.extend(pair for pair in zip(anchors.tolist(), partners.tolist(), strict=True) if pair[0] >= 0)

    run.objective.register_forward_pre_hook(record)
    pairs, losses = [], []
    for update in run.updates():
        pairs.append(sorted(gather_object(list(pairs_of_update))))
        totals = update.totals.read(run.accelerator)
        losses.append(totals["loss"] / totals["samples"])
        pairs_of_update.clear()
    weights = {name: value.flatten().tolist() for name, value in run.module.state_dict().items()}
    return {"world": run.accelerator.num_processes, "pairs": pairs, "losses": losses, "weights": weights}


def main(out: Path) -> None:
    accelerator = Accelerator(cpu=True)
    world = accelerator.num_processes
    for batch_size in (8, 4, 2, 1):
        accumulation = ANCHORS // (world * batch_size)
        if accumulation:
            result = train(world, batch_size, accumulation)
            if accelerator.is_main_process:
                path = out / f"{world}x{batch_size}x{accumulation}.json"
                path.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
