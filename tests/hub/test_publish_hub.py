"""A run published to a Hub on loopback and loaded from there by processes without this package."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_runs import Result, environment
from hub_client import PYTHON, error_line
from hub_server import READER, WRITER, Hub
from publishable_runs import copied, images, trained

# A user with timm and transformers, without this package.
LOAD = """
import json, sys
sys.modules["cskd_hf"] = None  # importing it fails
from pathlib import Path
import timm, torch, transformers
from PIL import Image

name, run, pictures = sys.argv[1], sys.argv[2], sys.argv[3:]
published = timm.create_model(f"hf-hub:{name}", pretrained=True).eval()
of_the_run = timm.create_model(f"local-dir:{run}/model", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(published), is_training=False)
images = torch.stack([prepare(Image.open(picture).convert("RGB")) for picture in pictures])
with torch.no_grad():
    logits, expected = published(images), of_the_run(images)
labels = json.loads(Path(run, "model", "config.json").read_text())["label_names"]
pipe = transformers.pipeline("image-classification", model=name)
answers = [pipe(picture, top_k=len(labels)) for picture in pictures]
print(json.dumps({
    "identical": torch.equal(logits, expected),
    "timm": [[labels[row.argmax()], row.softmax(0).max().item()] for row in logits],
    "pipeline": [[answer[0]["label"], answer[0]["score"]] for answer in answers],
    "labels": [sorted(entry["label"] for entry in answers[0]), sorted(labels)],
}))
"""


class Site(NamedTuple):
    hub: Hub
    run: Path
    pictures: list[Path]
    home: Path

    def python(self, *args: object, token: str | None = WRITER) -> Result:
        variables = {key: value for key, value in environment().items() if not key.startswith("HF_")} | {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [PYTHON, *map(str, args)],
            env=variables | ({"HF_TOKEN": token} if token is not None else {}),
            cwd=tempfile.gettempdir(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def publish(self, *args: object, token: str | None = WRITER) -> Result:
        return self.python("-m", "cskd_hf.publish", self.run, "org/name", "--license", "mit", *args, token=token)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("publish")
    pictures = sorted((images() / "test").glob("*/*.png"))[::2]
    with Hub() as hub:
        yield Site(hub, copied(trained(), folder), pictures, folder / "home")


def test_timm_and_transformers_load_a_published_run_without_this_package(site: Site) -> None:
    site.hub.fail("GET /api/models/org/name$", status=503)
    published = site.publish()
    assert published.status == 0, published.stderr
    assert "(status 503: fault 503); retrying in 1 s" in published.stdout
    repo = site.hub.repos["org/name"]
    assert repo.private
    assert len(repo.commits) == 2  # the Hub's initial commit and ours
    assert f"{site.hub.endpoint}/org/name/commit/{repo.branches['main']}" in published.stdout
    assert not re.search(rf"\b{WRITER}\b", published.stdout + published.stderr)

    files = repo.files()
    assert {"config.json", "model.safetensors", "README.md", "recipe.yaml", "metrics.json"} <= set(files)
    assert files["model.safetensors"] == (site.run / "model" / "model.safetensors").read_bytes()
    for name, content in files.items():
        assert not name.endswith((".bin", ".pt", ".pth", ".pkl"))
        assert str(site.run.parent).encode() not in content, f"{name} contains a path of the training machine"

    loaded = site.python("-I", "-c", LOAD, "org/name", site.run, *site.pictures)
    assert loaded.status == 0, loaded.stderr
    result = json.loads(loaded.stdout.splitlines()[-1])
    assert result["identical"]
    assert result["labels"][0] == result["labels"][1] == ["class 0", "class 1", "class 2", "class 3"]
    for timm, pipeline in zip(result["timm"], result["pipeline"], strict=True):
        assert timm[0] == pipeline[0]
        assert timm[1] == pytest.approx(pipeline[1], abs=1e-5)


def test_a_missing_token_sends_no_request_and_builds_nothing(site: Site) -> None:
    before, built = len(site.hub.requests), (site.run / "release" / "README.md").stat().st_mtime_ns
    assert "no Hub token" in error_line(site.publish(token=None))
    assert len(site.hub.requests) == before
    assert (site.run / "release" / "README.md").stat().st_mtime_ns == built


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "fault", "message"),
    [
        (READER, None, "the token may not write to org/name"),
        (WRITER, {"route": "POST .*/commit/main", "status": 409}, "status 409"),
    ],
)
def test_the_command_in_the_error_finishes_the_upload(
    site: Site, token: str, fault: dict[str, Any] | None, message: str
) -> None:
    site.hub.repos.clear()
    site.hub.faults.clear()
    if fault is not None:
        site.hub.fail(**fault)
    failed = site.publish(token=token)
    line = error_line(failed)
    assert message in line
    named = re.search(r"to finish: (python -m cskd_hf\.publish .+)$", line)
    assert named is not None
    site.hub.faults.clear()
    finished = site.python(*shlex.split(named[1])[1:])
    assert finished.status == 0, finished.stderr
    assert len(site.hub.repos["org/name"].commits) == 2
    for result in (failed, finished):
        assert not re.search(rf"\b({WRITER}|{READER})\b", result.stdout + result.stderr)


@pytest.mark.slow
def test_a_branch_holds_the_calibrated_weights_of_the_same_run(site: Site) -> None:
    site.hub.repos.clear()
    site.hub.faults.clear()
    assert site.publish().status == 0
    raw = site.hub.repos["org/name"].files()
    line = error_line(site.publish("--fold-temperature"))
    assert "org/name holds other weights: model.safetensors" in line
    beside = site.publish("--fold-temperature", "--revision", "calibrated")
    assert beside.status == 0, beside.stderr
    assert site.hub.repos["org/name"].files() == raw
    assert site.hub.repos["org/name"].files("calibrated")["model.safetensors"] != raw["model.safetensors"]


@pytest.mark.slow
def test_training_checks_for_a_token_first_and_publishes_last(site: Site) -> None:
    site.hub.repos.clear()
    site.hub.faults.clear()
    train = ("-m", "cskd_hf.train", trained().with_suffix(".yaml"), "run.hub_model_id=org/trained")
    licence = "run.hub_license=mit"
    folder = site.run.parent / "published"
    train = (*train, f"run.output_dir={folder}")
    assert "no Hub token" in error_line(site.python(*train, licence, token=None))
    assert "run.hub_license: needed, because the terms of the data my images are unknown" in error_line(
        site.python(*train)
    )
    assert not folder.exists()
    done = site.python(*train, licence)
    assert done.status == 0, done.stderr
    weights = site.hub.repos["org/trained"].files()["model.safetensors"]
    assert weights == (site.run / "model" / "model.safetensors").read_bytes()
    assert site.hub.repos["org/trained"].private
