"""Uploads with faults: transient ones are retried, others are one line with the command that finishes the upload."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hub_client import FINISH, Client, assert_rerun_finishes, error_line, files_of, published
from hub_server import READER, Hub


@pytest.mark.parametrize(
    ("route", "fault", "message"),
    [
        ("GET /api/models/org/name$", {"status": 503}, "the upload failed (status 503: fault 503); retrying in"),
        ("POST /api/repos/create", {"cut": True}, "cannot be reached: "),
        ("POST .*/commit/main", {"status": 502, "times": 3}, "status 502"),
        ("POST .*/commit/main", {"cut": True}, "cannot be reached: "),
        ("POST .*/commit/main", {"seconds": 2.0}, "no response within 1 s"),
        ("POST .*/commit/main", {"status": 412}, "status 412"),
        ("POST .*/commit/main", {"status": 429}, "the Hub's rate limit is reached"),
    ],
)
def test_a_transient_fault_is_retried_without_a_second_commit(
    hub: Hub, client: Client, release: Path, route: str, fault: dict[str, Any], message: str
) -> None:
    hub.fail(route, **fault)
    status, stdout, stderr = client.upload(release)
    assert status == 0, stderr
    assert message in stdout
    assert hub.faults[0].times == 0
    assert published(hub) == files_of(release)
    assert hub.repos["org/name"].messages == ["initial commit", "a release"]


@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": True}])
def test_large_files_are_retried_by_the_client(hub: Hub, client: Client, release: Path, fault: dict[str, Any]) -> None:
    hub.fail("PUT /storage/", **fault)
    status, stdout, stderr = client.upload(release)
    assert status == 0, stderr
    assert "retrying" not in stdout
    assert published(hub) == files_of(release)


@pytest.mark.parametrize(
    ("route", "fault", "message"),
    [
        ("POST /api/repos/create", {"status": 403}, "the token may not write to org/name"),
        ("POST .*/preupload/", {"status": 403}, "the token may not write to org/name"),
        ("POST .*/commit/main", {"status": 409}, "the upload failed (status 409: fault 409)"),
        ("POST .*/commit/main", {"status": 503, "times": 9}, "the upload failed (status 503: fault 503)"),
        ("POST .*/batch", {"status": 404}, "the Hub has no org/name"),
        ("GET /api/models/", {"other_checksums": True, "times": 9}, "the Hub reports other checksums in commit"),
    ],
)
def test_a_permanent_fault_is_one_line_with_the_command_that_finishes(
    hub: Hub, client: Client, release: Path, route: str, fault: dict[str, Any], message: str
) -> None:
    hub.fail(route, **fault)
    line = error_line(client.upload(release))
    assert message in line
    assert line.endswith(f"{release} is complete; to finish: {FINISH}")
    assert_rerun_finishes(hub, client, release)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("unknown", "the Hub does not know this token"),
        (READER, "the token may not write to org/name: use one with write access to org"),
        (None, "no Hub token: run `hf auth login`"),
        ("dum my", "the Hub token contains illegal characters"),
    ],
)
def test_an_unusable_token_is_one_line_that_does_not_print_it(
    hub: Hub, client: Client, release: Path, token: str | None, message: str
) -> None:
    result = client.upload(release, token)
    line = error_line(result)
    assert message in line
    assert token is None or token not in result.stdout + result.stderr
    assert not hub.repos


def test_an_unreachable_hub_is_one_line(release: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Client(endpoint, release.parent) as client:
            line = error_line(client.upload(release))
    assert f"{endpoint} cannot be reached: " in line
    assert line.endswith(FINISH)


def test_a_fault_of_xet_is_one_line(hub: Hub, release: Path) -> None:
    pytest.importorskip("hf_xet")
    with Client(hub.endpoint, release.parent, HF_HUB_DISABLE_XET="0") as client:
        line = error_line(client.upload(release))
    assert hub.count("^GET .*/xet-write-token/main$")
    assert line.startswith("error: the upload failed")
    assert line.endswith(FINISH)


@pytest.mark.parametrize(("number", "route"), [(signal.SIGINT, "PUT /storage/"), (signal.SIGKILL, "POST .*/commit/")])
def test_rerunning_an_interrupted_upload_finishes_it(
    hub: Hub, client: Client, release: Path, number: signal.Signals, route: str
) -> None:
    # The client joins its threads, so an interrupt takes effect once they have their response.
    sent = threading.Event()
    hub.fail(route, until=sent)
    process = client.start(release)
    end = time.monotonic() + 30
    while not hub.count(route):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process, number)
    sent.set()
    status, _, stderr = client.finish()
    if number == signal.SIGINT:
        assert status == 130, stderr
        assert stderr.splitlines()[-2:] == [
            f"error: upload interrupted; {release} is complete; to finish: {FINISH}",
            "interrupted",
        ]
        assert "Traceback" not in stderr
    assert_rerun_finishes(hub, client, release)
