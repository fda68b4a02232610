"""subset.py: fewer classes, fewer training images of each, exponentially fewer from class to class."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from small_sets import load, png, section

from cskd_hf.data.splits import load_images
from cskd_hf.errors import UserError

CLASSES = {"a": 3, "b": 12, "c": 6, "d": 12}


@pytest.fixture
def script(scripts_on_path: None) -> ModuleType:
    return importlib.import_module("subset")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """split/class/*.png, each of its own grey level."""
    level = 0
    for split, extra in (("train", 0), ("test", -1), ("val", -2)):
        for name, count in CLASSES.items():
            (tmp_path / "in" / split / name).mkdir(parents=True)
            for _ in range(count + extra):
                (tmp_path / "in" / split / name / f"{level}.png").write_bytes(png(level))
                level += 1
    return tmp_path / "in"


def content(split: Any) -> list[tuple[int, bytes]]:
    rows = split.fetch(range(len(split)))
    return [
        (label, row["bytes"] or Path(row["path"]).read_bytes()) for label, row in zip(split.labels, rows, strict=True)
    ]


@pytest.mark.parametrize("imbalance", [1.0, 10.0, 100.0])
def test_equal_classes_are_cut_exponentially_by_label_as_in_the_paper(script, imbalance):
    sizes = script.long_tail(np.full(10, 500), imbalance)
    assert sizes.tolist() == [int(500 * (1 / imbalance) ** (label / 9) + 1e-9) for label in range(10)]
    assert sizes[0] == 500
    assert sizes[-1] == 500 / imbalance


def test_unequal_classes_are_cut_by_size_and_at_least_one_image_is_left(script):
    assert script.long_tail(np.array([3, 12, 6, 12]), 100.0).tolist() == [1, 12, 1, 2]
    assert script.long_tail(np.array([7]), 100.0).tolist() == [7]


def test_the_cut_has_some_training_images_and_all_others_in_their_order(script, images, tmp_path, capsys):
    script.main([str(images), str(tmp_path / "out"), "--imbalance", "9", "--holdout", "val"])
    assert "4 classes; training images of a class: 12 to 1\n" in capsys.readouterr().out
    whole, cut = (load_images(section(folder, holdout="val")) for folder in (images, tmp_path / "out"))
    assert np.bincount(cut.train.labels).tolist() == [1, 12, 2, 5]
    everything, drawn = content(whole.train), content(cut.train)
    assert [row for row in everything if row in drawn] == drawn
    assert content(cut.test) == content(whole.test)
    assert content(cut.holdout) == content(whole.holdout)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["subset"] == {
        "classes": None,
        "skip_classes": 0,
        "images_per_class": None,
        "imbalance": 9.0,
        "seed": 0,
    }
    assert manifest["classes"] == list(CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_other_classes_leave_every_split_and_labels_follow_the_names(script, images, tmp_path, capsys):
    arguments = [str(images), str(tmp_path / "out"), "--classes", "2", "--images-per-class", "4", "--holdout", "val"]
    script.main([*arguments, "--seed", "3"])
    assert "2 classes; training images of a class: 4 to 4\n" in capsys.readouterr().out
    whole, cut = (load_images(section(folder, holdout="val")) for folder in (images, tmp_path / "out"))
    names = cut.train.class_names
    assert len(names) == 2
    assert [name for name in CLASSES if name in names] == list(names)
    for name, split in (("test", cut.test), ("holdout", cut.holdout)):
        everything = content(getattr(whole, name))
        of_names = [(list(CLASSES)[label], pixels) for label, pixels in everything if list(CLASSES)[label] in names]
        assert [(names[label], pixels) for label, pixels in content(split)] == of_names
    assert np.bincount(cut.train.labels).tolist() == [4, 4]


def test_skipped_classes_are_those_of_the_draw_without_skipping(script, images, tmp_path):
    for name, options in (("first", ["--classes", "2"]), ("others", ["--skip-classes", "2"])):
        script.main([str(images), str(tmp_path / name), *options, "--seed", "3"])
    first, others = (load(tmp_path / name).train.class_names for name in ("first", "others"))
    assert len(first) == 2
    assert sorted(first + others) == sorted(CLASSES)


def test_the_draw_depends_on_the_seed_alone(script, images, tmp_path):
    for name, seed in (("one", "0"), ("same", "0"), ("other", "1")):
        script.main([str(images), str(tmp_path / name), "--images-per-class", "2", "--seed", seed])
    one, same, other = (content(load(tmp_path / name).train) for name in ("one", "same", "other"))
    assert one == same != other


def test_an_occupied_folder_is_rejected_and_left_alone(script, images, tmp_path):
    with pytest.raises(UserError, match="in: OUT is not empty"):
        script.main([str(images), str(images)])
    wrong = [
        ("--imbalance", "0.5"),
        ("--imbalance", "nan"),
        ("--imbalance", "inf"),
        ("--classes", "5"),
        ("--classes", "0"),
        ("--skip-classes", "4"),
        ("--skip-classes", "-1"),
    ]
    for option, value in (*wrong, ("--images-per-class", "0")):
        with pytest.raises(SystemExit):
            script.main([str(images), str(tmp_path / "out"), option, value])
    assert not (tmp_path / "out").exists()
