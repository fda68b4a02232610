"""Run Python programs in forks of a process that has imported torch, timm, datasets and this package.

    status = run(["-m", "cskd_hf.train", "recipe.yaml"], environment, (stdin, stdout, stderr))

Imports, which take seconds, happen once. As a script, this file is the client for launchers: `python -S -E forks.py
SOCKET PROGRAM…` runs PROGRAM in a fork with the environment and files of this process, forwards signals, and exits with
its status. So torchrun's ranks are real processes that start in milliseconds. The client takes the name `fork PID`.
"""

from __future__ import annotations

import array
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Arguments: the socket, this folder, the modules to import.
SERVER = """
import importlib, sys
address, folder, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
import PIL.Image
PIL.Image.init()
sys.path.append(folder)
import forks
forks.serve(address)
"""
PACKAGE = (
    *("accelerate", "datasets", "jinja2", "timm", "torch.distributed.run", "yaml"),
    *("cskd_hf.checks.run", "cskd_hf.checks.speed", "cskd_hf.data.inspect"),
    *("cskd_hf.engine.trainer", "cskd_hf.hub.publish", "cskd_hf.hub.upload", "cskd_hf.report.figures"),
)
LIBRARIES = ("timm", "safetensors.torch", "torchvision", "transformers.pipelines", "transformers.models.timm_wrapper")


def run(
    address: str,
    program: Sequence[str],
    variables: Mapping[str, str],
    files: Sequence[int],
    folder: str | None = None,
    begun: Callable[[int], object] = lambda pid: None,
) -> int:
    """Run a program in a fork; returns its exit status, or minus the number of the signal that killed it.

    Args:
        address: the server's socket.
        program: Python's arguments: `-m` and a module, or a file; then the program's arguments.
        variables: its complete environment.
        files: descriptors of its stdin, stdout and stderr.
        folder: its working directory, by default this process's.
        begun: called with its process id.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        job = {"program": list(program), "variables": dict(variables), "folder": folder or os.getcwd()}
        server.sendmsg([json.dumps(job).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
        begun(int(server.recv(32)))
        return int(server.recv(32))


def serve(address: str) -> None:
    """Fork for each request, until stdin is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _supervise(client)
            client.close()


def _supervise(client: socket.socket) -> None:
    """Fork the program, wait for it and send its process id and exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, ancillary, _, _ = client.recvmsg(1 << 20, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files = array.array("i", ancillary[0][2])
    child = os.fork()
    if child == 0:
        client.close()
        _run_job(json.loads(message), files)
    client.send(str(child).encode())
    client.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def _run_job(job: dict[str, Any], files: Sequence[int]) -> None:
    """Run the job in this process, as a fresh Python would, and exit."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job["variables"])
    os.chdir(job["folder"])
    first, *rest = job["program"]
    status = 0
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            if not sys.flags.isolated:
                sys.path.insert(0, os.path.dirname(first))
            runpy.run_path(first, run_name="__main__")
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    def forward_signals(pid: int) -> None:
        with open("/proc/self/comm", "w") as name:
            name.write(f"fork {pid}")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, _: os.kill(pid, number))

    status = run(sys.argv[1], sys.argv[2:], os.environ, (0, 1, 2), begun=forward_signals)
    if status < 0:  # die of the same signal
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
