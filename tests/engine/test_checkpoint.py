from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cskd_hf.engine.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from cskd_hf.engine.loop import Progress

FILES = ("model.safetensors", "optimizer.pt", "state.json")


def a_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))


def step(module: nn.Module, optimizer: Any) -> None:
    module(torch.rand(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, number: int, keep: int = 5, seed: int | None = None) -> Path:
    """A checkpoint of step `number` whose weights `seed` (else the number) tells apart."""
    module = a_network(number if seed is None else seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    step(module, optimizer)
    progress = Progress(epoch=1, position=3 * number, step=number, totals={"loss": 0.1}, skipped={7: "broken"})
    return save_checkpoint(folder, module, optimizer, None, progress, "a hash", keep)


def weights_of(path: Path) -> torch.Tensor:
    module = a_network(99)
    load_checkpoint(path, module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), None)
    return module[0].weight


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


class Killed(BaseException):
    """What a signal would do: nothing catches it."""


# The places a kill may come at; each is let through so many times before it strikes.
PLACES = [
    ("the weights", Path, "write_bytes", 0),
    ("the optimizer", torch, "save", 0),
    ("the state", Path, "write_text", 0),
    ("the first sync", os, "fsync", 0),
    ("the last file's sync", os, "fsync", 2),
    ("the folder's sync", os, "fsync", 3),
    ("the renaming", os, "rename", 0),
]


@pytest.mark.parametrize(("owner", "function", "passes"), [place[1:] for place in PLACES], ids=[p[0] for p in PLACES])
def test_a_kill_while_saving_leaves_the_earlier_checkpoint_and_no_half_one(
    tmp_path, monkeypatch, owner, function, passes
):
    save(tmp_path, 1, keep=1)
    original, calls = getattr(owner, function), []

    def kill(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) <= passes:
            return original(*args, **kwargs)
        for place in args:  # half a file, where this call would have written one
            if isinstance(place, Path) and place.suffix in (".safetensors", ".pt", ".json"):
                with place.open("wb") as file:
                    file.write(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, kill)
        with pytest.raises(Killed):
            save(tmp_path, 2, keep=1)
    assert len(calls) == passes + 1
    assert names(tmp_path) == ["step-00000001"]
    earlier = newest_checkpoint(tmp_path)
    assert earlier == tmp_path / "step-00000001"
    torch.testing.assert_close(weights_of(earlier), weights_of(save(tmp_path / "again", 1)), rtol=0, atol=0)

    # What the kill left behind is in nobody's way.
    assert save(tmp_path, 2, keep=1) == newest_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["again", "step-00000002"]


def test_the_old_checkpoint_goes_only_after_the_new_one_is_in_place(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    at_rename, rename = [], os.rename

    def watch(source: Path, target: Path) -> None:
        at_rename.append(names(tmp_path))
        assert sorted(os.listdir(source)) == sorted(FILES)
        rename(source, target)

    monkeypatch.setattr(os, "rename", watch)
    save(tmp_path, 2, keep=1)
    assert at_rename == [["step-00000001"]]
    assert names(tmp_path) == ["step-00000002"]


def test_files_and_their_folders_are_synced_before_and_after_the_renaming(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append("rename"), rename(*paths)))
    save(tmp_path, 1)
    assert events == ["file", "file", "file", "folder", "rename", "folder"]


def test_the_newest_are_kept(tmp_path):
    for number in (1, 2, 3, 4):
        save(tmp_path, number, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_checkpoints_are_ordered_by_number_beyond_eight_digits(tmp_path):
    for number in (99_999_999, 100_000_000):
        save(tmp_path, number, keep=1)
    assert names(tmp_path) == ["step-100000000"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "cut":
        path.write_bytes(content[:-9])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, file, how):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == newest
    damage(newest / file, how)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    captured = capsys.readouterr()
    assert "step-00000002 is damaged" in captured.err
    assert file in captured.err
    assert captured.out == ""


def test_any_flipped_bit_of_the_state_is_noticed(tmp_path):
    path = save(tmp_path, 1) / "state.json"
    whole = path.read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if newest_checkpoint(tmp_path) is not None:
            unnoticed.append(whole[place - 5 : place + 5])
    assert unnoticed == []


def test_with_every_checkpoint_damaged_there_is_none(tmp_path, capsys):
    for number in (1, 2):
        damage(save(tmp_path, number) / "model.safetensors", "cut")
    assert newest_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_damaged_newer_checkpoints_do_not_crowd_out_what_is_saved_after_them(tmp_path):
    save(tmp_path, 4)
    for number in (8, 10):
        damage(save(tmp_path, number) / "optimizer.pt", "flipped")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000004"
    for number in (5, 6):
        assert save(tmp_path, number, keep=2).is_dir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000006"
    assert names(tmp_path) == ["step-00000005", "step-00000006"]


def test_a_step_passed_again_replaces_its_damaged_checkpoint(tmp_path):
    damage(save(tmp_path, 3, seed=1) / "state.json", "cut")
    again = save(tmp_path, 3, seed=2)
    assert newest_checkpoint(tmp_path) == again
    torch.testing.assert_close(weights_of(again), weights_of(save(tmp_path / "other", 3, seed=2)), rtol=0, atol=0)


def test_foreign_files_and_folders_are_left_alone(tmp_path):
    foreign = ["notes.txt", "step-2", "step-00000009.bak", "old-step-00000009", ".partial-step-00000009"]
    for name in foreign[1:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / foreign[0]).write_text("mine")
    (tmp_path / "step-00000099").write_text("a file of that name")
    assert newest_checkpoint(tmp_path) is None
    for number in (1, 2):
        path = save(tmp_path, number, keep=1)
    assert list_checkpoints(tmp_path) == [path]
    assert newest_checkpoint(tmp_path) == path
    assert set(os.listdir(tmp_path)) == {*foreign, "step-00000099", "step-00000002"}


def test_a_missing_folder_holds_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None


class Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def test_an_optimizer_file_that_would_run_code_is_refused(tmp_path):
    path = save(tmp_path, 1)
    torch.save({"optimizer": Bomb(tmp_path / "exploded"), "scaler": None}, path / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        weights_of(path)
    assert not (tmp_path / "exploded").exists()
    torch.load(path / "optimizer.pt", weights_only=False)
    assert (tmp_path / "exploded").exists()  # the bomb is a real one


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
def test_an_optimizer_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path, make, layout):
    def build(seed: int) -> tuple[nn.Module, Any]:
        module = a_network(seed).to(memory_format=layout)
        return module, make(module.parameters())

    module, optimizer = build(0)
    torch.manual_seed(2)
    step(module, optimizer)
    path = save_checkpoint(tmp_path, module, optimizer, None, Progress(step=1), "", keep=1)
    fresh, again = build(1)
    assert load_checkpoint(path, fresh, again, None) == Progress(step=1)

    kept, loaded = optimizer.state_dict(), again.state_dict()
    assert loaded["param_groups"] == kept["param_groups"]
    tensors = [(state[key], loaded["state"][n][key]) for n, state in kept["state"].items() for key in state]
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


def test_a_resumed_optimizer_keeps_the_settings_it_was_made_with(tmp_path):
    # A forced resume may have changed the recipe: what it says now holds.
    module = a_network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(module, optimizer)
    path = save_checkpoint(tmp_path, module, optimizer, None, Progress(step=1), "", keep=1)
    changed = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.5, weight_decay=0.2)
    load_checkpoint(path, module, changed, None)
    group = changed.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.5, 0.2)
    assert len(changed.state) == len(list(module.parameters()))


def test_the_loss_scale_goes_on_too(tmp_path):
    module = a_network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    path = save_checkpoint(tmp_path, module, optimizer, scaler, Progress(step=1), "", keep=1)
    other = torch.amp.GradScaler("cpu", init_scale=64.0)
    load_checkpoint(path, module, optimizer, other)
    assert other.get_scale() == 4.0


def test_progress_comes_back_whole_with_rows_as_numbers(tmp_path):
    path = save(tmp_path, 2)
    module = a_network()
    progress = load_checkpoint(path, module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), None)
    assert progress == Progress(epoch=1, position=6, step=2, totals={"loss": 0.1}, skipped={7: "broken"})


def test_the_weights_are_safetensors_that_read_alone_and_the_state_is_json(tmp_path):
    path = save(tmp_path, 2)
    weights = load_file(path / "model.safetensors")
    assert weights.keys() == a_network().state_dict().keys()
    assert torch.equal(weights["0.weight"], weights_of(path))
    state = json.loads((path / "state.json").read_text())
    assert state["recipe_hash"] == "a hash"
    assert state["progress"]["position"] == 6
