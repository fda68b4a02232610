"""Atomic files with the umask's mode."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cskd_hf.files import write_bytes, write_json, write_tensors


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    image = torch.rand(1, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, {"a": shared, "b": shared, "image": image}, {"format": "pt"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("b"), shared)
        assert torch.equal(file.get_tensor("image"), image)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # the umask's


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"nll": float("inf"), "all": [float("nan"), -float("inf"), 0.1], "é": None})
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content == {"nll": None, "all": [None, None, 0.1], "é": None}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
