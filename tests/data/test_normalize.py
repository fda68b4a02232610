"""Normalisation: the plain formula bit for bit, from and to either memory format."""

from __future__ import annotations

import pytest
import torch

from cskd_hf.data.normalize import normalize

MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.mark.parametrize("shape", [(4, 3, 7, 5), (1, 3, 8, 8), (2, 3, 1, 1), (3, 3, 224, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("input_channels_last", [False, True])
def test_normalisation_is_the_formula_bit_for_bit(shape, channels_last, input_channels_last):
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    if input_channels_last:  # as the loader's batches are
        images = images.contiguous(memory_format=torch.channels_last)
    pixels = normalize(images, MEAN, STD, channels_last)
    assert torch.equal(pixels, (before.float() / 255 - MEAN) / STD)
    assert torch.equal(images, before)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert pixels.is_contiguous(memory_format=memory_format)


def test_every_level_is_normalised_as_by_torchvision():
    from torchvision.transforms import functional as tv

    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    expected = tv.normalize(images.float() / 255, MEAN.flatten().tolist(), STD.flatten().tolist())
    for channels_last in (False, True):
        torch.testing.assert_close(normalize(images, MEAN, STD, channels_last), expected, rtol=1e-6, atol=1e-6)
