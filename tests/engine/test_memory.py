"""Out of memory: one line with a batch size that fits, found by trying, or with what the host was asked for."""

from __future__ import annotations

import weakref

import pytest
import torch
from accelerate import Accelerator
from command_runs import draw_folder, fork, write_recipe
from method_cases import NUM_CLASSES, method_of, objective_of
from torch._dynamo.exc import BackendCompilerFailed
from torch.distributed import DistNetworkError

from cskd_hf.engine.memory import explain_out_of_memory, largest_batch_size
from cskd_hf.engine.objective import Objective, dry_run
from cskd_hf.errors import UserError, run_command
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


class Square(torch.autograd.Function):
    """x², whose backward runs out of memory above `limit` images."""

    limit, saved = 0, []  # type: ignore[var-annotated]

    @staticmethod
    def forward(ctx, x):
        assert not [tensor for tensor in Square.saved if tensor() is not None], "an earlier attempt holds memory"
        activations = x.clone()
        Square.saved.append(weakref.ref(activations))
        ctx.save_for_backward(activations)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) > Square.limit:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return gradient


def test_an_attempt_that_fails_in_its_backward_frees_what_it_saved(monkeypatch):
    monkeypatch.setattr(Square, "limit", 2)
    monkeypatch.setattr(Square, "saved", [])
    objective = objective_of(method_of("cross_entropy"))
    network, forward = type(objective.module), type(objective.module).forward
    monkeypatch.setattr(network, "forward", lambda self, images: Square.apply(forward(self, images)))
    recipe = resolve(load_recipe("digits_resnet10", ["method={name: cross_entropy}", "model.num_classes=4"]))
    recipe = recipe.replace(data={"batch_size": 8})
    assert largest_batch_size(recipe, objective.module, Accelerator(cpu=True)) == 2
    assert len(Square.saved) == 2


NO_KERNEL = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_…'."


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "model.model_name: .* does not fit into the device's memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "model.model_name: .* the device's memory with "),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "model.model_name: .* the device's memory with "),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), "model.model_name: .* does not fit into memory with "),
        (RuntimeError(NO_KERNEL), "run.deterministic: torch has no deterministic cumsum_cuda_kernel; write run.det"),
    ],
)
def test_a_dry_run_blames_neither_model_nor_size_for_other_faults(monkeypatch, training, error, line):
    objective = objective_of(method_of("cskd"))
    network = type(objective.module)
    forward = network.forward

    def fail(self, images):
        if self.training == training:
            raise error
        return forward(self, images)

    monkeypatch.setattr(network, "forward", fail)
    images = "2 samples of 32×32" if training else "1 image of 48×48"
    with pytest.raises(UserError, match=f"^{line}") as raised:
        dry_run(
            objective,
            TransformSection(input_size=(3, 32, 32), test_input_size=(3, 48, 48)),
            2,
            NUM_CLASSES,
            torch.device("cpu"),
        )
    assert images in str(raised.value) or "run.deterministic" in str(raised.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the device is out of memory: lower data.batch_size ("),
        (
            BackendCompilerFailed(None, ValueError("Traceback:\nNo C compiler\n"), None),
            "run.compile: torch cannot compile: No C compiler; install ",
        ),
        (BackendCompilerFailed(None, AssertionError(), None), "run.compile: torch cannot compile: AssertionError(); "),
        (DistNetworkError("address already in use\nframe #0"), "no connection to another process: address already in "),
        (RuntimeError("[gloo/pair.cc:1] Connection closed by peer"), "no connection to another process: [gloo/pair"),
    ],
)
def test_a_command_reports_what_torch_lacks_in_one_line(capsys, error, line):
    def fail() -> int:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(fail)
    assert exit_.value.code == 1
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: {line}")


def test_a_bug_is_not_taken_for_a_lost_process():
    def fail() -> int:
        raise RuntimeError("igloo/1.jpg: sizes must match")

    with pytest.raises(RuntimeError, match="igloo"):
        run_command(fail)
