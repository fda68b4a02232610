"""Fixtures that tests of several packages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_client import Client
from hub_server import Hub
from hub_uploads import write_release
from tiny_runs import TRANSFORM, Run, TinyNet, assert_same_tensors, draw_split
from torch import Tensor

from cskd_hf.data.splits import ImageSplit
from cskd_hf.recipe.sections import TransformSection


@pytest.fixture
def make_run() -> type[Run]:
    return Run


@pytest.fixture
def make_split() -> Callable[..., ImageSplit]:
    return draw_split


@pytest.fixture
def make_network() -> type[TinyNet]:
    return TinyNet


@pytest.fixture
def transform() -> TransformSection:
    return TRANSFORM


@pytest.fixture
def same_tensors() -> Callable[[dict[str, Tensor], dict[str, Tensor]], None]:
    return assert_same_tensors


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


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it made of Parquet files, by path: not in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
