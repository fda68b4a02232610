"""The sections about images, `data` and `transform`: every key with its type, range, default and meaning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from cskd_hf.recipe.section import Count, NonNegative, Positive, Probability, Section, Share, SplitName, TestShare


class DataSection(Section):
    """Images, batches and pairs."""

    dataset: str
    """A catalog name, a Hub id, or a folder of `class/*.jpg`, `split/class/*.jpg`, tables or tars; `~` is allowed."""
    config_name: str | None = None
    """Configuration of the Hub dataset, if it has several."""
    revision: str | None = None
    """Branch, tag or commit of the Hub dataset; null: the catalog's, else main."""
    train_split: SplitName | None = None
    """null: the catalog's, else `train`, or the only split."""
    test_split: TestShare | SplitName | None = None
    """A split's name, or the fraction of the training split to test on instead, stratified and the same for every seed.
    null: the catalog's, else `test`, or the only one of `val`, `valid`, `validation` and the like."""
    holdout: Share | SplitName | None = None
    """Images to fit the temperature on, excluded from training: a fraction of the training split (without the test
    images), stratified and the same for every seed, or a split's name. null: the catalog's, else 0 (no temperature)."""
    image_column: str | None = None
    """null: the catalog's, else `image`."""
    label_column: str | None = None
    """null: the catalog's, else `label`."""
    batch_size: Count = 128
    """B, supervised images per step and process; CS-KD loads 2B images."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader workers per process; 0 loads in the training process. auto: its share of the node's cores, at most 16."""
    drop_last: bool = False
    """Drop the short last batch of an epoch; the paper trains on it."""
    sampling: Literal["instance", "class_balanced", "sqrt"] = "instance"
    """The N draws of an epoch: every image once (instance), every class equally often (class_balanced), or classes in
    proportion to the square root of their size (sqrt)."""
    aug_repeats: Count = 1
    """Repeated augmentation, r (timm uses 3): an epoch shows N/r of its N images, r times each in a row, each time with
    its own augmentation and, in a pair, its own partner."""
    partner: Literal["any", "not_self"] = "any"
    """x′ is drawn from x's class with x itself (any, the paper) or without it (not_self)."""
    singleton: Literal["self", "error"] = "self"
    """A class with one training image, if `partner` is not_self: pair the image with itself, or stop."""
    labels: Literal["name", "index"] = "name"
    """How labels are matched with the classes of trained weights or of another split: by the classes' names, or by
    integers that number them from 0."""
    on_corrupt: Literal["error", "skip"] = "error"
    """An unreadable image: stop (error), or count it, train on another of its class and do not evaluate it (skip)."""
    value_range: tuple[float, float] | None = None
    """The values of black and white in images deeper than 8 bits, such as [0, 4095]. null: by their format; images that
    would come out nearly black are then an error."""

    @property
    def test_name(self) -> str:
        """The test images in words: the split's name, or `0.2 of train`."""
        return (
            f"{self.test_split:g} of {self.train_split}" if isinstance(self.test_split, float) else str(self.test_split)
        )

    @field_validator("dataset")
    @classmethod
    def _home(cls, dataset: str) -> str:
        return os.path.expanduser(dataset)  # the shell leaves the ~ in data.dataset=~/birds

    @field_validator("value_range")
    @classmethod
    def _ascending(cls, values: tuple[float, float] | None) -> tuple[float, float] | None:
        if values is not None and values[0] >= values[1]:
            raise ValueError("[black, white], where black is less than white, such as [0, 4095]")
        return values


Fraction = Annotated[float, Field(gt=0, le=1)]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = Annotated[str, Field(description="a colour such as black or '#102030'")]

SizeStep = Annotated[tuple[Count, Count], Field(description="[last epoch, pixels]")]

# What null means without pretrained weights.
TRANSFORM_DEFAULTS = {"interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center"}


