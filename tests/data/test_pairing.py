from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PillowImage
from scipy import stats
from torch.utils.data import BatchSampler, DataLoader

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.load import ImageSplit
from cskd_hf.data.pairing import ClassPairSampler, Draw, ImageSampler, PairedImages, PairingCollator
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import UserError, run_command
from cskd_hf.methods.base import Batch
from cskd_hf.recipe_sections import TransformSection

# Three classes of 3, 1 and 6 images, not in order.
LABELS = [4, 0, 4, 9, 4, 4, 0, 4, 0, 4]
CLASS_OF = dict(enumerate(LABELS))


def epoch_of(sampler: ImageSampler, epoch: int) -> list[Draw]:
    sampler.set_epoch(epoch)
    return list(sampler)


# ClassPairSampler


def test_a_partner_is_always_of_the_anchors_class():
    for partner in ("any", "not_self"):
        sampler = ClassPairSampler(LABELS, seed=0, partner=partner)
        for epoch in range(100):
            assert all(LABELS[anchor] == LABELS[other] for (anchor, other), _ in epoch_of(sampler, epoch))


def test_each_image_is_anchor_exactly_once_an_epoch():
    labels = np.random.default_rng(0).integers(0, 7, 2500)
    sampler = ClassPairSampler(labels, seed=1)
    assert len(sampler) == 2500
    for epoch in range(3):
        assert sorted(draw.indices[0] for draw in epoch_of(sampler, epoch)) == list(range(2500))


@pytest.mark.parametrize(("partner", "choices"), [("any", 6), ("not_self", 5)])
def test_partners_are_uniform_over_the_class(partner, choices):
    sampler = ClassPairSampler(LABELS, seed=5, partner=partner)
    counts = {anchor: Counter() for anchor in range(len(LABELS))}
    for epoch in range(1500):
        for (anchor, other), _ in epoch_of(sampler, epoch):
            counts[anchor][other] += 1
    for anchor, label in enumerate(LABELS):
        own_class = {other for other, its_label in enumerate(LABELS) if its_label == label}
        allowed = own_class - {anchor} if partner == "not_self" and len(own_class) > 1 else own_class
        assert set(counts[anchor]) == allowed
        if len(allowed) > 1:
            assert stats.chisquare(list(counts[anchor].values())).pvalue > 1e-4
        if label == 4:
            assert len(allowed) == choices


def test_partners_of_different_anchors_are_independent():
    """Not one permutation of the class: two anchors of a pair of images share their partner half the time."""
    sampler = ClassPairSampler([0, 0], seed=2)
    together = [len({draw.indices[1] for draw in epoch_of(sampler, epoch)}) == 1 for epoch in range(1000)]
    assert abs(sum(together) - 500) < 60


def test_anchor_order_is_uniform():
    sampler = ImageSampler(4, seed=3)
    orders = Counter(tuple(draw.indices[0] for draw in epoch_of(sampler, epoch)) for epoch in range(2400))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-4


@pytest.mark.parametrize("partner", ["any", "not_self"])
def test_a_class_of_one_image_is_paired_with_itself(partner):
    for draws in (list(ClassPairSampler(LABELS, seed, partner)) for seed in range(20)):
        assert [draw.indices for draw in draws if draw.indices[0] == 3] == [(3, 3)]


def test_a_class_of_one_image_is_an_error_where_that_is_asked_for_and_the_class_is_named():
    with pytest.raises(UserError, match=r"1 classes have one training image.*labels \[9\].*data\.singleton=self"):
        ClassPairSampler(LABELS, partner="not_self", singleton="error")
    assert len(list(ClassPairSampler([0, 1, 0, 1], partner="not_self", singleton="error"))) == 4
    with pytest.raises(UserError, match=r"30 classes have .*labels \[0, 1, .*9\]…"):
        ClassPairSampler(range(30), partner="not_self", singleton="error")


def test_partner_any_needs_no_partner_and_takes_singletons_as_they_are():
    assert {draw.indices for draw in ClassPairSampler([7], singleton="error")} == {(0, 0)}


