"""A Hub on loopback, a client of it, and a release to upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Client
from hub_server import Hub
from hub_uploads import write_release


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    with Hub() as hub, Client(hub.endpoint, tmp_path_factory.mktemp("home")) as client:
        yield hub, client


@pytest.fixture
def hub(running: tuple[Hub, Client]) -> Hub:
    """An empty one."""
    hub = running[0]
    for kept in (hub.repos, hub.large, hub.requests, hub.faults):
        kept.clear()
    return hub


@pytest.fixture
def client(running: tuple[Hub, Client]) -> Client:
    return running[1]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release", weights=b"first weights" * 1000)
