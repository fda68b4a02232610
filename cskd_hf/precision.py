"""The precision that losses and results are computed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision → float32; float32 and float64 stay what they are.

    Raises:
        TypeError: no tensor, but what some models return around it.
    """
    if not hasattr(values, "dtype"):
        raise TypeError(f"the model returns a {type(values).__name__}; wrap it to return (N, K) logits alone")
    return values.float() if values.dtype.itemsize < 4 else values


@contextmanager
def true_float32() -> Iterator[None]:
    """Inside, float32 convolutions and products are not rounded to TF32 or bfloat16, whatever the caller has allowed.

    By default cuDNN rounds the inputs of convolutions to TF32, in NVIDIA's containers cuBLAS, too.
    """
    import torch

    backends = torch.backends
    operations: list[Any] = []
    if hasattr(backends, "fp32_precision"):  # torch 2.9, beside the older settings
        operations = [backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv]  # type: ignore[attr-defined]
        operations += [backends.cudnn.conv, backends.cudnn.rnn]  # type: ignore[attr-defined]
    matmul, tf32 = _older(torch.get_float32_matmul_precision), _older(lambda: backends.cudnn.allow_tf32)
    before = [operation.fp32_precision for operation in operations]
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for operation in operations:
        operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if tf32 is not None:
            backends.cudnn.allow_tf32 = tf32
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision


def _older(read: Callable[[], Any]) -> Any:
    """An older setting; None where torch refuses to read it, because a newer one differs."""
    try:
        return read()
    except RuntimeError:
        return None
