"""A model's predictions on a split, from all ranks, in the split's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import trange

from cskd_hf.data.loaders import batch_loader, count_workers, ignore_stop_signals, workers_ended
from cskd_hf.data.normalize import normalize
from cskd_hf.data.pairing import Draw, PairedImages
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transfer import to_device
from cskd_hf.data.transforms import Corrupt, CorruptedTransform, Transform
from cskd_hf.errors import UserError
from cskd_hf.precision import true_float32
from cskd_hf.recipe.sections import DataSection, TransformSection


class EvaluationStoppedError(Exception):
    """A stop was requested during an evaluation."""


class NoReadableImageError(UserError):
    """No image of a split is readable.

    Attributes:
        skipped: row → reason.
    """

    def __init__(self, split: str, skipped: dict[int, str]) -> None:
        super().__init__(f"split {split!r} has no readable image; repair its files")
        self.skipped = skipped


class Predictions(NamedTuple):
    """The N readable images of a split, in its order, on the CPU."""

    logits: Tensor  # (N, K) float32
    target: Tensor  # (N,) int64
    row: Tensor  # (N,) int64: index into the split
    features: Tensor | None  # (N, D) float32: pooled, before the classifier
    skipped: dict[int, str]  # unreadable images: row → reason


@torch.inference_mode()
def predict_split(
    model: Any,
    split: ImageSplit,
    accelerator: Accelerator,
    data: DataSection,
    transform: TransformSection,
    *,
    corruption: Corrupt | None = None,
    channels_last: bool = False,
    autocast: bool = False,
    with_features: bool = True,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Predictions:
    """Run a timm model in eval mode over a split. Collective: every rank calls it and gets all predictions.

    Args:
        model: unwrapped, on the accelerator's device; its mode is restored.
        split: each rank predicts one contiguous share.
        accelerator: device, ranks and mixed precision.
        data: `batch_size`, `workers`, `on_corrupt` and `value_range` are used.
        transform: resolved; the images are prepared as for testing.
        corruption: changes the prepared images, see `CorruptedTransform`.
        channels_last: memory format of the images.
        autocast: use the run's mixed precision (for curves), not float32 (for results).
        with_features: False leaves `features` None, and saves gathering them.
        progress: show a bar of this rank's batches on a terminal's standard error; on the main process alone.
        stop: called before each batch, equally often on every rank.

    Raises:
        EvaluationStoppedError: `stop` returned True, on all ranks.
        NoReadableImageError: no image is readable.
        UserError: an image is unreadable and `data.on_corrupt` is not `skip`.
    """
    device, world = accelerator.device, accelerator.num_processes
    share = -(-len(split) // world)
    start = accelerator.process_index * share
    rows = range(min(start, len(split)), min(start + share, len(split)))
    images = evaluation_images(split, data, transform, corruption)
    loader = _loader(images, rows, data, pin_memory=device.type == "cuda")
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (transform.mean, transform.std))

    def forward(images: Tensor) -> dict[str, Tensor]:
        images = normalize(to_device(images, device), mean, std, channels_last)
        with accelerator.autocast() if autocast else torch.autocast(device.type, enabled=False):
            maps = model.forward_features(images)
            outputs = {"logits": model.forward_head(maps).float()}
            if with_features:
                outputs["features"] = model.forward_head(maps, pre_logits=True).float()
        return outputs

    training = model.training
    model.train()  # the only call in which older timm drop attention biases cached in eval mode (LeViT, TinyViT)
    model.eval()
    try:
        # The same number of batches on every rank: `stop` is a collective.
        batches = trange(
            -(-share // data.batch_size),
            unit="batch",
            leave=False,
            disable=None if progress and accelerator.is_main_process else True,  # None: unless on a terminal
        )
        with nullcontext() if autocast else true_float32():
            parts, skipped = _predict_share(loader, batches, len(rows), forward, stop)
    finally:
        model.train(training)
    if world > 1:
        parts, skipped = _gather(parts, skipped)
    if not parts:
        raise NoReadableImageError(split.name, skipped)
    return Predictions(parts["logits"], parts["target"], parts["row"], parts.get("features"), skipped)


def evaluation_images(
    split: ImageSplit, data: DataSection, transform: TransformSection, corruption: Corrupt | None = None
) -> PairedImages:
    """A split's images as the network receives them in evaluation."""
    return PairedImages(
        split,
        Transform(transform, False, data.value_range)
        if corruption is None
        else CorruptedTransform(transform, data.value_range, corruption),
        on_corrupt="drop" if data.on_corrupt == "skip" else "error",
    )


def _loader(images: PairedImages, rows: range, data: DataSection, pin_memory: bool) -> DataLoader[Any]:
    size = data.batch_size
    batches = [[Draw((row,), row) for row in rows[start : start + size]] for start in range(0, len(rows), size)]
    return batch_loader(
        images,
        batches,
        min(count_workers(data.workers), len(batches)),
        pin_memory=pin_memory,
        persistent=True,  # there is one iteration: its batches may lie in reused memory
        worker_init=ignore_stop_signals,
    )


def _predict_share(
    loader: DataLoader[Any],
    numbers: Iterable[int],
    num_images: int,
    forward: Callable[[Tensor], dict[str, Tensor]],
    stop: Callable[[], bool],
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """This rank's predictions on the CPU, by `Predictions`' names ({} without a readable image), and skipped rows.

    They are copied batch by batch into their final place: neither the device nor the host holds them twice.
    """
    skipped: dict[int, str] = {}

    def outputs_by_batch() -> Iterator[dict[str, Tensor]]:
        batches = iter(loader)
        for _ in numbers:
            if stop():
                raise EvaluationStoppedError
            batch = next(batches, None)  # None on a rank with fewer images
            if batch is not None:
                skipped.update(batch.skipped)
                if len(batch.target):
                    yield forward(batch.images) | {"target": batch.target, "row": batch.index}

    parts: dict[str, Tensor] = {}
    count = 0
    with workers_ended(loader):
        # Copied once the next batch is queued, so that the device computes meanwhile.
        for outputs, _ in pairwise(chain(outputs_by_batch(), [{}])):
            start, count = count, count + len(outputs["row"])
            for name, value in outputs.items():
                if name not in parts:
                    parts[name] = torch.empty(num_images, *value.shape[1:], dtype=value.dtype)
                parts[name][start:count] = value  # a device sync
    return {name: part[:count] for name, part in parts.items()}, skipped


def _gather(parts: dict[str, Tensor], skipped: dict[int, str]) -> tuple[dict[str, Tensor], dict[int, str]]:
    """All ranks' predictions, in rank order; collective."""
    # As objects: shares differ in length and may be empty. NumPy arrays carry their shapes.
    shares = gather_object([({name: part.numpy() for name, part in parts.items()}, skipped)])
    arrays = [arrays for arrays, _ in shares if arrays]
    names = arrays[0] if arrays else ()
    parts = {name: torch.cat([torch.from_numpy(share[name]) for share in arrays]) for name in names}
    return parts, {row: reason for _, reasons in shares for row, reason in reasons.items()}
