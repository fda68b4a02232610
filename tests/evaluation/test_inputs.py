from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cskd_hf.errors import UserError
from cskd_hf.evaluation.inputs import MAX_HEADER, check_header, check_outputs, find_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images a, b/c and b/d, a hidden one, and a text; the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("b/d.PNG", "b/c.webp", "a.jpg", "notes.txt", ".thumbs/x.jpg", "b/.hidden.jpg", "[1].jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["b/d.PNG", "a.jpg"], ["b/d.PNG", "a.jpg"]),  # files stay in order
        (["notes.txt"], ["notes.txt"]),  # a named file is taken whatever it is called
        (["."], ["./[1].jpg", "./a.jpg", "./b/c.webp", "./b/d.PNG"]),
        (["b", "b/c.webp"], ["b/c.webp", "b/d.PNG"]),  # each once
        (["**/*.[jw]*"], ["[1].jpg", "a.jpg", "b/c.webp"]),
        (["*/"], None),  # matches the empty folder, too
        (["[1].jpg"], ["[1].jpg"]),  # a file of that name is no pattern
        (["missing.jpg", "a.jpg"], ["missing.jpg", "a.jpg"]),
    ],
)
def test_files_folders_and_patterns(folder, arguments, expected):
    if expected is None:
        with pytest.raises(UserError, match="empty/: no image in this folder or below it"):
            find_images(arguments)
    else:
        assert find_images(arguments) == expected


def test_standard_input_names_files_and_folders(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a.jpg\r\n\n[1].jpg\nb\n")))
    assert find_images(["-"]) == ["a.jpg", "[1].jpg", "b/c.webp", "b/d.PNG"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^-: several processes cannot share standard input; name a folder"):
        find_images(["-"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.jpg"], "^x.jpg: no such file; name images"),
        (["x.jpg", "y.jpg"], "^x.jpg: no such file \\(nor the other 1\\); name images"),
        (["a.jpg", "*.gif"], r"^\*\.gif: no file matches this pattern"),
        (["a.jpg", "empty"], "^empty: no image in this folder"),
        (["a.jpg", os.fsdecode(b"\xff.jpg")], r"b'\\xff.jpg' is not UTF-8; rename it"),
        (["-"], "^-: standard input is empty"),
    ],
)
def test_names_without_an_image_are_one_line(folder, monkeypatch, arguments, message):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    with pytest.raises(UserError, match=message):
        find_images(arguments)


def test_a_file_that_cannot_be_written_is_rejected_before_the_work(folder):
    check_outputs({"--json": None, "--html": Path("new.html"), "--latex": Path("new.tex")})
    for path, message in (
        (Path("b"), "b is a folder"),
        (Path("x/y.json"), "x is no folder"),
        (Path("a.jpg/y"), "a.jpg"),
    ):
        with pytest.raises(UserError, match=f"^--json: {message}"):
            check_outputs({"--json": path})
    with pytest.raises(UserError, match=r"^--html: b/\.\./new is also the file of --json; name another one$"):
        check_outputs({"--json": Path("new"), "--html": Path("b/../new")})


def test_more_paths_than_a_safetensors_file_holds_are_rejected(monkeypatch):
    monkeypatch.setattr("cskd_hf.evaluation.inputs.MAX_HEADER", MAX_HEADER // 1_000_000)
    check_header(["a.jpg"] * 5, "--features")
    with pytest.raises(UserError, match="--features: 15 paths of 167 bytes do not fit"):
        check_header(["a.jpg"] * 15, "--features")
