"""The part of the Hub's protocol that serves one dataset repository."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One repository, at the root folder; all others fail as on the Hub."""

    root: Path
    requested: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/gated/" in path:
            return self.answer(401, error="GatedRepo", message="Access to dataset is restricted.")
        if "/closed/" in path and "/resolve/" in path:  # public metadata, gated files
            return self.answer(403, error="GatedRepo", message="Your request awaits a review.")
        path = path.replace("closed/set", "ILSVRC/imagenet-1k")
        if "ILSVRC/imagenet-1k" not in path:
            return self.answer(401, error="RepoNotFound", message="Repository not found")
        if "nowhere" in path:
            return self.answer(404, error="RevisionNotFound", message="Invalid rev id: nowhere")
        files = sorted(str(file.relative_to(self.root)) for file in self.root.rglob("*") if file.is_file())
        if path.startswith("/api/datasets/ILSVRC/imagenet-1k/tree/"):
            tree = [
                {"type": "file", "path": file, "size": (self.root / file).stat().st_size, "oid": "0" * 40}
                for file in files
            ]
            return self.answer(200, json.dumps(tree).encode())
        if path.startswith("/api/datasets/ILSVRC/imagenet-1k"):
            siblings = [{"rfilename": file} for file in files]
            info = {"id": "ILSVRC/imagenet-1k", "sha": SHA, "siblings": siblings, "private": False, "tags": []}
            return self.answer(200, json.dumps(info | {"downloads": 0, "likes": 0}).encode())
        match = re.fullmatch(r"/datasets/ILSVRC/imagenet-1k/resolve/[^/]+/(.+)", path)
        if match is None or match[1] not in files:
            return self.answer(404, error="EntryNotFound", message="Entry not found")
        self.requested.append(match[1])
        return self.answer(200, (self.root / match[1]).read_bytes(), etag=match[1])

    def answer(self, status: int, body: bytes = b"", error: str = "", message: str = "", etag: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, "X-Error-Code": error}
        headers |= {"X-Error-Message": message, "ETag": f'"{etag.replace("/", "-")}"' if etag else ""}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
