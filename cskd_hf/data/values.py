"""The pixel values of a split: do they fill the range from black to white, or come out nearly black?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cskd_hf.data.deep import EIGHT_BITS, Depth, Range
from cskd_hf.data.duplicates import Diagnostics

MIN_SPAN = 0.25  # share of the range from black to white that the images of a split must span [ours]
MAX_CLIPPED = 0.5  # share of the pixels [ours]


@dataclass
class Values:
    """The pixel values of some images of one mode and depth, as stored."""

    least: float
    greatest: float
    num_pixels: int
    num_clipped: int  # beyond data.value_range

    def add(self, other: Values) -> None:
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)
        self.num_pixels += other.num_pixels
        self.num_clipped += other.num_clipped

    @property
    def text(self) -> str:
        return f"{self.least:,.10g} to {self.greatest:,.10g}"


Found = dict[tuple[str, Depth], Values]  # by Pillow's mode and depth


def values_of(pixels: np.ndarray, value_range: Range | None) -> Values:
    """The values of one image."""
    clipped = 0
    if value_range is not None:
        clipped = int(((pixels < value_range[0]) | (pixels > value_range[1])).sum())
    return Values(float(pixels.min()), float(pixels.max()), pixels.size, clipped)


def add_values(found: Found, more: Found) -> None:
    for key, values in more.items():
        if key in found:
            found[key].add(values)
        else:
            found[key] = values


def describe_values(found: Found, value_range: Range | None) -> str:
    """Modes and ranges, for one split: "RGB 0 to 255; I;16 352 to 548 of 0 to 4,095"."""
    lines = []
    for (mode, depth), values in found.items():
        rule = "" if depth == EIGHT_BITS else " of {:,.10g} to {:,.10g}".format(*(value_range or depth[1:]))
        lines.append(f"{mode} {values.text}{rule}")
    return "; ".join(lines)


def deep_ranges(splits: Mapping[str, Found], value_range: Range | None) -> dict[str, Range]:
    """Kind of depth → black and white, of the images deeper than 8 bits."""
    depths = {depth for found in splits.values() for _, depth in found if depth != EIGHT_BITS}
    return {depth.kind: value_range or (depth.low, depth.high) for depth in sorted(depths)}


def check_values(splits: Mapping[str, Found], value_range: Range | None, diagnostics: Diagnostics) -> None:
    """Look for images that would come out nearly black, nearly uniform or clipped.

    Args:
        diagnostics: images deeper than 8 bits are fatal without a `value_range`, else a problem.
    """
    depths = {key for found in splits.values() for key in found}
    for mode, depth in sorted(depths):
        low, high = depth[1:] if value_range is None or depth == EIGHT_BITS else value_range
        seen = {name: found[mode, depth] for name, found in splits.items() if (mode, depth) in found}
        beyond, narrow = dict[str, Values](), dict[str, Values]()
        for name, values in seen.items():
            outside = values.least < low or values.greatest > high
            if outside and depth.kind == "floating-point" and value_range is None:
                beyond[name] = values
            if min(values.greatest, high) - max(values.least, low) < MIN_SPAN * (high - low):
                narrow[name] = values
        if beyond or narrow:
            consequence = "would be clipped" if beyond else "come out nearly black or uniform"
            ranges = ", ".join(f"{values.text} in {name}" for name, values in (beyond or narrow).items())
            line = f"{depth.kind} images (mode {mode}) {consequence}: black is {low:,.10g}, white {high:,.10g}, but "
            line += f"values are {ranges}"
            if depth == EIGHT_BITS:
                diagnostics.problems.append(line)
            elif value_range is None:
                proposed = "[{:.10g},{:.10g}]".format(*_proposed(depth, list(seen.values())))
                diagnostics.fatal.append(f"{line}; write data.value_range={proposed}, or the sensor's range")
            else:
                diagnostics.problems.append(f"{line}; correct data.value_range")
        shares = {name: values.num_clipped / values.num_pixels for name, values in seen.items()}
        clipped = ", ".join(f"{100 * share:.3g} % in {name}" for name, share in shares.items() if share)
        if clipped and depth != EIGHT_BITS:
            line = f"pixels beyond data.value_range, which become black or white: {clipped}"
            (diagnostics.problems if max(shares.values()) > MAX_CLIPPED else diagnostics.notes).append(line)
    if value_range is not None and depths and all(depth == EIGHT_BITS for _, depth in depths):
        diagnostics.problems.append("data.value_range has no effect: all images checked have 8 bits; remove it")


def _proposed(depth: Depth, seen: list[Values]) -> Range:
    """A usual range that holds all values: of 8, 10, 12, 14, 16, … bits, of [0, 1], or as found."""
    least, greatest = min(values.least for values in seen), max(values.greatest for values in seen)
    if least < 0:
        return math.floor(least), math.ceil(greatest)
    if depth.kind == "floating-point" and greatest <= 1:
        return 0, float(f"{greatest:.1g}") or 1
    bits = max(8, math.ceil(greatest).bit_length())
    return 0, 2 ** (bits + bits % 2) - 1
