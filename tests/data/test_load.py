from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as PillowImage

from cskd_hf.data.catalog import CATALOG, IMAGENET_MEAN, IMAGENET_STD
from cskd_hf.data.decode import decode
from cskd_hf.data.load import Images, ImageSplit, held_out, load_images, resolve
from cskd_hf.errors import UserError
from cskd_hf.recipe import Recipe
from cskd_hf.recipe_sections import DataSection

GARBAGE = b"no image at all"


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(np.full((4, 4), level, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def section(dataset: Path | str, **keys: Any) -> DataSection:
    defaults = {"train_split": "train", "test_split": "test", "image_column": "image", "label_column": "label"}
    return DataSection.model_validate({"dataset": str(dataset), **defaults, **keys})


def load(dataset: Path | str, **keys: Any) -> Images:
    return load_images(section(dataset, **keys))


def level_of(split: ImageSplit, index: int) -> int:
    """The grey level of the image: which one it is."""
    return decode(split.fetch([index])[0]).getpixel((0, 0))[0]


def named(split: ImageSplit) -> list[tuple[str, str]]:
    """(file, class) of every image of a split of files."""
    files = [os.path.basename(image["path"]) for image in split.fetch(range(len(split)))]
    return sorted(zip(files, (split.class_names[label] for label in split.labels), strict=True))


def write(root: Path, *files: str, content: bytes = GARBAGE) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    return root


def table(
    labels: list[Any],
    label: Any = None,
    image: Any = None,
    image_column: str = "image",
    label_column: str = "label",
    images: list[Any] | None = None,
) -> Dataset:
    """A split of garbage images: whatever loads it, decodes none."""
    features = Features({image_column: image or Image(), label_column: label or Value("int64")})
    images = [{"bytes": GARBAGE, "path": None}] * len(labels) if images is None else images
    return Dataset.from_dict({image_column: images, label_column: labels}, features=features)


def as_parquet(root: Path, **splits: Dataset) -> Path:
    (root / "data").mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
    return root


def as_dataset_dict(root: Path, **splits: Dataset) -> Path:
    DatasetDict(splits).save_to_disk(str(root), num_proc=None)
    return root


def as_split_folders(root: Path, **splits: Dataset) -> Path:
    for name, split in splits.items():
        split.save_to_disk(str(root / name), num_shards=1)
    return root


SHAPES = [as_parquet, as_dataset_dict, as_split_folders]
ABC = ClassLabel(names=["ant", "bee", "cat"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it made of Parquet files, by path: not in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


# folders of classes


def test_a_folder_of_classes_takes_every_image_and_nothing_else(tmp_path):
    images = [
        "train/robin/plain.jpg",
        "train/robin/with space.jpeg",
        "train/robin/rødhals 知更鳥.png",
        "train/robin/[a] (1) {x}*?.jpg",
        "train/robin/100%#2::3.jpg",
        "train/robin/UPPER.JPG",
        "train/robin/Mixed.JpEg",
        "train/robin/two.dots.webp",
        "train/robin/nested/deeper/below.bmp",
        "train/European robin #1/a.tiff",
        "test/robin/b.jpg",
    ]
    others = [
        "train/robin/.hidden.jpg",
        "train/robin/._plain.jpg",
        "train/robin/.ipynb_checkpoints/plain-checkpoint.jpg",
        "train/robin/nested/.git/object.jpg",
        "train/robin/Thumbs.db",
        "train/robin/.DS_Store",
        "train/robin/notes.txt",
        "train/robin/labels.csv",
        "train/robin/jpg",
        "train/.cache/a.jpg",
        "train/loose.jpg",
        "README.md",
        "unused/robin/c.jpg",
    ]
    write(tmp_path, *images, *others)
    (tmp_path / "train/robin/linked.jpg").symlink_to(tmp_path / "unused/robin/c.jpg")
    (tmp_path / "train/linked class").symlink_to(tmp_path / "unused/robin", target_is_directory=True)
    (tmp_path / "train/robin/linked folder").symlink_to(tmp_path / "unused/robin", target_is_directory=True)
    found = load(tmp_path)
    expected = [(Path(file).name, Path(file).parts[1]) for file in images if file.startswith("train")]
    expected += [("linked.jpg", "robin"), ("c.jpg", "linked class"), ("c.jpg", "robin")]
    assert named(found.train) == sorted(expected)
    assert named(found.test) == [("b.jpg", "robin")]
    assert found.train.class_names == ("European robin #1", "linked class", "robin")


def test_files_are_readable_under_their_odd_names(tmp_path):
    names = ["with space.png", "知更鳥.png", "[a] (1)*?.png", "100%#2::3.png"]
    for level, name in enumerate(names):
        write(tmp_path, f"train/a/{name}", f"test/b/{name}", content=png(level))
    train = load(tmp_path).train
    assert sorted(level_of(train, index) for index in range(len(names))) == list(range(len(names)))
    assert "知更鳥.png" in " ".join(train.describe(index) for index in range(len(names)))


def test_file_names_do_not_move_images_between_splits(tmp_path):
    """`datasets`' imagefolder trains and tests on `train/robin/test_1.jpg`."""
    write(tmp_path, "train/robin/test_1.jpg", "train/wren/validation.jpg", "test/robin/train-2.jpg", "test/wren/x.jpg")
    found = load(tmp_path)
    assert named(found.train) == [("test_1.jpg", "robin"), ("validation.jpg", "wren")]
    assert named(found.test) == [("train-2.jpg", "robin"), ("x.jpg", "wren")]


def test_every_split_is_numbered_by_the_classes_of_all(tmp_path):
    write(tmp_path, "train/b/1.jpg", "train/d/2.jpg", "test/a/3.jpg", "test/b/4.jpg", "test/d/5.jpg")
    found = load(tmp_path)
    assert found.train.class_names == found.test.class_names == ("a", "b", "d")
    assert found.num_classes == 3
    assert found.train.labels.tolist() == [1, 2]
    assert found.test.labels.tolist() == [0, 1, 2]
    assert "1 of 3 classes have no training image: a" in found.notes


def test_a_class_with_one_training_image_is_noted(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "test/a/1.jpg")
    assert load(tmp_path).notes == ("1 classes have one training image, paired with itself: b",)


def test_rows_come_in_the_same_order_on_every_file_system(tmp_path, monkeypatch):
    write(tmp_path, *(f"{split}/{name}/{file}.jpg" for split in ("train", "test") for name in "ba" for file in "312"))
    write(tmp_path, "train/a/z/1.jpg", "train/a/y/1.jpg")
    in_order = ["a/1", "a/2", "a/3", "a/y/1", "a/z/1", "b/1", "b/2", "b/3"]
    expected = [str(tmp_path / f"train/{name}.jpg") for name in in_order]
    assert [image["path"] for image in load(tmp_path).train.fetch(range(8))] == expected
    real, real_walk = os.listdir, os.walk
    monkeypatch.setattr(os, "listdir", lambda path: sorted(real(path), reverse=True))

    def backwards(top: Any, **options: Any) -> Any:
        for parent, below, names in real_walk(top, **options):
            below.sort(reverse=True)
            yield parent, below, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert [image["path"] for image in load(tmp_path).train.fetch(range(8))] == expected


def test_a_split_folder_that_is_missing_is_named_with_those_there_are(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", ".git/x")
    with pytest.raises(UserError, match=r"data\.dataset: .* no folder 'test', but train, val; .*data\.test_split"):
        load(tmp_path)
    assert len(load(tmp_path, test_split="val").test) == 1


def test_a_split_folder_without_images_is_an_error_that_shows_the_layout(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "test/a/notes.txt")
    with pytest.raises(UserError, match=r"data\.dataset: .*test has no images; they lie in .*test/class/\*\.jpg"):
        load(tmp_path)


def test_an_empty_folder_and_a_file_are_errors_that_say_what_they_are(tmp_path):
    with pytest.raises(UserError, match=r"data\.dataset: .* no folder 'train', 'test', but none"):
        load(tmp_path)
    write(tmp_path, "archive.zip")
    with pytest.raises(UserError, match=r"data\.dataset: .*archive\.zip is a file; name its folder"):
        load(tmp_path / "archive.zip")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such a name")
def test_a_file_name_that_is_not_utf_8_is_named(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg")
    with open(os.fsencode(tmp_path) + b"/train/a/\xe9t\xe9.jpg", "wb"):
        pass
    with pytest.raises(UserError, match=r"data\.dataset: the file name .*xe9t.* is not UTF-8; rename it"):
        load(tmp_path)


def test_a_single_class_is_an_error(tmp_path):
    write(tmp_path, "train/a/1.jpg", "test/a/1.jpg")
    with pytest.raises(UserError, match=r"'label' has fewer than two classes: a"):
        load(tmp_path)


# tables


@pytest.mark.parametrize("save", SHAPES)
def test_tables_of_every_shape_load_without_decoding_an_image(tmp_path, save):
    found = load(save(tmp_path / "d", train=table([2, 0, 1, 0], ABC), test=table([1, 2], ABC)))
    assert found.train.labels.tolist() == [2, 0, 1, 0]
    assert found.test.labels.tolist() == [1, 2]
    assert found.train.labels.dtype == np.int64
    assert found.train.class_names == ("ant", "bee", "cat")
    assert found.train.rows.tolist() == [0, 1, 2, 3]
    assert (found.train.name, found.test.name, found.holdout) == ("train", "test", None)
    assert found.train.fetch([3, 1]) == [{"bytes": GARBAGE, "path": None}] * 2
    assert found.train.dataset.column_names == ["image"]


@pytest.mark.parametrize("name", sorted(set(CATALOG) - {"digits"}))
def test_a_local_copy_of_a_catalog_set_loads_in_exactly_its_columns(tmp_path, name):
    entry = CATALOG[name]
    columns = {"image_column": entry.image_column, "label_column": entry.label_column}
    label = ClassLabel(names=[f"class {number}" for number in range(entry.num_classes)])
    rows = [{"bytes": png(level), "path": None} for level in range(3)]
    labels = [entry.num_classes - 1, 0, 1]
    splits = {
        entry.train_split: table(labels, label, **columns, images=rows),
        entry.test_split: table(labels[::-1], label, **columns, images=rows),
    }
    assert set(splits) <= set(entry.num_images)
    root = as_parquet(tmp_path / "copy", **splits)
    found = load(root, train_split=entry.train_split, test_split=entry.test_split, **columns)
    assert found.num_classes == entry.num_classes
    assert found.train.labels.tolist() == labels
    assert found.test.labels.tolist() == labels[::-1]
    assert [level_of(found.test, index) for index in range(3)] == [0, 1, 2]


def test_names_need_no_class_list(tmp_path):
    text = Value("string")
    found = load(
        as_parquet(tmp_path / "d", train=table(["wren", "crow", "wren"], text), test=table(["crow", "owl"], text))
    )
    assert found.train.class_names == ("crow", "owl", "wren")
    assert found.train.labels.tolist() == [2, 0, 2]
    assert found.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint16"])
def test_numbers_need_neither_a_class_list_nor_to_start_at_0(tmp_path, dtype):
    found = load(
        as_parquet(tmp_path / "d", train=table([3, 1, 10, 3], Value(dtype)), test=table([10, 2], Value(dtype)))
    )
    assert found.train.class_names == ("1", "2", "3", "10")
    assert found.train.labels.tolist() == [2, 0, 3, 2]
    assert found.test.labels.tolist() == [3, 1]


def test_splits_that_number_their_classes_differently_are_matched_by_name(tmp_path):
    other_order = ClassLabel(names=["cat", "ant", "bee"])
    root = as_split_folders(tmp_path / "d", train=table([0, 1, 2], ABC), test=table([0, 1, 2], other_order))
    found = load(root)
    assert found.train.class_names == found.test.class_names == ("ant", "bee", "cat")
    assert found.test.labels.tolist() == [2, 0, 1]


def test_a_class_only_the_test_split_lists_is_an_error_if_any_image_has_it(tmp_path):
    more = ClassLabel(names=["dog", "ant"])
    used = as_split_folders(tmp_path / "used", train=table([0, 1], ABC), test=table([0, 1], more))
    with pytest.raises(UserError, match=r"split 'test' has classes that split 'train' lacks: dog"):
        load(used)
    unused = as_split_folders(tmp_path / "unused", train=table([0, 1], ABC), test=table([1, 1], more))
    assert load(unused).test.labels.tolist() == [0, 0]


def test_a_label_outside_the_class_list_is_an_error_that_names_it(tmp_path):
    wrong = table([0, 1, 7], Value("int64"))
    wrong.info.features["label"] = ABC  # as a Parquet file written elsewhere can be
    with pytest.raises(UserError, match=r"split 'train'.*7.*3 classes"):
        load(as_split_folders(tmp_path / "d", train=wrong, test=table([0, 1], ABC)))


def test_empty_classes_of_the_list_are_kept_and_noted(tmp_path):
    found = load(as_parquet(tmp_path / "d", train=table([0, 0, 2, 2], ABC), test=table([1], ABC)))
    assert found.num_classes == 3
    assert found.notes == ("1 of 3 classes have no training image: bee",)


@pytest.mark.parametrize("save", SHAPES)
def test_images_may_be_paths(tmp_path, save):
    for level in range(3):
        write(tmp_path, f"{level}.png", content=png(level))
    paths = [str(tmp_path / f"{level}.png") for level in range(3)]
    split = table([0, 1, 2], ABC, Value("string"), images=paths)
    found = load(save(tmp_path / "d", train=split, test=split))
    assert [level_of(found.train, index) for index in (2, 0)] == [2, 0]
    assert found.train.describe(2) == f"split 'train', row 2, file {paths[2]}"


@pytest.mark.parametrize("binary", ["binary", "large_binary"])
def test_images_may_be_raw_bytes(tmp_path, binary):
    split = table([0, 1], ABC, Value(binary), images=[png(5), png(9)])
    found = load(as_parquet(tmp_path / "d", train=split, test=split))
    assert [level_of(found.train, index) for index in (1, 0)] == [9, 5]
    assert found.train.describe(1) == "split 'train', row 1"


def test_a_selection_or_shuffle_is_respected_when_labels_are_read(tmp_path, monkeypatch):
    """The raw Arrow table knows of neither."""
    rows = [{"bytes": png(level), "path": None} for level in range(6)]
    stored = table([0, 1, 2, 0, 1, 2], ABC, images=rows)
    chosen = [5, 0, 4]
    loaded = DatasetDict(train=stored.select(chosen), test=stored.shuffle(seed=1))
    monkeypatch.setattr("cskd_hf.data.load.open_splits", lambda data, splits: loaded)
    found = load("anything")
    assert found.train.labels.tolist() == [2, 0, 1]
    assert [level_of(found.train, index) for index in range(3)] == chosen
    for index in range(6):
        assert found.test.labels[index] == level_of(found.test, index) % 3


@pytest.mark.parametrize("asked", ["val", "valid", "validation"])
@pytest.mark.parametrize("stored", ["val", "valid", "validation"])
def test_val_valid_and_validation_are_one_split_of_a_parquet_folder(tmp_path, stored, asked):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), **{stored: table([2, 2, 1], ABC)})
    found = load(root, test_split=asked)
    assert found.test.labels.tolist() == [2, 2, 1]
    assert found.test.name == asked


def test_one_split_under_two_of_its_names_is_an_error(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), validation=table([2, 1], ABC))
    with pytest.raises(UserError, match="twice"):
        load(root, test_split="validation", holdout="val")


@pytest.mark.parametrize(
    "keys", [{"test_split": "train"}, {"holdout": "train"}, {"holdout": "test"}, {"train_split": "test"}]
)
def test_a_split_named_twice_is_an_error(tmp_path, keys):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([2, 1], ABC))
    with pytest.raises(UserError, match=r"data: the splits .* twice"):
        load(root, **keys)


@pytest.mark.parametrize("save", SHAPES)
def test_a_missing_split_is_named_with_those_there_are(tmp_path, save):
    root = save(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"'dev'.* (train, test|test, train)") as caught:
        load(root, test_split="dev")
    assert "test_split" in str(caught.value)


def test_a_missing_column_is_named_with_its_key_and_those_there_are(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"data\.image_column: split 'train' has no column 'img'; it has image, label"):
        load(root, image_column="img")
    with pytest.raises(UserError, match=r"data\.label_column: split 'train' has no column 'fine'; it has image, label"):
        load(root, label_column="fine")


def test_a_column_that_one_split_lacks_is_named_with_that_split(tmp_path):
    root = as_split_folders(
        tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC).rename_column("label", "labels")
    )
    with pytest.raises(UserError, match=r"split 'test' has no column 'label'; it has image, labels"):
        load(root)


@pytest.mark.parametrize("column", [Value("float32"), Value("float64"), Sequence(Value("int64"))])
def test_labels_that_are_not_one_class_an_image_are_an_error(tmp_path, column):
    labels = [[0], [1]] if isinstance(column, Sequence) or "List" in str(column) else [0.0, 1.5]
    root = as_parquet(tmp_path / "d", train=table(labels, column), test=table(labels, column))
    with pytest.raises(UserError, match=r"data\.label_column: 'label' of split 'train' holds .*one class an image"):
        load(root)


def test_an_image_column_without_images_is_an_error_that_says_what_it_holds(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"data\.image_column: 'label' of split 'train' holds .*, not images"):
        load(root, image_column="label")


@pytest.mark.parametrize(
    ("labels", "column", "count"),
    [
        ([-1, -1, -1], ABC, "3 of 3"),
        ([0, -1, 1], ABC, "1 of 3"),
        ([0, None, None], ABC, "2 of 3"),
        ([0, -1, 1], Value("int64"), "1 of 3"),
        (["a", None, "b"], Value("string"), "1 of 3"),
        ([None, None], Value("int32"), "2 of 2"),
    ],
)
def test_rows_without_a_label_are_an_error_that_counts_them(tmp_path, labels, column, count):
    train = table([0, 1] if column != Value("string") else ["a", "b"], column)
    root = as_parquet(tmp_path / "d", train=train, test=table(labels, column))
    with pytest.raises(UserError, match=f"{count} rows of split 'test' have no label; choose another split"):
        load(root)


@pytest.mark.parametrize("save", [as_parquet, as_split_folders])
def test_an_empty_table_is_a_user_error_in_one_line(tmp_path, save):
    with pytest.raises(UserError, match=r"data(\.dataset: .*/d|: split 'test' is empty)") as caught:
        load(save(tmp_path / "d", train=table([0, 1], ABC), test=table([], ABC)))
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_selection_is_an_error(monkeypatch):
    loaded = DatasetDict(train=table([0, 1], ABC), test=table([0, 1], ABC).select([]))
    monkeypatch.setattr("cskd_hf.data.load.open_splits", lambda data, splits: loaded)
    with pytest.raises(UserError, match="split 'test' is empty"):
        load("anything")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (table([0, 1], ABC), table(["a", "b"], Value("string"))),
        (table([0, 1], ABC), table([0, 1], Value("int64"))),
        (table([0, 1], Value("int64")), table(["a", "b"], Value("string"))),
    ],
)
def test_labels_of_another_kind_in_each_split_are_an_error(tmp_path, train, test):
    with pytest.raises(UserError, match=r"data\.label_column: 'label' has another type in each split"):
        load(as_split_folders(tmp_path / "d", train=train, test=test))


