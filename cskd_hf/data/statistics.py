"""Counts over the images of a split: formats, modes, sizes, pixel values, unreadable files."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from operator import iadd

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from cskd_hf.data.decode import Conversion, UnreadableImageError, decode, has_alpha, orientation_of, survey
from cskd_hf.data.deep import EIGHT_BITS, depth_of
from cskd_hf.data.duplicates import digest, read_content
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import is_sliver
from cskd_hf.data.values import Found, add_values, values_of


@dataclass
class ImageStatistics:
    """Counts over some images of a split."""

    tried: int = 0
    opened: int = 0
    decoded: int = 0
    num_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)
    values: Found = field(default_factory=dict)  # of the decoded images
    alpha: int = 0  # with an alpha channel or a transparent colour
    deep: int = 0  # deeper than 8 bits
    turned: int = 0  # stored turned, as EXIF's orientation says
    broken_metadata: int = 0  # shown as stored
    slivers: list[str] = field(default_factory=list)  # where and how large
    unreadable: list[str] = field(default_factory=list)  # where and why
    digests: list[int] = field(default_factory=list)  # as `image_digests`

    def add(self, other: ImageStatistics) -> None:
        add_values(self.values, other.values)
        for each in fields(self):
            if each.name != "values":
                setattr(self, each.name, iadd(getattr(self, each.name), getattr(other, each.name)))

    def add_image(self, content: bytes, num_decoded: int, conversion: Conversion) -> tuple[int, int]:
        """Count an encoded image; decode it if it is deep or fewer than `num_decoded` have been opened.

        Returns:
            (width, height), (0, 0) if the header is broken.

        Raises:
            UnreadableImageError: see `Picture`.
        """
        stored = {"bytes": content, "path": None}
        self.num_bytes += len(content)
        self.opened += 1
        decoding = self.opened <= num_decoded
        mode, size = "", (0, 0)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with Image.open(io.BytesIO(content)) as opened:
                    mode, size = opened.mode, opened.size
                    self.formats[str(opened.format)] += 1
                    self.modes[mode] += 1
                    self.sizes[size] += 1
                    self.alpha += has_alpha(opened)
                    deep = depth_of(opened) != EIGHT_BITS
                    self.deep += deep
                    decoding |= deep
                    if decoding or opened.format != "PNG":  # which Pillow decodes to look for EXIF at its end
                        orientation, readable = orientation_of(opened)
                        self.turned += orientation != 1
                        self.broken_metadata += not readable or any("EXIF" in str(line.message) for line in caught)
        except Exception:  # Pillow raises a dozen types; `decode` words the error
            decode(stored)
        if decoding:
            self.decoded += 1
            depth, pixels = survey(stored, conversion)
            add_values(self.values, {(mode, depth): values_of(pixels, conversion.value_range)})
        return size

    def widths_and_heights(self) -> np.ndarray:
        """(N, 2), unordered."""
        return np.repeat(np.array(list(self.sizes), int).reshape(-1, 2), list(self.sizes.values()), axis=0)


def image_statistics(
    split: ImageSplit, rows: Sequence[int], num_decoded: int, conversion: Conversion
) -> ImageStatistics:
    """Read the headers of these rows' images; decode the first `num_decoded` of them, and all deep ones."""
    statistics = ImageStatistics()
    for start in range(0, len(rows), 16):  # few at a time: a photograph may have 20 MB
        block = rows[start : start + 16]
        for row, image in zip(block, split.fetch(block), strict=True):
            statistics.tried += 1
            content = str(image["path"]).encode()  # stands in for a file that cannot be read
            try:
                content = read_content(image)
                size = statistics.add_image(content, num_decoded, conversion)
                if all(size) and is_sliver(size):
                    statistics.slivers.append(f"{split.describe(row, image)}: {size[0]:,}×{size[1]:,}")
            except UnreadableImageError as error:
                statistics.unreadable.append(f"{split.describe(row, image)}: {error}")
            statistics.digests.append(digest(content))
    return statistics


class Blocks(Dataset[ImageStatistics]):
    """A split for a DataLoader: item i is the statistics of its i-th 64 images, all decoded."""

    def __init__(self, split: ImageSplit, conversion: Conversion) -> None:
        self.split, self.conversion = split, conversion

    def __len__(self) -> int:
        return -(-len(self.split) // 64)

    def __getitem__(self, block: int) -> ImageStatistics:
        rows = range(64 * block, min(64 * block + 64, len(self.split)))
        return image_statistics(self.split, rows, len(rows), self.conversion)
