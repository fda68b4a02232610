"""Fixtures shared by several packages' tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
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


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's `datasets` cache clean: it caches converted Parquet files by path."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
