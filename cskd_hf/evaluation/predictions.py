"""A model's predictions on a split, from every process, in the split's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from cskd_hf.data.loaders import batch_loader, count_workers, ignore_stop_signals, workers_ended
from cskd_hf.data.normalize import normalize
from cskd_hf.data.pairing import Draw, PairedImages
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transfer import to_device
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import UserError


class EvaluationStoppedError(Exception):
    """Somebody asked the run to stop while it evaluated."""


class Predictions(NamedTuple):
    """N readable images of a split, in its order, on the CPU."""

    logits: Tensor  # (N, K) float32
    target: Tensor  # (N,) int64
    features: Tensor  # (N, D) float32: pooled, before the classifier
    row: Tensor  # (N,) int64: which image of the split
    skipped: dict[int, str]  # unreadable images: row → what was wrong


@torch.inference_mode()
def predict_split(
    model: Any,
    split: ImageSplit,
    transform: Transform,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int | Literal["auto"],
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    skip_corrupt: bool,
    autocast: bool,
    with_features: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Predictions:
    """Run a timm model in eval mode over a split; a collective, every process gets all predictions.

    Args:
        model: a timm model, unwrapped; its mode is put back.
        with_features: false leaves them (N, 0): curves need none, and each process would be sent them all.
        workers: as `data.workers`.
        stop: asked between batches, by every process equally often, whether to leave off.
        autocast: in the run's mixed precision (for the curves), or in float32 (for what is saved and reported).

    Raises:
        EvaluationStoppedError: `stop` said so, in every process.
        UserError: an unreadable image, unless `skip_corrupt`; no readable one.
    """
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    each = -(-len(split) // world)
    rows = range(min(rank * each, len(split)), min((rank + 1) * each, len(split)))
    batches = [
        [Draw((row,), 0) for row in rows[start : start + batch_size]] for start in range(0, len(rows), batch_size)
    ]
    loader = batch_loader(
        PairedImages(split, transform, on_corrupt="drop" if skip_corrupt else "error"),
        batches,
        min(count_workers(workers), len(batches)),
        pin_memory=device.type == "cuda",
        persistent=False,
        worker_init=ignore_stop_signals,
    )
    mean_, std_ = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
    was_training = model.training
    model.eval()
    logits, features, target, row = [], [], [], []
    skipped: dict[int, str] = {}
    arriving = iter(loader)
    # As many rounds in every process, the ones with a shorter share included.
    with workers_ended(arriving):
        for _ in range(-(-each // batch_size)):
            if stop():
                model.train(was_training)
                raise EvaluationStoppedError
            batch = next(arriving, None)
            if batch is None:
                continue
            skipped.update(batch.skipped)
            if not len(batch.target):
                continue
            images = normalize(to_device(batch.images, device), mean_, std_, channels_last)
            with torch.autocast(device.type, enabled=False) if not autocast else accelerator.autocast():
                maps = model.forward_features(images)
                pooled = model.forward_head(maps, pre_logits=True).float()
                features.append(pooled if with_features else pooled[:, :0])
                logits.append(model.forward_head(maps).float())
            target.append(batch.target.to(device))
            row.append(batch.index.to(device))
    model.train(was_training)

    parts = [torch.cat(part) if part else torch.empty(0, device=device) for part in (logits, target, features, row)]
    if world > 1:
        from accelerate.utils import gather_object

        # Shares differ in length, and a share may be empty; numpy arrays carry their own shapes.
        gathered = gather_object([([part.cpu().numpy() for part in parts], skipped)])
        shares = [arrays for arrays, _ in gathered if len(arrays[0])]
        if shares:
            parts = [torch.cat([torch.from_numpy(arrays[i]) for arrays in shares]) for i in range(4)]
        skipped = {row: reason for _, reports in gathered for row, reason in reports.items()}
    if not len(parts[0]):
        raise UserError(f"split {split.name!r} has no readable image; mend its files")
    return Predictions(parts[0].cpu(), parts[1].cpu(), parts[2].cpu(), parts[3].cpu(), skipped)
