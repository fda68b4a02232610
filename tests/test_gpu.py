"""What only a GPU can show; `pytest -m gpu -n 0`."""

from __future__ import annotations

import pytest
import torch
from command_runs import command, draw_folder, metrics_lines, summary_of, write_recipe
from safetensors.torch import load_file

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


def test_no_step_waits_for_the_device():
    """Sync debug mode raises at every blocking copy inside forward, backward and optimizer."""
    import timm

    from cskd_hf.engine.objective import Objective
    from cskd_hf.methods import CSKD, Batch

    model = timm.create_model("test_resnet", num_classes=3).cuda()
    objective = Objective(CSKD(), model, (0.5,) * 3, (0.25,) * 3, channels_last=True).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    target = torch.tensor([0, 1, 2, 0], device="cuda").repeat(2)
    batch = Batch(torch.randint(0, 255, (8, 3, 48, 48), dtype=torch.uint8, device="cuda"), target, target)
    objective(batch)["loss"].backward()  # the first call may wait to choose its kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            objective(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
