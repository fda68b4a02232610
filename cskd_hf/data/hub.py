"""Image sets on the Hub and folders laid out like one: download only the requested splits, explain every failure."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict, load_dataset, load_dataset_builder
from datasets.data_files import sanitize_patterns
from datasets.exceptions import DatasetNotFoundError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cskd_hf.data.class_lists import Files, open_tables
from cskd_hf.data.csv_files import read_csv, reject_changed_labels
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.sections import DataSection

_METADATA = ("README.md", "dataset_infos.json")  # the other files of a repository are data


def open_hub(path: str, data: DataSection, splits: list[str], data_files: Mapping[str, str]) -> DatasetDict:
    """The splits of a Hub dataset, downloading no file of another split where the repository lists them.

    Args:
        path: Hub id.
        data_files: split → pattern of its files, instead of the repository's own list.

    Raises:
        UserError: not a Hub id, or the Hub does not serve the set; the message says what to do.
    """
    # load_dataset would accept other names: 'imagefolder' and 'parquet' mean the working directory to it.
    if path.count("/") != 1 or path.startswith(("/", ".", "~")):
        allowed = f"a folder, a Hub id (owner/name), or one of the catalog's: {', '.join(CATALOG)}"
        raise UserError(f"data.dataset: read {data.dataset!r}; write {allowed}")
    try:
        root = _snapshot(path, data.revision, list(_METADATA))
        patterns = {name: [pattern] for name, pattern in data_files.items()} or described_files(root, data.config_name)
        requested = set(map(same_split, splits))
        files = [file for name, of_split in patterns.items() if same_split(name) in requested for file in of_split]
        # Without a list of files per split, only the whole repository is sure to contain them.
        root = _snapshot(path, data.revision, [*_METADATA, *files] if patterns else None)
        return open_files(root, splits, data, patterns)
    except UserError:
        raise
    except Exception as error:  # a dozen unrelated types: connection, gating, missing script, bad file, …
        raise UserError(f"data.dataset: {_explain(error, path, data.revision)}") from error


def _snapshot(path: str, revision: str | None, files: list[str] | None, local: bool = False) -> Path:
    """The cache folder with these files of a repository, named after the commit."""
    return Path(
        snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns=files, local_files_only=local)
    )


def cached_commit(data: DataSection) -> str | None:
    """The commit that a Hub dataset was loaded from; None for other data and for what is not in the cache."""
    path = CATALOG[data.dataset].path if data.dataset in CATALOG else data.dataset
    if path is None or (data.dataset not in CATALOG and os.path.exists(data.dataset)):
        return None
    try:
        return _snapshot(path, data.revision, [], local=True).name
    except (OSError, ValueError):
        return None


def _explain(error: Exception, path: str, revision: str | None) -> str:
    """Why a Hub dataset could not be loaded and what to do, in one line."""
    page = f"{constants.ENDPOINT}/datasets/{path}"
    causes = _causes(error)
    reason = " ".join(str(error).split())
    unwritable = explain_cache(error)
    if unwritable is not None:
        return f"the Hub dataset {path!r}: {unwritable}"
    status = next((c.response.status_code for c in causes if isinstance(c, HfHubHTTPError) and c.response), None)
    gated = isinstance(error, GatedRepoError) or (isinstance(error, DatasetNotFoundError) and "gated" in reason)
    known_gated = any(entry.gated for entry in CATALOG.values() if entry.path == path)
    if gated or status == 403 or (status == 401 and (known_gated or not isinstance(error, RepositoryNotFoundError))):
        return f"the Hub dataset {path!r} is gated: accept the terms at {page}, then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"the Hub dataset {path!r} has no revision {revision!r}: data.revision is a branch, tag or commit of {page}"
        )
    if isinstance(error, (RepositoryNotFoundError, DatasetNotFoundError)):
        return f"the Hub has no dataset {path!r}, or it is private: check {page}, or log in with `hf auth login`"
    if constants.HF_HUB_OFFLINE and isinstance(error, (OSError, ValueError)):
        return (
            f"the Hub dataset {path!r} is not in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set: "
            "unset it once to download the set, or write data.dataset=FOLDER"
        )
    if isinstance(error, (LocalEntryNotFoundError, ConnectionError)) or any("Connect" in str(type(c)) for c in causes):
        return (
            f"the Hub dataset {path!r} is not in the cache, and {constants.ENDPOINT} cannot be reached: "
            f"write data.dataset=FOLDER, or retry with a network connection ({reason})"
        )
    return f"the Hub dataset {path!r} could not be loaded: {type(error).__name__}: {reason}"


def open_files(root: Path, splits: list[str], data: DataSection, patterns: Mapping[str, list[str]]) -> DatasetDict:
    """The files of a repository in a local folder; of Parquet, Arrow and CSV, only the requested splits are read."""
    files = {
        name: sorted(str(file) for pattern in patterns[name] for file in root.glob(pattern) if file.is_file())
        for name in patterns
    }
    if not any(files.values()):
        data_files = load_dataset_builder(str(root), name=data.config_name).config.data_files
        files = {str(name): list(map(str, of_split)) for name, of_split in data_files.items()}
    files = {name: of_split for name, of_split in files.items() if of_split}
    formats = {Path(file).suffix for of_split in files.values() for file in of_split}
    if len(formats) != 1 or not formats <= {".parquet", ".arrow", ".csv"}:
        loaded = _prepare(str(root), files, name=data.config_name)
        reject_changed_labels([Path(file) for of_split in files.values() for file in of_split], loaded, data)
        return loaded
    requested = set(map(same_split, splits))
    chosen = {name: of_split for name, of_split in files.items() if same_split(name) in requested}
    if len(chosen) < len(requested):  # the caller reports the missing split and the available names
        return DatasetDict(dict.fromkeys(files))
    if formats == {".csv"}:
        return DatasetDict({name: read_csv(root, of_split, data) for name, of_split in chosen.items()})
    # Files not written by `datasets` have their features only in the README.
    infos = DatasetInfosDict.from_directory(str(root))
    info = infos.get(data.config_name or "default") or (next(iter(infos.values())) if len(infos) == 1 else None)
    features = None if info is None else info.features

    def load(of_splits: Files) -> DatasetDict:
        escaped = {name: list(map(glob.escape, of_split)) for name, of_split in of_splits.items()}
        return _prepare(formats.copy().pop().removeprefix("."), of_splits, data_files=escaped, features=features)

    return open_tables(chosen, data, load, features, f"{root}/README.md")


def _prepare(kind: str, files: Files, **options: Any) -> DatasetDict:
    """`load_dataset` with a cache of its own for each version of the files.

    By itself it finds the cache by their paths and modification times alone, and would serve a file's old content after
    a change that keeps both.
    """
    states = [os.stat(file) for of_split in files.values() for file in of_split]
    # ctime moves with every change of content, and no program can set it.
    version = hashlib.sha256(repr([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states]).encode()).hexdigest()
    cache = os.path.join(datasets.config.HF_DATASETS_CACHE, f"cskd_hf-{version[:16]}")
    return load_dataset(kind, cache_dir=cache, **options)


def _causes(error: BaseException) -> list[BaseException]:
    return [error, *filter(None, (error.__cause__, error.__context__))]


def explain_cache(error: BaseException) -> str | None:
    """One line if the cache of downloaded and prepared sets is read-only, full, or cannot be created."""
    for cause in _causes(error):
        if not isinstance(cause, OSError):
            continue
        file, caches = str(cause.filename or ""), (constants.HF_HOME, str(datasets.config.HF_DATASETS_CACHE))
        in_cache = file and any(file.startswith(cache) or cache.startswith(file + os.sep) for cache in caches)
        if in_cache or cause.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = " ".join(str(cause).split())
            return (
                f"its cache in {caches[0]} cannot be written ({reason}); set HF_HOME to a folder that can, with space"
            )
    return None


def described_files(root: Path, config_name: str | None) -> dict[str, list[str]]:
    """Split → patterns of its files, from the README's `configs`; empty without any."""
    if not (root / "README.md").is_file():
        return {}
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(root / "README.md").data)
    if not configs:
        return {}
    name = config_name or configs.get_default_config_name()
    if name not in configs:
        read = "is not set" if config_name is None else f"read {config_name!r}"
        raise UserError(f"data.config_name: {read}; the set has {', '.join(configs)}")
    files, folder = configs[name].get("data_files"), configs[name].get("data_dir")
    return sanitize_patterns(files) if files and not folder else {}


def same_split(split: str) -> str:
    """One name for val, valid and validation: `datasets` renames some of them when it reads files."""
    return "validation" if split in ("val", "valid") else split
