"""A checkpoint restores weights, optimizer, loss scale and progress."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved_checkpoints import make_network, save, step, weights_of
from timm.optim import Lookahead
from torch import nn

from cskd_hf.errors import UserError
from cskd_hf.models.memory import ModelWithMemory, gather_memories
from cskd_hf.runs.checkpoint import check_epochs, load_checkpoint, save_checkpoint
from cskd_hf.runs.progress import Progress


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_an_optimizer_file_that_would_run_code_is_rejected(tmp_path):
    path = save(tmp_path, 1)
    torch.save({"optimizer": Bomb(tmp_path / "exploded"), "scaler": None}, path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        weights_of(path)
    assert not (tmp_path / "exploded").exists()
    torch.load(path / "optimizer.pt", weights_only=False)
    assert (tmp_path / "exploded").exists()  # without weights_only, the file does run code


def test_channels_last_and_shared_tensors_are_saved_and_loaded(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

    torch.manual_seed(0)
    module = Tied().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    path = save_checkpoint(tmp_path, module, optimizer, None, Progress(step=1), "", keep=1)
    torch.manual_seed(1)
    fresh = Tied()
    load_checkpoint(path, fresh, torch.optim.SGD(fresh.parameters(), lr=0.1), None)
    assert torch.equal(fresh.conv.weight, module.conv.weight)
    assert torch.equal(fresh.second.weight, module.second.weight)
    assert fresh.second.weight is fresh.first.weight


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, betas=(0.5, 0.6)),
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_resumed_optimizer_steps_like_an_uninterrupted_one(tmp_path, make, layout):
    def build(seed: int) -> tuple[nn.Module, Any]:
        module = make_network(seed).to(memory_format=layout)
        return module, make(module.parameters())

    module, optimizer = build(0)
    torch.manual_seed(2)
    step(module, optimizer)
    path = save_checkpoint(tmp_path, module, optimizer, None, Progress(step=1), "", keep=1)
    fresh, again = build(1)
    assert load_checkpoint(path, fresh, again, None) == Progress(step=1)

    saved, loaded = optimizer.state_dict(), again.state_dict()
    assert loaded["param_groups"] == saved["param_groups"]
    tensors = [(state[key], loaded["state"][n][key]) for n, state in saved["state"].items() for key in state]
    assert len(tensors) >= 6
    for old, new in tensors:
        assert torch.equal(old, new)
        assert old.stride() == new.stride()
    for which in ((module, optimizer), (fresh, again)):
        torch.manual_seed(3)
        step(*which)
    for old, new in zip(module.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(old, new)
        assert old.stride() == new.stride()


@pytest.mark.parametrize("first", [torch.contiguous_format, torch.channels_last])
def test_a_resume_in_another_memory_format_steps_like_an_uninterrupted_run(tmp_path, first):
    """Fused kernels ignore strides: momentum in another layout would be added to the wrong elements."""
    second = torch.channels_last if first is torch.contiguous_format else torch.contiguous_format

    def build(layout: torch.memory_format) -> tuple[nn.Module, Any]:
        module = make_network().to(memory_format=layout)
        return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, fused=True)

    module, optimizer = build(first)
    torch.manual_seed(2)
    step(module, optimizer)
    path = save_checkpoint(tmp_path, module, optimizer, None, Progress(step=1), "", keep=1)
    resumed, again = build(second)
    load_checkpoint(path, resumed, again, None)
    for which in ((module, optimizer), (resumed, again)):
        torch.manual_seed(3)
        step(*which)
    for old, new in zip(module.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-4)


def test_a_resumed_optimizer_has_the_settings_it_was_constructed_with(tmp_path):
    # A forced resume may have changed the recipe.
    module = make_network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(module, optimizer)
    path = save_checkpoint(tmp_path, module, optimizer, None, Progress(step=1), "", keep=1)
    changed = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.5, weight_decay=0.2, nesterov=True)
    load_checkpoint(path, module, changed, None)
    group = changed.param_groups[0]
    assert [group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")] == [0.3, 0.5, 0.2, True]
    assert len(changed.state) == len(list(module.parameters()))


def test_the_loss_scale_is_restored(tmp_path):
    module = make_network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    path = save_checkpoint(tmp_path, module, optimizer, scaler, Progress(step=1), "", keep=1)
    other = torch.amp.GradScaler("cpu", init_scale=64.0)
    load_checkpoint(path, module, optimizer, other)
    assert other.get_scale() == 4.0


def test_progress_is_restored_with_integer_rows(tmp_path):
    path = save(tmp_path, 2)
    module = make_network()
    progress = load_checkpoint(path, module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), None)
    assert progress == Progress(epoch=1, position=6, step=2, totals={"loss": 0.1}, skipped={7: "broken"})


def test_weights_are_plain_safetensors_and_the_state_is_json(tmp_path):
    path = save(tmp_path, 2)
    weights = load_file(path / "model.safetensors")
    assert weights.keys() == make_network().state_dict().keys()
    assert torch.equal(weights["0.weight"], weights_of(path))
    state = json.loads((path / "state.json").read_text())
    assert state["recipe_hash"] == "a hash"
    assert state["progress"]["position"] == 6


def sgd(module: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), **{"lr": 0.1, "momentum": 0.9} | settings)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: (nn.Sequential(nn.Conv2d(3, 5, 3)), sgd), r"0\.weight is \[4, 3, 3, 3\] there and \[5, 3, 3, 3\]"),
        (lambda: (make_network()[:2], sgd), r"2\.\w+ is \[2.*\] there and absent"),
        (lambda: (make_network().append(nn.Linear(2, 2)), sgd), r"3\.weight is absent there and \[2, 2\]"),
        (lambda: (make_network(), lambda m: torch.optim.AdamW(m.parameters())), "optimizer is SGD there and AdamW"),
        (lambda: (make_network(), lambda m: Lookahead(sgd(m))), "optimizer is SGD there and Lookahead of SGD"),
        (
            lambda: (make_network(), lambda m: torch.optim.SGD([{"params": [p]} for p in m.parameters()], lr=0.1)),
            r"of each optimizer group is \[6\] there and \[1, 1, 1, 1, 1, 1\]",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_a_user_error_and_loads_nothing(tmp_path, change, named):
    path = save(tmp_path, 1)
    module, make_optimizer = change()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError, match=f"does not fit {path}: .*{named}"):
        load_checkpoint(path, module, make_optimizer(module), None)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_memory_of_another_number_of_images_does_not_fit(tmp_path):
    module = ModelWithMemory(make_network(), num_images=5, num_classes=2, num_epochs=3)
    memories = gather_memories(module)
    path = save_checkpoint(tmp_path, module, sgd(module), None, Progress(step=1), "", keep=1, memories=memories)
    load_checkpoint(path, module, sgd(module), None)
    other = ModelWithMemory(make_network(), num_images=6, num_classes=2, num_epochs=3)
    with pytest.raises(UserError, match=r"memory\.predictions is \[5, 2\] there and \[6, 2\] in the recipe"):
        load_checkpoint(path, other, sgd(other), None)


def test_fewer_epochs_than_the_checkpoint_was_trained_for_are_rejected(tmp_path):
    check_epochs(Progress(epoch=3), 3, tmp_path)
    with pytest.raises(UserError, match=r"scheduler\.num_epochs: read 2 in all, but .* was trained for 3"):
        check_epochs(Progress(epoch=3), 2, tmp_path)
