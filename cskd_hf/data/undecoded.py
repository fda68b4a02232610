"""JPEGs that the device decodes: what a loader hands on instead of pixels, and the pixels made of it there.

Which part of which image is shown, and how, is drawn by the loader as ever, from the sample's key; only decoding,
cropping and resizing move to the device (torchcodec, which decodes a whole batch by nvJPEG). Images that are out of the
ordinary arrive as pixels. A decoder of a device may show a damaged file without complaint, where the loader's stops.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cskd_hf.batch import Batch
from cskd_hf.data.crops import Crop, shown
from cskd_hf.data.decode import UnreadableImageError, open_picture
from cskd_hf.data.transfer import sent
from cskd_hf.errors import ImageError


class Deferred(NamedTuple):
    """An ordinary JPEG and what will be seen of it."""

    content: bytes
    crop: Crop
    name: str  # what an error calls it


class Undecoded(NamedTuple):
    """The part of a batch that is still encoded; the other images of the batch are pixels, in their order."""

    content: Tensor  # uint8, one file behind another
    ends: tuple[int, ...]  # of each file in it
    places: tuple[int, ...]  # of each image in the whole batch
    crops: tuple[Crop, ...]
    names: tuple[str, ...]
    size: tuple[int, int]  # (height, width) of what is shown


def pack(deferred: Mapping[int, Deferred], size: tuple[int, int]) -> Undecoded:
    """In one tensor, which goes between processes, and into pinned memory, as one.

    Args:
        deferred: place in the whole batch → image.
    """
    content = bytearray().join(image.content for image in deferred.values())
    return Undecoded(
        content=torch.frombuffer(content, dtype=torch.uint8),
        ends=tuple(itertools.accumulate(len(image.content) for image in deferred.values())),
        places=tuple(deferred),
        crops=tuple(image.crop for image in deferred.values()),
        names=tuple(image.name for image in deferred.values()),
        size=size,
    )


def pixels(batch: Batch, device: torch.device) -> Tensor:
    """(N, 3, H, W) uint8 in channels_last on the device, of the whole batch.

    Raises:
        UserError: an image that cannot be read.
    """
    ready = sent(batch.images, device)
    rest: Undecoded | None = batch.undecoded
    if rest is None:
        return ready
    out = torch.empty(len(batch.index), *rest.size, 3, dtype=torch.uint8, device=device)
    if len(ready):
        missing = set(rest.places)
        places = [place for place in range(len(out)) if place not in missing]
        for place, picture in zip(places, ready, strict=True):  # few; an index made here would wait for the device
            out[place] = picture.permute(1, 2, 0)
    for place, crop, picture in zip(rest.places, rest.crops, _decoded(rest, device), strict=True):
        out[place] = shown(picture[None], crop, rest.size)[0].permute(1, 2, 0)
    return out.permute(0, 3, 1, 2)


def _decoded(rest: Undecoded, device: torch.device) -> Sequence[Tensor]:
    """(3, h, w) uint8 each: the part of the image that its crop is of."""
    from torchcodec.decoders import decode_jpeg

    starts = (0, *rest.ends[:-1])
    files = [rest.content[start:end] for start, end in zip(starts, rest.ends, strict=True)]
    try:
        pictures = decode_jpeg(files, device=device)
    except RuntimeError:  # of one of them, it does not say which: ask the other decoder, which may even show it
        return [
            _decoded_here(file, crop, name).to(device)
            for file, crop, name in zip(files, rest.crops, rest.names, strict=True)
        ]
    return [
        picture[:, box.top : box.top + box.height, box.left : box.left + box.width]
        for picture, box in zip(pictures, (crop.box for crop in rest.crops), strict=True)
    ]


def _decoded_here(file: Tensor, crop: Crop, name: str) -> Tensor:
    try:
        region = open_picture({"bytes": file.numpy().tobytes(), "path": None}).region(crop.box)
    except UnreadableImageError as error:
        raise ImageError(
            f"{name}: {error}; mend or remove the file, or write data.decode=cpu data.on_corrupt=skip"
        ) from None
    return torch.from_numpy(region).permute(2, 0, 1)
