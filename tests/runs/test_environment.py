"""environment.json: one entry per segment of a run."""

from __future__ import annotations

import re

import pytest
from saved_checkpoints import save
from summaries import ENVIRONMENT, make_recipe, start

from cskd_hf.errors import UserError
from cskd_hf.runs import environment
from cskd_hf.runs.environment import hardware_line, notes_of_changes, read_environments, record_environment

OTHER_COMMIT = ENVIRONMENT | {"git": {"commit": "fedcba9876", "dirty": True}}


def steps(folder) -> list[int]:
    return [segment["started_at_step"] for segment in read_environments(folder)]


def test_a_restart_adds_a_segment_only_if_the_environment_differs(tmp_path):
    record_environment(tmp_path, ENVIRONMENT, 0)
    record_environment(tmp_path, ENVIRONMENT, 100)
    assert read_environments(tmp_path) == [{"started_at_step": 0, **ENVIRONMENT}]
    record_environment(tmp_path, OTHER_COMMIT, 200)
    record_environment(tmp_path, OTHER_COMMIT, 300)
    record_environment(tmp_path, ENVIRONMENT, 400)
    assert read_environments(tmp_path) == [
        {"started_at_step": 0, **ENVIRONMENT},
        {"started_at_step": 200, **OTHER_COMMIT},
        {"started_at_step": 400, **ENVIRONMENT},
    ]


def test_segments_whose_updates_are_repeated_are_dropped(tmp_path):
    record_environment(tmp_path, ENVIRONMENT, 0)
    record_environment(tmp_path, OTHER_COMMIT, 200)
    record_environment(tmp_path, ENVIRONMENT | {"num_processes": 2}, 200)  # stopped before its first checkpoint
    assert steps(tmp_path) == [0, 200]
    record_environment(tmp_path, OTHER_COMMIT, 150)  # the checkpoint of step 200 was damaged
    assert steps(tmp_path) == [0, 150]
    record_environment(tmp_path, OTHER_COMMIT, 0)
    assert read_environments(tmp_path) == [{"started_at_step": 0, **OTHER_COMMIT}]


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"seg'])
def test_a_damaged_file_is_a_user_error(tmp_path, content):
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"environment\.json: cannot be read"):
        read_environments(tmp_path)


def test_a_run_resumed_on_other_processes_or_another_commit_has_two_segments(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "_git", lambda: {"commit": "before", "dirty": False})
    start(make_recipe(tmp_path), 2)
    save(tmp_path / "checkpoints", 5)
    start(make_recipe(tmp_path), 2)
    assert steps(tmp_path) == [0]
    assert capsys.readouterr().err == ""
    start(make_recipe(tmp_path), 4)
    assert "was trained on 2 processes and resumes on 4: an update now has 4/2 as many" in capsys.readouterr().err
    save(tmp_path / "checkpoints", 9)
    monkeypatch.setattr(environment, "_git", lambda: {"commit": "after", "dirty": False})
    start(make_recipe(tmp_path), 4)
    segments = [(s["started_at_step"], s["num_processes"], s["git"]["commit"]) for s in read_environments(tmp_path)]
    assert segments == [(0, 2, "before"), (5, 4, "before"), (9, 4, "after")]


def test_the_hardware_is_one_line():
    assert hardware_line(ENVIRONMENT) == "8 × Fast GPU, bf16"
    hardware = {"accelerators": [], "cpu": "a CPU", "torch_threads": 1}
    alone = ENVIRONMENT | {"hardware": hardware, "num_processes": 1, "mixed_precision": "no"}
    assert hardware_line(alone) == "1 × a CPU (CPU), 1 thread each, float32"


def test_images_and_processes_that_changed_between_two_segments_are_noted():
    def segment(step, **changes):
        return {"started_at_step": step, **ENVIRONMENT, **changes}

    segments = [segment(0, images={"train": 1}), segment(5, images={"train": 1})]
    assert notes_of_changes(segments) == []
    assert notes_of_changes([*segments, segment(8, images={"train": 2})]) == [
        "the images changed at step 8: earlier updates saw others, maybe some that hold-out or test set have now"
    ]
    (note,) = notes_of_changes([*segments, segment(8, images={"train": 1}, num_processes=2)])
    assert note == "the number of processes changed at step 8: from 8 to 2, and with it the images per update"


def test_a_forced_resume_with_other_settings_is_noted_even_if_stopped_at_once(tmp_path):
    start(make_recipe(tmp_path))
    save(tmp_path / "checkpoints", 5)
    other = make_recipe(tmp_path, method="cross_entropy", resume="force", clip_grad=2.0, logging_steps=7)
    for _ in range(2):  # the second finds the other recipe in the folder
        start(other)
    assert steps(tmp_path) == [0, 5]
    (note,) = notes_of_changes(read_environments(tmp_path))
    assert re.fullmatch(
        r"settings changed at step 5: .*method\.name.*, run\.clip_grad; earlier updates had others", note
    )
    assert "logging_steps" not in note


def test_moved_images_are_no_change():
    segment = {"started_at_step": 0, **ENVIRONMENT, "images": {}}
    assert notes_of_changes([segment, segment | {"settings": {"data": {"dataset": "elsewhere"}}}]) == []
