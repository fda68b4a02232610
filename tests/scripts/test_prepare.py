"""Archives of every kind and layout become the same dataset, byte for byte."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pytest
from datasets import load_from_disk
from originals import ORIGINALS, downloaded, imagenet, odd_picture, packed, unpacked
from PIL import Image as PillowImage
from preparations import assert_prepared, manifest, prepare

from cskd_hf.recipe.catalog import CATALOG


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_archives_become_a_dataset_byte_for_byte(tmp_path, name, capsys):
    archives = downloaded(tmp_path / "archives", name)
    assert prepare(name, *archives, tmp_path / "out") == 0
    stdout, stderr = capsys.readouterr()
    assert f"data.dataset={tmp_path / 'out'}" in stdout
    assert stderr == ""  # no progress bar without a terminal
    assert_prepared(tmp_path / "out", ORIGINALS[name]())
    assert [(each["file"], each["sha256"]) for each in manifest(tmp_path / "out")["inputs"]] == [
        (archive.name, hashlib.sha256(archive.read_bytes()).hexdigest()) for archive in archives
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "out"]


def test_the_originals_contain_several_formats_and_modes():
    opened = [PillowImage.open(io.BytesIO(odd_picture(number))) for number in (1, 3, 5, 7, 8)]
    kinds = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("GIF", "P")]
    assert [(image.format, image.mode) for image in opened] == kinds


@pytest.mark.parametrize("kind", ["tar", "tgz", "tar.bz2", "zip", "folder", "folder of archives"])
@pytest.mark.parametrize("name", [name for name in ORIGINALS if name != "imagenet"])
def test_every_kind_of_archive_gives_the_same_dataset(tmp_path, name, kind):
    original = ORIGINALS[name]()
    if kind == "folder of archives":
        downloaded(tmp_path / "in", name)
        inputs = [tmp_path / "in"]
    else:
        inputs = packed(tmp_path / "in", original, kind)
    assert prepare(name, *inputs, tmp_path / "out") == 0
    assert_prepared(tmp_path / "out", original)


@pytest.mark.parametrize("name", ["stanford_dogs", "mit67"])
def test_one_folder_may_hold_all_unpacked_files(tmp_path, name):
    original, root = ORIGINALS[name](), tmp_path / "in"
    for members in original.files.values():
        unpacked(root, members)
    unpacked(root, {".hidden/TrainImages.txt": b"none/a.jpg"})
    assert prepare(name, root, tmp_path / "out") == 0
    assert_prepared(tmp_path / "out", original)


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_copies_of_lists_and_images_in_other_folders_are_ignored(tmp_path, kind):
    original = ORIGINALS["cub200"]()
    members = original.files["CUB_200_2011.tgz"]
    images = [member for member in members if "/images/" in member]
    copies = {member.replace("/images/", "/a copy/"): b"a thumbnail" for member in images[:5]}
    copies |= {"CUB_200_2011/a copy/images.txt": b"1 003.Sooty_Albatross/none.jpg\n"}
    original.files["CUB_200_2011.tgz"] = copies | members
    assert prepare("cub200", *packed(tmp_path / "in", original, kind), tmp_path / "out") == 0
    assert_prepared(tmp_path / "out", original)


@pytest.mark.parametrize("layout", ["flat", "by class", "class tars"])
def test_imagenet_may_be_unpacked(tmp_path, layout):
    original, root = imagenet(), tmp_path / "in"
    if layout == "class tars":
        unpacked(root / "train", original.files["ILSVRC2012_img_train.tar"])
    for split, folder in (("train", "train"), ("validation", "val")):
        for name, label, image in original.rows[split]:
            if split == "validation" or layout != "class tars":
                has_class = split == "train" or layout == "by class"
                parent = f"{folder}/{original.class_names[label]}" if has_class else folder
                unpacked(root, {f"{parent}/{name}": image})
    if layout == "by class":
        original.words = {}  # they are in the devkit
    else:
        unpacked(root, original.files["ILSVRC2012_devkit_t12.tar.gz"])
    assert prepare("imagenet", root, tmp_path / "out", "--workers", 1) == 0
    assert_prepared(tmp_path / "out", original)


def test_workers_and_shard_size_change_the_files_but_not_the_dataset(tmp_path):
    archives = downloaded(tmp_path / "archives", "imagenet")
    fingerprints = []
    for workers, size in ((1, 500), (2, 0.002)):
        out = tmp_path / f"{workers}"
        assert prepare("imagenet", *archives[::-1], out, "--workers", workers, "--shard-size", size) == 0
        assert_prepared(out, imagenet())
        fingerprints.append([split._fingerprint for split in load_from_disk(str(out)).values()])
    assert fingerprints[0] == fingerprints[1]
    one, many = (manifest(tmp_path / f"{workers}")["splits"] for workers in (1, 2))
    assert one["train"]["num_shards"] == 1
    assert many["train"]["num_shards"] > 3
    assert many["validation"]["num_shards"] > 1
    assert many["train"]["num_shards"] == len(list((tmp_path / "2" / "train").glob("data-*.arrow")))


def test_shards_have_about_the_requested_size():
    from shards import even_parts

    sizes = [7, 1, 1, 1, 9, 2, 2, 2, 30, 1]
    parts = even_parts(range(10), sizes, 10)
    assert [index for part in parts for index in part] == list(range(10))
    assert all(sum(sizes[index] for index in part) <= 20 or len(part) <= 2 for part in parts)
    assert len(parts) in (4, 5, 6)
    assert [len(part) for part in even_parts(range(1000), [110] * 1000, 11_000)] == [100] * 10


@pytest.mark.parametrize(("num_images", "size", "largest"), [(3, 10**9, 3), (1000, 1200, 3), (1000, 1, 1)])
def test_batches_of_images_are_bounded_in_number_and_bytes(tmp_path, monkeypatch, num_images, size, largest):
    import shard_writer

    monkeypatch.setattr(shard_writer, "BATCH_IMAGES", num_images)
    monkeypatch.setattr(shard_writer, "BATCH_BYTES", size)
    original = ORIGINALS["cub200"]()
    assert prepare("cub200", *packed(tmp_path / "in", original, "tar"), tmp_path / "out") == 0
    assert_prepared(tmp_path / "out", original)
    with pa.OSFile(str(tmp_path / "out/train/data-00000-of-00001.arrow")) as file:
        batches = [batch.num_rows for batch in pa.ipc.open_stream(file)]
    assert max(batches) == largest
    assert sum(batches) == len(original.rows["train"])


def test_a_second_run_changes_nothing(tmp_path, capsys):
    archives, out = downloaded(tmp_path / "in", "cub200"), tmp_path / "out"
    assert prepare("cub200", *archives, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert prepare("cub200", *archives, out) == 0
    assert "already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("name", ORIGINALS)
def test_help_names_the_archives_the_terms_and_an_example(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        prepare(name, "--help")
    text = capsys.readouterr().out
    assert f"python scripts/prepare_{name}.py" in text
    assert f"terms: {CATALOG[name].terms}" in text
    assert all(archive in text for archive in ORIGINALS[name]().files)
