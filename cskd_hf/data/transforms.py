"""Augmentation as a pure function of (image, seed): encoded bytes in, uint8 pixels of the model's input size out.

Training crops and flips with this package's own code, straight into the batch (`crops.py`). For colour jitter or
RandAugment, and in evaluation, the transforms are timm's, from `timm.data.create_transform`. Normalisation happens on
the device.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from operator import truediv
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms as tv

from cskd_hf.data import crops
from cskd_hf.data.decode import Conversion, Picture, decode
from cskd_hf.data.deep import Range
from cskd_hf.data.erasing import Erasing
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import IMAGENET_MEAN
from cskd_hf.recipe.sections import TRANSFORM_DEFAULTS, TransformSection, fill, of_channels
from cskd_hf.seeding import seeded

Corrupt = Callable[[np.ndarray, int], np.ndarray]
MAX_ASPECT = 16  # [ours]
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels


class Transform:
    """Decode, augment and crop one image.

    Args:
        settings: the recipe's `transform`.
        is_training: random crop, flips and erasing; else resize and centre crop.
        value_range: the recipe's `data.value_range`.

    Attributes:
        channels: of the result.
        size: (height, width) of the result, unless `write` gets memory for another.

    Raises:
        UserError: timm cannot parse `transform.auto_augment`.

    Example:
        >>> import io
        >>> import torch
        >>> from PIL import Image
        >>> from cskd_hf.data.transforms import Transform
        >>> from cskd_hf.recipe.sections import TRANSFORM_DEFAULTS, TransformSection, fill
        >>> file = io.BytesIO()
        >>> Image.effect_noise((64, 48), sigma=60).save(file, "JPEG")
        >>> image = {"bytes": file.getvalue(), "path": None}
        >>> transform = Transform(TransformSection(input_size=(3, 32, 32)), is_training=True)
        >>> view = transform(image, seed=0)
        >>> view.shape, view.dtype
        (torch.Size([3, 32, 32]), torch.uint8)
        >>> torch.equal(view, transform(image, seed=0)), torch.equal(view, transform(image, seed=1))
        (True, False)
    """

    def __init__(self, settings: TransformSection, is_training: bool, value_range: Range | None = None) -> None:
        settings = settings if is_training else settings.for_evaluation()
        self.settings, self.is_training = fill(settings, TRANSFORM_DEFAULTS), is_training
        self.channels, *size = settings.input_size
        self.size = (size[0], size[1])
        self._conversion = conversion_of(settings, value_range)._replace(strict=True)
        self._sized: dict[tuple[int, int], tuple[TransformSection, tv.Compose]] = {}
        # In evaluation timm's, which resizes with Pillow as anyone who loads the weights with timm will: our resize
        # takes half the time, but differs by a level here and there.
        self._uses_timm = bool(not is_training or settings.color_jitter or settings.auto_augment)
        if self._uses_timm:
            self._timm(self.size)  # rejects a policy that timm cannot parse
        self._erase = Erasing(settings) if is_training and settings.re_prob else None

    def __call__(self, image: Mapping[str, Any], seed: int) -> Tensor:
        """(channels, H, W) uint8, equal for equal arguments.

        Raises:
            UnreadableImageError: the image cannot be decoded.
        """
        out = torch.empty(*self.size, self.channels, dtype=torch.uint8)
        self.write(image, seed, out)
        return out.permute(2, 0, 1).contiguous()

    def write(self, image: Mapping[str, Any], seed: int, out: Tensor) -> None:
        """Write the same pixels into a batch.

        Args:
            out: (H, W, channels) uint8, contiguous; H and W decide the size.

        Raises:
            UnreadableImageError: the image cannot be decoded; `out` is then undefined.
        """
        size = (out.shape[0], out.shape[1])
        if not self._uses_timm:
            picture = Picture(image, self._conversion)
            draws = random.Random(seed)
            crop = crops.draw_crop(self.settings, draws, picture.height, picture.width)
            pixels = torch.from_numpy(picture.region(crop.box))[None].permute(0, 3, 1, 2)
            out[None].permute(0, 3, 1, 2).copy_(crops.apply_crop(pixels, crop, size))
            if self._erase is not None:
                with seeded(draws.getrandbits(63)):
                    self._erase(out)
            return
        whole, (settings, augment) = decode(image, self._conversion), self._timm(size)
        if not self.is_training and is_sliver(whole.size) and settings.crop_mode == "center":
            shown = np.array(_centre_of_sliver(whole, settings))
            out.copy_(torch.from_numpy(shown.reshape(out.shape)))
            return
        with seeded(seed) if self.is_training else nullcontext():
            out.copy_(torch.as_tensor(augment(whole)).permute(1, 2, 0))
            if self._erase is not None:
                self._erase(out)

    def _timm(self, size: tuple[int, int]) -> tuple[TransformSection, tv.Compose]:
        """timm's transform to this size, and its settings."""
        if size not in self._sized:
            settings = self.settings.model_copy(update={"input_size": (self.channels, *size)})
            self._sized[size] = settings, _timm_transform(settings, self.is_training)
        return self._sized[size]


