"""Encoded noise images, and transforms from settings."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

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


def encoded(array: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def transform(is_training: bool, **settings: object) -> Transform:
    return Transform(TransformSection.model_validate(settings), is_training)


def train_at_32(**settings: object) -> Transform:
    return transform(True, input_size=(3, 32, 32), crop_padding=4, **settings)
