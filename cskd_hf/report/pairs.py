"""The first training images as the network receives them, with their classes: a look before hours of work."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import ImageSampler
from cskd_hf.files import write_bytes
from cskd_hf.report.names import shortened

NAME = "pairs.png"
NUM_ROWS, NUM_COLUMNS = 3, 4
MIN_SIDE, MAX_SIDE = 112, 224  # smaller images are enlarged by a whole factor, larger ones reduced
GAP = 8


def write_pairs(images: PairedImages, sampler: ImageSampler, path: Path) -> None:
    """Draw the images of the first keys of the first epoch, those of a key side by side; leaves the sampler at epoch 0.

    Keys and pixels are pure functions: they are computed again here, and no random state changes. Mixup, CutMix and
    patch swaps, which a method draws in each step, come later.

    Raises:
        ImageError: as for `PairedImages`.
    """
    sampler.set_epoch(0)
    views = images.shape(sampler.draws(0, 1))[0]
    keys_per_row = max(1, NUM_COLUMNS // views)
    draws = sampler.draws(0, NUM_ROWS * keys_per_row)
    batch = images.load(draws)
    names = images.split.class_names
    pictures, labels = [_cell(image) for image in batch.images], [names[label] for label in batch.target.tolist()]
    width, height = pictures[0].size
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", width / 7)
    line = round(1.4 * font.size)
    key_width, row_height = views * width + GAP * 2, line + height + GAP
    rows = -(-len(draws) // keys_per_row)
    sheet = Image.new("RGB", (min(len(draws), keys_per_row) * key_width - GAP * 2, rows * row_height), "white")
    text = ImageDraw.Draw(sheet)
    for key in range(len(draws)):
        left, top = key % keys_per_row * key_width, key // keys_per_row * row_height
        own = labels[key :: len(draws)]  # laid out [anchors | partners]
        for view in range(views):
            sheet.paste(pictures[view * len(draws) + key], (left + view * width, top + line))
        shown = own[:1] if len(set(own)) == 1 else own
        for view, label in enumerate(shown):
            room = width * views / len(shown) - 2
            name = shortened(label, functools.partial(_fits, font, room))
            text.text((left + view * width, top + line / 2), name, "black", font, anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    size = "×".join(map(str, reversed(batch.images.shape[2:])))
    keys = {1: "images", 2: "pairs"}.get(views, f"groups of {views} views")
    description = f"The first {len(draws)} training {keys}, {size} pixels, as the network receives them."
    write_bytes(path, png(sheet, description))


def picture(pixels: Tensor) -> Image.Image:
    """(C, H, W) uint8 as an image in its own size."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")


def png(image: Image.Image, description: str) -> bytes:
    """A PNG file with its alternative text inside."""
    text, file = PngInfo(), io.BytesIO()
    text.add_itxt("Description", description)
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def _cell(pixels: Tensor) -> Image.Image:
    image = picture(pixels)
    side = max(image.size)
    if side > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    elif side < MIN_SIDE:
        factor = -(-MIN_SIDE // side)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image


def _fits(font: ImageFont.FreeTypeFont, room: float, text: str) -> bool:
    return font.getlength(text) <= room
