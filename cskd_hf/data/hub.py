"""Image sets on the Hub: download only the splits to read, explain every failure."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import datasets
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cskd_hf.data.choose import Choose
from cskd_hf.data.table_files import described_files
from cskd_hf.errors import UserError, one_line
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.sections import DataSection

_METADATA = ("README.md", "dataset_infos.json")  # the other files of a repository are data


def download(
    path: str, data: DataSection, choose: Choose, data_files: Mapping[str, str]
) -> tuple[Path, dict[str, list[str]]]:
    """The cache folder of a Hub dataset, without files of other splits where the repository lists them.

    Args:
        path: Hub id.
        data_files: split → pattern of its files, instead of the repository's own list.

    Returns:
        The folder, and split → patterns of its files; empty if the repository does not list them.

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
        files = [file for name in choose(patterns) for file in patterns[name]] if patterns else []
        # Without a list of files per split, only the whole repository is sure to contain them.
        return _snapshot(path, data.revision, [*_METADATA, *files] if patterns else None), patterns
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
    reason = one_line(error)
    unwritable = explain_cache(error)
    if unwritable is not None:
        return f"the Hub dataset {path!r}: {unwritable}"
    # A response of an error is false in huggingface_hub before 1.0.
    status = next(
        (c.response.status_code for c in causes if isinstance(c, HfHubHTTPError) and c.response is not None), None
    )
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
            reason = one_line(cause)
            return (
                f"its cache in {caches[0]} cannot be written ({reason}); set HF_HOME to a folder that can, with space"
            )
    return None
