"""Uploads through the real client, in processes of their own, to a Hub on loopback."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_runs import Result
from hub_client import FINISH, Client
from hub_server import READER, WRITER, Hub

from cskd_hf.errors import UserError
from cskd_hf.results.upload import check_target


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


def write_release(folder: Path, weights: bytes, card: str = "hello") -> Path:
    for name, content in {
        "model.safetensors": weights,
        "README.md": f"---\nlibrary_name: timm\n---\n{card}\n".encode(),
        "config.json": b"{}",
        ".eval_results/digits.yaml": b"- value: 1\n",
        "figures/reliability.png": b"PNG",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def holds(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    files = hub.repos["org/name"].files(revision)
    return {name: file for name, file in files.items() if name != ".gitattributes"}


def refused(result: Result) -> str:
    """The error's one line, which comes last."""
    status, _, stderr = result
    lines = stderr.strip().splitlines()
    assert status == 2, stderr
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in stderr
    return lines[-1]


def finishes(hub: Hub, client: Client, release: Path) -> None:
    """The same command again ends what the first began, with one commit in all."""
    hub.faults.clear()
    status, _, stderr = client.upload(release)
    assert status == 0, stderr
    assert holds(hub) == content(release)
    assert hub.repos["org/name"].messages == ["initial commit", "a release"]


def test_a_release_arrives_whole_and_private_in_one_commit(hub: Hub, client: Client, release: Path) -> None:
    status, stdout, stderr = client.upload(release)
    assert (status, stderr) == (0, "")
    repo = hub.repos["org/name"]
    assert repo.private
    assert repo.messages == ["initial commit", "a release"]
    assert holds(hub) == content(release)
    assert stdout.splitlines()[-1] == f"{hub.endpoint}/org/name/commit/{repo.branches['main']}"
    assert "5 files, SHA-256 of each as here" in stdout
    assert WRITER not in stdout


def test_a_public_release_is_public(hub: Hub, client: Client, release: Path) -> None:
    assert client.upload(release, private=False)[0] == 0
    assert not hub.repos["org/name"].private


def test_the_same_release_again_makes_no_commit_but_is_compared(hub: Hub, client: Client, release: Path) -> None:
    first, second = client.upload(release), client.upload(release)
    assert hub.repos["org/name"].messages == ["initial commit", "a release"]
    assert "no commit made" in second[1]
    assert "SHA-256 of each as here" in second[1]
    assert first[1].splitlines()[-1] == second[1].splitlines()[-1]


def test_a_new_card_of_the_same_weights_is_committed_beside_what_others_added(
    hub: Hub, client: Client, release: Path
) -> None:
    client.upload(release)
    hub.repos["org/name"].commit("main", hub.repos["org/name"].files() | {"notes.md": b"ours"}, "on the website")
    write_release(release, weights=b"first weights" * 1000, card="corrected")
    assert client.upload(release)[0] == 0
    assert holds(hub) == content(release) | {"notes.md": b"ours"}
    assert hub.asked("^PUT /storage/") == 2  # the weights and the figure of the first upload


def test_other_weights_are_refused_with_what_differs(hub: Hub, client: Client, release: Path, tmp_path: Path) -> None:
    client.upload(release)
    other = write_release(tmp_path / "other", weights=b"second weights" * 1000, card="second")
    before = holds(hub)
    line = refused(client.upload(other))
    assert "org/name holds other weights: model.safetensors (there 13,000 bytes, " in line
    assert "here 14,000 bytes, " in line
    assert "README.md" in line
    assert "--replace" in line
    assert "--revision" in line
    assert holds(hub) == before


def test_replace_puts_them_in_and_takes_the_old_ones_files_out(
    hub: Hub, client: Client, release: Path, tmp_path: Path
) -> None:
    (release / "model.onnx").write_bytes(b"of the first weights")
    client.upload(release)
    other = write_release(tmp_path / "other", weights=b"second weights" * 1000)
    status, stdout, _ = client.upload(other, replace=True)
    assert status == 0
    assert "removing model.onnx" in stdout
    assert holds(hub) == content(other)
    assert hub.repos["org/name"].messages == ["initial commit", "a release", "a release"]
    assert ".gitattributes" in hub.repos["org/name"].files()


def test_a_revision_puts_them_beside(hub: Hub, client: Client, release: Path, tmp_path: Path) -> None:
    client.upload(release)
    other = write_release(tmp_path / "other", weights=b"second weights" * 1000)
    for _ in range(2):
        assert client.upload(other, revision="raw/second")[0] == 0
    assert holds(hub) == content(release)
    assert holds(hub, "raw/second") == content(other)
    assert hub.repos["org/name"].messages == ["initial commit", "a release", "a release"]


def test_naming_the_main_branch_does_not_replace(hub: Hub, client: Client, release: Path, tmp_path: Path) -> None:
    client.upload(release)
    other = write_release(tmp_path / "other", weights=b"second weights" * 1000)
    assert "holds other weights" in refused(client.upload(other, revision="main"))


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


def test_a_command_told_to_stay_offline_asks_nothing(hub: Hub, release: Path) -> None:
    with Client(hub.endpoint, release.parent, HF_HUB_OFFLINE="1") as client:
        assert "HF_HUB_OFFLINE is set: unset it to publish" in refused(client.upload(release))
    assert not hub.requests


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


@pytest.mark.parametrize(
    "repo_id", ["name", "org/na me", "org/name/more", "-org/name", "org/a--b", "org/name.git", "org/", "./runs"]
)
def test_an_illegal_name_is_refused_without_a_network(repo_id: str) -> None:  # fmt: skip
    with pytest.raises(UserError, match=rf"^{re.escape(repr(repo_id))} is no name for a repository: [^\n]+$"):
        check_target(repo_id, token_needed=False)


def test_a_legal_name_is_not_refused() -> None:
    check_target("Org-1/name_2.x", token_needed=False)
