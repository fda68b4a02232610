"""The report on a recipe's data: counts, duplicates, unreadable files, model, disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from command_runs import ROOT, draw_folder, draw_image, write_recipe
from small_sets import as_arrow

from cskd_hf.checks import run as check_run
from cskd_hf.checks.run import METRICS_MEMORY, check
from cskd_hf.data import duplicates, inspect
from cskd_hf.data.splits import load_images
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve

BUFFERS = 4 * 2 * 4800 + 8 * 20  # running statistics of ResNet-18's BatchNorms, and their counters
DIGITS = ROOT / "recipes" / "digits_resnet10.yaml"


class Checked(NamedTuple):
    status: int
    problems: list[str]
    notes: list[str]
    stdout: str


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(recipe: Path, *overrides: str, full: bool = False) -> Checked:
        capsys.readouterr()
        status = check(load_recipe(recipe, overrides), full)
        stdout = capsys.readouterr().out
        body, _, verdict = stdout.rpartition("\n\n")
        first, *problems = verdict.splitlines()
        assert first.startswith(f"{len(problems) or 'no'} problem")
        notes = re.findall(r"^  - (.*)$", body, flags=re.MULTILINE)
        return Checked(status, [problem.strip().partition(". ")[2] for problem in problems], notes, stdout)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "images", {"train": (4, 3), "test": (2, 2)})


@pytest.fixture
def recipe(tmp_path: Path, folder: Path) -> Path:
    return write_recipe(tmp_path / "run.yaml", folder)


@pytest.mark.parametrize("full", [False, True])
def test_a_clean_folder_has_no_problems(folder, recipe, checked, full):
    done = checked(recipe, full=full)
    assert (done.status, done.problems) == (0, [])
    assert done.notes == ["all images checked are smaller than transform.input_size, 48×48, and are enlarged"]
    assert f"folder {folder}" in done.stdout
    assert re.search(r"^train +train +7 +– +2 +3 +3.5 +4 +0$", done.stdout, flags=re.MULTILINE)
    assert "PNG 100 %; RGB 100 %; 20×20 to 20×20, median 20×20" in done.stdout


# counts


def test_counts_other_than_the_catalogs_are_problems(checked, monkeypatch):
    entry = CATALOG["digits"]
    other = {"num_images": {"train": 500, "test": 1297}, "num_classes": 11}
    monkeypatch.setitem(CATALOG, "digits", type(entry)(**vars(entry) | other))
    done = checked(DIGITS)
    assert done.status == 1
    assert done.problems == [
        "digits has 11 classes, but the data has 10: is data.label_column 'label' the right one?",
        "split 'train' has 200 images, but the official split of digits has 500",
    ]


def test_the_digits_match_their_catalog_entry(checked):
    for holdout in ("holdout", "0.2"):
        done = checked(DIGITS, f"data.holdout={holdout}", full=True)
        assert (done.status, done.problems) == (0, [])
        too_small = "data.holdout: 40 hold-out images, fewer than the 200"
        assert any(note.startswith(too_small) for note in done.notes) == (holdout == "0.2")
    assert "hold-out set: 0.2 of 'train', stratified by class" in done.stdout


def test_singletons_are_noted_and_classes_without_test_images_are_problems(folder, recipe, checked):
    (folder / "train" / "class 2").mkdir()
    draw_image(2, 2).save(folder / "train" / "class 2" / "00.png")
    done = checked(recipe)
    assert done.problems == ["no image in test of 1 of 3 classes: class 2"]
    assert "1 of 3 classes have one training image, paired with itself: class 2" in done.notes
    done = checked(recipe, "data.partner=not_self", "data.singleton=error")
    assert len(done.problems) == 2
    assert "data.singleton" in done.problems[0]


def test_left_out_files_are_noted_and_class_names_that_look_alike_are_problems(folder, recipe, checked):
    (folder / "train" / "class 0").rename(folder / "train" / "Class 0")
    (folder / "train" / "class 1" / "notes.txt").touch()
    (folder / "train" / "loose.png").touch()
    done = checked(recipe)
    left_out = (
        ".txt files: 1 (1 in class 1), such as class 1/notes.txt; images beside the class folders: 1, such as loose.png"
    )
    assert f"split 'train': left out {left_out}" in done.notes
    assert done.problems[0].startswith("classes 'Class 0' and 'class 0' differ only in case")
    assert done.problems[1:] == [
        "no image in train of 1 of 3 classes: class 0",
        "no image in test of 1 of 3 classes: Class 0",
    ]
    assert not any("differ only" in note for note in done.notes)


# duplicates


@pytest.mark.parametrize("arrow", [False, True])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_duplicates_are_found_within_and_across_splits(tmp_path, folder, checked, arrow, full, holdout):
    train, test = folder / "train", folder / "test"
    for name in ("twin.png", "twin again.png"):
        (test / "class 0" / name).write_bytes((train / "class 0" / "01.png").read_bytes())
    draw_image(9, 9).save(train / "class 0" / "y.png")
    (train / "class 1" / "z.png").write_bytes((train / "class 0" / "y.png").read_bytes())
    for name in ("s.png", "t.png", "u.png"):
        draw_image(8, 8).save(train / "class 1" / name)
    data = as_arrow(folder, tmp_path / "arrow") if arrow else folder
    done = checked(write_recipe(tmp_path / "run.yaml", data), f"data.holdout={holdout}", full=full)
    assert done.status == 1
    if not holdout:
        across, labels = done.problems
        assert across.startswith("2 images in train and in test, such as split 'test', row 2")
        assert "= split 'train', row 1" in across
        assert labels.startswith("1 image twice in train under two labels, such as split 'train', row")
        assert "(class 0) = split 'train', row" in labels
        assert any(note.startswith("2 images twice in train, such as") for note in done.notes)
    else:  # either image of a pair may be in the hold-out set
        assert all(re.match(r"\d images? (in|twice in) (train|hold-out) ", one) for one in done.problems)
        assert any("and in test" in problem for problem in done.problems)


@pytest.mark.parametrize("arrow", [False, True])
def test_large_data_is_compared_by_a_sample(tmp_path, folder, checked, monkeypatch, arrow):
    (folder / "test" / "class 0" / "twin.png").write_bytes((folder / "train" / "class 0" / "01.png").read_bytes())
    monkeypatch.setitem(inspect.HASH_LIMIT, "check", 1)
    monkeypatch.setattr(check_run, "SAMPLED_FROM", 0)
    recipe = write_recipe(tmp_path / "run.yaml", as_arrow(folder, tmp_path / "arrow") if arrow else folder)
    done = checked(recipe)
    if arrow:
        assert done.problems == [
            "1 of 5 sampled images of test in train too, such as split 'test', row 2 = split 'train', row 1"
        ]
        assert "compared by their bytes: a sample of 5 of the other splits with all of train" in done.stdout
    else:
        assert done.problems == []
        assert re.search(r"not compared: [\d.]+ kB of single files", done.stdout)
    assert checked(recipe, full=True).status == 1


# unreadable images


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_unreadable_image_is_named(folder, recipe, checked, content):
    broken = folder / "test" / "class 0" / "01.png"
    broken.write_bytes(broken.read_bytes()[:200] if content is None else content)
    done = checked(recipe)
    (problem,) = done.problems
    assert problem.startswith(f"split 'test', row 1, file {broken}: unreadable image (")
    assert problem.endswith("; repair or remove the file, or write data.on_corrupt=skip")
    skipped = checked(recipe, "data.on_corrupt=skip")
    assert skipped.problems[0].endswith("; training skips it")


def test_a_corrupt_file_outside_the_sample_is_found_by_full_and_in_small_data(tmp_path, checked, monkeypatch):
    monkeypatch.setattr(duplicates.sample_rows, "__defaults__", (5,))
    folder = draw_folder(tmp_path / "images", {"train": (40, 40), "test": (2, 2)})
    recipe = write_recipe(tmp_path / "run.yaml", folder)
    train = load_images(resolve(load_recipe(recipe)).data).train
    unseen = int(np.setdiff1d(np.arange(80), duplicates.sample_rows(train))[-1])
    broken = Path(train.fetch([unseen])[0]["path"])
    broken.write_bytes(broken.read_bytes()[:300])
    small = checked(recipe)
    monkeypatch.setattr(check_run, "SAMPLED_FROM", 84)
    sampled, full = checked(recipe), checked(recipe, full=True)
    assert sampled.status == 0
    assert "train      5 of 80 images decoded\n" in sampled.stdout
    for done in (small, full):
        assert done.status == 1
        assert f"split 'train', row {unseen}, file {broken}: unreadable image" in done.problems[0]
        assert "train      every image decoded\n" in done.stdout


def test_formats_modes_and_sizes_are_printed(folder, recipe, checked):
    draw_image(0, 50, size=60).convert("L").save(folder / "train" / "class 0" / "grey.jpg")
    done = checked(recipe)
    assert "PNG 87.5 %, JPEG 12.5 %; RGB 87.5 %, L 12.5 %; 20×20 to 60×60" in done.stdout
    assert "of the images checked, 12.5 % of train are grey" in done.notes
    assert done.status == 0


# machine


def test_an_unknown_model_or_optimizer_is_a_problem(recipe, checked):
    done = checked(recipe, "model.model_name=resnet18x")
    assert done.problems[0].startswith("model.model_name: timm has no 'resnet18x'; did you mean")
    assert checked(recipe, "optimizer.opt=admw").problems[0].startswith("optimizer.opt: timm has no 'admw'")


def test_a_full_disk_is_a_problem(recipe, checked, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    done = checked(recipe)
    (problem,) = done.problems
    assert re.match(r"a run writes about [\d.]+ MB; .* has 1 kB free", problem)


@pytest.mark.parametrize(("settings", "copies"), [((), 2), (("optimizer.opt=adamw", "run.model_ema=true"), 4)])
def test_disk_space_is_estimated_from_checkpoints_and_predictions(recipe, checked, settings, copies):
    done = checked(recipe, "model.model_name=resnet18", "run.checkpoints_total_limit=4", *settings)
    weights = 4 * (11_279_112 - 198 * 513)
    need = 5 * (copies * weights + copies // 2 * BUFFERS) + weights + 4 * 4 * (2 + 512)
    assert f"about {duplicates.readable_size(need)} for a run: 5 checkpoints of" in done.stdout


def test_memory_is_estimated_from_predictions_and_their_metrics(recipe, checked, monkeypatch):
    size = duplicates.readable_size(2 * 4 * 4 * (2 + 96) + METRICS_MEMORY)
    assert f"{size} for predictions and their metrics, of" in checked(recipe).stdout
    monkeypatch.setattr("os.sysconf", lambda name: 10_000)  # 100 MB
    (problem,) = checked(recipe).problems
    assert problem == f"the predictions and their metrics need {size} of memory; this machine has 100 MB"


def test_offline_uncached_weights_are_a_problem(tmp_path, folder, checked, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = write_recipe(tmp_path / "run.yaml", folder, model={"model_name": "resnet18", "pretrained": True})
    (problem,) = checked(recipe).problems
    assert problem.startswith("model.pretrained: HF_HUB_OFFLINE is set, and timm/resnet18")
