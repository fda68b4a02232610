"""Eight anchors per update give the same loss and weights however they are split into ranks and batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import eight_anchors
import pytest
from command_runs import ROOT, torchrun

# ranks x batch size x accumulation steps
SHARED = ["1x4x2", "1x2x4", "1x1x8", "2x4x1", "2x2x2", "2x1x4", "4x2x1", "4x1x2"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eight")
    eight_anchors.main(folder)
    for world in (2, 4):
        done = torchrun(ROOT / "tests" / "support" / "eight_anchors.py", folder, processes=world)
        assert done.status == 0, done.stderr
    return folder


def read_result(out: Path, shared: str) -> dict[str, Any]:
    result = json.loads((out / f"{shared}.json").read_text(encoding="utf-8"))
    assert result["world"] == int(shared[0])
    return result


def test_one_rank_of_eight_sees_every_image_once_per_epoch(out):
    pairs = read_result(out, "1x8x1")["pairs"]
    assert [len(update) for update in pairs] == [8, 8, 6] * 2
    for epoch in (pairs[:3], pairs[3:]):
        assert sorted(anchor for update in epoch for anchor, _ in update) == list(range(eight_anchors.NUM_IMAGES))


@pytest.mark.parametrize("shared", SHARED)
def test_every_update_has_the_same_pairs(out, shared):
    assert read_result(out, shared)["pairs"] == read_result(out, "1x8x1")["pairs"]


@pytest.mark.parametrize("shared", SHARED)
def test_every_update_has_the_same_loss_and_ends_with_the_same_weights(out, shared):
    result, expected = read_result(out, shared), read_result(out, "1x8x1")
    assert result["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert len(set(expected["losses"])) == 6
    for name, weights in expected["weights"].items():
        assert result["weights"][name] == pytest.approx(weights, abs=1e-5), name
