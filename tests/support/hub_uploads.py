"""Releases as files, and what an upload of them must leave on the Hub and say."""

from __future__ import annotations

from pathlib import Path

from command_runs import Result
from hub_client import Client
from hub_server import Hub


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


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def holds(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    files = hub.repos["org/name"].files(revision)
    return {name: file for name, file in files.items() if name != ".gitattributes"}


def refused(result: Result) -> str:
    """The error's one line, which comes last."""
    status, _, stderr = result
    lines = stderr.strip().splitlines()
    assert status == 2, stderr
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in stderr
    return lines[-1]


def finishes(hub: Hub, client: Client, release: Path) -> None:
    """The same command again ends what the first began, with one commit in all."""
    hub.faults.clear()
    status, _, stderr = client.upload(release)
    assert status == 0, stderr
    assert holds(hub) == content(release)
    assert hub.repos["org/name"].messages == ["initial commit", "a release"]
