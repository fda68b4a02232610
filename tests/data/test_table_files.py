"""Parquet by other programs, and WebDataset tars, in folders of any name."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sets import level_of, load, png, write

from cskd_hf.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")

ODD = "odd [1] *? (x) #%"
NAMES = ["ant", "bee", "ant"]


def tar(path: Path, suffix: str, texts: list[str], image: str = "{:03d}.png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for level, text in enumerate(texts):
            name = image.format(level)
            for file_name, content in ((name, png(level)), (f"{Path(name).stem}.{suffix}", text.encode())):
                member = tarfile.TarInfo(file_name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("shard", ["{}-000.tar", "{}/000.tar"])
@pytest.mark.parametrize(
    ("suffix", "texts", "column"),
    [
        ("cls", ["0", "1", "0"], "label"),
        ("json", [json.dumps({"species": name, "box": [1, 2]}) for name in NAMES], "species"),
        ("txt", NAMES, "txt"),
    ],
)
def test_tars_of_webdataset_are_read(tmp_path, shard, suffix, texts, column):
    for split in ("train", "val"):
        tar(tmp_path / ODD / shard.format(split), suffix, texts)
    images = load(tmp_path / ODD, test_split=None, label_column=column)
    assert images.train.class_names == (("0", "1") if suffix == "cls" else ("ant", "bee"))
    assert images.train.labels.tolist() == images.test.labels.tolist() == [0, 1, 0]
    assert [level_of(images.train, index) for index in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("others", "message"),
    [("{:03d}.PNG", "3 of 9 samples in the tar files lack an image"), ("v1.{:03d}.png", "1 of 7 samples")],
)
def test_images_that_datasets_would_drop_from_a_tar_are_counted(tmp_path, others, message):
    for split in ("train", "val"):
        tar(tmp_path / f"{split}-000.tar", "cls", ["0", "1"] * 3)
        tar(tmp_path / f"{split}-001.tar", "cls", ["0", "1", "0"], others)
    with pytest.raises(UserError, match=message):
        load(tmp_path, test_split="val")


def test_a_dot_in_the_keys_of_a_tar_is_named(tmp_path):
    tar(tmp_path / "train-000.tar", "cls", ["0", "1", "0"], "v1.{:03d}.png")
    with pytest.raises(UserError, match=r"no labels, which are KEY\.cls .* with no dot in KEY"):
        load(tmp_path, test_split=0.4)


def test_a_tar_beside_the_images_that_were_extracted_from_it_is_left_out(tmp_path):
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "test") for name in "ab"))
    tar(tmp_path / "images.tar", "cls", ["0", "1"])
    assert load(tmp_path).train.class_names == ("a", "b")


STRUCT = pa.struct([("bytes", pa.large_binary()), ("path", pa.string_view())])


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), STRUCT, pa.struct([("bytes", pa.binary())])],
    ids=str,
)
@pytest.mark.parametrize("label", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_parquet_of_other_programs_is_read(tmp_path, kind, label):
    root = tmp_path / ODD
    root.mkdir()
    images = [{"bytes": png(level)} if pa.types.is_struct(kind) else png(level) for level in range(3)]
    labels = pa.array(NAMES, label) if "dictionary" in str(label) else pa.array(NAMES).cast(label)
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": pa.array(images, kind), "label": labels}), root / f"{split}.parquet")
    train = load(root).train
    assert [train.class_names[number] for number in train.labels] == NAMES
    assert [level_of(train, index) for index in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("address", ["https://example.org/2.png", "s3://birds/2.png"])
def test_an_image_address_is_an_error_unless_its_bytes_are_there(tmp_path, address):
    for content in (None, png(1)):
        images = pa.array([{"bytes": png(0), "path": "a.png"}, {"bytes": content, "path": address}])
        for split in ("train", "test"):
            pq.write_table(pa.table({"image": images, "label": ["a", "b"]}), tmp_path / f"{split}.parquet")
        if content is None:
            with pytest.raises(UserError, match=f"'image' of split 'train' holds 1 addresses, such as {address}; down"):
                load(tmp_path)
    assert level_of(load(tmp_path).train, 1) == 1


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "2 files of the 3 shards train-\\*-of-00003: add"),
        (["train-00000-of-00002", "train-00001-of-00002", "train-00000-of-00001"], "3 files of the 2 shards"),
        (["train-00000-of-00001-0123456789abcdef", "train-00000-of-00001-fedcba9876543210"], "2 files of the 1 shards"),
        (["train-00001-of-00002", "train-00002-of-00002"], None),
        (["a/train-00000-of-00001", "b/train-00001-of-00002", "b/train-00000-of-00002"], None),
    ],
)
def test_missing_shards_and_shards_of_two_exports_are_an_error(tmp_path, files, problem):
    for file in [*files, "test-00000-of-00001"]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [png(1), png(2)], "label": ["a", "b"]}), tmp_path / f"{file}.parquet")
    with nullcontext() if problem is None else pytest.raises(UserError, match=problem):
        load(tmp_path)
    for path in (f"{files[0]}.parquet", "**/train*"):  # one shard on purpose, all of them
        data_files = json.dumps([{"split": "train", "path": path}, {"split": "test", "path": "test*"}])
        (tmp_path / "README.md").write_text(
            f"---\nconfigs:\n- {{config_name: default, data_files: {data_files}}}\n---\n"
        )
        with pytest.raises(UserError, match=problem) if problem and "*" in path else nullcontext():
            load(tmp_path)
