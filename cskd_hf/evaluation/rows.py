"""Logits that the metrics are defined on, in chunks of rows, so that no metric copies all of them.

CPU tensors: logits (N, K), target (N,) int64. A row's softmax needs a finite largest logit; −inf is probability 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

CHUNK_SIZE = 2**20  # logits in a chunk of rows: 8 MB per temporary in float64


def check_predictions(logits: Tensor, target: Tensor) -> None:
    """Raises ValueError unless the metrics are defined on logits (N, K) and target (N,)."""
    if logits.ndim != 2 or 0 in logits.shape or target.shape != logits.shape[:1] or target.dtype != torch.int64:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} of {target.dtype}: "
            "needs shapes (N, K) and (N,) with N and K at least 1, and a target of torch.int64"
        )
    num_classes = logits.shape[1]
    outside = (target < 0) | (target >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"target[{row}] is {int(target[row])}; allowed for {num_classes} logits: 0..{num_classes - 1}")
    # amax propagates NaN, so a finite maximum excludes NaN, +inf and a row of -inf. A single -inf is probability 0.
    check_rows("logits", logits.amax(dim=1).isfinite())


def check_rows(name: str, valid: Tensor) -> None:
    """Raises ValueError naming the first row of tensor `name` that is not valid, (N,) bool."""
    if not valid.all():
        row = int((~valid).nonzero()[0])
        raise ValueError(f"{name}[{row}] is not finite, the first of {int((~valid).sum())} such rows of {len(valid)}")


def finite_rows(logits: Tensor) -> Tensor:
    """(N,) bool: the rows without NaN and infinity."""
    low, high = logits.aminmax(dim=1)  # both propagate NaN
    return low.isfinite() & high.isfinite()


def row_chunks(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked predictions in chunks of rows: logits / temperature (n, K) in float64, a copy, and target (n,).

    Raises:
        ValueError: as for `check_predictions`, or the temperature is not a finite number above 0.
    """
    check_predictions(logits, target)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; needs a finite number above 0")
    num_rows = max(1, CHUNK_SIZE // logits.shape[1])
    chunks = zip(logits.split(num_rows), target.split(num_rows), strict=True)
    return ((rows.detach().double() / temperature, labels) for rows, labels in chunks)


def per_image(
    scores: Callable[[Tensor, Tensor], Sequence[Tensor]], logits: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    """What `scores` returns for each chunk of `row_chunks`, joined: (N,) float64 each.

    The results are allocated at once: small ones between the chunks' temporaries would fragment the heap, to gigabytes.
    """
    joined: list[Tensor] = []
    start = 0
    for rows, labels in row_chunks(logits, target, temperature):
        parts = scores(rows, labels)
        joined = joined or [torch.empty(len(target), dtype=torch.float64) for _ in parts]
        for whole, part in zip(joined, parts, strict=True):
            whole[start : start + len(labels)] = part
        start += len(labels)
    return tuple(joined)
