"""The batch that a loader hands to a method, and how many views of a sample it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


Views = Literal["single", "same_class", "same_class_plain", "same_image", "last_update"]

NUM_VIEWS = {"single": 1, "same_class": 2, "same_class_plain": 3, "same_image": 2, "last_update": 2}


class Batch(NamedTuple):
    """Images with labels. Pairs are laid out `[anchors | partners]` along dimension 0, so N = 2B.

    Example:
        >>> import torch
        >>> from cskd_hf import Batch
        >>> pairs = Batch(torch.zeros(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> anchors, partners = pairs.images.chunk(2)
    """

    images: Tensor  # (N, C, H, W): uint8 from the loader, float and normalised inside a method
    target: Tensor  # (N,) int64
    # (N,) int64: row in the split, -1 for padding of zero weight; shadows tuple.index
    index: Tensor  # type: ignore[assignment]
    skipped: tuple[tuple[int, str], ...] = ()  # unreadable images: (row, error)
