from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Features, Image, load_from_disk
from PIL import Image as PillowImage
from scripts.originals import ORIGINALS, Original, imagenet, odd_picture, packed, usual

from cskd_hf.data.catalog import CATALOG
from cskd_hf.data.decode import decode
from cskd_hf.data.load import load_images
from cskd_hf.recipe_sections import DataSection

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def prepare(name: str, *arguments: Any) -> int:
    main = importlib.import_module(f"prepare_{name}").main
    return main([*map(str, arguments), "--allow-other-counts"])


def command(name: str, *arguments: Any) -> list[str]:
    script = ROOT / "scripts" / f"prepare_{name}.py"
    return [sys.executable, str(script), *map(str, arguments), "--allow-other-counts"]


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def digests(out: Path) -> dict[str, str]:
    return {split: facts["sha256"] for split, facts in manifest(out)["splits"].items()}


def expected_digest(original: Original, split: str) -> str:
    """The definition in scripts/shards.py, written anew."""
    whole = b"".join(label.to_bytes(8, "little") + hashlib.sha256(image).digest()
                     for _, label, image in original.rows[split])  # fmt: skip
    return hashlib.sha256(whole).hexdigest()


def assert_whole(out: Path, original: Original) -> None:
    """Every image's name, bytes, label and split, as `datasets` and as the trainer read them."""
    opened = load_from_disk(str(out))
    assert list(opened) == list(original.rows)
    features = Features({"image": Image(), "label": ClassLabel(names=original.class_names)})
    for split, rows in original.rows.items():
        assert opened[split].features == features
        assert str(opened[split].split) == split
        stored = opened[split].cast_column("image", Image(decode=False))
        found = [(row["image"]["path"], row["label"], row["image"]["bytes"]) for row in stored]
        assert found == rows
        assert [image.size for image in opened[split]["image"]] == [decode({"bytes": b, "path": None}).size for _, _, b in rows]  # fmt: skip  # noqa: E501
    entry = CATALOG[original.name]
    keys = {"train_split": entry.train_split, "test_split": entry.test_split}
    keys |= {"image_column": entry.image_column, "label_column": entry.label_column}
    loaded = load_images(DataSection(dataset=str(out), **keys))
    assert loaded.train.class_names == loaded.test.class_names == tuple(original.class_names)
    for part, split in ((loaded.train, entry.train_split), (loaded.test, entry.test_split)):
        assert part.labels.tolist() == [label for _, label, _ in original.rows[split]]
        assert [image["bytes"] for image in part.fetch(range(len(part)))] == [b for _, _, b in original.rows[split]]
    facts = manifest(out)
    assert facts["name"] == original.name
    assert facts["classes"] == original.class_names
    assert facts["words"] == original.words
    assert {split: part["num_images"] for split, part in facts["splits"].items()} == {
        split: len(rows) for split, rows in original.rows.items()
    }
    assert digests(out) == {split: expected_digest(original, split) for split in original.rows}
    assert sorted(entry.name for entry in out.iterdir()) == sorted(
        [*original.rows, "dataset_dict.json", "manifest.json"]
    )


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_archives_become_a_dataset_with_every_image_byte_for_byte(tmp_path, name):
    archives = usual(tmp_path / "archives", name)
    done = subprocess.run(command(name, *archives, tmp_path / "out"), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where nobody watches
    assert f"data.dataset={tmp_path / 'out'}" in done.stdout
    assert_whole(tmp_path / "out", ORIGINALS[name]())
    assert [(each["file"], each["sha256"]) for each in manifest(tmp_path / "out")["inputs"]] == [
        (archive.name, hashlib.sha256(archive.read_bytes()).hexdigest()) for archive in archives
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "out"]


def test_the_odd_images_are_what_they_should_be():
    """Else the test above would compare nothing but colour JPEGs."""
    opened = [PillowImage.open(io.BytesIO(odd_picture(number))) for number in (1, 3, 5, 7, 8)]
    assert [(image.format, image.mode) for image in opened] == [
        ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("GIF", "P")
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["tar", "tgz", "tar.bz2", "zip", "folder"])
@pytest.mark.parametrize("name", [name for name in ORIGINALS if name != "imagenet"])
def test_every_kind_of_archive_gives_the_same(tmp_path, name, kind):
    original = ORIGINALS[name]()
    assert prepare(name, *packed(tmp_path / "in", original, kind), tmp_path / "out") == 0
    assert_whole(tmp_path / "out", original)


@pytest.mark.parametrize("name", [name for name in ORIGINALS if name != "imagenet"])
def test_a_folder_of_the_archives_stands_for_them(tmp_path, name):
    usual(tmp_path / "in", name)
    assert prepare(name, tmp_path / "in", tmp_path / "out") == 0
    assert_whole(tmp_path / "out", ORIGINALS[name]())


def test_one_folder_with_everything_unpacked_will_do(tmp_path):
    for name in ("stanford_dogs", "mit67"):
        original, root = ORIGINALS[name](), tmp_path / name
        for members in original.files.values():
            for member, content in members.items():
                (root / member).parent.mkdir(parents=True, exist_ok=True)
                (root / member).write_bytes(content)
        (root / ".hidden").mkdir()
        (root / ".hidden" / "TrainImages.txt").write_text("none/a.jpg")
        assert prepare(name, root, tmp_path / f"{name}-out") == 0
        assert_whole(tmp_path / f"{name}-out", original)


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_copies_of_lists_and_images_in_other_folders_do_not_mislead(tmp_path, kind):
    original = ORIGINALS["cub200"]()
    members = original.files["CUB_200_2011.tgz"]
    images = [member for member in members if "/images/" in member]
    copies = {member.replace("/images/", "/a copy/"): b"a thumbnail" for member in images[:5]}
    copies |= {"CUB_200_2011/a copy/images.txt": b"1 003.Sooty_Albatross/none.jpg\n"}
    original.files["CUB_200_2011.tgz"] = copies | members
    assert prepare("cub200", *packed(tmp_path / "in", original, kind), tmp_path / "out") == 0
    assert_whole(tmp_path / "out", original)


@pytest.mark.parametrize("layout", ["flat", "by class", "class tars"])
def test_imagenet_may_be_unpacked(tmp_path, layout):
    original, root = imagenet(), tmp_path / "in"
    by_name = {split: {name: (label, image) for name, label, image in rows} for split, rows in original.rows.items()}
    if layout == "class tars":
        for name, content in original.files["ILSVRC2012_img_train.tar"].items():
            (root / "train").mkdir(parents=True, exist_ok=True)
            (root / "train" / name).write_bytes(content)
    for split, folder in (("train", "train"), ("validation", "val")):
        for name, (label, image) in by_name[split].items():
            parent = root / folder / (original.class_names[label] if split == "train" or layout == "by class" else "")
            if split == "validation" or layout != "class tars":
                parent.mkdir(parents=True, exist_ok=True)
                (parent / name).write_bytes(image)
    if layout == "by class":
        original.words = {}  # they are in the devkit
    else:
        for name, content in original.files["ILSVRC2012_devkit_t12.tar.gz"].items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    assert prepare("imagenet", root, tmp_path / "out", "--workers", 1) == 0
    assert_whole(tmp_path / "out", original)


def test_workers_and_shards_change_the_files_and_not_the_data(tmp_path):
    archives = usual(tmp_path / "archives", "imagenet")
    fingerprints = []
    for workers, size in ((1, 500), (2, 0.002)):
        out = tmp_path / f"{workers}"
        assert prepare("imagenet", *archives[::-1], out, "--workers", workers, "--shard-size", size) == 0
        assert_whole(out, imagenet())
        fingerprints.append([split._fingerprint for split in load_from_disk(str(out)).values()])
    assert manifest(tmp_path / "1")["splits"]["train"]["num_shards"] == 1
    assert manifest(tmp_path / "2")["splits"]["train"]["num_shards"] > 3
    assert manifest(tmp_path / "2")["splits"]["validation"]["num_shards"] > 1
    shards = len(list((tmp_path / "2" / "train").glob("data-*.arrow")))
    assert shards == manifest(tmp_path / "2")["splits"]["train"]["num_shards"]
    assert fingerprints[0] == fingerprints[1]


def test_shards_are_of_about_the_size_asked_for(tmp_path):
    from shards import even_parts

    sizes = [7, 1, 1, 1, 9, 2, 2, 2, 30, 1]
    parts = even_parts(range(10), sizes, 10)
    assert [index for part in parts for index in part] == list(range(10))
    assert all(sum(sizes[index] for index in part) <= 20 or len(part) <= 2 for part in parts)
    assert len(parts) in (4, 5, 6)
    assert [len(part) for part in even_parts(range(1000), [110] * 1000, 11_000)] == [100] * 10


@pytest.mark.parametrize(("images", "size", "most"), [(3, 10**9, 3), (1000, 1200, 3), (1000, 1, 1)])
def test_batches_of_images_are_bounded_in_number_and_bytes(tmp_path, monkeypatch, images, size, most):
    import shards

    monkeypatch.setattr(shards, "BATCH_IMAGES", images)
    monkeypatch.setattr(shards, "BATCH_BYTES", size)
    original = ORIGINALS["cub200"]()
    assert prepare("cub200", *packed(tmp_path / "in", original, "tar"), tmp_path / "out") == 0
    assert_whole(tmp_path / "out", original)
    with pa.OSFile(str(tmp_path / "out/train/data-00000-of-00001.arrow")) as file:
        batches = [batch.num_rows for batch in pa.ipc.open_stream(file)]
    assert max(batches) == most
    assert sum(batches) == len(original.rows["train"])


# resuming


def kill_in_the_middle(arguments: list[str], out: Path) -> dict[str, int]:
    """Kill -9 once a shard is done; returns the inode of every shard that is recorded as done."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, start_new_session=True)
    rows = out / ".partial" / "rows"
    try:
        while not (rows.is_dir() and any(not name.endswith(".tmp") for name in os.listdir(rows))):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while workers_of(process.pid):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.01)
    finally:
        if workers_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    done = {}
    for record in rows.glob("*[0-9]"):
        split, number = record.name.split("-")
        (shard,) = (out / ".partial" / split).glob(f"data-{number}-of-*.arrow")
        done[record.name] = shard.stat().st_ino
    return done


def workers_of(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_imagenet_killed_goes_on_and_gives_the_same_without_writing_a_shard_twice(tmp_path):
    original = imagenet(num_images=40, size=256)
    archives = packed(tmp_path / "archives", original, "tar")
    out = tmp_path / "out"
    options = ["--workers", 2, "--shard-size", 0.5]
    before = kill_in_the_middle(command("imagenet", *archives, out, *options), out)
    assert not (out / "dataset_dict.json").exists()
    moved = [path.rename(tmp_path / path.name) for path in archives]  # the path is no part of what was begun
    assert prepare("imagenet", *moved, out, *options) == 0
    assert_whole(out, original)
    assert 0 < len(before) < sum(facts["num_shards"] for facts in manifest(out)["splits"].values())
    for record, inode in before.items():
        split, number = record.split("-")
        (shard,) = (out / split).glob(f"data-{number}-of-*.arrow")
        assert shard.stat().st_ino == inode


def test_a_preparation_begun_from_other_archives_starts_anew(tmp_path):
    original = imagenet(num_images=30, size=160)
    archives = packed(tmp_path / "archives", original, "tar")
    options = ["--workers", 1, "--shard-size", 0.06]
    assert kill_in_the_middle(command("imagenet", *archives, tmp_path / "out", *options), tmp_path / "out")
    changed = imagenet(num_images=31, size=160)
    again = packed(tmp_path / "others", changed, "tar")
    assert prepare("imagenet", *again, tmp_path / "out", *options) == 0
    assert_whole(tmp_path / "out", changed)


class KilledError(Exception):
    pass


def test_interrupted_at_any_rename_nothing_half_written_is_taken_for_whole_and_the_next_run_ends_it(
    tmp_path, monkeypatch
):
    original = ORIGINALS["cub200"]()
    archives = packed(tmp_path / "in", original, "tgz")
    real, calls = os.replace, []
    limit = 0

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > limit:
            raise KilledError
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    interrupted = 0
    while True:
        out = tmp_path / f"out-{limit}"
        calls.clear()
        try:
            prepare("cub200", *archives, out, "--shard-size", 0.002)
            break
        except KilledError:
            interrupted += 1
        if (out / "dataset_dict.json").exists():
            assert_whole(out, original)
        before = limit
        limit, calls[:] = 10**9, []
        assert prepare("cub200", *archives, out, "--shard-size", 0.002) == 0
        assert_whole(out, original)
        limit = before + 1
    assert_whole(out, original)
    assert interrupted > 12


def test_another_shard_size_starts_anew(tmp_path, monkeypatch):
    original = ORIGINALS["cub200"]()
    archives = packed(tmp_path / "in", original, "tar")

    def killed(*arguments: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("preparation._split_digest", killed)
        with pytest.raises(KilledError):
            prepare("cub200", *archives, tmp_path / "out", "--shard-size", 0.002)
    assert len(list((tmp_path / "out").rglob("data-*.arrow"))) > 2
    assert prepare("cub200", *archives, tmp_path / "out") == 0
    assert_whole(tmp_path / "out", original)
    assert len(list((tmp_path / "out").rglob("data-*.arrow"))) == 2


def test_a_second_run_on_a_finished_folder_says_so_and_touches_nothing(tmp_path, capsys):
    archives = usual(tmp_path / "in", "cub200")
    out = tmp_path / "out"
    assert prepare("cub200", *archives, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert prepare("cub200", *archives, out) == 0
    assert "whole already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_help_gives_the_archives_the_terms_and_an_example():
    for name in ORIGINALS:
        done = subprocess.run(command(name, "--help"), capture_output=True, text=True)
        assert done.returncode == 0
        assert f"python scripts/prepare_{name}.py" in done.stdout
        assert f"terms: {CATALOG[name].terms}" in done.stdout
        assert all(archive in done.stdout for archive in ORIGINALS[name]().files)
