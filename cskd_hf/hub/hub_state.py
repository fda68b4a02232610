"""What a branch of the Hub holds, against a folder here: compared by size and hash, with no file downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cskd_hf.files import sha256

# Files whose bytes are weights. ONNX is left out: it is derived from them, and not byte for byte the same each time.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
# The Hub's own, made with the repository.
_OF_THE_HUB = ".gitattributes"


class BranchState(NamedTuple):
    """A branch as it stands: its newest commit, and path → (bytes, kind of hash, hash)."""

    commit: str
    private: bool
    files: dict[str, tuple[int, str, str]]


class Difference(NamedTuple):
    """Paths: here and not there or otherwise, there and not here, and weights there that are not ours."""

    changed: list[str]
    extra: list[str]
    other_weights: list[str]


def branch_state(api: Any, repo_id: str, branch: str | None) -> BranchState:
    info = api.model_info(repo_id, revision=branch, files_metadata=True)
    files = {
        file.rfilename: (file.size, "sha256", file.lfs.sha256) if file.lfs else (file.size, "git", file.blob_id)
        for file in info.siblings
    }
    return BranchState(info.sha, info.private, files)


def compare(local: Mapping[str, Path], state: BranchState, clear: bool) -> Difference:
    """What a commit has to change; `clear` says that files of another release go even where the weights are ours."""
    changed = [name for name, path in local.items() if state.files.get(name) != _described(path, state.files.get(name))]
    weights = [name for name in state.files if name.endswith(_WEIGHTS)]
    shared = [name for name in weights if name in local]
    other = [name for name in shared if name in changed] if shared else weights
    extra = [name for name in state.files if name not in local and name != _OF_THE_HUB] if other or clear else []
    return Difference(changed, extra, other)


def _described(path: Path, as_there: tuple[int, str, str] | None) -> tuple[int, str, str]:
    """A file's size and hash, in the kind that the Hub keeps of it: SHA-256 of large files, git's of others."""
    size = path.stat().st_size
    if as_there is None or as_there[0] != size:
        return size, "none", ""
    if as_there[1] == "sha256":
        return size, "sha256", sha256(path)
    return size, "git", hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest()


def other_weights_line(local: Mapping[str, Path], state: BranchState, difference: Difference, repo_id: str) -> str:
    shown = []
    for name in difference.other_weights:
        size, _, digest = state.files[name]
        there = f"there {size:,} bytes, {digest[:12]}…"
        here = (
            f"here {local[name].stat().st_size:,} bytes, {sha256(local[name])[:12]}…" if name in local else "not here"
        )
        shown.append(f"{name} ({there}; {here})")
    others = [name for name in difference.changed if name in state.files and name not in difference.other_weights]
    gone = [name for name in difference.extra if name not in difference.other_weights]
    more = f"; other content too: {', '.join(others)}" if others else ""
    more += f"; only there: {', '.join(gone)}" if gone else ""
    return (
        f"{repo_id} holds other weights: {', '.join(shown)}{more}; write --replace to put these in their place, "
        "or --revision BRANCH to put them beside"
    )