def test_keys_are_a_pure_function_of_seed_epoch_and_position():
    sampler, other = (ClassPairSampler(LABELS, seed=11) for _ in range(2))
    epochs = [epoch_of(sampler, epoch) for epoch in range(5)]
    np.random.seed(0), torch.manual_seed(0)
    for epoch in (3, 0, 4, 4, 1, 2):
        assert epoch_of(other, epoch) == epochs[epoch]
    assert list(ClassPairSampler(LABELS, seed=11)) == epochs[0]


def test_epochs_and_seeds_differ_in_order_partners_and_augmentation():
    labels = [0] * 40 + [1] * 40
    keys = {(seed, epoch): epoch_of(ClassPairSampler(labels, seed), epoch) for seed in range(4) for epoch in range(4)}
    orders = {tuple(draw.indices[0] for draw in draws) for draws in keys.values()}
    partners = {tuple(other for _, other in sorted(draw.indices for draw in draws)) for draws in keys.values()}
    assert len(orders) == len(partners) == len(keys)


def test_sampling_leaves_the_global_generators_alone():
    np.random.seed(1), torch.manual_seed(1)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(1), torch.manual_seed(1)
    epoch_of(ClassPairSampler(LABELS), 3)
    assert (np.random.rand(), torch.rand(1).item()) == expected


def test_augmentation_seeds_are_distinct_over_positions_epochs_and_seeds():
    # The partner's own seed is its anchor's plus one: that one must not be another anchor's either.
    seen = [
        draw.seed
        for seed in (0, 1, 2**32 - 1)
        for epoch in range(4)
        for draw in epoch_of(ImageSampler(3000, seed), epoch)
    ]
    assert len({*seen, *(seed + 1 for seed in seen)}) == 2 * len(seen)
    assert all(0 <= seed < 2**63 for seed in seen)
    assert all(isinstance(seed, int) for seed in seen[:10])


def test_augmentation_seeds_look_random_in_every_bit():
    """NumPy's generator takes the low 32 bits, Python's and torch's all of them."""
    seeds = np.array([draw.seed for draw in ImageSampler(4000, seed=0)], dtype=np.uint64)
    share = [float((seeds >> np.uint64(bit) & np.uint64(1)).mean()) for bit in range(63)]
    assert np.abs(np.array(share) - 0.5).max() < 0.04
    assert len(np.unique(seeds % 2**32)) == 4000


def test_image_sampler_has_the_anchors_and_augmentation_seeds_of_the_pair_sampler():
    for seed in (0, 7):
        for epoch in (0, 3):
            pairs = epoch_of(ClassPairSampler(LABELS, seed), epoch)
            anchors = [Draw(draw.indices[:1], draw.seed) for draw in pairs]
            assert epoch_of(ImageSampler(len(LABELS), seed), epoch) == anchors
            assert epoch_of(ImageSampler(len(LABELS), seed, views=2), epoch) == [
                Draw(draw.indices * 2, draw.seed) for draw in anchors
            ]


def test_not_self_keeps_the_anchors_of_any():
    any_, not_self = (list(ClassPairSampler(LABELS, 0, partner)) for partner in ("any", "not_self"))
    assert [(draw.indices[0], draw.seed) for draw in any_] == [(draw.indices[0], draw.seed) for draw in not_self]


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("partner", ["any", "not_self"])
def test_labels_may_be_a_list_an_array_or_a_tensor_of_any_integer_type(partner):
    expected = list(ClassPairSampler(LABELS, 0, partner))
    assert list(ClassPairSampler(tuple(LABELS), 0, partner)) == expected
    for dtype in INTEGERS:
        assert list(ClassPairSampler(np.array(LABELS, dtype=dtype), 0, partner)) == expected
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert list(ClassPairSampler(torch.tensor(LABELS, dtype=dtype), 0, partner)) == expected


