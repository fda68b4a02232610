"""PairedDataset: pairs from other datasets, seeded by their keys."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from command_runs import draw_folder
from timm.data import ImageDataset, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import FakeData, ImageFolder

from cskd_hf.batch import Batch
from cskd_hf.data.drop_in import PairedDataset
from cskd_hf.data.pairing import PairingCollator
from cskd_hf.data.sampling import ClassPairSampler, Draw, ImageSampler
from cskd_hf.errors import UserError

LABELS = [0, 1, 0, 1, 1, 0, 1]


class Rows(Dataset[tuple[Tensor, int]]):
    """A row's number plus noise from one of the global generators."""

    def __init__(self, generator: str) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = {"random": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(()).item()}
        return torch.full((3, 2, 2), index + draws[self.generator]()), LABELS[index]


GENERATORS = pytest.mark.parametrize("generator", ["random", "numpy", "torch"])


@GENERATORS
def test_pixels_are_a_function_of_row_and_seed(generator):
    pairs = PairedDataset(Rows(generator))
    assert len(pairs) == 7
    sample = pairs[Draw((1, 4), seed=11)]
    assert (sample.target, sample.indices) == (1, (1, 4))
    assert [int(view[0, 0, 0]) for view in sample.views] == [1, 4]
    random.random(), np.random.rand(), torch.rand(3)
    again, other = pairs[Draw((1, 4), seed=11)], pairs[Draw((1, 4), seed=12)]
    for view, same, different in zip(sample.views, again.views, other.views, strict=True):
        assert torch.equal(view, same)
        assert not torch.equal(view, different)


@GENERATORS
def test_a_self_pair_has_two_views_and_the_first_is_that_of_a_single_image(generator):
    pairs = PairedDataset(Rows(generator))
    first, second = pairs[Draw((2, 2), seed=5)].views
    assert not torch.equal(first, second)
    assert torch.equal(pairs[Draw((2,), seed=5)].views[0], first)


@GENERATORS
def test_loading_restores_the_global_generators(generator):
    pairs = PairedDataset(Rows(generator))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    pairs[Draw((0, 2), seed=3)]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def batches(dataset: Rows, workers: int, batch_size: int, epoch: int = 0) -> list[Batch]:
    sampler = ClassPairSampler(LABELS, seed=4)
    sampler.set_epoch(epoch)
    pairs = PairedDataset(dataset)
    return list(DataLoader(pairs, batch_size, sampler=sampler, num_workers=workers, collate_fn=PairingCollator()))


def test_a_dataloader_yields_the_same_batches_with_and_without_workers():
    for epoch in range(2):
        in_process, with_workers = (batches(Rows("torch"), workers, 3, epoch) for workers in (0, 2))
        assert [len(batch.target) for batch in in_process] == [6, 6, 2]
        for one, other in zip(in_process, with_workers, strict=True):
            assert all(torch.equal(left, right) for left, right in zip(one[:3], other[:3], strict=True))


def test_a_batch_of_floats_is_laid_out_anchors_first():
    (batch,) = batches(Rows("torch"), workers=0, batch_size=7)
    draws = list(ClassPairSampler(LABELS, seed=4))
    rows = [draw.indices[view] for view in (0, 1) for draw in draws]
    assert batch.images.dtype == torch.float32
    assert batch.images[:, 0, 0, 0].int().tolist() == batch.index.tolist() == rows
    assert batch.target.tolist() == [LABELS[row] for row in rows]
    assert batch.skipped == ()


def test_image_sampler_loads_single_images():
    loader = DataLoader(PairedDataset(Rows("torch")), 7, sampler=ImageSampler(7), collate_fn=PairingCollator())
    (batch,) = loader
    assert sorted(batch.index.tolist()) == list(range(7))