def test_broken_parquet_is_a_user_error_in_one_line(tmp_path):
    write(tmp_path, "data/train.parquet", "data/test.parquet")
    with pytest.raises(UserError, match=r"data\.dataset: ") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("column", ["string", "class"])
def test_reading_the_labels_of_a_large_table_makes_no_object_per_row(tmp_path, column):
    names = [f"{number:04d} " + "a very long class name " * 8 for number in range(1000)]
    numbers = np.random.default_rng(0).integers(0, 1000, 200_000)
    images = ["x.jpg"] * len(numbers)
    label = ClassLabel(names=names) if column == "class" else Value("string")
    labels = numbers if column == "class" else [names[number] for number in numbers]
    train = table(labels, label, Value("string"), images=images)
    test = table(labels[:2000], label, Value("string"), images=images[:2000])
    root = as_dataset_dict(tmp_path / "d", train=train, test=test)
    del labels, images, train, test
    data = section(root)
    tracemalloc.start()
    found = load_images(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.train.labels == numbers).all()
    assert found.train.class_names == tuple(names)
    assert peak < 20e6


# where data comes from

OFFLINE = """
from cskd_hf.data.load import load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe_sections import DataSection
for dataset in ("nobody/nothing", "cifar100"):
    try:
        load_images(DataSection(dataset=dataset, train_split="train", test_split="test",
                                image_column="image", label_column="label"))
    except UserError as error:
        print(error)
"""


