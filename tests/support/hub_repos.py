"""What the Hub on loopback keeps, and what is to go wrong with it: see hub_server.py."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any

LARGE = (".safetensors", ".onnx", ".png", ".bin")


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches `route`, in place of an answer or to it.

    Attributes:
        status: answered in place of doing what was asked.
        cut: the connection ends within the answer's body, after the request was carried out; a PUT's within its own.
        seconds, until: how long the answer is held back, or until what is set.
        corrupt: a byte of the answer's body is another.
    """

    route: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    seconds: float = 0.0
    until: threading.Event | None = None
    corrupt: bool = False


@dataclass
class Repo:
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
    """A status, the Hub's code for it in X-Error-Code, and its sentence."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def described_file(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub's listings tell of it."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    described: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return described


def as_sibling(file: dict[str, Any]) -> dict[str, Any]:
    """The same, as the Hub's facts about a model tell it."""
    sibling = {"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]}
    if "lfs" in file:
        sibling["lfs"] = {"size": file["size"], "pointerSize": 130, "sha256": file["lfs"]["oid"]}
    return sibling
