"""A released model folder → `model.onnx` beside its weights: images in, calibrated probabilities out.

Needs the extra: `pip install cskd_hf[onnx]`. What is written runs without torch, timm and this package.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cskd_hf.errors import UserError
from cskd_hf.models.load import TrainedModel, load_trained

# What `transformers` and its JavaScript sister call an image classifier's input and output; `probabilities` is ours.
INPUT = "pixel_values"
OUTPUTS = ("logits", "probabilities")

OPSET = 17  # the newest that the exporter of torch 2.6 writes, so that every supported torch writes the same
TRACED_BATCH = 2  # neither of the sizes that are checked: a batch size frozen while tracing is found
CHECKED_BATCHES = (1, 3)
TOLERANCE = 1e-4  # of the largest logit, or of 1 where all are smaller


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
    """Write `folder`/model.onnx, checked against PyTorch before it is put in place.

    The graph takes `pixel_values`, (N, C, H, W) float32 of any N, prepared and normalised as its metadata say, and
    gives `logits` and `probabilities`, (N, K). The logits are divided by the folder's temperature, unless its weights
    are already (`cskd.folded_temperature` in config.json). The metadata are JSON: `labels` (K names), `input_size`,
    `interpolation`, `crop_pct`, `crop_mode`, `mean`, `std`, `temperature`.

    Args:
        folder: config.json and model.safetensors, as timm's `local-dir:` loads them.

    Returns:
        The file's path.

    Raises:
        UserError: the extra is not installed, `folder` holds no weights that timm loads, or torch cannot write the
            architecture as ONNX.
        RuntimeError: onnxruntime's logits are not PyTorch's.
    """
    onnx, runtime = _extra("onnx"), _extra("onnxruntime")
    trained = load_trained(f"local-dir:{folder}")
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(
        "cskd", {}
    )  # others' weights have none
    folded = facts.get("folded_temperature")
    calibrated = _Calibrated(trained.model, 1.0 if folded else trained.temperature or 1.0).eval()

    path, partial = folder / "model.onnx", folder / ".partial-model.onnx"
    try:
        _trace(calibrated, _images(trained, TRACED_BATCH), partial, str(folder))
        graph = onnx.load(partial)
        onnx.helper.set_model_props(graph, _metadata(trained, folded or trained.temperature))
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, partial)
        session = runtime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        for batch in CHECKED_BATCHES:
            _compare(session, calibrated, _images(trained, batch), str(folder))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _extra(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"ONNX export needs {package}: pip install cskd_hf[onnx] ({error})") from None


def _trace(calibrated: nn.Module, images: Tensor, path: Path, source: str) -> None:
    with warnings.catch_warnings():
        # Every backbone's `if` on a shape is warned of, and `dynamo=False` itself. What they warn of is measured below.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                calibrated,
                (images,),
                str(path),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "batch"} for name in (INPUT, *OUTPUTS)},
                opset_version=OPSET,
                # torch 2.6's other exporter fails on BatchNorm; this one works from there to 2.15, without onnxscript.
                dynamo=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{source}: torch cannot write this architecture as ONNX: {reason}") from error


def _images(trained: TrainedModel, batch: int) -> Tensor:
    """Noise of the size and range of normalised images, the same each time."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *trained.transform.input_size, generator=generator)


def _compare(session: Any, calibrated: nn.Module, images: Tensor, source: str) -> None:
    with torch.inference_mode():
        expected = calibrated(images)
    for name, theirs, ours in zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images.numpy()}), expected, strict=True):
        allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
        difference = float((torch.from_numpy(theirs) - ours).abs().max())
        if not difference <= allowed:  # NaN is a difference
            raise RuntimeError(
                f"{source}: onnxruntime's {name} differ from PyTorch's by {difference:.2g} on {len(images)} images; "
                f"{allowed:.2g} is allowed"
            )


def _metadata(trained: TrainedModel, temperature: float | None) -> dict[str, str]:
    """What onnxruntime shows as `custom_metadata_map`: strings, so each value is JSON."""
    pretrained_cfg, transform = trained.model.pretrained_cfg, trained.transform
    values: dict[str, Any] = {
        "architecture": pretrained_cfg["architecture"],
        "input_size": transform.input_size,
        "interpolation": transform.interpolation,
        "crop_pct": transform.crop_pct,
        "crop_mode": pretrained_cfg["crop_mode"],
        "mean": transform.mean,
        "std": transform.std,
        "temperature": temperature,
    }
    if trained.class_names:
        values["labels"] = trained.class_names
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
