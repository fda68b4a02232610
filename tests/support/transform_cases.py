"""Encoded noise images, and transforms from settings."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from cskd_hf.data.transforms import Transform
from cskd_hf.recipe.sections import TransformSection

NOISE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
SMALL = NOISE[:32, :32]
SEED = 2**62 + 12345

# All random augmentations at once: crop, resampling filter, both flips, RandAugment, erasing.
WILD = {
    **{"input_size": (3, 24, 24), "vflip": 0.5, "auto_augment": "rand-m6-mstd0.5-inc1", "interpolation": "random"},
    **{"re_prob": 0.5, "re_mode": "pixel"},
}


def photograph(height: int, width: int) -> np.ndarray:
    """(H, W, 3), smooth in most places, as photographs are."""
    noise = np.random.default_rng(2).normal(size=(height, width, 3))
    return (gaussian_filter(noise, (4, 4, 0)) * 400 + noise * 5 + 128).clip(0, 255).astype(np.uint8)


def encoded(array: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def transform(is_training: bool, **settings: object) -> Transform:
    return Transform(TransformSection.model_validate(settings), is_training)


def train_at_32(**settings: object) -> Transform:
    return transform(True, input_size=(3, 32, 32), crop_padding=4, **settings)