def of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Mean or std of RGB for images of another number of channels: grey and alpha take the average [ours].

    Example:
        >>> of_channels((0.485, 0.456, 0.406), 1), of_channels((0.25, 0.5, 0.75), 4)
        ((0.449,), (0.25, 0.5, 0.75, 0.5))
    """
    colours = tuple(values[:3])
    average = round(sum(colours) / len(colours), 6)
    rgb = colours if len(colours) == 3 else (average,) * 3
    return tuple(values) if len(values) == channels else {1: (average,), 3: rgb, 4: (*rgb, average)}[channels]


class TransformSection(Section):
    """Bytes to pixels: `timm.data.create_transform`."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    """(channels, height, width), pixels; 3 channels: RGB, 1: its luma, 4: RGB and alpha."""
    test_input_size: tuple[int, int, int] | None = None
    """Size for evaluation. null: the pretrained weights' if `input_size` is their training size, else `input_size`."""
    size_schedule: tuple[SizeStep, ...] = ()
    """Progressive resizing: the height of training images up to an epoch, counted from 1, then `input_size`; the width
    in proportion. `[[30, 128], [60, 160]]`: 128 pixels in epochs 1 to 30, 160 in epochs 31 to 60."""
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """RandomResizedCrop: range of the crop's area, as a fraction of the image's."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """RandomResizedCrop: range of the crop's width / height."""
    crop_padding: Annotated[int, Field(ge=1)] | None = None
    """Instead of RandomResizedCrop: resize to `input_size`, pad by this many pixels, crop at random."""
    hflip: Probability = 0.5
    """Chance of a horizontal flip."""
    vflip: Probability = 0.0
    """Chance of a vertical flip."""
    color_jitter: NonNegative | None = None
    """Strength for brightness, contrast and saturation. null: none (the paper); timm's default is 0.4."""
    auto_augment: str | None = None
    """timm's policy string, for example `rand-m6-mstd0.5-inc1`; excludes `color_jitter`. `3a` is 3-Augment,
    with which DeiT III uses `color_jitter` 0.3."""
    re_prob: Probability = 0.0
    """Random erasing: the chance that an image is erased; each view of a pair draws its own rectangles."""
    re_mode: Literal["const", "rand", "pixel"] = "const"
    """Fill with the mean (const), or with a normal colour around it per rectangle (rand) or per pixel (pixel)."""
    re_count: Count = 1
    """At most this many rectangles, which share the erased area."""
    interpolation: Literal["bilinear", "bicubic", "random"] | None = None
    """random: bilinear or bicubic per training image, bilinear for evaluation. null, as for crop_pct and
    crop_mode: as the pretrained weights were tested, else bilinear, 0.875, center."""
    background: Colour | tuple[Level, Level, Level] = "white"
    """The colour under transparent pixels: a name, '#rrggbb' or [red, green, blue]; unused with 4 channels."""
    crop_pct: Annotated[float, Field(gt=0, le=1.25)] | None = None
    """Evaluation: resize the short side to input / crop_pct, then crop the centre."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """Evaluation, instead of the short side: resize both sides to input / crop_pct (squash), or the long side, and pad
    (border)."""
    mean: tuple[Probability, ...] | None = None
    """Of each channel, where black is 0 and white is 1. null: the pretrained weights', else the catalog's, else
    ImageNet's, of which grey and alpha take the average."""
    std: tuple[Fraction, ...] | None = None
    """As `mean`."""

    @field_validator("auto_augment")
    @classmethod
    def _exclude_color_jitter(cls, policy: str | None, read: ValidationInfo) -> str | None:
        if policy is not None and "3a" not in policy and read.data.get("color_jitter") is not None:
            raise ValueError("null with color_jitter, which timm silently drops under a policy; write one of the two")
        return policy

    @field_validator("color_jitter", "auto_augment")
    @classmethod
    def _without_alpha(cls, value: object, read: ValidationInfo) -> object:
        if value is not None and read.data.get("input_size", (3,))[0] == 4:
            raise ValueError("null with 4 channels: timm's colour operations do not take alpha")
        return value

    @field_validator("input_size", "test_input_size")
    @classmethod
    def _channels(cls, size: tuple[int, int, int] | None, read: ValidationInfo) -> tuple[int, int, int] | None:
        if size is None:
            return None
        if size[0] not in (1, 3, 4) or min(size) < 1:
            raise ValueError("[channels, height, width] in pixels; channels: 3 (RGB), 1 (grey) or 4 (RGB and alpha)")
        if size[0] != read.data.get("input_size", size)[0]:
            raise ValueError(f"{read.data['input_size'][0]} channels, as in transform.input_size")
        return size

    @field_validator("size_schedule")
    @classmethod
    def _progressive(cls, steps: tuple[SizeStep, ...], read: ValidationInfo) -> tuple[SizeStep, ...]:
        epochs, sizes = [last for last, _ in steps], [pixels for _, pixels in steps]
        largest = read.data["input_size"][1] if "input_size" in read.data else max(sizes, default=1)
        if epochs != sorted(set(epochs)) or any(pixels > largest for pixels in sizes):
            raise ValueError(
                f"[[last epoch, pixels], …], with rising epochs, of at most {largest} pixels, as input_size"
            )
        return steps

    @field_validator("crop_padding")
    @classmethod
    def _within_the_image(cls, padding: int | None, read: ValidationInfo) -> int | None:
        _, height, width = read.data.get("input_size", (3, 224, 224))
        heights = (height, *(pixels for _, pixels in read.data.get("size_schedule", ())))
        smallest = min(heights) * min(1, width / height)
        if padding is not None and padding >= smallest:
            raise ValueError(f"whole number below {smallest:g}, the smallest side of the training images, or null")
        return padding

    @field_validator("background")
    @classmethod
    def _colour(cls, colour: str | tuple[int, int, int]) -> str | tuple[int, int, int]:
        if isinstance(colour, str):
            from PIL import ImageColor

            try:
                opaque = len(ImageColor.getrgb(colour)) == 3
            except ValueError:
                opaque = False
            if not opaque:
                raise ValueError("a colour such as black, '#102030' or [16, 32, 48]")
        return colour

    @field_validator("mean", "std")
    @classmethod
    def _one_for_each_channel(cls, values: tuple[float, ...] | None, read: ValidationInfo) -> tuple[float, ...] | None:
        channels = read.data.get("input_size", (3,))[0]
        if values is not None and len(values) != channels:
            raise ValueError(f"list of {channels} number{'s' * (channels > 1)}, one for each channel of input_size")
        return values

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of each channel, in a resolved recipe."""
        assert self.mean is not None, "the recipe is not resolved"
        assert self.std is not None, "the recipe is not resolved"
        return self.mean, self.std

    def training_size(self, epoch: int) -> tuple[int, int]:
        """(height, width) of the training images in an epoch, counted from 0.

        Example:
            >>> transform = TransformSection(input_size=(3, 64, 96), size_schedule=((2, 32),))
            >>> transform.training_size(1), transform.training_size(2)
            ((32, 48), (64, 96))
        """
        _, height, width = self.input_size
        shown = next((pixels for last, pixels in self.size_schedule if epoch < last), height)
        return shown, round(shown * width / height)

    @property
    def training_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the training images, in the order of the epochs; the last is that of `input_size`."""
        return tuple(self.training_size(epoch) for epoch in (0, *(last for last, _ in self.size_schedule)))

    def for_evaluation(self) -> TransformSection:
        """With `test_input_size`, if there is one, as `input_size`."""
        if self.test_input_size is None:
            return self
        return self.model_copy(update={"input_size": self.test_input_size, "test_input_size": None})
