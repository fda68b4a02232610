"""Class-wise pairs from your own dataset, for your own training loop."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cskd_hf.data.pairing import Sample, require_draw
from cskd_hf.data.sampling import Draw
from cskd_hf.errors import ImageError, UserError
from cskd_hf.seeding import seeded


class MapStyleDataset(Protocol):
    """Row → (image, label, …), as torchvision's and timm's datasets return it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, ...]: ...


class PairedDataset(Dataset[Sample]):
    """Your labelled images as a function of keys, for your own training loop.

    The dataset keeps its own augmentation. Loading an image seeds the global generators of Python, NumPy and torch,
    which torchvision's and timm's transforms draw from, with its key: pixels do not depend on workers, ranks or
    restarts. A transform with a private generator is not covered.

    Args:
        dataset: row → (image, label). Images are tensors (C, H, W) of one shape; float images are normalised already.
            The label is the integer at that row of the sampler's labels.

    Raises:
        UserError: at a key that is not a `Draw`, a row that is not a tuple, an image that is not a tensor, a label
            that is not an integer from 0, or a pair whose labels differ.

    Example:
        >>> import torch
        >>> from cskd_hf import ClassPairSampler, PairedDataset, PairingCollator
        >>> labels = [0, 1, 0, 1]
        >>> dataset = torch.utils.data.TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor(labels))
        >>> pairs, sampler = PairedDataset(dataset), ClassPairSampler(labels)
        >>> loader = torch.utils.data.DataLoader(pairs, 2, sampler=sampler, collate_fn=PairingCollator())
        >>> [tuple(batch.images.shape) for batch in loader]
        [(4, 3, 8, 8), (4, 3, 8, 8)]
    """

    def __init__(self, dataset: MapStyleDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Sample:
        require_draw(draw)
        views, targets = [], []
        for number, index in enumerate(draw.indices):
            with seeded(draw.seed + number):
                view, target, *_ = _image_and_label(index, self.dataset[index])
            if not isinstance(view, torch.Tensor):
                raise UserError(
                    f"row {index}: read an image of type {type(view).__name__}; end its transform with ToTensor"
                )
            views.append(view)
            targets.append(_class_number(index, target))
        if len(set(targets)) > 1:
            # Labels in another order, or timm's ImageDataset, which replaces an unreadable image by the next row.
            raise ImageError(
                f"rows {draw.indices}: paired as one class, loaded with labels {targets}; give ClassPairSampler the "
                "dataset's own labels, row by row, and repair or remove unreadable images"
            )
        return Sample(tuple(views), targets[0], draw.indices, ())


def _image_and_label(index: int, row: Any) -> Sequence[Any]:
    """The row, if it is (image, label, …); a dict, as `datasets` returns, would unpack to its keys."""
    if not isinstance(row, tuple | list) or len(row) < 2:
        keys = f" of {', '.join(map(str, row))}" if isinstance(row, Mapping) else ""
        raise UserError(f"row {index}: its type is {type(row).__name__}{keys}; return (image, label)")
    return row


def _class_number(index: int, label: Any) -> int:
    """The label as an integer; `int` would take 0.7 for 0, and torch's cross-entropy ignores −100."""
    try:
        number = operator.index(label)
    except TypeError:  # a float, text or several labels
        number = -1
    if number < 0:
        is_array = isinstance(label, Tensor | np.ndarray) and label.ndim
        shown = f"of shape {tuple(label.shape)}" if is_array else repr(label)
        raise UserError(f"row {index}: read a label {shown}; return the image's class, an integer from 0")
    return number
