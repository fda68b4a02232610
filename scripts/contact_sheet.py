"""Draw a contact sheet of an image set: a row per class, a block of columns per split.

    python scripts/contact_sheet.py ./icons icons.png --classes bell bug compass --columns 8 2 4

The columns are numbers of images from train, the hold-out set and test, evenly spaced in the split's order, such that a
set divided by author shows different authors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cskd_hf.data.decode import UnreadableImageError, decode
from cskd_hf.data.duplicates import named_splits
from cskd_hf.data.splits import Images, ImageSplit, load_images
from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data

MARGIN, TEXT_WIDTH, TEXT_HEIGHT = 4, 96, 16


def pictures(split: ImageSplit, label: int, count: int) -> list[Image.Image]:
    """At most `count` images of a class, evenly spaced.

    Raises:
        UserError: one of them cannot be read.
    """
    rows = np.flatnonzero(split.labels == label)
    spaced = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)].tolist()
    decoded = []
    for row, image in zip(spaced, split.fetch(spaced), strict=True):
        try:
            decoded.append(decode(image))
        except UnreadableImageError as error:
            raise UserError(f"{split.describe(row, image)}: {error}") from None
    return decoded


def contact_sheet(images: Images, class_names: Sequence[str], columns: Sequence[int], side: int) -> Image.Image:
    """The sheet, in grey if all of its images are; `columns` are images per class of train, the hold-out set and test.

    Raises:
        UserError: a class is not in the set.
    """
    known = images.train.class_names
    if unknown := [name for name in class_names if name not in known]:
        raise UserError(f"--classes: the set has no class {unknown[0]!r}; its classes are {', '.join(known[:8])}, …")
    splits = named_splits(images)
    counts = dict(zip(("train", "hold-out", "test"), columns, strict=True))
    starts, start = {}, TEXT_WIDTH
    for name in splits:
        starts[name] = start
        start += counts[name] * (side + MARGIN) + 4 * MARGIN
    size = (start - 4 * MARGIN, TEXT_HEIGHT + len(class_names) * (side + MARGIN))
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default()
    text = ImageDraw.Draw(sheet)
    for name, split in splits.items():
        text.text((starts[name], 0), name, "black", font)
        for row, class_name in enumerate(class_names):
            top = TEXT_HEIGHT + row * (side + MARGIN)
            text.text((0, top + side // 2), class_name, "black", font, anchor="lm")
            for column, picture in enumerate(pictures(split, known.index(class_name), counts[name])):
                sheet.paste(picture.resize((side, side)), (starts[name] + column * (side + MARGIN), top))
    red, green, blue = sheet.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else sheet


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="IN", help="anything that data.dataset accepts")
    parser.add_argument("out", type=Path, metavar="OUT", help="PNG file to write")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="default: ten, evenly spaced")
    parser.add_argument("--columns", nargs=3, type=int, default=[8, 2, 4], metavar="N", help="default: 8 2 4")
    parser.add_argument("--side", type=int, default=32, metavar="PIXELS", help="side of an image (default: 32)")
    arguments = parser.parse_args(argv)
    if arguments.side < 1 or min(arguments.columns) < 0:
        parser.error("--side must be above 0, --columns must not be negative")
    images = load_images(resolve_data(parse_data({"dataset": arguments.dataset}, source="command line")))
    known = images.train.class_names
    spaced = [known[number] for number in np.unique(np.linspace(0, len(known) - 1, 10).round().astype(int))]
    sheet = contact_sheet(images, arguments.classes or spaced, arguments.columns, arguments.side)
    try:
        sheet.save(arguments.out, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{arguments.out}: {error.strerror or error}") from error
    return 0


if __name__ == "__main__":
    run_command(main)