@pytest.mark.parametrize(
    "names",
    [
        {0: -3, 4: -1, 9: 0},
        {0: 10**12, 4: 10**12 + 5, 9: 10**18},
        {0: -(2**63), 4: 0, 9: 2**63 - 1},
        {0: 70_000, 4: 70_001, 9: 140_000},
        {0: 65_535, 4: 65_536, 9: 131_071},
        {0: 1, 4: 2, 9: 2**16},
        {0: 0, 4: 1, 9: 2**16 + 1},
    ],
)
def test_labels_are_only_names_negative_huge_or_with_gaps(names):
    """Only which images share a class matters, as long as the classes' order stays."""
    renamed = np.array([names[label] for label in LABELS], dtype=np.int64)
    assert list(ClassPairSampler(renamed, 0)) == list(ClassPairSampler(LABELS, 0))


@pytest.mark.parametrize(
    ("dtype", "labels"), [("int8", [-128, 127]), ("int16", [-32768, 32767]), ("uint64", [1, 2**64 - 1])]
)
def test_labels_at_the_ends_of_their_type_do_not_overflow_into_one_class(dtype, labels):
    sampler = ClassPairSampler(np.array(labels * 20, dtype=dtype), 0)
    assert all((anchor - other) % 2 == 0 for (anchor, other), _ in sampler)


@pytest.mark.parametrize(
    "labels",
    [[0.0, 1.0], np.zeros(3, dtype=np.float32), torch.rand(4), [[0, 1], [1, 0]], [], np.zeros(0, dtype=int), ["a"], 3],
)
def test_labels_that_are_not_one_integer_an_image_are_a_user_error(labels):
    with pytest.raises(UserError) as caught:
        ClassPairSampler(labels)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("setting", [{"partner": "self"}, {"singleton": "skip"}])
def test_a_misspelt_setting_is_a_user_error_that_names_what_is_allowed(setting):
    with pytest.raises(UserError, match="allowed: "):
        ClassPairSampler(LABELS, **setting)


def test_draws_equal_the_slice_of_the_iteration():
    for sampler in (ClassPairSampler(np.arange(2500) % 9), ImageSampler(2500, views=1)):
        sampler.set_epoch(2)
        keys = list(sampler)
        assert len(keys) == 2500
        for start, stop in [(0, 2500), (0, 1), (1023, 1025), (2499, 2500), (2400, 9999), (7, 7), (2500, 2600)]:
            assert sampler.draws(start, stop) == keys[start:stop]


def test_keys_are_plain_integers():
    """NumPy's would be pickled to every worker at ten times the size."""
    for draw in ClassPairSampler(np.array(LABELS)):
        assert [type(value) for value in (*draw.indices, draw.seed)] == [int, int, int]


def test_a_sampler_has_no_generator_that_accelerate_would_take_over():
    assert not hasattr(ClassPairSampler(LABELS), "generator")
    assert not hasattr(ImageSampler(3), "generator")


def test_an_epoch_is_drawn_without_an_object_per_image():
    import tracemalloc

    labels = np.arange(200_000) % 1000
    tracemalloc.start()
    ClassPairSampler(labels).set_epoch(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * len(labels)  # a tuple of two alone takes 56 bytes


class Echo(torch.utils.data.Dataset):
    def __getitem__(self, draw: Draw) -> Draw:
        return draw


@pytest.mark.parametrize("workers", [0, 2])
def test_the_sampler_works_inside_torchs_batch_sampler_and_loader(workers):
    sampler = ClassPairSampler(LABELS, seed=4)
    loader = DataLoader(
        Echo(), batch_sampler=BatchSampler(sampler, 4, drop_last=False), num_workers=workers, collate_fn=list
    )
    for epoch in (1, 0):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert list(map(len, batches)) == [4, 4, 2]
        assert [key for batch in batches for key in batch] == epoch_of(ClassPairSampler(LABELS, seed=4), epoch)


# PairedImages and PairingCollator


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def picture(index: int) -> bytes:
    return png(np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8))


