"""The paper's image sets: from archives to trained weights, and from Hub files to a batch."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest
from command_runs import metrics_lines, quick, summary_of
from datasets import ClassLabel, Dataset, Features, Image
from originals import ORIGINALS, downloaded, odd_picture

from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import Draw
from cskd_hf.data.splits import load_images
from cskd_hf.data.transforms import Transform
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {"imagenet": "resnet50"}

# Overrides that shorten hours of training to a second.
SMALL = (
    "model={model_name: test_resnet}",
    "transform.input_size=[3, 48, 48]",
    "data.workers=0",
    "scheduler.num_epochs=1",
)


def recipe_of(name: str) -> Path:
    return ROOT / "recipes" / f"{name}_{NETWORK.get(name, 'resnet18')}.yaml"


def train(name: str, dataset: Path, out: Path, num_train: int) -> None:
    """Two updates with the set's ResNet recipe."""
    done = quick(
        recipe_of(name),
        f"data.dataset={dataset}",
        f"data.batch_size={-(-num_train // 2)}",
        "data.holdout=0.0",
        f"run.output_dir={out}",
        *SMALL,
    )
    assert done.status == 0, done.stderr
    assert metrics_lines(out)[-1]["step"] == 2


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_original_archive_trains(tmp_path, name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    original, out = ORIGINALS[name](), tmp_path / "prepared"
    archives = map(str, downloaded(tmp_path / "archives", name))
    assert importlib.import_module(f"prepare_{name}").main([*archives, str(out), "--allow-other-counts"]) == 0
    # The folder's manifest names the set: splits and statistics need no settings.
    entry = CATALOG[name]
    train(name, out, tmp_path / "run", len(original.rows[entry.train_split]))
    summary = summary_of(tmp_path / "run")
    sizes = {"train": len(original.rows[entry.train_split]), "test": len(original.rows[entry.test_split])}
    per_class = Counter(label for _, label, _ in original.rows[entry.train_split])
    assert summary["dataset"] == {
        "name": str(out),
        "num_classes": len(original.class_names),
        "images": sizes,
        "train_images_per_class": [per_class[label] for label in range(len(original.class_names))],
        "deep": {},
    }


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.path and recipe_of(name).is_file()])
def test_a_copy_of_the_hubs_files_needs_no_settings(tmp_path, name):
    """Parquet with the Hub's columns, splits and file names, for offline clusters."""
    entry = CATALOG[name]
    features = Features({entry.image_column: Image(), entry.label_column: ClassLabel(names=["ant", "bee", "cat"])})
    for split, count in ((entry.train_split, 9), (entry.test_split, 4)):
        rows = {
            entry.image_column: [{"bytes": odd_picture(number), "path": None} for number in range(count)],
            entry.label_column: [number % 3 for number in range(count)],
        }
        file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(str(file))
    overrides = [f"data.dataset={tmp_path / 'hub'}", "data.holdout=0.0", "transform.input_size=[3, 48, 48]"]
    recipe = resolve(load_recipe(recipe_of(name), overrides))
    assert (recipe.transform.mean, recipe.transform.std) == (entry.mean, entry.std)
    images = load_images(recipe.data)
    for split, count, is_training in ((images.train, 9, True), (images.test, 4, False)):
        batch = PairedImages(split, Transform(recipe.transform, is_training)).load(
            [Draw((n,), 0) for n in range(count)]
        )
        assert batch.images.shape == (count, 3, 48, 48)
        assert batch.target.tolist() == [number % 3 for number in range(count)]


@pytest.mark.parametrize("content", ["", "[]", '"cub200"', '{"name": "another"}', '{"name": ["cub200"]}', "{"])
def test_another_tools_manifest_names_no_catalog_set(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert entry_of(str(tmp_path)) is None


def test_a_manifest_names_the_catalog_set(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "tiny_imagenet"}))
    assert entry_of(str(tmp_path)) is CATALOG["tiny_imagenet"]
    assert entry_of("imagenet") is CATALOG["imagenet"]
    assert entry_of("nowhere") is None
    assert entry_of("uoft-cs/cifar100") is CATALOG["cifar100"]
    assert entry_of("Donghyun99/CUB-200-2011") is CATALOG["cub200"]


def test_check_compares_a_prepared_folder_with_the_official_set(tmp_path, monkeypatch, capsys):
    from cskd_hf import check

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    out = tmp_path / "prepared"
    archives = map(str, downloaded(tmp_path / "archives", "cub200"))
    assert importlib.import_module("prepare_cub200").main([*archives, str(out), "--allow-other-counts"]) == 0
    capsys.readouterr()
    options = [f"data.dataset={out}", *SMALL]
    assert check.main([str(ROOT / "recipes" / "cub200_resnet18.yaml"), "--full", *options]) == 1
    output = capsys.readouterr().out
    assert "has 200 classes, but the data has" in output
    assert "the official split" in output
    assert "5,994" in output


@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_a_null_image_is_unreadable(tmp_path, on_corrupt):
    features = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"])})
    for split in ("train", "test"):
        rows = [{"bytes": odd_picture(number), "path": None} for number in range(8)]
        rows[5] = None
        table = Dataset.from_dict({"image": rows, "label": [n % 2 for n in range(8)]}, features=features)
        (tmp_path / "null").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / "null" / f"{split}.parquet"))
    done = quick(
        ROOT / "recipes" / "cub200_resnet18.yaml",
        f"data.dataset={tmp_path / 'null'}",
        f"data.on_corrupt={on_corrupt}",
        "data.batch_size=4",
        f"run.output_dir={tmp_path / 'run'}",
        *SMALL,
    )
    if on_corrupt == "error":
        assert done.status == 2
        assert "row 5: the row has neither bytes nor a path" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.status == 0, done.stderr
        assert summary_of(tmp_path / "run")["skipped_images"] == {"train": 1, "test": 1}


@pytest.mark.parametrize(
    ("layout", "recipe"),
    [("folder", "finetune"), ("parquet", "from_scratch"), ("saved", "finetune"), ("csv", "from_scratch")],
)
def test_your_own_images_train_in_every_layout_of_the_readme(tmp_path, layout, recipe):
    root = tmp_path / "mine"
    features = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"])})
    for split, count in (("train", 8), ("val", 4)):
        paths = []
        for number in range(count):
            paths.append(tmp_path / "pictures" / split / ("ant", "bee")[number % 2] / f"{number}.jpg")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            paths[-1].write_bytes(odd_picture(number))
        rows = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        table = Dataset.from_dict({"image": rows, "label": [n % 2 for n in range(count)]}, features=features)
        if layout == "folder":
            root = tmp_path / "pictures"
        elif layout == "parquet":
            root.mkdir(exist_ok=True)
            table.to_parquet(str(root / f"{split}.parquet"))
        elif layout == "saved":
            table.save_to_disk(str(root / split))
        else:
            root.mkdir(exist_ok=True)
            lines = ["image,label", *(f"{path},{path.parent.name}" for path in paths)]
            (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    done = quick(
        ROOT / "recipes" / f"{recipe}.yaml",
        f"data.dataset={root}",
        "data.test_split=val",
        "data.batch_size=4",
        "data.holdout=0.25",
        f"run.output_dir={tmp_path / 'run'}",
        *SMALL,
    )
    assert done.status == 0, done.stderr
    sizes = summary_of(tmp_path / "run")["dataset"]["images"]
    assert sizes == {"train": 6, "holdout": 2, "test": 4}
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["label_names"] == ["ant", "bee"]
