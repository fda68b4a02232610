from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Client, write_release
from hub_server import Hub


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    with Hub() as hub, Client(hub.endpoint, tmp_path_factory.mktemp("home")) as client:
        yield hub, client


@pytest.fixture
def hub(running: tuple[Hub, Client]) -> Hub:
    """An empty Hub."""
    hub = running[0]
    for state in (hub.repos, hub.large, hub.requests, hub.faults):
        state.clear()
    return hub


@pytest.fixture
def client(running: tuple[Hub, Client]) -> Client:
    return running[1]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release", weights=b"first weights" * 1000)
