"""Experiment trackers: missing ones are named, and a resumed run continues its record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from saved_checkpoints import save
from summaries import make_recipe, start

from cskd_hf.engine import trackers
from cskd_hf.engine.trackers import check_trackers, start_trackers
from cskd_hf.errors import UserError


def test_a_missing_tracker_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    check_trackers(make_recipe(tmp_path))
    monkeypatch.setattr(trackers, "_PACKAGES", {"tensorboard": ("pytest",), "wandb": ("no_such_package",)})
    check_trackers(make_recipe(tmp_path, report_to=["tensorboard"]))
    with pytest.raises(UserError, match="report_to: wandb not installed; pip install wandb"):
        check_trackers(make_recipe(tmp_path, report_to=["tensorboard", "wandb"]))


def test_a_folder_of_logs_is_no_installed_tracker(tmp_path, monkeypatch):
    (tmp_path / "logs_of_a_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not trackers._is_installed("logs_of_a_tracker")
    assert trackers._is_installed("pytest")


def test_a_resumed_run_continues_its_record_and_a_new_one_begins_another(tmp_path):
    def options(name: str, step: int) -> dict[str, dict[str, Any]]:
        recipe, started = make_recipe(tmp_path / name, report_to=["wandb"]), []
        start(recipe)
        accelerator: Any = SimpleNamespace(
            is_main_process=True, init_trackers=lambda project, config, init_kwargs: started.append(init_kwargs)
        )
        start_trackers(accelerator, recipe, step)
        return started[0]

    first = options("a", 0)
    assert (first["wandb"]["name"], first["tensorboard"]) == ("a", {})
    save(tmp_path / "a" / "checkpoints", 5)
    resumed = options("a", 5)
    assert (resumed["wandb"], resumed["trackio"]) == (first["wandb"], first["trackio"])
    assert resumed["tensorboard"] == {"purge_step": 6}
    other = options("b", 0)
    assert other["wandb"]["id"] != first["wandb"]["id"]
    assert other["trackio"]["name"] != first["trackio"]["name"]
