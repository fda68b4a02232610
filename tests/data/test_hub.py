"""Loading catalog datasets from copies of Hub repositories, and from a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_runs import environment
from dataset_hub import SHA, Hub
from datasets import ClassLabel, Dataset, Features, Image, Value
from huggingface_hub.errors import HfHubHTTPError

from cskd_hf.data.hub import _explain
from cskd_hf.data.splits import Images, load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG, CatalogEntry
from cskd_hf.recipe.sections import DataSection

pytestmark = pytest.mark.usefixtures("own_cache")


def data_section(dataset: Any, entry: CatalogEntry, **keys: Any) -> dict[str, Any]:
    names = ("train_split", "test_split", "image_column", "label_column")
    return {"dataset": str(dataset)} | {name: getattr(entry, name) for name in names} | keys


def images_of(dataset: Any, entry: CatalogEntry, **keys: Any) -> Images:
    return load_images(DataSection.model_validate(data_section(dataset, entry, **keys)))


def hub_folder(root: Path, entry: CatalogEntry, described: bool = True, extra: str | None = None) -> Path:
    """A Hub repository: Parquet, and a README that assigns files to splits."""
    features = Features(
        {
            entry.image_column: Image(),
            entry.label_column: ClassLabel(names=[f"class {number}" for number in range(entry.num_classes)]),
            "note": Value("string"),
        }
    )
    (root / "data").mkdir(parents=True)
    splits = [entry.train_split, entry.test_split]
    for number, split in enumerate(splits):
        labels = [entry.num_classes - 1, number, 0]
        rows = {
            entry.image_column: [{"bytes": f"{split} {label}".encode(), "path": None} for label in labels],
            entry.label_column: labels,
            "note": ["a", "b", "c"],
        }
        Dataset.from_dict(rows, features=features).to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
    if extra is not None:  # not Parquet, so reading it fails
        (root / "data" / f"{extra}-00000-of-00001.parquet").write_bytes(b"not to be read")
        splits.append(extra)
    if described:
        files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
        (root / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\nA set.\n")
    return root


def test_a_dataset_missing_on_the_hub_names_its_preparation_script():
    with pytest.raises(UserError) as caught:
        images_of("mit67", CATALOG["mit67"])
    assert str(caught.value) == (
        "data.dataset: the Hub has no mit67 with the official split: convert the original archive: from a "
        "checkout, python scripts/prepare_mit67.py ARCHIVE OUT; then write data.dataset=./OUT"
    )


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("name", sorted(set(CATALOG) - {"digits"}))
def test_a_local_copy_of_the_repository_loads(tmp_path, name, described):
    entry = CATALOG[name]
    images = images_of(hub_folder(tmp_path / "copy", entry, described), entry)
    assert images.num_classes == entry.num_classes
    assert images.train.labels.tolist() == [entry.num_classes - 1, 0, 0]
    assert images.test.labels.tolist() == [entry.num_classes - 1, 1, 0]
    assert images.test.fetch([1]) == [{"bytes": f"{entry.test_split} 1".encode(), "path": None}]


@pytest.mark.parametrize("described", [True, False])
def test_only_requested_splits_are_read(tmp_path, described):
    entry = CATALOG["imagenet"]
    root = hub_folder(tmp_path / "copy", entry, described, extra="test")
    assert len(images_of(root, entry).test) == 3
    with pytest.raises(UserError, match=r"data\.dataset: "):
        images_of(root, entry, test_split="test")
    with pytest.raises(UserError, match=r"no split 'dev'; it has train, validation"):
        images_of(root, entry, test_split="dev")


LOAD = """
import json, sys
from cskd_hf.data.hub import cached_commit
from cskd_hf.data.splits import load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection
for line in sys.stdin:
    data = DataSection.model_validate(json.loads(line))
    try:
        images = load_images(data)
        print("OK", len(images.train), len(images.test), images.num_classes, cached_commit(data))
    except UserError as error:
        print(error)
