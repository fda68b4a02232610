"""Uploads through the real client, in their own processes, to a Hub on loopback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hub_client import Client, error_line, files_of, published, write_release
from hub_server import WRITER, Hub

from cskd_hf.errors import UserError
from cskd_hf.hub.upload import check_target


@pytest.mark.parametrize("private", [True, False])
def test_a_release_arrives_complete_in_one_commit(hub: Hub, client: Client, release: Path, private: bool) -> None:
    status, stdout, stderr = client.upload(release, private=private)
    assert (status, stderr) == (0, "")
    repo = hub.repos["org/name"]
    assert repo.private == private
    assert repo.messages == ["initial commit", "a release"]
    assert published(hub) == files_of(release)
    assert stdout.splitlines()[-1] == f"{hub.endpoint}/org/name/commit/{repo.branches['main']}"
    assert "the Hub's checksums match" in stdout
    assert WRITER not in stdout


def test_uploading_the_same_release_again_makes_no_commit(hub: Hub, client: Client, release: Path) -> None:
    first, second = client.upload(release), client.upload(release)
    assert hub.repos["org/name"].messages == ["initial commit", "a release"]
    assert "already holds this release" in second.stdout
    assert first.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]


def test_a_new_card_for_the_same_weights_leaves_other_peoples_files(hub: Hub, client: Client, release: Path) -> None:
    client.upload(release)
    hub.repos["org/name"].commit("main", hub.repos["org/name"].files() | {"notes.md": b"ours"}, "on the website")
    write_release(release, weights=b"first weights" * 1000, card="corrected")
    assert client.upload(release).status == 0
    assert published(hub) == files_of(release) | {"notes.md": b"ours"}
    assert hub.count("^PUT /storage/") == 2  # the weights and the figure, in the first upload only


@pytest.mark.parametrize("revision", [None, "main"])
@pytest.mark.parametrize("weights", [b"second weights" * 1000, b"other weights" * 1000], ids=["size", "hash"])
def test_other_weights_are_not_overwritten(
    hub: Hub, client: Client, release: Path, tmp_path: Path, weights: bytes, revision: str | None
) -> None:
    client.upload(release)
    before = published(hub)
    other = write_release(tmp_path / "other", weights)
    line = error_line(client.upload(other, revision=revision))
    assert "org/name holds other weights: model.safetensors; --replace" in line
    assert "--revision" in line
    assert published(hub) == before


def test_replace_overwrites_the_weights_and_deletes_the_old_releases_files(
    hub: Hub, client: Client, release: Path, tmp_path: Path
) -> None:
    (release / "model.onnx").write_bytes(b"of the first weights")
    client.upload(release)
    other = write_release(tmp_path / "other", weights=b"second weights" * 1000)
    status, stdout, _ = client.upload(other, replace=True)
    assert status == 0
    assert "deleting model.onnx" in stdout
    assert published(hub) == files_of(other)
    assert hub.repos["org/name"].messages == ["initial commit", "a release", "a release"]
    assert ".gitattributes" in hub.repos["org/name"].files()


def test_a_revision_holds_other_weights_beside_main(hub: Hub, client: Client, release: Path, tmp_path: Path) -> None:
    client.upload(release)
    other = write_release(tmp_path / "other", weights=b"second weights" * 1000)
    for _ in range(2):
        assert client.upload(other, revision="raw/second").status == 0
    assert published(hub) == files_of(release)
    assert published(hub, "raw/second") == files_of(other)
    assert hub.repos["org/name"].messages == ["initial commit", "a release", "a release"]


def test_offline_mode_sends_no_request(hub: Hub, release: Path) -> None:
    with Client(hub.endpoint, release.parent, HF_HUB_OFFLINE="1") as client:
        assert "HF_HUB_OFFLINE is set: unset it to publish" in error_line(client.upload(release))
    assert not hub.requests


@pytest.mark.parametrize(
    "repo_id", ["org/na me", "org/name/more", "-org/name", "org/a--b", "org/name.git", "org/", "./runs", "name"]
)
def test_an_illegal_repository_name_is_rejected_without_a_network(repo_id: str) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(repr(repo_id))} is not a legal repository name; write [^\n]+$"):
        check_target(repo_id, token_needed=False)


def test_a_legal_repository_name_is_accepted() -> None:
    check_target("Org-1/name_2.x", token_needed=False)
