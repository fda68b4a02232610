"""The precision that losses are computed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision → float32; float32 and float64 stay what they are."""
    return values.float() if values.dtype.itemsize < 4 else values
