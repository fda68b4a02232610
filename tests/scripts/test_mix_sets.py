"""mix_sets.py: every image of several datasets in one folder, under the name of its dataset."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from originals import picture
from small_sets import load

from cskd_hf.data.decode import decode
from cskd_hf.errors import UserError
from cskd_hf.paper.prediction_plots import superclasses_of

COUNTS = {"train": {"a": 5, "b": 2, "c": 9}, "test": {"a": 2, "b": 3, "c": 1}}


@pytest.fixture
def script(scripts_on_path: None) -> ModuleType:
    return importlib.import_module("mix_sets")


def class_folders(root: Path, first: int = 0) -> Path:
    """split/class/*.png, no two images alike."""
    number = first
    for split, counts in COUNTS.items():
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for _ in range(count):
                (root / split / name / f"{number}.png").write_bytes(picture(number, "PNG"))
                number += 1
    return root


def embedded(root: Path, first: int = 100) -> Path:
    """A saved dataset: bytes in Arrow, classes not in alphabetical order."""
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["z", "y"])})
    rows = {"train": [1, 0, 0, 1, 1, 0, 1], "test": [0, 1, 1]}
    splits = {}
    for split, labels in rows.items():
        images = [{"bytes": picture(first + number), "path": None} for number in range(len(labels))]
        splits[split] = Dataset.from_dict({"image": images, "label": labels}, features=features)
        first += len(labels)
    DatasetDict(splits).save_to_disk(str(root))
    return root


def content(image: Any) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def rows(split: Any) -> list[tuple[str, bytes]]:
    labels = [split.class_names[label] for label in split.labels]
    return list(zip(labels, map(content, split.fetch(range(len(split)))), strict=True))


def test_the_mix_has_every_test_image_and_some_training_images_of_each_class(script, tmp_path, capsys):
    folders, arrow = class_folders(tmp_path / "folders"), embedded(tmp_path / "arrow")
    script.main([str(tmp_path / "out"), f"pets={folders}", f"odd ones={arrow}", "--train-images-per-class", "3"])
    mixed = load(tmp_path / "out")
    assert mixed.test.class_names == ("pets: a", "pets: b", "pets: c", "odd ones: z", "odd ones: y")
    assert superclasses_of(mixed.test.class_names) == ["pets"] * 3 + ["odd ones"] * 2
    originals = {"pets": load(folders), "odd ones": load(arrow)}
    train, test = (
        [(f"{name}: {label}", image) for name, images in originals.items() for label, image in rows(part(images))]
        for part in (lambda images: images.train, lambda images: images.test)
    )
    assert rows(mixed.test) == test
    drawn = rows(mixed.train)
    assert [row for row in train if row in drawn] == drawn  # in their order, none twice
    assert np.bincount(mixed.train.labels).tolist() == [3, 2, 3, 3, 3]
    for image in mixed.train.fetch(range(len(mixed.train))):
        assert decode(image).size == (12, 12)
    assert f"data.dataset={tmp_path / 'out'}" in capsys.readouterr().out


def test_the_mix_opens_with_datasets_and_has_a_manifest(script, tmp_path):
    script.main([str(tmp_path / "out"), f"pets={class_folders(tmp_path / 'a')}", f"odd={embedded(tmp_path / 'b')}"])
    stored = load_from_disk(str(tmp_path / "out"))
    names = ["pets: a", "pets: b", "pets: c", "odd: z", "odd: y"]
    assert stored["train"].features == Features({"image": Image(), "label": ClassLabel(names=names)})
    assert {split: len(stored[split]) for split in stored} == {"train": 23, "test": 9}
    assert stored["test"][0]["image"].size == (12, 12)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["classes"] == names
    assert (manifest["seed"], manifest["train_images_per_class"]) == (0, 30)
    assert {split: facts["num_images"] for split, facts in manifest["splits"].items()} == {"train": 23, "test": 9}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset_dict.json", "manifest.json", "test", "train"]  # fmt: skip  # noqa: E501
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_the_draw_depends_on_the_seed_and_not_on_the_other_sets(script, tmp_path):
    pets, odd, more = class_folders(tmp_path / "a"), embedded(tmp_path / "b"), class_folders(tmp_path / "c", 500)
    options = ["--train-images-per-class", "2", "--seed"]
    for name, sets, seed in (
        ("out", (f"pets={pets}", f"odd={odd}"), "0"),
        ("again", (f"pets={pets}", f"odd={odd}"), "0"),
        ("seed", (f"pets={pets}", f"odd={odd}"), "1"),
        ("beside", (f"more={more}", f"pets={pets}"), "0"),
    ):
        script.main([str(tmp_path / name), *sets, *options, seed])
    of_pets = {
        name: [row for row in rows(load(tmp_path / name).train) if row[0].startswith("pets")]
        for name in ("out", "again", "seed", "beside")
    }
    assert of_pets["again"] == of_pets["out"] == of_pets["beside"]
    assert of_pets["seed"] != of_pets["out"]
    for split in ("train", "test"):
        for file in (tmp_path / "out" / split).iterdir():
            assert (tmp_path / "again" / split / file.name).read_bytes() == file.read_bytes()


def test_a_draw_is_uniform_over_the_images_of_a_class(script):
    labels = np.repeat([0, 1], [4, 6])
    drawn = np.concatenate([script.draw(labels, 2, seed) for seed in range(3000)])
    count = np.bincount(drawn, minlength=10)
    assert abs(count[:4] - 1500).max() < 5 * np.sqrt(3000 / 4)
    assert abs(count[4:] - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["pets=A", "a:b=A"], "a name must not contain a colon"),
        (["pets=A", "pets=A"], "two sets are named pets"),
        (["pets=A"], "name two or more"),
        (["pets=A", "A"], "write NAME=PLACE"),
        (["pets=A", "=A"], "write NAME=PLACE"),
        (["pets=A", "dogs="], "write NAME=PLACE"),
        (["pets=A", "dogs=./nowhere"], r"dogs=\./nowhere: data\.dataset"),
        (["pets=A", "dogs=EMPTY"], "dogs=.*has no images that can be read"),
    ],
)
def test_mistakes_are_rejected_before_anything_is_written(script, tmp_path, sets, message):
    (tmp_path / "EMPTY").mkdir()
    places = {"A": class_folders(tmp_path / "A"), "EMPTY": tmp_path / "EMPTY"}
    for name, place in places.items():
        sets = [each.replace(f"={name}", f"={place}") for each in sets]
    with pytest.raises(UserError, match=message) as raised:
        script.main([str(tmp_path / "out"), *sets])
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "EMPTY"]


def test_only_an_empty_or_absent_out_is_written(script, tmp_path):
    sets = [f"pets={class_folders(tmp_path / 'a')}", f"odd={embedded(tmp_path / 'b')}"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match="full: OUT is not empty"):
        script.main([str(tmp_path / "full"), *sets])
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    with pytest.raises(UserError, match="mine: OUT is a file"):
        script.main([str(tmp_path / "full" / "mine"), *sets])
    (tmp_path / "empty").mkdir()
    script.main([str(tmp_path / "empty"), *sets])
    assert len(load(tmp_path / "empty").test) == 9


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_an_image_that_vanishes_or_is_empty_is_named_and_nothing_is_left_behind(script, tmp_path, monkeypatch, spoil):
    sets = [f"pets={class_folders(tmp_path / 'a')}", f"odd={embedded(tmp_path / 'b')}"]
    opener = script.open_set

    def open_and_spoil(name: str, place: str) -> Any:
        images = opener(name, place)
        for path in (tmp_path / "a" / "test" / "c").iterdir():  # between opening and reading
            spoil(path)
            spoilt.append(path.name)
        return images

    spoilt: list[str] = []
    monkeypatch.setattr(script, "open_set", lambda *args: open_and_spoil(*args) if not spoilt else opener(*args))
    with pytest.raises(UserError) as raised:
        script.main([str(tmp_path / "out"), *sets])
    assert spoilt[0] in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
