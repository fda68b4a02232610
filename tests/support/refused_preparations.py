"""Preparations run in this process, and the one line that a refused one is told with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from originals import ORIGINALS, Original, packed

from cskd_hf.errors import UserError


def prepare(name: str, *arguments: Any, any_counts: bool = True) -> int:
    options = ["--allow-other-counts"] if any_counts else []
    return importlib.import_module(f"prepare_{name}").main([*map(str, arguments), *options])


def refusal(name: str, *arguments: Any, any_counts: bool = True, begun: bool = False) -> str:
    """The one line a preparation is refused with; it leaves nothing where there was nothing.

    Args:
        begun: images were being written; those shards that are whole are kept for the next run.
    """
    out = Path(arguments[-1])
    before = sorted(out.rglob("*")) if out.is_dir() else out.exists()
    with pytest.raises(UserError) as caught:
        prepare(name, *arguments, any_counts=any_counts)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    if begun and out.exists():
        assert [path.name for path in out.iterdir()] == [".partial"]
        assert not [path for path in out.rglob("*") if path.suffix == ".tmp" or path.name.startswith("spool")]
    else:
        assert (sorted(out.rglob("*")) if out.is_dir() else out.exists()) == before
    return message


def changed(name: str, change: Callable[[Original], Any], root: Path, kind: str = "tar") -> list[Path]:
    original = ORIGINALS[name]()
    change(original)
    return packed(root, original, kind)


def members_of(original: Original) -> dict[str, bytes]:
    """Of the archive of the images."""
    return next(iter(original.files.values()))
