"""Faults on the way to the Hub: which of them pass if one waits, and what to say of those that do not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

# Seconds without an answer; the client itself would wait for ever.
TIMEOUT = 60.0
# Seconds before each further try, unless the Hub says how long; its rate limits are counted over five minutes.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
LONGEST_WAIT = 600.0


def attempt(what: str, action: Callable[[], _T], say: Callable[[str], None], tries: int = 1 + len(WAITS)) -> _T:
    """Do it, again after each of the `WAITS` where the fault may pass; a line each."""
    from huggingface_hub import get_session

    for number, wait in enumerate((*WAITS[: tries - 1], None), start=1):
        # Each time: the client makes itself a new session, without a limit, when a connection fails.
        get_session().timeout = TIMEOUT
        try:
            return action()
        except Exception as error:  # of two HTTP libraries, by version; what does not pass is raised again
            passing = _passing(error)
            if passing is None or wait is None:
                raise
            fault, asked = passing
            if asked > LONGEST_WAIT:
                raise
            wait = max(wait, asked)
            say(f"{what}: {fault}; try {number + 1} of {tries} in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _passing(error: BaseException) -> tuple[str, float] | None:
    """A fault that may be gone in a moment, and how many seconds the Hub asks to wait; None for all others."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    for cause in _chain(error):
        if isinstance(cause, HfHubHTTPError):
            status, headers = cause.response.status_code, cause.response.headers
            if status not in (408, 429) and status < 500:
                return None
            limit = parse_ratelimit_headers(headers)
            after = headers.get("Retry-After", "")
            asked = float(after) if after.isdigit() else 0.0
            if status == 429 and limit is not None and limit.remaining == 0:
                asked = max(asked, float(limit.reset_in_seconds))
            return f"the Hub answered {status}", asked
        if isinstance(cause, http_error()):
            return _connection(cause), 0.0
        if isinstance(cause, json.JSONDecodeError):
            return "the Hub's answer was no JSON", 0.0
    return None


def reason(error: BaseException, repo_id: str) -> str:
    """Why it failed and what to do, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    owner = repo_id.partition("/")[0]
    for cause in _chain(error):
        if isinstance(cause, HfHubHTTPError):
            said = one_line(cause.server_message or "no reason given")
            return {
                401: f"the Hub does not know the token: log in again with `hf auth login`, or set HF_TOKEN ({said})",
                403: f"the token may not write to {repo_id}: take one with write access to {owner} ({said})",
                404: f"the Hub knows no {repo_id}, or hides it from this token ({said})",
                409: f"{repo_id} is in conflict with what the Hub has ({said})",
                412: f"somebody else committed to {repo_id} meanwhile: look at what it holds ({said})",
                429: f"the Hub takes no more requests now: wait some minutes ({said})",
            }.get(cause.response.status_code, f"the Hub answered {cause.response.status_code} ({said})")
        if isinstance(cause, http_error()):
            return f"{constants.ENDPOINT} cannot be reached: {_connection(cause)}"
    return f"the upload failed: {type(error).__name__}: {one_line(error)}"


def http_error() -> type[BaseException]:
    """The base of all errors of the client's HTTP library, which is httpx in its 1.x and another one in its 2.x."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _connection(error: BaseException) -> str:
    return f"no answer within {TIMEOUT:g} s" if "Timeout" in type(error).__name__ else one_line(error) or "cut off"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def one_line(error: object) -> str:
    return " ".join(str(error).split())