class CountedSplit(ImageSplit):
    fetched: list[list[int]] = []  # noqa: RUF012

    def fetch(self, indices: Sequence[int]):
        self.fetched.append(list(indices))
        return super().fetch(indices)


def split_of(labels: Sequence[int], broken: Sequence[int] = (), paths: bool = False) -> CountedSplit:
    """Classes 'a', 'b', …; `broken` rows hold bytes that are no image."""
    images = [
        {"bytes": b"broken" if row in broken else picture(row), "path": f"pic{row}.png" if paths else None}
        for row in range(len(labels))
    ]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": Image(decode=False)}))
    names = tuple("abcdefghij"[: max(labels) + 1])
    split = CountedSplit("train", dataset, np.array(labels), names, np.arange(len(labels)))
    split.fetched.clear()
    return split


DENSE = [1, 0, 1, 2, 1, 1, 0, 1, 0, 1]
TRANSFORM = Transform(TransformSection(input_size=(3, 16, 16)), is_training=True)


def load(images: PairedImages, draws: Sequence[Draw]) -> Batch:
    return PairingCollator()(images.__getitems__(draws))


def assert_equal(left: Batch, right: Batch) -> None:
    assert torch.equal(left.images, right.images)
    assert torch.equal(left.target, right.target)
    assert torch.equal(left.index, right.index)
    assert left.skipped == right.skipped


