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
from timm.models import PretrainedCfg
from written_runs import some_runs, write_finished, write_unfinished

from cskd_hf.errors import UserError
from cskd_hf.hub.licences import Terms, choose_licence, licence_metadata, licence_text
from cskd_hf.hub.release import build_release, check_request, read_source
from cskd_hf.hub.scrub_paths import Public, public_recipe
from cskd_hf.hub.seeds import read_seeds
from cskd_hf.models.load import load_trained
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import load_recipe

NAME = "acme/cskd-tiny"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    source = read_source(trained())
    model = load_trained(str(trained())).model
    build_release(source, folder, model, NAME, folded=(), licence="apache-2.0", seeds=None)
    return folder


def test_the_folder_holds_what_a_release_needs_and_no_pickle(release):
    assert sorted(path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()) == [
        ".eval_results/my-images.yaml",
        "LICENSE",
        "README.md",
        "config.json",
        "environment.json",
        "figures/learning_curves.png",
        "figures/reliability.png",
        "metrics.json",
        "model.safetensors",
        "recipe.yaml",
    ]


def test_the_same_run_gives_the_same_bytes(release, tmp_path):
    """So that publishing it again makes no commit."""
    model = load_trained(str(trained())).model
    build_release(read_source(trained()), tmp_path, model, NAME, folded=(), licence="apache-2.0", seeds=None)
    first, second = tree(release), tree(tmp_path)
    assert {name: content for name, (_, content) in first.items()} == {name: held for name, (_, held) in second.items()}


