"""JPEGs left to the device: the same images, crops and flips as in the loader; a CPU stands in for the device."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter

from cskd_hf.batch import Batch
from cskd_hf.data import crops
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import ClassPairSampler, PairedImages
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.data.undecoded import pixels
from cskd_hf.engine.build import check_decode, make_loader
from cskd_hf.errors import ImageError, UserError
from cskd_hf.recipe.recipe import parse_recipe
from cskd_hf.recipe.sections import TransformSection

CPU = torch.device("cpu")
LABELS = np.arange(14) % 3


def photograph(row: int, kind: str, **options: Any) -> bytes:
    noise = np.random.default_rng(row).normal(size=(60 + row, 90 - row, 3))
    levels = (gaussian_filter(noise, (3, 3, 0)) * 500 + 128).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(levels).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(row: int) -> bytes:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    return photograph(row, "JPEG", exif=exif)


def contents() -> list[bytes]:
    """JPEGs, but for a PNG and one that has to be turned."""
    files = [photograph(row, "JPEG", quality=92) for row in range(len(LABELS))]
    files[1], files[4] = photograph(1, "PNG"), turned(4)
    return files


def split_of(files: list[bytes]) -> ImageSplit:
    features = Features({"image": Image(decode=False)})
    dataset = Dataset.from_dict({"image": [{"bytes": file, "path": None} for file in files]}, features=features)
    return ImageSplit("train", dataset, LABELS, ("a", "b", "c"), np.arange(len(LABELS)))


def batches_of(files: list[bytes], deferred: bool, workers: int = 0, **settings: Any) -> list[Batch]:
    section = TransformSection.model_validate({"input_size": (3, 32, 40), **settings})
    images = PairedImages(split_of(files), Transform(section, is_training=True), deferred=deferred)
    return list(make_loader(images, GlobalBatches(ClassPairSampler(LABELS, seed=3), 4), workers, pin_memory=False))


torchcodec = pytest.importorskip("torchcodec.decoders", reason="torchcodec is not installed")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"interpolation": "bicubic"},
        {"interpolation": "random", "vflip": 0.5},
        {"crop_padding": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_device_shows_the_crops_that_the_loader_would_have_shown(settings, workers):
    whole, later = (batches_of(contents(), deferred, workers, **settings) for deferred in (False, True))
    assert len(whole) == len(later) == 4
    for expected, batch in zip(whole, later, strict=True):
        assert torch.equal(batch.index, expected.index)
        assert torch.equal(batch.target, expected.target)
        found = pixels(batch, CPU)
        assert found.shape == expected.images.shape
        assert found.is_contiguous(memory_format=torch.channels_last)
        # Of two decoders: chroma is put together in one step or two.
        assert (found.int() - expected.images.int()).abs().max() <= 3


def test_only_what_is_out_of_the_ordinary_becomes_pixels_in_the_loader():
    for batch in batches_of(contents(), deferred=True):
        ordinary = [place for place, row in enumerate(batch.index.tolist()) if row not in (1, 4)]
        assert sorted(batch.undecoded.places) == ordinary
        assert len(batch.images) == len(batch.index) - len(ordinary)
        assert (
            len(batch.undecoded.content)
            == batch.undecoded.ends[-1]
            == sum(len(contents()[row]) for row in batch.index[ordinary].tolist())
        )


def test_a_batch_without_jpegs_has_nothing_left_to_decode():
    for batch in batches_of([photograph(row, "PNG") for row in range(len(LABELS))], deferred=True):
        assert batch.undecoded is None
        assert torch.equal(pixels(batch, CPU), batch.images)


def complains(*_: object, **__: object) -> None:
    raise RuntimeError("nvJPEG failed")


def test_floats_are_resized_as_bytes_are():
    """On a device torch resizes floats only; what comes out is bytes, within a level."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 50, 70), dtype=np.uint8))
    for bicubic in (False, True):
        expected = crops.resize(images, (32, 32), bicubic)
        mode = "bicubic" if bicubic else "bilinear"
        floats = torch.nn.functional.interpolate(images.float(), (32, 32), mode=mode, antialias=True)
        assert (floats.round().clamp(0, 255).int() - expected.int()).abs().max() <= 1


def test_what_the_device_cannot_decode_is_asked_of_the_other_decoder(monkeypatch):
    expected = batches_of(contents(), deferred=False)
    monkeypatch.setattr(torchcodec, "decode_jpeg", complains)
    for batch, whole in zip(batches_of(contents(), deferred=True), expected, strict=True):
        assert torch.equal(pixels(batch, CPU), whole.images)


def test_an_unreadable_image_is_named_wherever_it_is_decoded(monkeypatch):
    files = contents()
    tables, frame = files[7].index(b"\xff\xdb"), files[7].index(b"\xff\xc0")
    files[7] = files[7][:tables] + files[7][frame:]  # whole to look at, but what it was quantised by is missing
    batch = next(batch for batch in batches_of(files, deferred=True) if 7 in batch.index)
    monkeypatch.setattr(torchcodec, "decode_jpeg", complains)
    with pytest.raises(ImageError, match=r"^split 'train', row 7: unreadable image.*data.decode=cpu data.on_corrupt"):
        pixels(batch, CPU)
    files[7] = b"not an image"
    with pytest.raises(UserError, match=r"split 'train', row 7: unreadable image"):
        batches_of(files, deferred=True)


def test_batches_that_may_lack_images_are_refused():
    with pytest.raises(ValueError, match="cannot be shorter"):
        PairedImages(split_of(contents()), Transform(TransformSection(), True), on_corrupt="drop", deferred=True)


# where it cannot be


def recipe_of(**sections: dict[str, Any]) -> Any:
    settings: dict[str, Any] = {
        "data": {"dataset": "cub200", "decode": "cuda"},
        "model": {"model_name": "resnet18"},
        "method": {"name": "cskd"},
        "optimizer": {"lr": 0.1},
        "scheduler": {"num_epochs": 1},
    }
    return parse_recipe(settings | sections)


def test_without_a_cuda_device_or_with_transforms_of_the_loader_it_is_refused():
    check_decode(recipe_of(data={"dataset": "cub200"}), CPU)
    with pytest.raises(UserError, match=r"no CUDA device; write data\.decode=cpu"):
        check_decode(recipe_of(), Accelerator(cpu=True).device)
    with pytest.raises(UserError, match="color_jitter"):
        check_decode(recipe_of(transform={"color_jitter": 0.4}), torch.device("cuda"))
    check_decode(recipe_of(), torch.device("cuda"))
