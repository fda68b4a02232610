"""Out of memory: one line with a batch size that fits, found by trying, or with what the host was asked for."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from command_runs import draw_folder, fork, write_recipe
from method_cases import method_of, objective_of

from cskd_hf.engine.memory import explain_out_of_memory
from cskd_hf.engine.objective import Objective, dry_run
from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve
from cskd_hf.recipe.sections import TransformSection

SCRIPT = """
import sys
import torch
from cskd_hf.engine.objective import Objective
from cskd_hf.train import main

forward, limit = Objective.forward, int(sys.argv[1])

def limited(self, batch):
    if torch.is_grad_enabled() and len(batch.images) > limit:
        if limit < 0:
            torch.empty(2**50, dtype=torch.uint8)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return forward(self, batch)

Objective.forward = limited
sys.exit(main(sys.argv[2:]))
"""

DEVICE = "data.batch_size: 4 does not fit into the device's memory"
SAVES = "run.grad_checkpointing=true"


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (2, f"{DEVICE}; 1 fits, by measurement: write data.batch_size=1 run.gradient_accumulation_steps=4, or {SAVES}"),
        (0, f"{DEVICE}; not even one sample fits: choose a smaller model or transform.input_size, or {SAVES}"),
        (
            -1,
            "out of memory (1048576.0 GiB asked for): lower data.batch_size=4 or data.workers, or choose an optimizer "
            "with less state than momentum",
        ),
    ],
)
def test_a_step_out_of_memory_says_what_fits(tmp_path, images, line):
    data = draw_folder(tmp_path / "images", {"train": (5, 5), "test": (1, 1)})
    (tmp_path / "limited.py").write_text(SCRIPT, encoding="utf-8")
    done = fork(tmp_path / "limited.py", images, write_recipe(tmp_path / "run.yaml", data))
    assert done.status == 1, done.stderr
    assert done.stderr == f"error: {line}; there is no checkpoint yet\n"


@pytest.mark.parametrize(("batch_size", "limit", "fits", "steps"), [(30, 7, 6, 15), (48, 20, 16, 9), (7, 5, 1, 21)])
def test_the_accumulation_restores_the_global_batch_exactly(monkeypatch, batch_size, limit, fits, steps):
    objective, forward = objective_of(method_of("cross_entropy")), Objective.forward

    def limited(self, batch):
        if len(batch.images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(Objective, "forward", limited)
    overrides = [f"data.batch_size={batch_size}", "run.gradient_accumulation_steps=3", "model.num_classes=4"]
    recipe = resolve(load_recipe("digits_resnet10", ["method={name: cross_entropy}", *overrides]))
    line = explain_out_of_memory(torch.OutOfMemoryError(), recipe, objective.module, Accelerator(cpu=True))
    assert f"{fits} fits, by measurement: write data.batch_size={fits} run.gradient_accumulation_steps={steps}" in line
    assert fits * steps == 3 * batch_size


@pytest.mark.parametrize("host", [False, True])
def test_a_dry_run_out_of_memory_does_not_blame_the_input_size(monkeypatch, host):
    objective = objective_of(method_of("cskd"))

    def fail(*_: object) -> None:
        if host:
            torch.empty(2**50, dtype=torch.uint8)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(objective.module), "forward", fail)
    line = "data.batch_size: 2 samples of 32×32" if host else "model.model_name: the model"
    with pytest.raises(UserError, match=rf"^{line} (does|do) not fit into"):
        dry_run(objective, TransformSection(input_size=(3, 32, 32)), 2, 3, torch.device("cpu"))
