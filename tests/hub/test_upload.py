"""Uploads through the real client, in processes of their own, to a Hub on loopback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hub_client import Client
from hub_server import WRITER, Hub
from hub_uploads import content, holds, refused, write_release

from cskd_hf.errors import UserError
from cskd_hf.hub.upload import check_target


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


def test_a_command_told_to_stay_offline_asks_nothing(hub: Hub, release: Path) -> None:
    with Client(hub.endpoint, release.parent, HF_HUB_OFFLINE="1") as client:
        assert "HF_HUB_OFFLINE is set: unset it to publish" in refused(client.upload(release))
    assert not hub.requests


@pytest.mark.parametrize(
    "repo_id", ["name", "org/na me", "org/name/more", "-org/name", "org/a--b", "org/name.git", "org/", "./runs"]
)
def test_an_illegal_name_is_refused_without_a_network(repo_id: str) -> None:  # fmt: skip
    with pytest.raises(UserError, match=rf"^{re.escape(repr(repo_id))} is no name for a repository: [^\n]+$"):
        check_target(repo_id, token_needed=False)


def test_a_legal_name_is_not_refused() -> None:
    check_target("Org-1/name_2.x", token_needed=False)
