from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import yaml
from command_runs import summary_of, tree
from publishable_runs import copied, home, images, trained
from safetensors import safe_open
from safetensors.torch import load_file
from summaries import IMAGES, measured
from timm.models import PretrainedCfg
from written_runs import some_runs, write_finished, write_unfinished

from cskd_hf.errors import UserError
from cskd_hf.evaluation.metrics import evaluate_predictions
from cskd_hf.hub.licences import Licence
from cskd_hf.hub.paths import PathScrubber
from cskd_hf.hub.release import build_release
from cskd_hf.hub.seeds import read_seeds
from cskd_hf.hub.source import Release, read_source
from cskd_hf.models.load import load_trained
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.runs.environment import record_environment

NAME = "acme/cskd-tiny"


def build(folder):
    build_release(
        Release(read_source(trained()), NAME, Licence("apache-2.0")), folder, load_trained(str(trained())).model
    )
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return build(tmp_path_factory.mktemp("release"))


def test_a_release_is_complete_and_has_no_pickle(release):
    assert sorted(path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()) == [
        ".eval_results/my-images.yaml",
        "LICENSE",
        "README.md",
        "class_map.txt",
        "config.json",
        "environment.json",
        "figures/learning_curves.svg",
        "figures/reliability.png",
        "metrics.json",
        "model.safetensors",
        "recipe.yaml",
    ]


def test_the_same_run_gives_the_same_bytes(release, tmp_path):
    """Publishing it again makes no commit."""
    first, second = tree(release), tree(build(tmp_path))
    assert {name: content for name, (_, content) in first.items()} == {
        name: content for name, (_, content) in second.items()
    }


def test_the_weights_are_the_runs(release):
    published, run = load_file(release / "model.safetensors"), load_file(trained() / "model" / "model.safetensors")
    assert published.keys() == run.keys()
    assert all(published[name].equal(run[name]) for name in run)
    with safe_open(release / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_config_states_the_origin_of_the_weights_in_timms_keys(release):
    config = json.loads((release / "config.json").read_text())
    pretrained_cfg = config["pretrained_cfg"]
    assert set(pretrained_cfg) <= {field.name for field in dataclasses.fields(PretrainedCfg)}
    assert (pretrained_cfg["tag"], pretrained_cfg["license"]) == ("cskd_my-images", "apache-2.0")
    assert pretrained_cfg["origin_url"] == "https://huggingface.co/acme/cskd-tiny"
    assert pretrained_cfg["paper_ids"] == "arXiv:2003.13964"
    assert pretrained_cfg["paper_name"] == "Regularizing Class-wise Predictions via Self-knowledge Distillation"
    settings = [pretrained_cfg[name] for name in ("input_size", "crop_pct", "interpolation")]
    assert settings == [[3, 48, 48], 1.0, "bilinear"]
    assert config["label_names"] == ["class 0", "class 1", "class 2", "class 3"]
    assert config["cskd"]["temperature"] == summary_of(trained())["metrics"]["temperature"]
    assert "folded_temperature" not in config["cskd"]
    assert config["cskd"]["needs_cskd_hf"] is False


def test_no_file_contains_a_path_of_the_training_machine(release):
    for path in release.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (str(home()), home().name, str(trained().parent), "secret user"):
                assert secret.encode() not in content, (path, secret)


def test_the_published_recipe_reruns_with_another_image_folder(release):
    again = load_recipe(release / "recipe.yaml", [f"data.dataset={images()}", "run.output_dir=x"])
    assert again == load_recipe(trained() / "recipe.yaml", ["run.output_dir=x"])
    assert yaml.safe_load((release / "recipe.yaml").read_text())["data"]["dataset"] == "my images"


def test_metrics_are_the_summarys_with_the_effect_of_the_temperature(release):
    metrics, summary = json.loads((release / "metrics.json").read_text()), summary_of(trained())
    assert metrics["metrics"] == summary["metrics"]
    assert metrics["holdout"]["images"] == 208
    assert metrics["holdout"]["nll_scaled"] <= metrics["holdout"]["nll"]
    assert (metrics["folded"], metrics["seeds"]) == ([], None)
    saved = load_file(trained() / "predictions.safetensors")
    logits = saved["logits"].double() / metrics["metrics"]["temperature"]
    scaled = evaluate_predictions(logits, saved["target"], saved["features"])
    assert measured(metrics["metrics"]["metrics_scaled"]) == pytest.approx(measured(scaled), rel=1e-9)


@pytest.mark.parametrize("name", ["summary.json", "predictions.safetensors", "environment.json", "model"])
def test_an_unfinished_run_is_rejected(tmp_path, name):
    with pytest.raises(UserError, match=r"not a run folder \(no recipe\.yaml\)"):
        read_source(tmp_path)
    run = copied(trained(), tmp_path)
    shutil.rmtree(run / name) if name == "model" else (run / name).unlink()
    with pytest.raises(UserError, match=rf"not finished \(no {name}.*; to finish it: python -m cskd_hf\.train"):
        read_source(run)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("/home/jo/runs/a", "a"),
        ("train /srv/data/cub.yaml run.seed=0 x=/a/b/", "train cub.yaml run.seed=0 x=b"),
        ("method={teacher: /data/runs/t-seed0, k: 1}", "method={teacher: t-seed0, k: 1}"),
        ("~/images and ~jo/images", "images and images"),
        (r"C:\Users\jo\images", "images"),
        ("https://arxiv.org/abs/2003.13964", "https://arxiv.org/abs/2003.13964"),
        ("owner/name, 3 images/s, 1 / 2", "owner/name, 3 images/s, 1 / 2"),
        ("recipes/digits_resnet10.yaml", "recipes/digits_resnet10.yaml"),
    ],
)
def test_paths_are_reduced_to_their_last_component(text, scrubbed):
    scrubber = PathScrubber(load_recipe("recipes/digits_resnet10.yaml"))
    assert scrubber.text(text) == scrubbed
    assert scrubber.value({"a": [text, 1, None]}) == {"a": [scrubbed, 1, None]}