def test_the_weights_are_the_runs_with_the_format_said(release):
    own, run = load_file(release / "model.safetensors"), load_file(trained() / "model" / "model.safetensors")
    assert own.keys() == run.keys()
    assert all(own[name].equal(run[name]) for name in run)
    with safe_open(release / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_config_says_where_the_weights_come_from_in_keys_that_timm_knows(release):
    config = json.loads((release / "config.json").read_text())
    told = config["pretrained_cfg"]
    assert set(told) <= {field.name for field in dataclasses.fields(PretrainedCfg)}
    assert (told["tag"], told["license"]) == ("cskd_my-images", "apache-2.0")
    assert told["origin_url"] == "https://huggingface.co/acme/cskd-tiny"
    assert told["paper_ids"] == "arXiv:2003.13964"
    assert told["paper_name"] == "Regularizing Class-wise Predictions via Self-knowledge Distillation"
    assert (told["input_size"], told["crop_pct"], told["interpolation"]) == ([3, 48, 48], 1.0, "bilinear")
    assert config["label_names"] == ["class 0", "class 1", "class 2", "class 3"]
    assert config["cskd"]["temperature"] == summary_of(trained())["metrics"]["temperature"]
    assert "folded_temperature" not in config["cskd"]
    assert config["cskd"]["needs_cskd_hf"] is False


def test_no_file_tells_of_the_machine_that_trained(release):
    for path in release.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (str(home()), home().name, str(trained().parent), "secret user"):
                assert secret.encode() not in content, (path, secret)


def test_the_recipe_runs_again_for_whoever_says_where_the_images_are(release):
    again = load_recipe(release / "recipe.yaml", [f"data.dataset={images()}", "run.output_dir=x"])
    first = load_recipe(trained() / "recipe.yaml", ["run.output_dir=x"])
    assert again == first
    assert yaml.safe_load((release / "recipe.yaml").read_text())["data"]["dataset"] == "my images"


def test_metrics_are_the_summarys_with_what_the_fit_did(release):
    metrics, summary = json.loads((release / "metrics.json").read_text()), summary_of(trained())
    assert metrics["metrics"] == summary["metrics"]
    assert metrics["holdout"]["images"] == 8
    assert metrics["holdout"]["nll_scaled"] <= metrics["holdout"]["nll"]
    assert (metrics["folded"], metrics["seeds"]) == ([], None)


def test_a_run_that_is_not_finished_or_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such run; name a run folder"):
        read_source(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no run \(no recipe\.yaml\)"):
        read_source(tmp_path)
    run = copied(trained(), tmp_path)
    (run / "summary.json").unlink()
    with pytest.raises(
        UserError, match=r"not finished \(no summary\.json\); to train it to its end: python -m cskd_hf"
    ):
        read_source(run)


@pytest.mark.parametrize("name", ["predictions.safetensors", "environment.json", "model"])
def test_a_run_without_one_of_its_files_is_refused(tmp_path, name):
    run = copied(trained(), tmp_path)
    shutil.rmtree(run / name) if name == "model" else (run / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}.*; train it again"):
        read_source(run)


def test_folding_needs_a_temperature():
    with pytest.raises(UserError, match=r"--fold-temperature: .* has no temperature, because no image was held out"):
        check_request(read_source(trained(holdout=0.0)), fold=True, licence=None)


# Which sets of the catalog keep to non-commercial use.
RESEARCH = {"imagenet", "cub200", "stanford_dogs", "mit67", "tiny_imagenet"}


@pytest.mark.parametrize("name", CATALOG)
def test_weights_are_not_licensed_for_what_the_terms_of_their_data_forbid(name):
    terms = [Terms(f"the data {name}", CATALOG[name].terms)]
    if name not in RESEARCH:
        assert choose_licence(None, terms) == "apache-2.0"
        assert choose_licence("mit", terms) == "mit"
        return
    assert choose_licence(None, terms) == "other"
    assert choose_licence("cc-by-nc-sa-4.0", terms) == "cc-by-nc-sa-4.0"
    for asked in ("apache-2.0", "mit", "cc-by-4.0", "openrail"):
        with pytest.raises(UserError, match=f"--license: {asked} allows commercial use, which the terms of the data"):
            choose_licence(asked, terms)


def test_pretrained_weights_bring_their_own_terms():
    with pytest.raises(UserError, match=r"the terms of the pretrained weights timm/x forbid \(cc-by-nc-4\.0\)"):
        choose_licence("apache-2.0", [Terms("the data", "MIT"), Terms("the pretrained weights timm/x", "cc-by-nc-4.0")])


@pytest.mark.parametrize("asked", ["Apache 2", "", "../x", "MIT"])
def test_what_cannot_be_a_licence_is_refused(asked):
    with pytest.raises(UserError, match="--license: read "):
        choose_licence(asked, [])


def test_the_licence_file_has_the_terms_and_where_it_is_apaches_its_text():
    terms = [Terms("the data cub200", CATALOG["cub200"].terms), Terms("the data mine", None)]
    text = licence_text("other", terms, NAME)
    assert "non-commercial research and education only" in text
    assert f"the data cub200: {CATALOG['cub200'].terms}" in text
    assert "the data mine: terms not known" in text
    assert licence_metadata("other") == {
        "license": "other",
        "license_name": "non-commercial-research",
        "license_link": "LICENSE",
    }
    assert "Version 2.0, January 2004" in licence_text("apache-2.0", [], NAME)
    assert "cc-by-nc-4.0" in licence_text("cc-by-nc-4.0", terms, NAME)


@pytest.mark.parametrize(
    ("text", "public"),
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
def test_paths_keep_their_last_part(text, public):
    recipe = load_recipe("recipes/digits_resnet10.yaml")
    assert Public(recipe).text(text) == public
    assert Public(recipe).value({"a": [text, 1, None]}) == {"a": [public, 1, None]}


def test_the_runs_own_folders_are_known_also_with_spaces_in_their_names():
    recipe = load_recipe(
        "recipes/digits_resnet10.yaml", ["data.dataset=/data of jo/my birds", "run.output_dir=/home/jo doe/runs/a b"]
    )
    note = "skipped: split 'train', row 3, file /data of jo/my birds/train/wren/1 2.jpg: cut"
    assert Public(recipe).text(note) == "skipped: split 'train', row 3, file my birds/train/wren/1 2.jpg: cut"
    assert Public(recipe).text("run.output_dir=/home/jo doe/runs/a b") == "run.output_dir=a b"


def test_a_folder_that_is_gone_and_a_teacher_are_cut_and_a_public_set_is_not():
    teacher = "method={name: distillation, teacher: runs/private/t-seed0}"
    recipe = load_recipe("recipes/digits_resnet10.yaml", ["data.dataset=secret/birds", teacher])
    public = public_recipe(recipe, Public(recipe))
    assert (public["data"]["dataset"], public["method"]["teacher"]) == ("birds", "t-seed0")
    assert (public["run"]["output_dir"], public["run"]["hub_model_id"]) == (None, None)
    recipe = load_recipe("recipes/digits_resnet10.yaml", ["data.dataset=Donghyun99/CUB-200-2011"])
    assert public_recipe(recipe, Public(recipe))["data"]["dataset"] == "Donghyun99/CUB-200-2011"


def seeds_of(tmp_path, *errors, **more):
    runs = list(some_runs(tmp_path, "table1", datasets=["cub200"], models=["resnet18"], methods=["cskd"]).values())
    for run, error in zip(runs, errors, strict=False):
        write_finished(run, error, scaled_ece=1.0 + error, **more)
    return [run.folder for run in runs], runs


def test_the_mean_is_over_all_seeds_and_the_published_one_is_the_first_named(tmp_path):
    folders, _ = seeds_of(tmp_path, 10.0, 12.0, 17.0)
    found = read_seeds(folders[1], [folders[0], folders[1], folders[2]])
    assert (found["n"], found["seeds"], found["published_seed"]) == (3, [1, 0, 2], 1)
    assert found["last"]["top1_error"] == {"mean": 13.0, "std": pytest.approx(13**0.5)}
    assert found["metrics_scaled"]["ece"] == {"mean": 14.0, "std": pytest.approx(13**0.5)}
    assert read_seeds(folders[0], []) is None
    assert read_seeds(folders[0], [folders[0]]) is None


def test_seeds_of_another_recipe_or_not_finished_or_named_twice_are_refused(tmp_path):
    folders, runs = seeds_of(tmp_path, 10.0, 12.0)
    write_unfinished(runs[2], epochs=3)
    with pytest.raises(UserError, match=r"--seeds: .*seed2: not a finished run"):
        read_seeds(folders[0], [folders[2]])
    others = some_runs(tmp_path, "table1", datasets=["cub200"], models=["resnet18"], methods=["cross_entropy"])
    other = next(iter(others.values()))
    write_finished(other, 11.0)
    with pytest.raises(UserError, match=r'is of another recipe than .*: method.*name: "cross_entropy" in the folder'):
        read_seeds(folders[0], [other.folder])
    shutil.copytree(folders[1], tmp_path / "again")
    with pytest.raises(UserError, match="of which several have the seed 1; name each seed once"):
        read_seeds(folders[0], [folders[1], tmp_path / "again"])
