"""Training on Parquet, on every image format, with unreadable files, and with a one-image test split."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from command_runs import (
    draw_folder,
    draw_image,
    metrics_lines,
    quick,
    summary_of,
    torchrun,
    write_recipe,
)
from datasets import ClassLabel, Dataset, Features, Image
from safetensors.torch import load_file

from cskd_hf.data.splits import load_split
from cskd_hf.errors import UserError
from cskd_hf.methods.task_loss import TaskLoss
from cskd_hf.runs.folder import check_share
from cskd_hf.runs.summary import read_recipe

# Parquet, with the paper's recipes


def write_parquet(folder: Path, splits: dict[str, int], num_classes: int, labelled: bool = True) -> None:
    """Parquet files as on the Hub: columns `image`, with the bytes, and `label`."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"n{i:08d}" for i in range(num_classes)])})
    for number, (split, count) in enumerate(splits.items()):
        rows: dict[str, list[Any]] = {"image": [], "label": []}
        for i in range(count):
            buffer = io.BytesIO()
            draw_image(i % num_classes, 1000 * number + i, size=40).save(buffer, "JPEG")
            rows["image"].append({"bytes": buffer.getvalue(), "path": f"{i}.JPEG"})
            rows["label"].append(i % num_classes if labelled else -1)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_the_imagenet_recipe_runs_on_parquet_with_imagenets_columns_and_splits(tmp_path):
    write_parquet(tmp_path / "imagenet" / "data", {"train": 16, "validation": 8}, 4)
    write_parquet(tmp_path / "imagenet" / "data", {"test": 3}, 4, labelled=False)
    done = quick(
        "recipes/imagenet_resnet50.yaml",
        f"data.dataset={tmp_path / 'imagenet'}",
        "data.test_split=validation",
        "data.batch_size=4",
        "data.workers=0",
        "data.holdout=0.25",
        "model={model_name: test_resnet}",  # engine/test_shipped_recipes.py trains the recipe's network
        "transform.input_size=[3, 32, 32]",
        "optimizer={lr: 0.001}",
        "scheduler.num_epochs=1",
        f"run.output_dir={tmp_path / 'run'}",
    )
    assert done.status == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["dataset"]["images"] == {"train": 12, "holdout": 4, "test": 8}
    assert summary["metrics"]["calibration"]["images"] == 4
    assert summary["metrics"]["temperature"] is None
    expected = {"name": "cskd", "temperature": 4.0, "distill_loss_weight": 1.0, "batch_norm": "separate"}
    expected |= {key: field.default for key, field in TaskLoss.model_fields.items() if key != "name"}
    assert summary["method"] == expected


# Unreadable images and odd formats