def test_the_runs_folders_may_contain_spaces():
    recipe = load_recipe(
        "recipes/digits_resnet10.yaml", ["data.dataset=/data of jo/my birds", "run.output_dir=/home/jo doe/runs/a b"]
    )
    note = "skipped: split 'train', row 3, file /data of jo/my birds/train/wren/1 2.jpg: cut"
    assert PathScrubber(recipe).text(note) == "skipped: split 'train', row 3, file my birds/train/wren/1 2.jpg: cut"
    assert PathScrubber(recipe).text("run.output_dir=/home/jo doe/runs/a b") == "run.output_dir=a b"


def test_a_deleted_folder_and_a_teacher_are_scrubbed_and_a_hub_dataset_is_not():
    teacher = "method={name: distillation, teacher: runs/private/t-seed0}"
    recipe = load_recipe("recipes/digits_resnet10.yaml", ["data.dataset=secret/birds", teacher])
    published = PathScrubber(recipe).recipe(recipe)
    assert (published["data"]["dataset"], published["method"]["teacher"]) == ("birds", "t-seed0")
    assert (published["run"]["output_dir"], published["run"]["hub_model_id"]) == (None, None)
    weights = "model={model_name: 'local-dir:../runs of jo/a', checkpoint: ../jo/w.pth}"
    published = PathScrubber(local := load_recipe("digits_resnet10", [weights])).recipe(local)["model"]
    assert (published["model_name"], published["checkpoint"]) == ("local-dir:a", "w.pth")
    hub = load_recipe("digits_resnet10", ["model.model_name=hf-hub:org/net"])
    assert PathScrubber(hub).recipe(hub)["model"]["model_name"] == "hf-hub:org/net"
    recipe = load_recipe("recipes/digits_resnet10.yaml", ["data.dataset=Donghyun99/CUB-200-2011"])
    assert PathScrubber(recipe).recipe(recipe)["data"]["dataset"] == "Donghyun99/CUB-200-2011"


def seeds_of(tmp_path, *errors, **more):
    runs = list(some_runs(tmp_path, "table1", datasets=["cub200"], models=["resnet18"], methods=["cskd"]).values())
    for run, error in zip(runs, errors, strict=False):
        write_finished(run, error, scaled_ece=1.0 + error, **more)
        record_environment(run.folder, {"images": IMAGES}, 0)
    return [run.folder for run in runs], runs


def test_seeds_are_averaged_and_the_published_one_is_the_run_itself(tmp_path):
    folders, _ = seeds_of(tmp_path, 10.0, 12.0, 17.0)
    seeds = read_seeds(folders[1], [folders[0], folders[1], folders[2]])
    assert (seeds["n"], seeds["seeds"], seeds["published_seed"]) == (3, [1, 0, 2], 1)
    assert seeds["last"]["top1_error"] == {"mean": 13.0, "std": pytest.approx(13**0.5)}
    assert seeds["metrics_scaled"]["ece"] == {"mean": 14.0, "std": pytest.approx(13**0.5)}
    assert read_seeds(folders[0], []) is None
    assert read_seeds(folders[0], [folders[0]]) is None


def test_seeds_must_be_finished_distinct_and_of_the_same_recipe(tmp_path):
    folders, runs = seeds_of(tmp_path, 10.0, 12.0)
    write_unfinished(runs[2], epochs=3)
    with pytest.raises(UserError, match=r"--seeds: .*seed2 is not a finished run"):
        read_seeds(folders[0], [folders[2]])
    others = some_runs(tmp_path, "table1", datasets=["cub200"], models=["resnet18"], methods=["cross_entropy"])
    other = next(iter(others.values()))
    write_finished(other, 11.0)
    with pytest.raises(UserError, match=r'differs from .* in more than the seed: method.*name: "cross_entropy" in'):
        read_seeds(folders[0], [other.folder])
    others = IMAGES | {"test": {"images": 1297, "labels": "0000"}}
    record_environment(folders[1], {"images": others}, 0)
    with pytest.raises(UserError, match=r"--seeds: .*seed1 and .*seed0 were tested on different images; name runs"):
        read_seeds(folders[0], [folders[1]])
    record_environment(folders[1], {"images": IMAGES | {"train": {"images": 9}}}, 0)  # the hold-out share is the seed's
    read_seeds(folders[0], [folders[1]])
    shutil.copytree(folders[1], tmp_path / "again")
    with pytest.raises(UserError, match="several runs have the seed 1; name each seed once"):
        read_seeds(folders[0], [folders[1], tmp_path / "again"])
