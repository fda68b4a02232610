"""A released model folder → `model.onnx` next to its weights: images in, calibrated probabilities out.

Needs the extra: `pip install cskd_hf[onnx]`. The file itself runs without torch, timm and this package.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.utils.onnx import onnx_export
from torch import Tensor, nn

from cskd_hf.errors import UserError
from cskd_hf.models.load import TrainedModel, load_trained

# `transformers` and transformers.js use these names for an image classifier; `probabilities` is ours.
INPUT = "pixel_values"
OUTPUTS = ("logits", "probabilities")

OPSET = 17  # the newest that the exporter of torch 2.6 writes: every supported torch writes the same
TRACED_BATCH = 2  # not among the checked sizes: the check finds a batch size frozen by tracing
CHECKED_BATCHES = (1, 3)
TOLERANCE = 1e-4  # relative to the largest logit, or to 1 if all are smaller


class _Calibrated(nn.Module):
    """Images (N, C, H, W) → logits / T and their softmax, both (N, K)."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images) / self.temperature
        return logits, logits.softmax(dim=-1)


def export_onnx(folder: Path) -> Path:
    """Write `folder`/model.onnx and check it against PyTorch.

    The graph maps `pixel_values`, float32 (N, C, H, W) for any N, normalised as its metadata state, to `logits` and
    `probabilities`, (N, K). The logits are divided by the folder's temperature unless the weights already are
    (`cskd.folded_temperature` in config.json). The metadata are JSON: `architecture`, `labels` (K names),
    `input_size`, `interpolation`, `crop_pct`, `crop_mode`, `mean`, `std`, `temperature`, `value_range`,
    `background`.

    Args:
        folder: config.json and model.safetensors, as timm's `local-dir:` loads them.

    Raises:
        UserError: the extra is not installed, timm loads no weights from `folder`, or torch cannot export the
            architecture.
        RuntimeError: onnxruntime's outputs differ from PyTorch's.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}: pip install cskd_hf[onnx]") from None
    trained = load_trained(f"local-dir:{folder}")
    # A folded release has a temperature of 1.
    temperature = None if trained.temperature is None else trained.temperature * trained.folded_temperature
    calibrated = _Calibrated(trained.model, trained.temperature or 1.0).eval()
    path, partial = folder / "model.onnx", folder / ".partial-model.onnx"
    try:
        with warnings.catch_warnings():
            # The tracer warns of every `if` on a shape; `_check` measures what the warnings are about.
            warnings.simplefilter("ignore")
            onnx_export(
                calibrated,
                str(partial),
                example_input=_noise(trained, TRACED_BATCH),
                opset=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
            )
        graph = onnx.load(partial)
        onnx.helper.set_model_props(graph, _metadata(trained, temperature))
        onnx.save(graph, partial)
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        for batch in CHECKED_BATCHES:
            _check(session, calibrated, _noise(trained, batch))
        os.replace(partial, path)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: torch cannot export this architecture to ONNX: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _noise(trained: TrainedModel, batch: int) -> Tensor:
    """Shape and range of normalised images."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *trained.transform.input_size, generator=generator)


def _check(session: Any, calibrated: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        expected = calibrated(images)
    for name, theirs, ours in zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images.numpy()}), expected, strict=True):
        allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
        difference = float((torch.from_numpy(theirs) - ours).abs().max())
        if not difference <= allowed:  # also if NaN
            raise RuntimeError(
                f"model.onnx: onnxruntime's {name} differ from PyTorch's by {difference:.2g} on {len(images)} images; "
                f"allowed: {allowed:.2g}"
            )


def _metadata(trained: TrainedModel, temperature: float | None) -> dict[str, str]:
    """onnxruntime's `custom_metadata_map` holds strings, so each value is JSON."""
    names = ("architecture", "input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    values = {name: trained.model.pretrained_cfg[name] for name in names}
    values |= {"temperature": temperature, "value_range": trained.value_range}
    values |= {"background": trained.transform.background}
    values |= {"labels": trained.class_names} if trained.class_names else {}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