def test_a_batch_survives_pickling_and_send_to_device():
    (batch,) = batches(Rows("torch"), workers=0, batch_size=7)
    unpickled = pickle.loads(pickle.dumps(batch))
    assert torch.equal(unpickled.images, batch.images)
    moved = send_to_device(batch, "meta")
    for copy in (unpickled, moved):
        assert type(copy) is Batch
    assert {moved.images.device.type, moved.target.device.type, moved.index.device.type} == {"meta"}


# torchvision's and timm's datasets


@pytest.fixture
def folder(tmp_path):
    return draw_folder(tmp_path, {"train": (3, 2)}) / "train"


@pytest.mark.parametrize("ends_with", ["float", "uint8"])
def test_torchvisions_and_timms_datasets_yield_the_same_pairs(folder, ends_with):
    if ends_with == "float":
        transform = create_transform(16, is_training=True, color_jitter=0.4)
    else:
        from torchvision.transforms import v2

        transform = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])
    labels = [0, 0, 0, 1, 1]
    loaded = []
    for dataset in (ImageFolder(str(folder), transform), ImageDataset(str(folder), transform=transform)):
        loader = DataLoader(PairedDataset(dataset), 5, sampler=ClassPairSampler(labels), collate_fn=PairingCollator())
        loaded += list(loader)
    first, second = loaded
    assert first.images.shape == (10, 3, 16, 16)
    assert first.images.dtype == (torch.float32 if ends_with == "float" else torch.uint8)
    assert torch.equal(first.images, second.images)
    assert first.target.tolist() == [labels[row] for row in first.index.tolist()] == second.target.tolist()
    assert len(first.images.flatten(1).unique(dim=0)) > 5  # partners are augmented too


def test_a_row_that_timm_replaced_with_another_class_is_an_error(folder):
    (folder / "class 0" / "02.png").write_bytes(b"not an image")
    pairs = PairedDataset(ImageDataset(str(folder), transform=create_transform(16)))
    assert pairs[Draw((0, 1), 0)].target == 0
    with pytest.raises(UserError, match=r"rows \(0, 2\): paired as one class, loaded with labels \[0, 1\].*unreadable"):
        pairs[Draw((0, 2), 0)]


@pytest.mark.parametrize("label", [0.7, "1", -100, torch.zeros(99, 99), None], ids=["0.7", "1", "-100", "2-d", "None"])
def test_a_label_that_is_no_class_number_is_an_error(label):
    pairs = PairedDataset([(torch.zeros(3, 2, 2), label)] * 2)
    with pytest.raises(UserError, match=r"^row 0: read a label .*; return the image's class, an integer from 0$"):
        pairs[Draw((0, 1), 0)]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"image": 1, "label": 0}, "dict of image, label"),
        (torch.zeros(3, 2, 2), "Tensor"),
        ((torch.zeros(3, 2, 2),), "tuple"),
    ],
    ids=["as of a Hugging Face dataset", "an image", "no label"],
)
def test_a_row_that_is_no_pair_of_image_and_label_is_an_error(row, kind):
    with pytest.raises(UserError, match=rf"^row 0: its type is {kind}; return \(image, label\)$"):
        PairedDataset([row])[Draw((0, 0), 0)]


def test_a_pil_image_is_an_error_that_names_the_fix():
    pairs = PairedDataset(FakeData(size=3, image_size=(3, 8, 8)))
    with pytest.raises(UserError, match="row 2: read an image of type Image; end its transform with ToTensor"):
        pairs[Draw((2, 1), 0)]


def test_a_loader_without_the_sampler_is_an_error_that_names_the_fix():
    loader = DataLoader(PairedDataset(Rows("torch")), 2, collate_fn=PairingCollator())
    with pytest.raises(UserError, match=r"key 0: .*sampler=ClassPairSampler\(labels\)"):
        next(iter(loader))
    loader = DataLoader(
        PairedDataset(Rows("torch")), None, sampler=ClassPairSampler(LABELS), collate_fn=PairingCollator()
    )
    with pytest.raises(UserError, match="batch_size: read None"):
        next(iter(loader))