@pytest.mark.parametrize(("split", "workers"), [("train", 1), ("test", 0)])
def test_an_unreadable_image_stops_the_run_in_one_line_that_names_it(tmp_path, split, workers):
    folder = draw_folder(tmp_path / "images", {"train": (2, 2), "test": (2, 2)})
    broken = folder / split / "class 1" / "00.png"
    broken.write_bytes(broken.read_bytes()[:60])
    done = quick(write_recipe(tmp_path / "run.yaml", folder), f"data.workers={workers}")
    assert done.status == 2
    assert done.stderr.startswith(f"error: split {split!r}, row 2, file {broken}: unreadable image (")
    assert done.stderr.endswith("; repair or remove the file, or write data.on_corrupt=skip\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "summary.json").exists()


def test_unreadable_images_are_skipped_counted_and_reported_if_the_recipe_says_so(tmp_path):
    folder = draw_folder(tmp_path / "images", {"train": (4, 4), "test": (3, 3)})
    for broken in (folder / "train" / "class 0" / "01.png", folder / "test" / "class 1" / "02.png"):
        broken.write_bytes(b"not an image")
    done = quick(write_recipe(tmp_path / "run.yaml", folder, data={"on_corrupt": "skip"}))
    assert done.status == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["skipped_images"] == {"train": 1, "test": 1}
    saved = load_file(tmp_path / "run" / "predictions.safetensors")
    assert saved.keys() == {"logits", "target", "features", "row"}  # there is no hold-out set
    assert saved["row"].tolist() == [0, 1, 2, 3, 4]
    assert (summary["metrics"]["temperature"], summary["metrics"]["metrics_scaled"]) == (None, None)
    assert "no temperature was fitted" in done.stdout
    assert all("test/top1_error" in line for line in metrics_lines(tmp_path / "run"))
    skipped = {"split 'train', row 1,": "train/class 0/01.png", "split 'test', row 5,": "test/class 1/02.png"}
    for row, file in skipped.items():
        (note,) = [note for note in summary["notes"] if row in note]
        assert file in note
        assert note in done.stdout
    assert "test/class 1/02.png" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_an_unreadable_image_is_named_once_by_two_ranks(tmp_path):
    folder = draw_folder(tmp_path / "images", {"train": (4, 4), "test": (2, 2)})
    broken = folder / "test" / "class 1" / "01.png"  # in rank 1's share, and in rank 0's sample at the start
    broken.write_bytes(b"not an image")
    done = torchrun("-m", "cskd_hf.train", write_recipe(tmp_path / "run.yaml", folder))
    assert done.status != 0
    assert done.stderr.count(f"split 'test', row 3, file {broken}: unreadable image") == 1


def test_two_ranks_report_unreadable_images_of_both(tmp_path):
    folder = draw_folder(tmp_path / "images", {"train": (6, 6), "test": (2, 2)})
    unreadable = sorted((folder / "train" / "class 0").glob("*.png"))[:4]
    for broken in (*unreadable, folder / "test" / "class 1" / "01.png"):
        broken.write_bytes(b"not an image")
    done = torchrun(
        "-m",
        "cskd_hf.train",
        write_recipe(tmp_path / "run.yaml", folder, data={"on_corrupt": "skip", "batch_size": 2}),
        "scheduler.num_epochs=1",
    )
    assert done.status == 0, done.stderr
    assert summary_of(tmp_path / "run")["skipped_images"] == {"train": 4, "test": 1}
    assert load_file(tmp_path / "run" / "predictions.safetensors")["row"].tolist() == [0, 1, 2]


def test_one_folder_of_images_of_every_format_and_mode_trains_and_records_its_share(tmp_path):
    folder = draw_folder(tmp_path, {"[odd] images *?": (8, 8, 1)}) / "[odd] images *?"
    train = folder / "class 0"
    draw_image(0, 1).convert("CMYK").save(train / "cmyk of mine.jpg")
    draw_image(0, 2).convert("L").save(train / "grey.png")
    draw_image(0, 3).convert("RGBA").save(train / "alpha.png")
    draw_image(0, 4).convert("P").save(train / "palette.gif")
    draw_image(0, 5).convert("1").save(train / "bits.png")
    draw_image(0, 6, size=3).save(train / "tiny.bmp")
    draw_image(0, 7).resize((90, 7)).save(train / "wide.webp")
    (train / "read me.txt").write_text("not an image")
    done = quick(write_recipe(tmp_path / "a run.yaml", folder, data={"test_split": 0.2}))
    assert done.status == 0, done.stderr
    summary = summary_of(tmp_path / "a run")
    assert summary["dataset"]["images"] == {"train": 19, "test": 5}
    assert summary["skipped_images"] == {"train": 0, "test": 0}
    assert " of 3 classes have one training image, paired with itself: class 2" in done.stdout
    data = read_recipe(tmp_path / "a run").data
    check_share(tmp_path / "a run", load_split(data, None), data)
    draw_image(0, 8).save(train / "another.png")
    with pytest.raises(
        UserError, match=r"test_split: .* has other images than .*; write data\.test_split=train to test"
    ):
        check_share(tmp_path / "a run", load_split(data, None), data)


def test_a_test_split_of_one_image_is_found_and_ends_in_a_result_without_recall(tmp_path):
    data = draw_folder(tmp_path / "images", {"train": (4, 4), "val": (1, 0)})
    done = quick(write_recipe(tmp_path / "run.yaml", data))
    assert done.status == 0, done.stderr
    assert summary_of(tmp_path / "run")["metrics"]["last"]["recall_at_1"] is None
    assert read_recipe(tmp_path / "run").data.test_split == "val"
