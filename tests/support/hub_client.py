"""Uploads by the real client, in processes of their own, as `HF_ENDPOINT` and others are read when it is imported.

HUB_PYTHON names another interpreter for them: one with another version of huggingface_hub.
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
from hub_server import WRITER

PYTHON = os.environ.get("HUB_PYTHON", sys.executable)
FINISH = "python -m cskd_hf.publish runs/x org/name"

# Imports the client once, then forks for each upload and does what the command does at its end, with waits that a
# test can afford. It says the fork's process id, and its status in the end.
CLIENT = """
import json, os, signal, sys, traceback
from pathlib import Path
from cskd_hf.errors import run_command
from cskd_hf.results import hub_faults, upload
import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, get_session, get_token, snapshot_download

hub_faults.TIMEOUT, hub_faults.WAITS = 1.0, (0.05,) * 5
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it runs in the background

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in enumerate(("stdout", "stderr"), start=1):
            os.dup2(os.open(os.path.join(job["output"], name), os.O_WRONLY | os.O_CREAT), number)
        os.environ.pop("HF_TOKEN", None)
        os.environ.update(job["variables"])

        def main():
            url = upload.upload_release(Path(job["folder"]), "org/name", say=lambda line: print(line), **job["asked"])
            print(url)
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
            [PYTHON, "-c", CLIENT],
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

    def start(self, folder: Path, token: str | None = WRITER, **asked: Any) -> int:
        """Begin an upload; returns the process that does it."""
        assert self.process.stdin is not None
        self.output = Path(tempfile.mkdtemp(dir=folder.parent))
        asked = {"private": True, "revision": None, "replace": False, "message": "a release"} | asked
        job = {"folder": str(folder), "asked": asked | {"finish_command": FINISH}, "output": str(self.output)}
        job["variables"] = {"HF_TOKEN": token} if token is not None else {}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._line()

    def finish(self) -> Result:
        return Result(self._line(), *((self.output / name).read_text() for name in ("stdout", "stderr")))

    def upload(self, folder: Path, token: str | None = WRITER, **asked: Any) -> Result:
        self.start(folder, token, **asked)
        return self.finish()
