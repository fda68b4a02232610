"""State of the loopback Hub: its repositories and the faults to inject. See hub_server.py."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any

LARGE = (".safetensors", ".onnx", ".png", ".bin")


@dataclass
class Fault:
    """Applied to the next `times` requests whose "METHOD /path" matches `route`.

    Attributes:
        status: returned instead of carrying out the request.
        cut: close the connection within the response, after carrying out the request; for PUT, within its body.
        seconds, until: delay the response, or wait for an event before it.
        other_checksums: report wrong hashes in the response.
    """

    route: str
    times: int = 1
    status: int | None = None
    cut: bool = False
    seconds: float = 0.0
    until: threading.Event | None = None
    other_checksums: bool = False


@dataclass
class Repo:
    """A model repository: commit → path → content, and branch → commit."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        digest = hashlib.sha1(f"{self.branches.get(branch)} {message}".encode())
        for path, content in sorted(files.items()):
            digest.update(f"{path} {len(content)} ".encode() + content)
        sha = digest.hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class HubError(Exception):
    """A status, the code in X-Error-Code, and the message."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in the response of the tree route."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry


def sibling(entry: dict[str, Any]) -> dict[str, Any]:
    """The same file in a model's info."""
    result = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        result["lfs"] = {"size": entry["size"], "pointerSize": 130, "sha256": entry["lfs"]["oid"]}
    return result