def test_a_batch_is_laid_out_anchors_first_then_partners():
    split = split_of(DENSE)
    draws = list(ClassPairSampler(DENSE, seed=0))[:4]
    batch = load(PairedImages(split, TRANSFORM), draws)
    anchors, partners = zip(*(draw.indices for draw in draws), strict=True)
    assert batch.index.tolist() == [*anchors, *partners]
    assert batch.target.tolist() == [DENSE[row] for row in (*anchors, *partners)]
    assert batch.target[:4].tolist() == batch.target[4:].tolist()
    for place, row in enumerate((*anchors, *partners)):
        seed = draws[place % 4].seed + (place >= 4)
        assert torch.equal(batch.images[place], TRANSFORM({"bytes": picture(row), "path": None}, seed))
    assert (batch.images.dtype, batch.target.dtype, batch.index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert batch.images.shape == (8, 3, 16, 16)
    assert batch.skipped == ()


def test_a_batch_of_single_views_is_just_its_images():
    draws = list(ImageSampler(10, seed=0))[:3]
    batch = load(PairedImages(split_of(DENSE), TRANSFORM), draws)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.index.tolist() == [draw.indices[0] for draw in draws]
    assert batch.target.tolist() == [DENSE[draw.indices[0]] for draw in draws]


def test_two_views_of_one_image_are_augmented_differently():
    batch = load(PairedImages(split_of(DENSE), TRANSFORM), list(ImageSampler(10, views=2))[:5])
    assert batch.index[:5].tolist() == batch.index[5:].tolist()
    assert not any(torch.equal(first, second) for first, second in zip(batch.images[:5], batch.images[5:], strict=True))


def test_an_anchor_paired_with_itself_is_augmented_again():
    batch = load(PairedImages(split_of([0]), TRANSFORM), list(ClassPairSampler([0])))
    assert batch.index.tolist() == [0, 0]
    assert not torch.equal(batch.images[0], batch.images[1])


def test_a_batch_is_fetched_in_one_read():
    split = split_of(DENSE)
    draws = list(ClassPairSampler(DENSE))
    load(PairedImages(split, TRANSFORM), draws)
    assert split.fetched == [[row for draw in draws for row in draw.indices]]


def test_the_loader_fetches_each_batch_in_one_read():
    split = split_of(DENSE)
    batches = GlobalBatches(ClassPairSampler(DENSE), 4)
    list(DataLoader(PairedImages(split, TRANSFORM), batch_sampler=batches, collate_fn=PairingCollator()))
    assert list(map(len, split.fetched)) == [8, 8, 4]


def test_a_key_alone_is_loaded_as_in_its_batch():
    images = PairedImages(split_of(DENSE), TRANSFORM)
    draws = list(ClassPairSampler(DENSE))
    batch = load(images, draws)
    alone = PairingCollator()([images[draw] for draw in draws])
    assert_equal(batch, alone)
    assert len(images) == 10


def test_anchors_have_the_same_pixels_with_and_without_partners():
    images = PairedImages(split_of(DENSE), TRANSFORM)
    pairs, single = ClassPairSampler(DENSE, seed=6), ImageSampler(10, seed=6)
    for epoch in range(2):
        with_partner, alone = load(images, epoch_of(pairs, epoch)), load(images, epoch_of(single, epoch))
        assert torch.equal(with_partner.images[:10], alone.images)
        assert torch.equal(with_partner.index[:10], alone.index)


def test_pixels_do_not_depend_on_workers_or_on_the_batch_they_are_in():
    def loaded(workers: int, batch_size: int) -> dict[int, torch.Tensor]:
        batches = GlobalBatches(ClassPairSampler(DENSE, seed=2), batch_size)
        loader = DataLoader(
            PairedImages(split_of(DENSE), TRANSFORM),
            batch_sampler=batches,
            collate_fn=PairingCollator(),
            num_workers=workers,
        )
        found = {}
        for batch in loader:
            half = len(batch.target) // 2
            for anchor in range(half):
                found[int(batch.index[anchor])] = torch.stack([batch.images[anchor], batch.images[half + anchor]])
        return found

    expected = loaded(workers=0, batch_size=4)
    assert sorted(expected) == list(range(10))
    for workers, batch_size in [(2, 4), (0, 3), (2, 10)]:
        found = loaded(workers, batch_size)
        assert all(torch.equal(found[row], pixels) for row, pixels in expected.items())


def test_an_empty_batch_collates_to_an_empty_batch():
    batch = PairingCollator()([])
    assert batch.images.shape[:2] == (0, 3)
    assert len(batch.target) == len(batch.index) == 0
    assert (batch.images.dtype, batch.target.dtype, batch.index.dtype) == (torch.uint8, torch.int64, torch.int64)


# unreadable images


def test_an_unreadable_image_stops_and_names_split_row_and_file():
    images = PairedImages(split_of(DENSE, broken=[4], paths=True), TRANSFORM)
    load(images, [Draw((1, 6), 0)])
    for indices in [(4, 0), (0, 4), (4,)]:
        with pytest.raises(UserError, match=r"split 'train', row 4, file pic4\.png: unreadable.*data\.on_corrupt=skip"):
            load(images, [Draw((1,) * len(indices), 0), Draw(indices, 0)])


def test_a_file_is_left_out_of_the_message_where_there_is_none():
    with pytest.raises(UserError, match=r"split 'train', row 4: unreadable"):
        load(PairedImages(split_of(DENSE, broken=[4]), TRANSFORM), [Draw((4,), 0)])


def test_an_unreadable_image_of_a_share_is_named_by_its_row_as_stored():
    share = split_of(DENSE, broken=[7], paths=True).take(np.array([9, 7, 2]))
    with pytest.raises(UserError, match=r"row 7, file pic7\.png"):
        load(PairedImages(share, TRANSFORM), [Draw((1,), 0)])
    share_of_share = share.take(np.array([2, 1]))
    with pytest.raises(UserError, match=r"row 7, file pic7\.png"):
        load(PairedImages(share_of_share, TRANSFORM), [Draw((1,), 0)])


def test_an_unreadable_image_met_by_a_worker_prints_the_same_one_line(capsys):
    images = PairedImages(split_of(DENSE, broken=[4], paths=True), TRANSFORM)

    def epoch(workers: int) -> int:
        batches = GlobalBatches(ClassPairSampler(DENSE), 4)
        list(DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=PairingCollator()))
        return 0

    printed = []
    for workers in (0, 1):
        with pytest.raises(SystemExit) as caught:
            run_command(lambda workers=workers: epoch(workers))
        assert caught.value.code == 2
        printed.append(capsys.readouterr().err)
    assert printed[0] == printed[1]
    assert printed[0].startswith("error: split 'train', row 4, file pic4.png: unreadable image")
    assert printed[0].count("\n") == 1


