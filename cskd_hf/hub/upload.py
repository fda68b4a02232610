"""A release folder → one commit on the Hub, verified by the checksums that the Hub reports.

Every attempt first compares the branch with the folder. An attempt after a lost response therefore finds the commit
instead of making a second one, and rerunning an interrupted upload sends only what is missing.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError, one_line
from cskd_hf.files import sha256
from cskd_hf.recipe.run_section import check_repository

TIMEOUT = 60.0  # seconds without a byte; the client itself would wait forever
WAITS = (1.0, 4.0, 16.0)  # seconds before each further attempt, for the requests that the client does not retry
_TRANSIENT = (408, 412, 429, 500, 502, 503, 504)  # 412: somebody else committed between our comparison and our commit
# ONNX is left out: it is derived from the weights.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def check_target(repo_id: str, *, token_needed: bool = True) -> None:
    """Check the repository's name and, if needed, that a token is configured; sends no request.

    Raises:
        UserError: the name is illegal, no token is configured, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token

    try:
        check_repository(repo_id)
    except ValueError as error:
        raise UserError(f"{repo_id!r} is not a legal repository name; write {error}") from None
    if not token_needed:
        return
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: unset it to publish, or pass --dry-run")
    token = get_token()
    if token is None:
        raise UserError("no Hub token: run `hf auth login`, or set HF_TOKEN to a token with write access")
    # The HTTP library's own error would print the token.
    if re.fullmatch(r"[!-~]+", token) is None:
        raise UserError("the Hub token contains illegal characters: run `hf auth login` again")


def upload_release(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    replace: bool,
    message: str,
    finish_command: str,
    say: Callable[[str], None],
) -> str:
    """Commit every file of `folder` to a model repository and compare checksums; returns the commit's URL.

    Args:
        private: visibility if the repository is created; an existing one keeps its own.
        revision: a branch, created if missing. A branch other than main may hold other weights.
        replace: overwrite other weights. The same commit deletes the files of the old release.
        finish_command: the command that completes a failed upload; errors end with it.
        say: receives a line per step and per retry.

    Raises:
        UserError: the repository holds other weights, or the upload failed.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    check_target(repo_id)
    if not sys.stderr.isatty():
        disable_progress_bars()
    branch = None if revision == constants.DEFAULT_REVISION else revision
    finish = f"{folder} is complete; to finish: {finish_command}"
    # The client's errors: its HTTP library's (httpx or requests, by version), RuntimeErrors of its upload threads, and
    # ValueErrors of its checks.
    client_errors: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], OSError, RuntimeError, ValueError)
    waits = iter(WAITS)
    try:
        while True:
            # Once per attempt: after a connection error the client opens a new session, which has no timeout.
            get_session().timeout = TIMEOUT
            try:
                commit = _upload(folder, repo_id, private, branch, replace, message, say)
                return f"{constants.ENDPOINT}/{repo_id}/commit/{commit}"
            except UserError:
                raise
            except client_errors as error:
                reason, transient = _diagnose(error, repo_id)
                wait = next(waits, None)
                if wait is None or not transient:
                    raise UserError(f"{reason}; {finish}") from error
                say(f"{reason}; retrying in {wait:g} s")
                time.sleep(wait)
    except KeyboardInterrupt:
        print(f"error: upload interrupted; {finish}", file=sys.stderr)
        raise


def _upload(
    folder: Path,
    repo_id: str,
    private: bool,
    branch: str | None,
    replace: bool,
    message: str,
    say: Callable[[str], None],
) -> str:
    """One attempt; returns the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    if branch is not None:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    info: Any = api.model_info(repo_id, revision=branch, files_metadata=True)
    say(f"{repo_id} is {'private' if info.private else 'public: anyone can read what is uploaded'}")
    changed, extra, foreign_weights = _compare(folder, info)
    if foreign_weights and branch is None and not replace:
        raise UserError(
            f"{repo_id} holds other weights: {', '.join(foreign_weights)}; --replace overwrites them, "
            "--revision BRANCH publishes to a branch"
        )
    deleted = extra if foreign_weights or replace else []
    if not changed and not deleted:
        say(f"{repo_id} already holds this release: nothing to commit")
        return info.sha
    say(f"uploading {len(changed)} files" + (f", deleting {', '.join(deleted)}" if deleted else ""))
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=branch,
        commit_message=message,
        parent_commit=info.sha,
        delete_patterns="*" if deleted else None,  # the client spares .gitattributes and what it uploads
    ).oid
    wrong, _, _ = _compare(folder, api.model_info(repo_id, revision=commit, files_metadata=True))
    if wrong:
        raise RuntimeError(f"the Hub reports other checksums in commit {commit[:12]}: {', '.join(wrong)}")
    say(f"commit {commit[:12]} on {branch or 'main'}: the Hub's checksums match")
    return commit


def _compare(folder: Path, info: Any) -> tuple[list[str], list[str], list[str]]:
    """Compare a folder with a `ModelInfo` by size and hash.

    Returns:
        Files that the branch lacks or holds with other content; files that only the branch has; weights of the branch
        that are not the folder's.
    """
    local = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    remote = {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings
        if file.rfilename != ".gitattributes"
    }
    changed = [name for name, path in local.items() if remote.get(name) not in _checksums(path)]
    weights = [name for name in remote if name.endswith(_WEIGHTS)]
    shared = [name for name in weights if name in local]
    foreign = [name for name in shared if name in changed] if shared else weights
    return changed, [name for name in remote if name not in local], foreign


def _checksums(path: Path) -> tuple[tuple[int, str], tuple[int, str]]:
    """Size and hash in the Hub's two forms: SHA-256 for LFS and Xet, git's blob id for other files."""
    size = path.stat().st_size
    blob = hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            blob.update(chunk)
    return (size, sha256(path)), (size, blob.hexdigest())


def _diagnose(error: BaseException, repo_id: str) -> tuple[str, bool]:
    """One line that says what failed and what to do about it, and whether a further attempt may succeed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            advice = {
                401: "the Hub does not know this token: run `hf auth login` again, or set HF_TOKEN",
                403: f"the token may not write to {repo_id}: use one with write access to {repo_id.partition('/')[0]}",
                404: f"the Hub has no {repo_id}, or hides it from this token",
                429: "the Hub's rate limit is reached: wait some minutes",
            }
            detail = f"status {status}: {one_line(cause.server_message or 'no reason given')}"
            return f"{advice.get(status, 'the upload failed')} ({detail})", status in _TRANSIENT
        if isinstance(cause, HfHubHTTPError.__bases__[0]):
            timed_out = "Timeout" in type(cause).__name__
            detail = f"no response within {TIMEOUT:g} s" if timed_out else one_line(cause) or type(cause).__name__
            return f"{constants.ENDPOINT} cannot be reached: {detail}", True
        cause = cause.__cause__ or cause.__context__
    return f"the upload failed: {type(error).__name__}: {one_line(error)}", False
