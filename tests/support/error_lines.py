"""What commands print about mistakes in a recipe, compared with patterns in which … stands for any text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from cskd_hf.errors import run_command
from cskd_hf.recipe.__main__ import main


def assert_lines(printed: Sequence[str], expected: Sequence[str]) -> None:
    assert len(printed) == len(expected), "\n".join(printed)
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(".*".join(map(re.escape, f"error: {pattern}".split("…"))), line), line


def error_lines(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """What `python -m cskd_hf.recipe` prints before it exits with status 2."""
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main(argv))
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()
