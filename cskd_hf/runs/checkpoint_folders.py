"""The checkpoints in a run folder, and whether they are intact; imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_hf.files import sha256

NAME = r"step-\d{8,}"
STATE = "state.json"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; other files in the folder are ignored."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if re.fullmatch(NAME, path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of updates before a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums match; damaged ones are skipped with a warning."""
    return newest_intact(list_checkpoints(folder))


def newest_intact(checkpoints: Sequence[Path]) -> Path | None:
    """The last of these checkpoints whose checksums match; damaged ones are skipped with a warning."""
    for path in reversed(checkpoints):
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            state_digest = state["sha256"].pop(STATE)
            damaged = [name for name, digest in state["sha256"].items() if sha256(path / name) != digest]
            if state_sha256(state) != state_digest:
                damaged = [STATE]
        except (OSError, ValueError, KeyError) as error:
            damaged = [f"{STATE}: {error}"]
        if not damaged:
            return path
        print(f"warning: {path} is damaged ({', '.join(damaged)}); trying the one before it", file=sys.stderr)
    return None


def state_sha256(state: dict[str, Any]) -> str:
    """Of the state without this checksum."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
