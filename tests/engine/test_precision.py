"""Half precision stops and resumes like single precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_runs import draw_folder, metrics_lines, quick, summary_of, write_recipe
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images") / "set", {"train": (5, 5, 5), "test": (2, 2, 2)})


def test_a_run_stopped_after_every_step_ends_bit_equal_to_an_uninterrupted_one(tmp_path, images):
    settings = ("run.mixed_precision=bf16", "run.gradient_accumulation_steps=2", "run.model_ema=true")
    whole, stopped = (write_recipe(tmp_path / f"{name}.yaml", images) for name in ("whole", "stopped"))
    assert quick(whole, *settings).status == 0
    folder, stops = stopped.with_suffix(""), 0
    while not (folder / "summary.json").exists():
        done = quick(stopped, *settings, "run.max_hours=1e-9" if stops < 4 else "run.max_hours=1")
        assert done.status in (0, 143), done.stderr
        stops += done.status == 143
    assert stops == 4
    weights, other = (load_file(recipe.with_suffix("") / "model" / "model.safetensors") for recipe in (whole, stopped))
    assert all(value.dtype is torch.float32 for name, value in weights.items() if "num_batches" not in name)
    assert [name for name in weights if not weights[name].equal(other[name])] == []
    assert metrics_lines(folder) == metrics_lines(whole.with_suffix(""))
    assert summary_of(folder)["metrics"] == summary_of(whole.with_suffix(""))["metrics"]
