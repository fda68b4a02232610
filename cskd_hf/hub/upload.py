"""A release folder → one commit on the Hub, downloaded again and compared.

What the Hub's client retries by itself (upload modes, large files, a download's body) is left to it; what it does not
(making a repository, looking at it, committing) is retried here. A second upload of the same folder goes on where the
first one stopped: large files that arrived are not sent again, and content that is there makes no commit.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.files import sha256
from cskd_hf.hub.hub_faults import attempt, http_error, one_line, reason
from cskd_hf.hub.hub_state import BranchState, Difference, branch_state, compare, other_weights_line

Say = Callable[[str], None]


def check_target(repo_id: str, *, token_needed: bool = True) -> None:
    """Whether `repo_id` can be a repository and, if needed, whether there is a token; asks no network.

    Raises:
        UserError: the id is illegal, no token is found, or the client was told to stay offline.
    """
    from huggingface_hub import __version__, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if tuple(map(int, __version__.split(".")[:2])) < (1, 2):
        raise UserError(
            f"publishing needs huggingface_hub 1.2 or newer, read {__version__}: pip install -U huggingface_hub"
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name for a repository: {one_line(error)}") from error
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} is no name for a repository: write ORG/NAME, ORG being an organization or a user")
    if not token_needed:
        return
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: unset it to publish, or write --dry-run")
    token = get_token()
    if token is None:
        raise UserError("no token for the Hub: log in with `hf auth login`, or set HF_TOKEN to one that may write")
    # The HTTP library would print the whole header.
    if re.fullmatch(r"[!-~]+", token) is None:
        raise UserError("the token for the Hub holds characters that no token has: log in again with `hf auth login`")


def upload_release(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    replace: bool,
    message: str,
    finish_command: str,
    say: Say,
) -> str:
    """Put every file of `folder` into a repository of the Hub in one commit, and compare what comes back.

    Where other weights are put in, the files that came with the old ones are removed in the same commit.

    Args:
        private: of a repository that is made now; one that is there stays as it is.
        revision: a branch, made if missing, which may then hold other weights than the main one.
        replace: put other weights in the place of those that are there.
        message: the commit's.
        finish_command: the command line that does the same again; errors end with it.
        say: called with a line for each step and each retry.

    Returns:
        The address of the commit that holds the folder's content.

    Raises:
        UserError: the repository holds other weights, or it was not to be reached, written or read back.
    """
    check_target(repo_id)
    finish = f"{folder} is complete and stays; to finish: {finish_command}"
    try:
        return _upload(folder, repo_id, private, revision, replace, message, say)
    except KeyboardInterrupt:
        print(f"error: the upload was interrupted; {finish}", file=sys.stderr)
        raise
    except UserError:
        raise
    # The client's own: RuntimeError from its threads, and what its HTTP library raises.
    except (OSError, ValueError, RuntimeError, http_error()) as error:
        raise UserError(f"{reason(error, repo_id)}; {finish}") from error


def _upload(
    folder: Path, repo_id: str, private: bool, revision: str | None, replace: bool, message: str, say: Say
) -> str:
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(token=get_token())
    branch = None if revision == constants.DEFAULT_REVISION else revision
    local = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    state = _open(api, repo_id, private, branch, say)
    difference = compare(local, state, clear=replace)
    if difference.other_weights and not replace and branch is None:
        raise UserError(other_weights_line(local, state, difference, repo_id))
    if difference.changed or difference.extra:
        commit = _commit(api, repo_id, branch, local, state, difference, message, say)
    else:
        say(f"{repo_id} holds the same {len(local)} files already: no commit made")
        commit = state.commit
    _read_back(repo_id, commit, local, say)
    return f"{constants.ENDPOINT}/{repo_id}/commit/{commit}"


def _open(api: Any, repo_id: str, private: bool, branch: str | None, say: Say) -> BranchState:
    """The branch to commit to; makes the repository and the branch where they are missing."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        state = attempt("looking at the repository", lambda: branch_state(api, repo_id, None), say)
        say(f"{repo_id} is there, and {'private' if state.private else 'public: what is uploaded, everybody sees'}")
    except RepositoryNotFoundError:
        # An answer that was lost leaves a repository behind: there is nothing wrong with finding it.
        attempt("making the repository", lambda: api.create_repo(repo_id, private=private, exist_ok=True), say)
        say(f"{repo_id} made, {'private' if private else 'public'}")
        state = attempt("looking at the repository", lambda: branch_state(api, repo_id, None), say)
    if branch is None:
        return state
    try:
        return attempt("looking at the branch", lambda: branch_state(api, repo_id, branch), say)
    except RevisionNotFoundError:
        attempt("making the branch", lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), say)
        say(f"branch {branch} made")
        return attempt("looking at the branch", lambda: branch_state(api, repo_id, branch), say)


def _commit(
    api: Any,
    repo_id: str,
    branch: str | None,
    local: Mapping[str, Path],
    state: BranchState,
    difference: Difference,
    message: str,
    say: Say,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(name, local[name]) for name in difference.changed]
    size = sum(local[name].stat().st_size for name in difference.changed)
    removed = f", and removing {', '.join(difference.extra)}" if difference.extra else ""
    say(f"uploading {len(additions)} files, {size / 1e6:,.1f} MB{removed}")
    # Before the commit, and not tried again here: the client does that for all of this step itself.
    api.preupload_lfs_files(repo_id, additions, revision=branch, free_memory=False)

    def commit() -> str:
        now = branch_state(api, repo_id, branch)
        if now.commit != state.commit and not any(compare(local, now, clear=bool(difference.extra))[:2]):
            return now.commit  # an earlier try was carried out, and only its answer was lost
        operations = [*additions, *map(CommitOperationDelete, difference.extra)]
        # The parent: where somebody else commits meanwhile, the Hub refuses rather than mixes.
        return api.create_commit(
            repo_id, operations, commit_message=message, revision=branch, parent_commit=state.commit
        ).oid

    made = attempt("committing", commit, say)
    say(f"commit {made[:12]} on {branch or 'main'}")
    return made


def _read_back(repo_id: str, commit: str, local: Mapping[str, Path], say: Say) -> None:
    """Download the commit into an empty cache, and compare; a wrong byte on the way is given a second chance."""
    from huggingface_hub import get_token, snapshot_download

    for last in (False, True):
        with tempfile.TemporaryDirectory(prefix="cskd-hf-") as cache:

            def download(cache: str = cache) -> str:
                return snapshot_download(repo_id, revision=commit, cache_dir=cache, token=get_token())

            # The client itself tries most of this several times.
            copy = Path(attempt("downloading again", download, say, tries=2))
            wrong = [
                name
                for name, path in local.items()
                if not (copy / name).is_file() or sha256(copy / name) != sha256(path)
            ]
        if not wrong:
            say(f"downloaded again at {commit[:12]}: {len(local)} files, SHA-256 of each as here")
            return
        if last:
            raise ValueError(f"what comes back from {repo_id} is not what was sent: {', '.join(wrong)}")
        say(f"what came back is not what was sent: {', '.join(wrong)}; downloading once more")
