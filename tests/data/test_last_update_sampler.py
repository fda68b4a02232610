"""Each image with one of the last update, across epochs and ranks (DLB)."""

from __future__ import annotations

import pytest
from tiny_runs import TRANSFORM, draw_split

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import Draw, ImageSampler, LastUpdateSampler
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.build import build_sampler
from cskd_hf.recipe.recipe import load_recipe


@pytest.mark.parametrize(
    ("num", "lag", "dropped"), [(10, 4, 0), (10, 4, 2), (8, 4, 0), (3, 4, 0), (10, 8, 2), (7, 7, 0)]
)
def test_an_image_comes_again_one_update_after_it_was_new(num: int, lag: int, dropped: int) -> None:
    sampler, plain = LastUpdateSampler(num, seed=3, lag=lag, dropped=dropped), ImageSampler(num, seed=3)
    new, last = [], []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        plain.set_epoch(epoch)
        draws = sampler.draws(0, num - dropped)
        # The same anchors with the same pixels as every other method.
        assert [Draw(draw.indices[:1], draw.seed) for draw in draws] == plain.draws(0, num - dropped)
        new += [draw.indices[0] for draw in draws]
        last += [draw.indices[1] for draw in draws]
    lag = min(lag, num - dropped)
    assert last == new[:lag] + new[:-lag]


@pytest.mark.parametrize("drop_last", ["false", "true"])
@pytest.mark.parametrize(("batch_size", "processes", "accumulation"), [(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2)])
def test_the_last_update_is_the_recipes(batch_size: int, processes: int, accumulation: int, drop_last: str) -> None:
    overrides = [f"data.batch_size={batch_size}", f"data.drop_last={drop_last}", "method={name: dlb}"]
    recipe = load_recipe("digits_resnet10", [*overrides, f"run.gradient_accumulation_steps={accumulation}"])
    sampler = build_sampler(recipe, draw_split(25 if recipe.data.drop_last else 24), processes)
    for rank in range(processes):  # each rank repeats the images that it had, so its predictions are near
        batches = GlobalBatches(sampler, batch_size, processes, rank, recipe.data.drop_last)
        new, last = [], []
        for epoch in range(2):
            batches.start_epoch(epoch)
            keys_of = list(batches)
            for start in range(0, len(keys_of), accumulation):
                group = keys_of[start : start + accumulation]
                new.append([draw.indices[0] for keys in group for draw in keys])
                last.append([draw.indices[1] for keys in group for draw in keys])
        assert len(new) == 12
        assert last == [new[0], *new[:-1]]


def test_images_of_different_classes_keep_their_labels() -> None:
    images = PairedImages(draw_split(6), Transform(TRANSFORM, True))
    batch = images.load([Draw((0, 1), seed=5), Draw((5, 3), seed=6)])
    assert (batch.index.tolist(), batch.target.tolist()) == ([0, 5, 1, 3], [0, 2, 1, 0])
