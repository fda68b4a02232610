"""Uploads on which something fails: what passes is waited for, what stays is one line with what finishes it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hub_client import FINISH, Client
from hub_server import READER, Hub
from hub_uploads import content, finishes, holds, refused


@pytest.mark.parametrize(
    ("route", "fault", "said"),
    [
        ("GET /api/models/org/name$", {"status": 503}, "looking at the repository: the Hub answered 503; try 2 of 6"),
        ("POST /api/repos/create", {"status": 500}, "making the repository: the Hub answered 500; try 2 of 6"),
        ("POST /api/repos/create", {"cut": True}, "making the repository: peer closed"),
        ("POST /api/validate-yaml", {"cut": True}, "committing: peer closed"),
        ("POST .*/commit/main", {"status": 502, "times": 3}, "try 4 of 6"),
        ("POST .*/commit/main", {"cut": True}, "committing: peer closed"),
        ("POST .*/commit/main", {"seconds": 2.0}, "committing: no answer within 1 s"),
        ("POST .*/commit/main", {"status": 429, "headers": {"Retry-After": "1"}}, "429; try 2 of 6 in 1 s"),
        ("POST .*/commit/main", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=1'}}, "429; try 2 of 6 in 1 s"),
        ("GET /storage/", {"corrupt": True}, "is not what was sent"),
    ],
)  # fmt: skip
def test_a_fault_that_passes_is_told_and_waited_for(
    hub: Hub, client: Client, release: Path, route: str, fault: dict[str, Any], said: str
) -> None:
    hub.fail(route, **fault)
    began = time.monotonic()
    status, stdout, stderr = client.upload(release)
    assert status == 0, stderr
    assert said in stdout
    assert hub.faults[0].times == 0
    assert holds(hub) == content(release)
    assert hub.repos["org/name"].messages == ["initial commit", "a release"]
    if "headers" in fault:
        assert time.monotonic() - began > 1


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("POST .*/preupload/", {"status": 503}),
        ("PUT /storage/", {"status": 500}),
        ("PUT /storage/", {"cut": True}),
        ("HEAD .*/config.json", {"status": 503}),
        ("GET /storage/", {"cut": True}),
    ],
)
def test_what_the_client_itself_retries_is_not_retried_twice(
    hub: Hub, client: Client, release: Path, route: str, fault: dict[str, Any]
) -> None:
    client.upload(release)
    usual = hub.asked(route)
    hub.repos.clear()
    hub.large.clear()
    hub.fail(route, **fault)
    status, stdout, stderr = client.upload(release)
    assert status == 0, stderr
    assert " try 2 of " not in stdout
    assert hub.asked(route) <= 2 * usual + 1
    assert holds(hub) == content(release)


@pytest.mark.parametrize(
    ("route", "fault", "said"),
    [
        ("POST /api/repos/create", {"status": 403}, "the token may not write to org/name"),
        ("POST .*/preupload/", {"status": 403}, "the token may not write to org/name"),
        ("POST .*/commit/main", {"status": 409}, "org/name is in conflict with what the Hub has"),
        ("POST .*/commit/main", {"status": 412}, "somebody else committed to org/name meanwhile"),
        ("POST .*/commit/main", {"status": 503, "times": 6}, "the Hub answered 503"),
        ("POST .*/commit/main", {"status": 429, "headers": {"Retry-After": "900"}}, "takes no more requests"),
        ("POST .*/batch", {"status": 404}, "the Hub knows no org/name"),
        ("GET /storage/", {"corrupt": True, "times": 99}, "is not what was sent"),
    ],
)
def test_a_fault_that_stays_is_one_line_with_the_command_that_finishes(
    hub: Hub, client: Client, release: Path, route: str, fault: dict[str, Any], said: str
) -> None:
    before = content(release)
    hub.fail(route, **fault)
    line = refused(client.upload(release))
    assert said in line
    assert line.endswith(f"release is complete and stays; to finish: {FINISH}")
    assert content(release) == before
    finishes(hub, client, release)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("unknown", "the Hub does not know the token"),
        (READER, "the token may not write to org/name: take one with write access to org"),
        (None, "no token for the Hub: log in with `hf auth login`"),
        ("dum my", "holds characters that no token has"),
    ],
)
def test_a_token_that_will_not_do_is_one_line_without_it(
    hub: Hub, client: Client, release: Path, token: str | None, said: str
) -> None:
    result = client.upload(release, token)
    assert said in refused(result)
    assert str(token) not in result[1] + result[2].replace("know the token", "")
    assert not hub.repos
    finishes(hub, client, release)


def test_a_hub_that_is_not_there_is_one_line(release: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Client(endpoint, release.parent) as client:
            line = refused(client.upload(release))
    assert f"{endpoint} cannot be reached: " in line
    assert line.endswith(FINISH)


def test_a_fault_of_the_hubs_other_protocol_for_large_files_is_one_line(hub: Hub, release: Path) -> None:
    pytest.importorskip("hf_xet")
    with Client(hub.endpoint, release.parent, HF_HUB_DISABLE_XET="0") as client:
        line = refused(client.upload(release))
    assert hub.asked("^GET .*/xet-write-token/main$")
    assert line.startswith("error: the upload failed: ")
    assert line.endswith(FINISH)


@pytest.mark.parametrize(("number", "route"), [(signal.SIGINT, "PUT /storage/"), (signal.SIGKILL, "POST .*/commit/")])
def test_an_interrupted_upload_is_finished_by_the_same_command(
    hub: Hub, client: Client, release: Path, number: signal.Signals, route: str
) -> None:
    # The client's own threads are waited for, so an interrupt takes effect when they have their answer.
    sent = threading.Event()
    hub.fail(route, until=sent, times=1)
    process = client.start(release)
    end = time.monotonic() + 30
    while not hub.asked(route):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process, number)
    sent.set()
    status, _, stderr = client.finish()
    if number == signal.SIGINT:
        assert status == 130, stderr
        assert stderr.splitlines()[-2:] == [
            f"error: the upload was interrupted; {release} is complete and stays; to finish: {FINISH}",
            "interrupted",
        ]
        assert "Traceback" not in stderr
    finishes(hub, client, release)
