from __future__ import annotations

import hashlib
import io
import subprocess

import pyarrow as pa
import pytest
from datasets import load_from_disk
from originals import ORIGINALS, imagenet, odd_picture, packed, usual
from PIL import Image as PillowImage
from prepared_sets import assert_whole, command, manifest, prepare

from cskd_hf.recipe.catalog import CATALOG

pytestmark = pytest.mark.usefixtures("scripts_on_path")


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
