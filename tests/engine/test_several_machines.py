"""Two machines: network namespaces joined by a virtual cable that the test can pull."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from command_runs import draw_folder, environment, metrics_lines, torchrun, wait_for_a_checkpoint, write_recipe
from safetensors.torch import load_file

MACHINES = {"cskd-a": "10.77.31.1", "cskd-b": "10.77.31.2"}
# Unique per test process, so that two test runs do not collide.
NAMESPACES = {name: f"{name}-{os.getpid()}" for name in MACHINES}
SETTINGS = ("run.checkpoint_steps=1", "scheduler.num_epochs=6", "run.ddp_timeout=10")


def ip(*words: str, inside: str | None = None) -> None:
    command = ["ip", *words] if inside is None else ["ip", "netns", "exec", NAMESPACES[inside], "ip", *words]
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[None]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs iproute2 and root, to create network namespaces")
    try:
        for name in MACHINES:
            ip("netns", "add", NAMESPACES[name])
        first, second = NAMESPACES.values()
        ip("link", "add", "cable-a", "netns", first, "type", "veth", "peer", "name", "cable-b", "netns", second)
        for name, address in MACHINES.items():
            ip("address", "add", f"{address}/24", "dev", f"cable-{name[-1]}", inside=name)
            for device in ("lo", f"cable-{name[-1]}"):
                ip("link", "set", device, "up", inside=name)
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "delete", NAMESPACES[name]], capture_output=True)


def start(machine: str, *arguments: object) -> subprocess.Popen[str]:
    """torchrun with one rank, on one machine."""
    address = MACHINES[machine]
    rendezvous = ["--rdzv_backend=c10d", "--rdzv_id=1", f"--rdzv_endpoint={MACHINES['cskd-a']}:29400"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *rendezvous]
    # Without DNS entries torchrun cannot tell which machine hosts the rendezvous.
    launcher.append(f"--rdzv_conf=is_host={int(machine == 'cskd-a')}")
    command = [*launcher, f"--local_addr={address}", "-m", "cskd_hf.train", *map(str, arguments)]
    return subprocess.Popen(
        [
            "ip",
            "netns",
            "exec",
            NAMESPACES[machine],
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {machine}; exec "$@"',
            "-",
            *command,
        ],
        env=environment() | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": f"cable-{machine[-1]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return next((line for line in process.stderr if line.startswith("error: ")), "no error line")


@pytest.mark.slow
def test_a_disconnected_machine_is_named_and_the_run_resumes_to_the_same_weights(tmp_path, machines):
    images = draw_folder(tmp_path / "images", {"train": (10, 10, 10), "test": (3, 3, 3)})
    recipe = write_recipe(tmp_path / "run.yaml", images, data={"batch_size": 2})
    folder = tmp_path / "run"
    both = [start(machine, recipe, *SETTINGS) for machine in MACHINES]
    try:
        wait_for_a_checkpoint(both[0], folder)
        ip("link", "set", "cable-b", "down", inside="cskd-b")
        errors = [error_line(process) for process in both]
    finally:
        # The ranks have exited, but the disconnected torchrun would wait minutes for the rendezvous.
        for process in both:
            process.kill()
    stdout = [process.communicate()[0] for process in both]
    assert "process 0 on cskd-a (pid " in stdout[0]
    assert "process 1 on cskd-b (pid " in stdout[0]
    for line, other in zip(errors, ("process 1 on cskd-b", "process 0 on cskd-a"), strict=True):
        assert line.startswith(f"error: lost {other} (pid ")
        assert "the last complete checkpoint is" in line
    assert not (folder / "summary.json").exists()

    ip("link", "set", "cable-b", "up", inside="cskd-b")
    both = [start(machine, recipe, *SETTINGS) for machine in MACHINES]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "resuming at step" in outputs[0][0]

    one_machine = tmp_path / "one_machine"
    assert torchrun("-m", "cskd_hf.train", recipe, *SETTINGS, f"run.output_dir={one_machine}").status == 0
    for name in ("model/model.safetensors", "predictions.safetensors"):
        first, second = load_file(folder / name), load_file(one_machine / name)
        assert [key for key in first if not first[key].equal(second[key])] == [], name
    assert metrics_lines(folder) == metrics_lines(one_machine)