def test_replace_shows_the_next_readable_image_of_the_class_and_reports_the_row():
    # Class 1 has the rows 0, 2, 4, 5, 7, 9.
    images = PairedImages(split_of(DENSE, broken=[4, 5, 9]), TRANSFORM, on_corrupt="replace")
    batch = load(images, [Draw((4, 2), 100), Draw((0, 9), 200)])
    assert batch.index.tolist() == [7, 0, 2, 0]  # 4 → (5) → 7, and 9 → 0 around the end
    assert batch.target.tolist() == [1] * 4
    assert [row for row, _ in batch.skipped] == [4, 9]
    assert all("unreadable" in reason for _, reason in batch.skipped)
    for place, row, seed in [(0, 7, 100), (1, 0, 200), (2, 2, 101), (3, 0, 201)]:
        assert torch.equal(batch.images[place], TRANSFORM({"bytes": picture(row), "path": None}, seed))
    assert_equal(batch, load(images, [Draw((4, 2), 100), Draw((0, 9), 200)]))


def test_replace_goes_all_the_way_round_the_class():
    images = PairedImages(split_of(DENSE, broken=[0, 4, 5, 7, 9]), TRANSFORM, on_corrupt="replace")
    assert load(images, [Draw((row,), 0) for row in (0, 4, 5, 7, 9)]).index.tolist() == [2] * 5


def test_replace_keeps_every_batch_whole_and_every_pair_in_its_class():
    images = PairedImages(split_of(DENSE, broken=[4, 5, 6]), TRANSFORM, on_corrupt="replace")
    for epoch in range(5):
        batch = load(images, epoch_of(ClassPairSampler(DENSE, seed=1), epoch))
        assert len(batch.target) == 20
        assert [DENSE[row] for row in batch.index.tolist()] == batch.target.tolist()
        assert not {4, 5, 6} & set(batch.index.tolist())
        assert {4, 5, 6} <= {row for row, _ in batch.skipped} <= {4, 5, 6}


@pytest.mark.parametrize("broken", [[3], [1, 6, 8]])
def test_a_class_without_a_readable_image_is_an_error_that_names_it(broken):
    images = PairedImages(split_of(DENSE, broken=broken), TRANSFORM, on_corrupt="replace")
    name = "c" if broken == [3] else "a"
    with pytest.raises(UserError, match=f"split 'train': class '{name}' has no readable image"):
        load(images, [Draw((broken[0],), 0)])


def test_drop_leaves_the_sample_out_and_reports_it():
    images = PairedImages(split_of(DENSE, broken=[4, 5]), TRANSFORM, on_corrupt="drop")
    batch = load(images, [Draw((row,), 0) for row in range(10)])
    assert batch.index.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert batch.target.tolist() == [DENSE[row] for row in batch.index.tolist()]
    assert [row for row, _ in batch.skipped] == [4, 5]


def test_drop_leaves_out_the_whole_pair_where_one_of_the_two_is_unreadable():
    images = PairedImages(split_of(DENSE, broken=[4]), TRANSFORM, on_corrupt="drop")
    for first, second in pairwise([(4, 0), (1, 6), (2, 4), (7, 9)]):
        batch = load(images, [Draw(first, 0), Draw(second, 9)])
        whole = first if 4 in second else second
        assert batch.index.tolist() == list(whole)
        assert [row for row, _ in batch.skipped] == [4]


def test_a_batch_all_dropped_collates_to_an_empty_one_that_says_why():
    images = PairedImages(split_of(DENSE, broken=[4, 5]), TRANSFORM, on_corrupt="drop")
    batch = load(images, [Draw((4,), 0), Draw((5,), 0)])
    assert len(batch.images) == len(batch.target) == len(batch.index) == 0
    assert [row for row, _ in batch.skipped] == [4, 5]