"""


@contextmanager
def loading_process(home: Path, endpoint: str, **variables: str) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Section → the line that a process prints which loads it; `huggingface_hub` reads its environment at import."""
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    variables = environment() | hub | {"no_proxy": "*", "NO_PROXY": "*"} | variables
    command, pipe = [sys.executable, "-u", "-c", LOAD], subprocess.PIPE
    with subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def load(section: dict[str, Any]) -> str:
            print(json.dumps(section), file=process.stdin, flush=True)
            return process.stdout.readline().rstrip("\n")

        yield load
    assert process.returncode == 0


class Loaded(NamedTuple):
    """The requests to a local Hub, and the output for each data section, by name."""

    endpoint: str
    requested: list[str]  # files
    online: dict[str, str]
    offline: dict[str, str]  # with HF_HUB_OFFLINE=1
    requested_offline: list[str]
    unreachable: str  # online, after the Hub has stopped


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder, entry, other = tmp_path_factory.mktemp("hub"), CATALOG["imagenet"], CATALOG["cub200"]
    root, requests = hub_folder(folder / "repository", entry, extra="test"), list[str]()
    handler = type("Repository", (Hub,), {"root": root, "requested": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    served = {
        "name": data_section("imagenet", entry),
        # By Hub id and revision, the README assigns files to splits.
        "id": data_section("ILSVRC/imagenet-1k", entry, revision=SHA),
    }
    failing = {name: data_section(name, other) for name in ("gated/set", "closed/set", "nobody/nothing")}
    failing["revision"] = data_section("ILSVRC/imagenet-1k", other, revision="nowhere")
    uncached = data_section("cifar100", CATALOG["cifar100"])
    with loading_process(folder / "home", endpoint) as load:
        online = {name: load(section) for name, section in served.items()}
        requested = list(requests)
        online |= {name: load(section) for name, section in failing.items()}
        requests.clear()
        with loading_process(folder / "home", endpoint, HF_HUB_OFFLINE="1") as load_offline:
            sections = {"name": served["name"], "nobody/nothing": failing["nobody/nothing"], "cifar100": uncached}
            offline = {name: load_offline(section) for name, section in sections.items()}
        requested_offline = list(requests)
        server.shutdown()
        server.server_close()
        return Loaded(endpoint, requested, online, offline, requested_offline, load(uncached))


def test_only_requested_splits_are_downloaded_and_the_cache_serves_them_offline(loaded):
    assert [loaded.online["name"], loaded.online["id"]] == [f"OK 3 3 1000 {SHA}"] * 2
    assert {Path(file).name.partition("-")[0] for file in loaded.requested} == {"README.md", "train", "validation"}
    assert loaded.offline["name"] == f"OK 3 3 1000 {SHA}"
    assert loaded.requested_offline == []


def test_every_hub_error_is_one_line_with_a_fix(loaded):
    for name, path in {"nobody/nothing": "nobody/nothing", "cifar100": "uoft-cs/cifar100"}.items():
        line = loaded.offline[name]
        assert line.startswith(f"data.dataset: the Hub dataset {path!r} is not in the cache, ")
        assert line.endswith("HF_HUB_OFFLINE is set: unset it once to download the set, or write data.dataset=FOLDER")
    for name in ("gated/set", "closed/set"):
        assert loaded.online[name] == (
            f"data.dataset: the Hub dataset {name!r} is gated: accept the terms at {loaded.endpoint}/datasets/{name}, "
            "then log in with `hf auth login`"
        )
    unknown = "data.dataset: the Hub has no dataset 'nobody/nothing', or it is private: "
    assert loaded.online["nobody/nothing"].startswith(unknown)
    assert loaded.online["revision"].startswith(
        "data.dataset: the Hub dataset 'ILSVRC/imagenet-1k' has no revision 'nowhere': data.revision"
    )
    assert loaded.unreachable.startswith(
        f"data.dataset: the Hub dataset 'uoft-cs/cifar100' is not in the cache, and {loaded.endpoint} cannot be "
        "reached: write data.dataset=FOLDER"
    )


def test_a_failed_response_is_read_although_requests_takes_it_for_false():
    """As in huggingface_hub before 1.0."""

    class Failed(dict[str, str]):  # empty, and so false
        status_code, headers, request = 403, {}, None

    error = HfHubHTTPError("403 Client Error", response=Failed())
    assert _explain(error, "owner/name", None).startswith("the Hub dataset 'owner/name' is gated: accept the terms")
