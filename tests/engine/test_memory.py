"""Out of device memory: one line with a batch size that fits, found by trying."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import pytest
import torch
from command_runs import draw_folder, environment, write_recipe
from method_cases import method_of, objective_of

from cskd_hf.engine.objective import dry_run
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import TransformSection

SCRIPT = """
import sys
import torch
from cskd_hf.engine.objective import Objective
from cskd_hf.train import main

forward, limit = Objective.forward, int(sys.argv[1])

def limited(self, batch):
    if torch.is_grad_enabled() and len(batch.images) > limit:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return forward(self, batch)

Objective.forward = limited
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (2, "1 fits, by measurement: write data.batch_size=1 run.gradient_accumulation_steps=4, or"),
        (0, "not even one sample fits: choose a smaller model or transform.input_size, or"),
    ],
)
def test_a_step_out_of_memory_names_the_batch_size_that_fits(tmp_path, images, advice):
    data = draw_folder(tmp_path / "images", {"train": (5, 5), "test": (1, 1)})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(images), str(write_recipe(tmp_path / "run.yaml", data))],
        env=environment(),
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: data.batch_size: 4 does not fit into the device's memory; {advice}")
    assert line.endswith("run.grad_checkpointing=true; there is no checkpoint yet")


def test_a_dry_run_out_of_memory_does_not_blame_the_input_size(monkeypatch):
    objective = objective_of(method_of("cskd"))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(objective.module), "forward", fail)
    with pytest.raises(UserError, match=r"^model\.model_name: the model does not fit into the device's memory"):
        dry_run(objective, TransformSection(input_size=(3, 32, 32)), 2, 3, torch.device("cpu"))
