"""Uploads by the real client to the loopback Hub.

They run in a subprocess, because the client reads `HF_ENDPOINT` at import. HUB_PYTHON names another interpreter for it,
to test another version of huggingface_hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from command_runs import Result, environment
from hub_server import WRITER, Hub

PYTHON = os.environ.get("HUB_PYTHON", sys.executable)
FINISH = "python -m cskd_hf.publish runs/x org/name"

# Imports the client once, then forks for each upload, with short waits. Prints the fork's process id, then its status.
PROGRAM = """
import json, os, signal, sys, traceback
from pathlib import Path
from cskd_hf.errors import run_command
from cskd_hf.hub import upload
import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, get_session, get_token

upload.TIMEOUT, upload.WAITS = 1.0, (0.05,) * 3
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in enumerate(("stdout", "stderr"), start=1):
            os.dup2(os.open(os.path.join(job["output"], name), os.O_WRONLY | os.O_CREAT), number)
        os.environ.pop("HF_TOKEN", None)
        os.environ.update(job["variables"])

        def main():
            print(upload.upload_release(Path(job["folder"]), "org/name", say=print, **job["keywords"]))
            return 0

        status = 1
        try:
            run_command(main)
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Client:
    """Uploads to one Hub, one at a time."""

    def __init__(self, endpoint: str, home: Path, **variables: str) -> None:
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        self.process = subprocess.Popen(
            [PYTHON, "-c", PROGRAM],
            env=environment() | hub | variables,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def start(self, folder: Path, token: str | None = WRITER, **keywords: Any) -> int:
        """Begin an upload; returns its process id."""
        assert self.process.stdin is not None
        self.output = Path(tempfile.mkdtemp(dir=folder.parent))
        keywords = {"private": True, "revision": None, "replace": False, "message": "a release"} | keywords
        job = {"folder": str(folder), "keywords": keywords | {"finish_command": FINISH}, "output": str(self.output)}
        job["variables"] = {"HF_TOKEN": token} if token is not None else {}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._line()

    def finish(self) -> Result:
        return Result(self._line(), *((self.output / name).read_text() for name in ("stdout", "stderr")))

    def upload(self, folder: Path, token: str | None = WRITER, **keywords: Any) -> Result:
        self.start(folder, token, **keywords)
        return self.finish()


def write_release(folder: Path, weights: bytes, card: str = "hello") -> Path:
    for name, content in {
        "model.safetensors": weights,
        "README.md": f"---\nlibrary_name: timm\n---\n{card}\n".encode(),
        "config.json": b"{}",
        ".eval_results/digits.yaml": b"- value: 1\n",
        "figures/reliability.png": b"PNG",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def published(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    files = hub.repos["org/name"].files(revision)
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def error_line(result: Result) -> str:
    """The last line of a command that failed with a `UserError`."""
    lines = result.stderr.strip().splitlines()
    assert result.status == 2, result.stderr
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
    return lines[-1]


def assert_rerun_finishes(hub: Hub, client: Client, release: Path) -> None:
    """Without faults, the same upload again ends with one commit in all."""
    hub.faults.clear()
    status, _, stderr = client.upload(release)
    assert status == 0, stderr
    assert published(hub) == files_of(release)
    assert hub.repos["org/name"].messages == ["initial commit", "a release"]
