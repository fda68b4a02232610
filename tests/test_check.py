"""`python -m cskd_hf.check`: exit status, counts, duplicates, unreadable files, capacity."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from command_runs import ROOT, command, draw_folder, draw_image, quick, write_recipe
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from cskd_hf import check
from cskd_hf.data import duplicates, inspect
from cskd_hf.data.splits import load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve


class Checked(NamedTuple):
    status: int
    problems: list[str]
    notes: list[str]
    stdout: str


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: object) -> Checked:
        capsys.readouterr()
        status = check.main(list(map(str, args)))
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


def as_arrow(folder: Path, root: Path) -> Path:
    """The same images, their bytes in a table."""
    features = Features({"image": Image(), "label": ClassLabel(names=["class 0", "class 1"])})
    splits = {}
    for split in ("train", "test"):
        files = sorted((folder / split).rglob("*.png"))
        rows = {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "label": [int(file.parent.name[-1]) for file in files],
        }
        splits[split] = Dataset.from_dict(rows, features=features)
    DatasetDict(splits).save_to_disk(str(root), num_proc=None)
    return root


# exit status


@pytest.mark.parametrize("full", [[], ["--full"]])
def test_a_clean_folder_has_no_problems(tmp_path, folder, checked, full):
    done = checked(write_recipe(tmp_path / "run.yaml", folder), *full)
    assert (done.status, done.problems) == (0, [])
    assert done.notes == ["all images checked are smaller than transform.input_size, 48×48, and are enlarged"]
    assert f"folder {folder}" in done.stdout
    assert re.search(r"^train +train +7 +– +2 +3 +3.5 +4 +0$", done.stdout, flags=re.MULTILINE)
    assert "PNG 100 %; RGB 100 %; 20×20 to 20×20, median 20×20" in done.stdout
    assert ("--full reads every image" in done.stdout) == (not full)


def test_an_unreadable_recipe_or_dataset_gives_exit_status_2(tmp_path, folder):
    recipe = write_recipe(tmp_path / "run.yaml", folder)
    with pytest.raises(UserError, match="unknown key"):
        check.main([str(recipe), "optimizer.lrr=1"])
    done = command(recipe, f"data.dataset={tmp_path}/missing", module="cskd_hf.check")
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: data.dataset: '{tmp_path}/missing' is none of a folder, ")


def test_the_command_imports_nothing_heavy():
    heavy = "import sys, cskd_hf.check; print({'torch', 'timm', 'datasets', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_problem_is_in_the_numbered_list(tmp_path, folder, checked):
    (folder / "train" / "class 0" / "00.png").write_bytes(b"")
    (folder / "test" / "class 1" / "09.png").write_bytes((folder / "train" / "class 1" / "00.png").read_bytes())
    done = checked(write_recipe(tmp_path / "run.yaml", folder), "model.model_name=resnet8")
    assert done.status == 1
    assert len(done.problems) == 3
    assert "3 problems in the sample" in done.stdout


# counts


def test_counts_other_than_the_catalogs_are_problems(tmp_path, folder, checked, monkeypatch):
    entry = CATALOG["digits"]
    monkeypatch.setitem(
        CATALOG,
        "digits",
        type(entry)(**(vars(entry) | {"num_images": {"train": 500, "test": 1297}, "num_classes": 11})),
    )
    recipe = ROOT / "recipes" / "digits_resnet10.yaml"
    done = checked(recipe)
    assert done.status == 1
    assert done.problems == [
        "digits has 11 classes, but the data has 10: is data.label_column 'label' the right one?",
        "split 'train' has 200 images, but the official split of digits has 500",
    ]
    resolved = resolve(load_recipe(recipe))
    with pytest.raises(UserError, match="digits has 11 classes"):
        inspect.quick_check(load_images(resolved.data), resolved.data, resolved.transform)


def test_the_digits_match_their_catalog_entry(checked):
    for holdout in ("holdout", "0.2"):
        done = checked(ROOT / "recipes" / "digits_resnet10.yaml", f"data.holdout={holdout}", "--full")
        assert (done.status, done.problems) == (0, [])
    assert "hold-out set: 0.2 of each class of 'train'" in done.stdout


def test_singletons_are_noted_and_classes_without_test_images_are_problems(tmp_path, folder, checked):
    (folder / "train" / "class 2").mkdir()
    draw_image(2, 2).save(folder / "train" / "class 2" / "00.png")
    done = checked(write_recipe(tmp_path / "run.yaml", folder))
    assert done.problems == ["no image in test of 1 of 3 classes: class 2"]
    assert "classes with one training image, paired with itself: 1" in done.notes
    done = checked(tmp_path / "run.yaml", "data.partner=not_self", "data.singleton=error")
    assert len(done.problems) == 2
    assert "data.singleton" in done.problems[0]


# duplicates


@pytest.mark.parametrize("arrow", [False, True])
@pytest.mark.parametrize("full", [[], ["--full"]])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_duplicates_are_found_within_and_across_splits(tmp_path, folder, checked, arrow, full, holdout):
    train, test = folder / "train", folder / "test"
    (test / "class 0" / "twin.png").write_bytes((train / "class 0" / "01.png").read_bytes())
    draw_image(9, 9).save(train / "class 0" / "y.png")
    (train / "class 1" / "z.png").write_bytes((train / "class 0" / "y.png").read_bytes())
    for name in ("s.png", "t.png", "u.png"):
        draw_image(8, 8).save(train / "class 1" / name)
    data = as_arrow(folder, tmp_path / "arrow") if arrow else folder
    done = checked(write_recipe(tmp_path / "run.yaml", data), f"data.holdout={holdout}", *full)
    assert done.status == 1
    if not holdout:
        across, labels = done.problems
        assert across.startswith("1 image in train and in test, such as split 'test', row 2")
        assert "= split 'train', row 1" in across
        assert labels.startswith("1 image twice in train under two labels, such as split 'train', row")
        assert "(class 0) = split 'train', row" in labels
        assert any(note.startswith("2 images twice in train, such as") for note in done.notes)
    else:  # either image of a pair may be in the hold-out set
        assert all(re.match(r"\d images? (in|twice in) (train|hold-out) ", one) for one in done.problems)
        assert any("and in test" in problem for problem in done.problems)


def test_fingerprints_do_not_depend_on_the_selected_rows(tmp_path, folder):
    loaded = load_images(load_data(tmp_path, as_arrow(folder, tmp_path / "arrow")))
    for rows in ([6, 0, 3], [2], list(range(7))):
        part = loaded.train.take(np.array(rows))
        assert (duplicates.image_digests(part) == duplicates.image_digests(loaded.train)[rows]).all()
        statistics = inspect.image_statistics(part, range(len(rows)), num_decoded=0)
        assert statistics.digests == duplicates.image_digests(part).tolist()


def load_data(tmp_path: Path, dataset: Path) -> Any:
    return resolve(load_recipe(write_recipe(tmp_path / "data.yaml", dataset))).data


@pytest.mark.parametrize("arrow", [False, True])
def test_large_data_is_compared_by_a_sample(tmp_path, folder, checked, monkeypatch, arrow):
    (folder / "test" / "class 0" / "twin.png").write_bytes((folder / "train" / "class 0" / "01.png").read_bytes())
    monkeypatch.setitem(inspect.HASH_LIMIT, "check", 1)
    data = as_arrow(folder, tmp_path / "arrow") if arrow else folder
    done = checked(write_recipe(tmp_path / "run.yaml", data))
    if arrow:
        assert done.problems == [
            "1 of 5 sampled images of test in train too, such as split 'test', row 2 = split 'train', row 1"
        ]
        assert "compared by their bytes: a sample of 5 of the other splits with all of train" in done.stdout
    else:
        assert done.problems == []
        assert re.search(r"not compared: [\d.]+ kB of single files", done.stdout)
    assert checked(tmp_path / "run.yaml", "--full").status == 1


# unreadable images


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_unreadable_image_is_named(tmp_path, folder, checked, content):
    broken = folder / "test" / "class 0" / "01.png"
    broken.write_bytes(broken.read_bytes()[:200] if content is None else content)
    done = checked(write_recipe(tmp_path / "run.yaml", folder))
    (problem,) = done.problems
    assert problem.startswith(f"split 'test', row 1, file {broken}: unreadable image (")
    assert problem.endswith("; repair or remove the file, or write data.on_corrupt=skip")
    skipped = checked(tmp_path / "run.yaml", "data.on_corrupt=skip")
    assert skipped.problems[0].endswith("; training skips it")


def test_full_finds_a_corrupt_file_outside_the_sample(tmp_path, checked, monkeypatch):
    monkeypatch.setattr(duplicates.sample_rows, "__defaults__", (5,))
    folder = draw_folder(tmp_path / "images", {"train": (40, 40), "test": (2, 2)})
    recipe = write_recipe(tmp_path / "run.yaml", folder)
    train = load_images(resolve(load_recipe(recipe)).data).train
    unseen = int(np.setdiff1d(np.arange(80), duplicates.sample_rows(train))[-1])
    broken = Path(train.fetch([unseen])[0]["path"])
    broken.write_bytes(broken.read_bytes()[:300])
    cheap = checked(recipe)
    assert cheap.status == 0
    assert "train      5 of 80 images decoded\n" in cheap.stdout
    full = checked(recipe, "--full")
    assert full.status == 1
    assert f"split 'train', row {unseen}, file {broken}: unreadable image" in full.problems[0]
    assert "train      every image decoded\n" in full.stdout


def test_only_the_sample_is_decoded(tmp_path, folder, monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(inspect, "decode", calls.append)
    monkeypatch.setattr(inspect, "NUM_DECODED", 2)
    recipe = resolve(load_recipe(write_recipe(tmp_path / "run.yaml", folder)))
    assert inspect.quick_check(load_images(recipe.data), recipe.data, recipe.transform) == []
    assert len(calls) == 2 * 2


def test_formats_modes_and_sizes_are_printed(tmp_path, folder, checked):
    draw_image(0, 50, size=60).convert("L").save(folder / "train" / "class 0" / "grey.jpg")
    done = checked(write_recipe(tmp_path / "run.yaml", folder))
    assert "PNG 87.5 %, JPEG 12.5 %; RGB 87.5 %, L 12.5 %; 20×20 to 60×60" in done.stdout
    assert "of the images checked, 12.5 % of train are grey" in done.notes
    assert done.status == 0


# machine


def test_an_unknown_model_is_a_problem(tmp_path, folder, checked):
    done = checked(write_recipe(tmp_path / "run.yaml", folder), "model.model_name=resnet18x")
    assert done.problems[0].startswith("model.model_name: timm has no 'resnet18x'; did you mean")


def test_a_full_disk_is_a_problem(tmp_path, folder, checked, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    done = checked(write_recipe(tmp_path / "run.yaml", folder))
    (problem,) = done.problems
    assert re.match(r"a run writes about [\d.]+ MB; .* has 1 kB free", problem)


def test_disk_space_is_estimated_from_checkpoints_and_predictions(tmp_path, folder, checked):
    done = checked(
        write_recipe(tmp_path / "run.yaml", folder), "model.model_name=resnet18", "run.checkpoints_total_limit=4"
    )
    weights = 4 * (11_279_112 - 198 * 513)
    need = 5 * 2 * weights + weights + 4 * 4 * (2 + 512)
    assert f"about {duplicates.readable_size(need)} for a run: 5 checkpoints of" in done.stdout


def test_offline_uncached_weights_are_a_problem(tmp_path, folder, checked, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = write_recipe(tmp_path / "run.yaml", folder, model={"model_name": "resnet18", "pretrained": True})
    (problem,) = checked(recipe).problems
    assert problem.startswith("model.pretrained: HF_HUB_OFFLINE is set, and timm/resnet18")


# training


def test_training_starts_with_the_cheap_check(tmp_path, folder):
    (folder / "test" / "class 0" / "twin.png").write_bytes((folder / "train" / "class 0" / "01.png").read_bytes())
    done = quick(write_recipe(tmp_path / "run.yaml", folder), "scheduler.num_epochs=1")
    assert done.status == 0, done.stderr
    assert "note: 1 image in train and in test, such as" in done.stdout


@pytest.mark.parametrize(("num_bytes", "text"), [(7, "7 bytes"), (1234, "1.23 kB"), (5.6e9, "5.6 GB"), (2e12, "2 TB")])
def test_sizes_are_readable(num_bytes, text):
    assert duplicates.readable_size(num_bytes) == text