def test_a_hub_set_that_cannot_be_reached_is_one_line_with_its_name_and_the_reason(tmp_path):
    """In a process of its own: `datasets` reads HF_HUB_OFFLINE as it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    nobody, cifar100 = ran.stdout.splitlines()
    assert nobody.startswith("data.dataset: the Hub set 'nobody/nothing' is not in the cache, ")
    assert cifar100.startswith("data.dataset: the Hub set 'uoft-cs/cifar100' is not in the cache, ")
    assert nobody.endswith("HF_HUB_OFFLINE is set: unset it once to download the set, or write data.dataset=FOLDER")


@pytest.mark.parametrize(
    "dataset",
    # To `datasets` the last two mean whatever lies in the working folder.
    [
        "cifar10",
        "./missing",
        "../missing",
        "./no/such/folder",
        "/no/such",
        "/missing",
        "~/missing",
        "imagefolder",
        "parquet",
    ],
)
def test_a_name_that_is_nowhere_is_one_line_that_lists_the_catalog(dataset, tmp_path, monkeypatch):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cskd_hf.data.hub.snapshot_download", None)  # the network is not asked either
    with pytest.raises(UserError) as caught:
        load(dataset)
    message = str(caught.value)
    assert message.startswith(f"data.dataset: {dataset!r} is none of a folder, a Hub id (owner/name), or one of the")
    assert all(name in message for name in CATALOG)
    assert len(message.splitlines()) == 1


def test_a_catalog_name_wins_over_a_folder_of_that_name_unless_it_is_written_with_a_dot(tmp_path, monkeypatch):
    write(tmp_path, "digits/train/a/1.jpg", "digits/train/b/1.jpg", "digits/test/a/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert load("digits").num_classes == 10
    assert load("./digits").num_classes == 2


# the held-out share


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_a_held_out_share_is_stratified_and_leaves_every_class_an_image(share):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(40), generator.integers(1, 60, 40)))
    held = held_out(labels, share)
    assert held.dtype == bool
    for label in range(40):
        own = labels == label
        assert (own & ~held).any()
        assert abs((own & held).sum() - share * own.sum()) <= 0.5 + (own.sum() == 1)
        if own.sum() == 1:
            assert not held[own].any()


def test_even_a_large_share_leaves_every_class_an_image():
    assert held_out(np.arange(9) // 3, 0.95).reshape(3, 3).sum(1).tolist() == [2, 2, 2]


def test_a_held_out_share_is_the_same_at_each_call_and_left_to_no_seed():
    labels = np.arange(400) % 10
    np.random.seed(1)
    first = held_out(labels, 0.1)
    np.random.seed(2)
    assert (held_out(labels, 0.1) == first).all()
    assert np.bincount(labels[first]).tolist() == [4] * 10
    # Nor is it the first or last images of each class, which are often of one kind.
    assert not first[:40].all()
    assert 20 < np.flatnonzero(first).mean() < 380


def test_which_images_are_held_out_is_known_beforehand_and_frozen():
    """A new NumPy that shuffled otherwise would move images into the training set of a resumed run."""
    assert np.flatnonzero(held_out(np.arange(30) % 3, 0.2)).tolist() == [2, 13, 24, 26, 27, 28]


def test_a_share_of_the_training_split_is_taken_out_of_it(tmp_path):
    labels = [0, 1] * 10 + [2]
    rows = [{"bytes": png(level), "path": None} for level in range(21)]
    root = as_parquet(tmp_path / "d", train=table(labels, ABC, images=rows), test=table([0, 1], ABC))
    found = load(root, holdout=0.2)
    assert found.holdout is not None
    assert sorted([*found.train.rows, *found.holdout.rows]) == list(range(21))
    assert np.bincount(found.holdout.labels).tolist() == [2, 2]
    assert np.bincount(found.train.labels).tolist() == [8, 8, 1]
    assert found.holdout.name == "train"
    for split in (found.train, found.holdout):
        assert [level_of(split, index) for index in range(len(split))] == split.rows.tolist()
        assert [labels[row] for row in split.rows] == split.labels.tolist()
        assert split.describe(1) == f"split 'train', row {split.rows[1]}"
    again = load(root, holdout=0.2)
    assert again.holdout.rows.tolist() == found.holdout.rows.tolist()


def test_a_split_of_its_own_may_be_held_out(tmp_path):
    splits = {name: table([0, 1] * (1 + number), ABC) for number, name in enumerate(("train", "test", "dev"))}
    found = load(as_parquet(tmp_path / "d", **splits), holdout="dev")
    assert (len(found.train), len(found.test), len(found.holdout)) == (2, 4, 6)
    assert found.holdout.name == "dev"


def test_a_holdout_split_that_is_not_there_is_named(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"no split 'dev'; it has .*data\.holdout"):
        load(root, holdout="dev")


def test_a_share_that_holds_out_nothing_is_an_error_and_0_is_none(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"data\.holdout: 0\.1 of 2 images holds none out"):
        load(root, holdout=0.1)
    assert load(root, holdout=0.0).holdout is None
    assert load(root, holdout=None).holdout is None


# scikit-learn's digits


def test_digits_has_20_to_train_30_held_out_and_the_rest_to_test_of_each_class():
    from sklearn.datasets import load_digits

    scans = load_digits()
    found = load("digits", holdout="holdout")
    assert np.bincount(found.train.labels).tolist() == [20] * 10
    assert np.bincount(found.holdout.labels).tolist() == [30] * 10
    splits = {"train": found.train, "holdout": found.holdout, "test": found.test}
    assert {name: len(split) for name, split in splits.items()} == CATALOG["digits"].num_images

    def drawn(image: np.ndarray, label: int) -> tuple[bytes, int]:
        return image.astype(np.uint8).tobytes(), int(label)

    # Each image is known by its 64 pixels and its label; the 1,797 are all different.
    expected = [
        drawn(np.round(image * 255 / 16), label) for image, label in zip(scans.images, scans.target, strict=True)
    ]
    seen = [
        drawn(np.asarray(decode(image))[:, :, 0], label)
        for split in splits.values()
        for image, label in zip(split.fetch(range(len(split))), split.labels, strict=True)
    ]
    assert len(set(expected)) == 1797
    assert sorted(seen) == sorted(expected)


def test_digits_are_the_same_at_every_call_whatever_was_drawn_before():
    np.random.seed(1)
    first = load("digits").train
    np.random.seed(2)
    again = load("digits").train
    assert again.labels.tolist() == first.labels.tolist()
    assert again.fetch(range(200)) == first.fetch(range(200))


def test_digits_statistics_are_those_of_the_training_images():
    entry, train = CATALOG["digits"], load("digits").train
    values = np.stack([np.asarray(decode(image)) for image in train.fetch(range(200))]) / 255
    assert values.mean((0, 1, 2)) == pytest.approx(entry.mean, abs=2e-3)
    assert values.std((0, 1, 2)) == pytest.approx(entry.std, abs=2e-3)


# resolve


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    def build(**sections: dict[str, Any]) -> Recipe:
        settings = {
            "data": {"dataset": "cifar100"},
            "model": {"model_name": "resnet18"},
            "method": {"name": "cross_entropy"},
            "optimizer": {"lr": 0.1},
            "scheduler": {"num_epochs": 1},
        }
        return Recipe.model_validate(
            {name: keys | sections.pop(name, {}) for name, keys in settings.items()} | sections
        )

    return build


def test_resolve_fills_every_null_from_the_catalog(recipe):
    found = resolve(recipe())
    data = found.data
    assert (data.train_split, data.test_split, data.image_column, data.label_column, data.holdout) == (
        "train",
        "test",
        "img",
        "fine_label",
        0.0,
    )
    assert found.transform.mean == (0.4914, 0.4822, 0.4465)
    assert found.transform.std == (0.2023, 0.1994, 0.2010)
    assert resolve(recipe(data={"dataset": "tiny_imagenet"})).data.test_split == "valid"
    assert resolve(recipe(data={"dataset": "digits"})).data.holdout == "holdout"


def test_resolve_falls_back_on_the_usual_names_and_imagenets_statistics(recipe):
    found = resolve(recipe(data={"dataset": "some/folder"}))
    data = found.data
    assert (data.train_split, data.test_split, data.image_column, data.label_column, data.holdout) == (
        "train",
        "test",
        "image",
        "label",
        0.0,
    )
    assert (found.transform.mean, found.transform.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_resolve_leaves_the_recipes_own_values(recipe):
    own = {
        "data": {
            "dataset": "digits",
            "train_split": "a",
            "test_split": "b",
            "holdout": 0.0,
            "image_column": "c",
            "label_column": "d",
        },
        "transform": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    }
    given = recipe(**own)
    assert resolve(given) == given
    assert resolve(recipe(**own, model={"pretrained": True})).transform.mean == (0.1, 0.2, 0.3)
    assert resolve(recipe(transform={"mean": (0.1, 0.2, 0.3)})).transform.std == (0.2023, 0.1994, 0.2010)


def test_resolve_changes_nothing_but_the_nulls_and_is_done_in_one_go(recipe):
    given = recipe(data={"batch_size": 7}, run={"seed": 3})
    found = resolve(given)
    assert resolve(found) == found
    assert found.replace(data=dict.fromkeys(("train_split", "test_split", "image_column", "label_column", "holdout")),
                         transform={"mean": None, "std": None}) == given  # fmt: skip


def test_the_pretrained_weights_own_statistics_come_first(recipe):
    pretrained = {"model_name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "pretrained": True}
    assert resolve(recipe(model=pretrained)).transform.mean == (0.5, 0.5, 0.5)
    assert resolve(recipe(model=pretrained)).transform.std == (0.5, 0.5, 0.5)
    assert resolve(recipe(model=pretrained | {"pretrained": False})).transform.mean == (0.4914, 0.4822, 0.4465)


def test_a_csv_of_paths_is_read_with_labels_as_they_are_written(tmp_path):
    for file in ("a/1.png", "a/with, comma.png", "b/ü 2.png"):
        (tmp_path / "pictures" / file).parent.mkdir(parents=True, exist_ok=True)
        PillowImage.new("RGB", (4, 4), (len(file), 0, 0)).save(tmp_path / "pictures" / file)
    absolute = tmp_path / "pictures" / "b" / "ü 2.png"
    (tmp_path / "train.csv").write_text(
        f'file,species,note\npictures/a/1.png,10,x\n"pictures/a/with, comma.png",2,y\n{absolute},10,\n',
        encoding="utf-8",
    )
    (tmp_path / "val.csv").write_text("file,species,note\npictures/a/1.png,2,\n", encoding="utf-8")
    images = load(tmp_path, test_split="val", image_column="file", label_column="species")
    assert images.train.class_names == ("2", "10")  # as numbers, not as text
    assert images.train.labels.tolist() == [1, 0, 1]
    assert images.test.labels.tolist() == [0]
    red = [np.asarray(decode(image))[0, 0, 0] for image in images.train.fetch(range(3))]
    assert red == [len("a/1.png"), len("a/with, comma.png"), len("b/ü 2.png")]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("file,label\n1.png,a\n2.png,b\n", "no column 'image'; it has file, label"),
        ("image,species\n1.png,a\n2.png,b\n", "no column 'label'; it has image, species"),
        ("image,label\n1.png,a\n2.png,\n", "1 of 2 rows of split 'train' have no label"),
        ("image,label\n1.png,a\n2.png\n", "train|CSV parse error"),
        ("", "Empty CSV"),
    ],
)
def test_a_csv_that_is_not_what_it_should_be_is_a_user_error_in_one_line(tmp_path, train, message):
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text("image,label\n1.png,a\n")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_class_of_a_csv_may_be_called_na_or_null(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,label\n1.png,NA\n2.png,null\n3.png,nan\n")
    assert load(tmp_path).train.class_names == ("NA", "nan", "null")


def test_a_csv_split_that_is_missing_is_named_with_those_there_are(tmp_path):
    (tmp_path / "train.csv").write_text("image,label\n1.png,a\n2.png,b\n")
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        load(tmp_path)


def test_a_class_folder_without_a_file_that_is_named_like_an_image_is_an_error_and_an_empty_one_is_not(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    (tmp_path / "train" / "c").mkdir()
    assert load(tmp_path).train.class_names == ("a", "b")
    (tmp_path / "train" / "c" / "photo.heic").write_bytes(b"an image for somebody else")
    (tmp_path / "train" / "c" / "0001").write_bytes(b"an image without an extension")
    with pytest.raises(UserError, match=r"none of the 2 files in .*/train/c has the extension of an image") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
