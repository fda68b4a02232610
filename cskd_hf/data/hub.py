"""Image sets of the Hub, and folders laid out like one: only the splits asked for, and every refusal in one line."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path

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

from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.sections import DataSection

# What a repository says about itself; the rest of its files are data.
_DESCRIPTIONS = ("README.md", "dataset_infos.json")


def open_hub(path: str, data: DataSection, splits: list[str], data_files: Mapping[str, str]) -> DatasetDict:
    # Not load_dataset's business: to it 'imagefolder' and 'parquet' mean whatever lies in the working folder.
    if path.count("/") != 1 or path.startswith(("/", ".", "~")):
        names = f"a folder, a Hub id (owner/name), or one of the catalog's: {', '.join(CATALOG)}"
        raise UserError(f"data.dataset: {data.dataset!r} is none of {names}")
    try:
        root = _snapshot(path, data.revision, list(_DESCRIPTIONS))
        patterns = {name: [pattern] for name, pattern in data_files.items()} or described_files(root, data.config_name)
        asked = set(map(same_split, splits))
        wanted = [file for name, files in patterns.items() if same_split(name) in asked for file in files]
        # Without a list of each split's files, nothing but the whole repository is sure to hold them.
        root = _snapshot(path, data.revision, [*_DESCRIPTIONS, *wanted] if patterns else None)
        return open_files(root, splits, data.config_name, patterns)
    except UserError:
        raise
    except Exception as error:  # a dozen unrelated types: connection, gating, missing script, bad file, …
        raise UserError(f"data.dataset: {_refusal(error, path, data.revision)}") from error


def _snapshot(path: str, revision: str | None, files: list[str] | None, local: bool = False) -> Path:
    """The folder of the Hub's cache that holds these files of a repository; named after the commit."""
    found = snapshot_download(
        path, repo_type="dataset", revision=revision, allow_patterns=files, local_files_only=local
    )
    return Path(found)


def cached_commit(data: DataSection) -> str | None:
    """The commit that a Hub set was loaded from; None for what is no Hub set, or not in the Hub's cache."""
    path = CATALOG[data.dataset].path if data.dataset in CATALOG else data.dataset
    if path is None or (data.dataset not in CATALOG and os.path.exists(data.dataset)):
        return None
    try:
        return _snapshot(path, data.revision, [], local=True).name
    except (OSError, ValueError):
        return None


def _refusal(error: Exception, path: str, revision: str | None) -> str:
    """Why a Hub set cannot be had, and what to do, in one line."""
    page = f"{constants.ENDPOINT}/datasets/{path}"
    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    reason = " ".join(str(error).split())
    status = next((c.response.status_code for c in causes if isinstance(c, HfHubHTTPError) and c.response), None)
    gated = isinstance(error, GatedRepoError) or (isinstance(error, DatasetNotFoundError) and "gated" in reason)
    known_gated = any(entry.gated for entry in CATALOG.values() if entry.path == path)
    if gated or status == 403 or (status == 401 and (known_gated or not isinstance(error, RepositoryNotFoundError))):
        return f"the Hub set {path!r} is gated: accept the terms at {page}, then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub set {path!r} has no revision {revision!r}: data.revision is a branch, tag or commit of {page}"
    if isinstance(error, (RepositoryNotFoundError, DatasetNotFoundError)):
        return f"the Hub has no set {path!r}, or it is private: look at {page}, or log in with `hf auth login`"
    if constants.HF_HUB_OFFLINE and isinstance(error, (OSError, ValueError)):
        return (
            f"the Hub set {path!r} is not in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set: "
            "unset it once to download the set, or write data.dataset=FOLDER"
        )
    if isinstance(error, (LocalEntryNotFoundError, ConnectionError)) or any("Connect" in str(type(c)) for c in causes):
        return (
            f"the Hub set {path!r} is not in the cache, and {constants.ENDPOINT} cannot be reached: "
            f"write data.dataset=FOLDER, or try again on a network ({reason})"
        )
    return f"the Hub set {path!r} could not be loaded: {type(error).__name__}: {reason}"


def open_files(
    root: Path, splits: list[str], config_name: str | None, patterns: Mapping[str, list[str]]
) -> DatasetDict:
    """A repository's files, laid out as on the Hub; of Parquet, no split is read that is not asked for."""
    files = {
        name: sorted(str(file) for pattern in patterns[name] for file in root.glob(pattern) if file.is_file())
        for name in patterns
    }
    if not any(files.values()):
        found = load_dataset_builder(str(root), name=config_name).config.data_files
        files = {str(name): list(map(str, of_split)) for name, of_split in found.items()}
    files = {name: of_split for name, of_split in files.items() if of_split}
    if not all(file.endswith(".parquet") for of_split in files.values() for file in of_split):
        return load_dataset(str(root), name=config_name)
    asked = set(map(same_split, splits))
    wanted = {name: list(map(glob.escape, of_split)) for name, of_split in files.items() if same_split(name) in asked}
    if len(wanted) < len(asked):  # whoever asked will say so, with the names there are
        return DatasetDict(dict.fromkeys(files))
    # Files written by others than `datasets` tell their features in the README only.
    described = DatasetInfosDict.from_directory(str(root))
    info = described.get(config_name or "default") or (next(iter(described.values())) if len(described) == 1 else None)
    return load_dataset("parquet", data_files=wanted, features=info.features if info is not None else None)


def described_files(root: Path, config_name: str | None) -> dict[str, list[str]]:
    """Split → patterns of its files, as the README's `configs` say; empty where they say nothing."""
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
    """One name for the three of a validation split: `datasets` itself renames some of them when it reads files."""
    return "validation" if split in ("val", "valid") else split
