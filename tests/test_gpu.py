"""What only a GPU can show; `pytest -m gpu -n 0`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_runs import command, draw_folder, metrics_lines, summary_of, write_recipe
from method_cases import batch_for, method_of, objective_of
from safetensors.torch import load_file
from timm.scheduler import create_scheduler_v2

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import ClassPairSampler
from cskd_hf.data.transfer import _copy_stream, to_device
from cskd_hf.engine.learner import Learner
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.engine.updates import training_updates
from cskd_hf.evaluation.predictions import predict_split
from cskd_hf.methods import CSKD, METHODS, Batch, CrossEntropy
from cskd_hf.recipe.sections import DataSection, OptimizerSection, RunSection
from cskd_hf.runs.progress import Progress

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_run_on_the_gpu_ends_in_finite_metrics_and_float32_weights(tmp_path, precision, compiled):
    images = draw_folder(tmp_path / "images", {"train": (8, 8, 8), "test": (4, 4, 4)})
    recipe = write_recipe(tmp_path / "run.yaml", images)
    done = command(recipe, f"run.mixed_precision={precision}", f"run.compile={compiled}")
    assert done.status == 0, done.stderr
    assert [line["step"] for line in metrics_lines(tmp_path / "run")] == [6, 12]
    assert summary_of(tmp_path / "run")["throughput"]["peak_memory_bytes"] > 0
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("settings", [{}, {"batch_norm": "anchors_only"}])
def test_no_update_of_the_loop_waits_for_the_device(precision, compiled, settings):
    """Sync debug mode raises at every blocking copy and stream wait, from the loader's batch to the update.

    The loop's one wait is for an event after the forward, on numbers that are on their way to pinned memory; the mode
    does not count events. What it does count, inside autograd's threads too, is any `item`, `cpu` or blocking copy.
    """
    import timm

    AcceleratorState._reset_state()  # its precision is set once a process
    accelerator = Accelerator(mixed_precision=precision)
    try:
        model = timm.create_model("test_resnet", num_classes=3)
        objective: Any = Objective(CSKD(**settings), model, (0.5,) * 3, (0.25,) * 3, channels_last=True)
        objective.to(memory_format=torch.channels_last)
        optimizer = create_optimizer(OptimizerSection(lr=0.1), model, model, 0.01)
        if compiled:
            objective.compile()
        objective, optimizer = accelerator.prepare(objective, optimizer)
        target = torch.tensor([0, 1, 2, 0]).repeat(2)
        images = torch.randint(0, 255, (8, 3, 48, 48), dtype=torch.uint8)
        batch = Batch(images.pin_memory(), target.pin_memory(), target.pin_memory())
        batches = GlobalBatches(ClassPairSampler(np.arange(400) % 3, 0), 4)
        loader: Any = itertools.repeat(batch)
        progress = Progress()
        scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=1)
        learner = Learner(objective, model, model, optimizer, scheduler)
        updates = training_updates(learner, loader, batches, accelerator, progress, RunSection(clip_grad=1.0), 1)
        for _ in range(3):  # the first may wait: they compile and choose kernels
            next(updates)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                next(updates)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert progress.step == 8
    finally:
        AcceleratorState._reset_state()


@pytest.mark.parametrize("name", METHODS)
def test_no_method_waits_for_the_device(name):
    method = method_of(name, **({"mixup_alpha": 0.2} if name == "mutual_cskd" else {}))
    objective = objective_of(method).to("cuda")
    batches = [Batch(*(part.to("cuda") for part in batch_for(method, seed=seed)[:3])) for seed in range(3)]
    for batch in batches[:2]:  # the first may wait: it chooses kernels
        objective(batch)["loss"].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective(batches[2])["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_batch_is_copied_beside_the_work_that_is_queued():
    device = torch.device("cuda", torch.cuda.current_device())
    part = torch.randint(0, 255, (64, 3, 224, 224), dtype=torch.uint8).pin_memory()
    to_device(part, device)  # makes the stream and the memory
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles: a second
    slept, copied = torch.cuda.Event(), torch.cuda.Event()
    slept.record()
    there = to_device(part, device)
    copied.record(_copy_stream(device))
    copied.synchronize()
    assert not slept.query()
    doubled = there.int() * 2  # waits for the copy, on the device
    del there
    assert torch.equal(doubled.cpu(), part.int() * 2)


def test_results_are_those_of_a_cpu_even_where_tf32_is_on(make_split, transform):
    """TF32 has 10 bits of mantissa: a relative error of about 1e-3."""
    import timm

    torch.manual_seed(0)
    model, logits = timm.create_model("resnet18", num_classes=3), []
    data = DataSection(dataset="unused", batch_size=8, workers=0)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        for cpu in (True, False):
            AcceleratorState._reset_state(reset_partial_state=True)
            accelerator = Accelerator(cpu=cpu)
            model.to(accelerator.device)
            logits.append(predict_split(model, make_split(24), accelerator, data, transform).logits)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        AcceleratorState._reset_state(reset_partial_state=True)
    assert (logits[0] - logits[1]).abs().max() < 1e-4 * logits[0].abs().max()


def test_the_mode_that_the_test_above_relies_on_sees_a_wait():
    value = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            value.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("model_name", ["resnet18", "resnet50"])
def test_a_step_of_cskd_needs_the_memory_of_cross_entropy(model_name):
    """The partner's forward saves nothing for the backward: the peak grows by its images and a few live activations."""
    import timm

    peak = {}
    for method, views in ((CrossEntropy(), 1), (CSKD(), 2)):
        torch.manual_seed(0)
        model = timm.create_model(model_name, num_classes=200)
        objective = Objective(method, model, (0.5,) * 3, (0.25,) * 3, channels_last=True)
        objective.to("cuda", memory_format=torch.channels_last)
        images = torch.randint(0, 255, (32 * views, 3, 128, 128), dtype=torch.uint8, device="cuda")
        target = torch.arange(32, device="cuda").repeat(views)
        for _ in range(2):
            objective(Batch(images, target, target))["loss"].backward()
            objective.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        objective(Batch(images, target, target))["loss"].backward()
        peak[method.name] = torch.cuda.max_memory_allocated()
    pixels = 32 * 3 * 128 * 128 * (1 + 4 + 4)  # uint8, normalised, and a temporary of the normalisation
    stem = 32 * 64 * 64 * 64 * 4  # the largest activation; a forward without gradient holds three at a time
    assert peak["cskd"] - peak["cross_entropy"] <= pixels + 3 * stem
