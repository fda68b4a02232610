"""One CS-KD step, export and reload of networks of several families; what is recorded of those that fail."""

from __future__ import annotations

import json
import os
import sys

import pytest

FAMILIES = [
    "fbnetc_100",  # other BatchNorm settings with pretrained=True
    "lambda_resnet26t",
    "test_byobnet",
    "test_maxvit",
    "test_vit_relpos",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_trains_a_step_at_its_smallest_size_and_reloads(name):
    from sweep_backbones import attempt

    result = attempt(name)
    assert "problem" not in result
    assert not result["meta"]
    assert result["size"] <= 64


def test_a_large_network_trains_on_the_meta_device():
    from sweep_backbones import attempt

    result = attempt("vit_huge_patch14_224")
    assert result["meta"]
    assert result["parameters"] > 600_000_000


def test_a_crash_and_an_error_are_results_and_the_sweep_resumes(tmp_path, monkeypatch, capsys):
    import sweep_backbones

    def fail(name: str) -> dict[str, object]:
        if name == "test_vit":
            os._exit(3)
        raise ValueError("no\nsuch size")

    monkeypatch.setattr(sweep_backbones, "attempt", fail)
    file = tmp_path / "results.jsonl"
    for patterns in (["test_vit"], ["test_vit", "test_vit2"]):
        monkeypatch.setattr(sys, "argv", ["sweep_backbones.py", str(file), *patterns])
        sweep_backbones.main()
    results = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(result["name"], result["problem"]) for result in results] == [
        ("test_vit", "the process died with status 3"),
        ("test_vit2", "ValueError: no such size"),
    ]
    assert "| trained, exported and reloaded | 2 | 0 |" in capsys.readouterr().out