class CorruptedTransform(Transform):
    """The evaluation transform, then a change of the pixels that the network would see.

    Args:
        corruption: (H, W, channels) uint8 and the key's seed → (H, W, channels) uint8; evaluation's seed is the row.
    """

    def __init__(self, settings: TransformSection, value_range: Range | None, corruption: Corrupt) -> None:
        super().__init__(settings, False, value_range)
        self._corruption = corruption

    def write(self, image: Mapping[str, Any], seed: int, out: Tensor) -> None:
        super().write(image, seed, out)
        out.copy_(torch.tensor(self._corruption(out.numpy(), seed)))


def conversion_of(settings: TransformSection, value_range: Range | None) -> Conversion:
    """How stored pixels are converted for a network whose input is `settings.input_size`."""
    return Conversion(_MODES[settings.input_size[0]], settings.background, value_range)


def is_sliver(size: tuple[int, int]) -> bool:
    """Whether resizing the short side makes an image so long that evaluation computes only the centre of it."""
    return max(size) > MAX_ASPECT * min(size)


def _centre_of_sliver(image: Image.Image, settings: TransformSection) -> Image.Image:
    """timm's resize and centre crop, within one level (rarely two), without the pixels that the crop throws away."""
    assert settings.crop_pct is not None
    sides, shown = image.size, settings.input_size[:0:-1]  # width, height
    scaled = [math.floor(side / settings.crop_pct) for side in shown]
    if scaled[0] == scaled[1]:  # timm's sizes of the whole image: torchvision rounds down
        whole = [int(scaled[0] * side / min(sides)) for side in sides]
    else:
        whole = [round(side / min(map(truediv, sides, scaled))) for side in sides]
    starts = [round((long - short) / 2) for long, short in zip(whole, shown, strict=True)]
    stops = [start + short for start, short in zip(starts, shown, strict=True)]
    (left, top), (right, bottom) = (
        [edge * side / long for edge, side, long in zip(edges, sides, whole, strict=True)] for edges in (starts, stops)
    )
    resample = Image.Resampling[_fixed_interpolation(settings).upper()]
    # One side after the other, the width first, as Pillow resizes an image that grows: at once it might do the height
    # first, which rounds otherwise.
    columns = image.resize((shown[0], sides[1]), resample, (left, 0, right, sides[1]))
    return columns.resize(shown, resample, (0, top, shown[0], bottom))


def _fixed_interpolation(settings: TransformSection) -> str:
    assert settings.interpolation is not None
    return "bilinear" if settings.interpolation == "random" else settings.interpolation


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's, which leaves no bits at the largest magnitude: a black image, which Pillow 13 refuses to compute."""
    return Image.new(image.mode, image.size) if bits <= 0 else auto_augment.posterize(image, bits)


def _timm_transform(settings: TransformSection, is_training: bool) -> tv.Compose:
    """timm's transform, returning uint8."""
    names = {"scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "crop_pct", "crop_mode"}
    keywords = settings.model_dump(include=names)
    channels, *size = settings.input_size
    keywords["mean"] = settings.mean or of_channels(IMAGENET_MEAN, channels)  # the colour of borders
    fixed_interpolation = _fixed_interpolation(settings)
    try:
        transform = create_transform(
            size,
            is_training=is_training,
            interpolation=settings.interpolation if is_training else fixed_interpolation,
            use_prefetcher=True,  # i.e. return uint8
            separate=is_training,
            **keywords,
        )
    except AssertionError as error:  # how timm reports a policy string that it cannot parse
        reason = error if str(error) else "timm has no such policy"
        raise UserError(f"transform.auto_augment: read {settings.auto_augment!r}: {reason}") from None
    if not is_training:
        return transform
    crop, augment, to_uint8 = transform
    if settings.crop_padding is not None:
        mode = str_to_interp_mode(fixed_interpolation)
        crop.transforms[:1] = [tv.Resize(size, mode), tv.RandomCrop(size, padding=settings.crop_padding)]
    for policy in augment.transforms:  # timm's RandAugment has its operations in ops, other policies in policy
        for operation in (*getattr(policy, "ops", ()), *itertools.chain(*getattr(policy, "policy", ()))):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize
    return tv.Compose([crop, augment, to_uint8])
