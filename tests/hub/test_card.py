from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from publishable_runs import trained

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.hub.card import release_card
from cskd_hf.hub.card_metadata import card_metadata, check_metadata, slug, write_eval_results
from cskd_hf.hub.provenance import data_source, paper_figures, paper_of, pretrained_source, terms_of
from cskd_hf.hub.release import read_source
from cskd_hf.hub.scrub_paths import Public
from cskd_hf.methods import METHODS
from cskd_hf.recipe.catalog import CATALOG

NAME = "acme/cskd-tiny"
HOLDOUT = {"images": 8, "nll": 0.123456, "nll_scaled": 0.0234567, "ece": 1.0, "ece_scaled": 0.5}


@pytest.fixture(scope="module")
def source():
    return read_source(trained())


def card(source, recipe=None, summary=None, licence="apache-2.0", **changed: Any) -> str:
    recipe, summary = recipe or source.recipe, summary or source.summary
    folded = changed.get("folded", ())
    metadata = card_metadata(
        recipe,
        summary,
        NAME,
        licence,
        folded=bool(folded),
        needs_cskd_hf=summary["model"]["needs_cskd_hf"],
    )
    keywords = {
        "holdout": HOLDOUT,
        "folded": folded,
        "seeds": None,
        "terms": terms_of(recipe),
        "onnx": False,
        **changed,
    }
    return release_card(
        metadata, NAME, recipe, summary, source.environments, source.config, licence=licence, **keywords
    )


def cub200(tmp_path, source, **model):
    """The run's recipe as if it had been trained on the birds, from a folder that the script made."""
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "manifest.json").write_text(json.dumps({"name": "cub200"}))
    return source.recipe.replace(data={"dataset": str(tmp_path / "birds")}, model={"model_name": "resnet18", **model})


def numbered(source, start=1000.5):
    """The summary with numbers that nobody would type by hand."""
    summary = json.loads(json.dumps(source.summary))
    told = {}
    for which in ("last", "metrics_scaled"):
        for name in summary["metrics"][which]:
            told[which, name] = summary["metrics"][which][name] = start + len(told)
    summary["metrics"]["temperature"] = 1.23456
    summary["throughput"] |= {"images_per_second": 4321.0, "train_seconds": 7.77 * 3600, "peak_memory_bytes": 9 * 2**29}
    summary |= {"epochs": 777, "seed": 4242, "recipe_hash": "feedbeef"}
    return summary, told


def test_every_number_is_the_summarys(source):
    summary, told = numbered(source)
    text = card(source, summary=summary)
    for (_, name), value in told.items():
        assert re.search(rf"^\| {name} \|.* {value:.4g} \|", text, re.MULTILINE), name
    for word in ("T = 1.23456", "(logits / 1.23456)", "4321 images/s", "7.77 hours", "4.5 GiB", "777 epochs"):
        assert word in text
    for word in ("seed 4242", "`feedbeef`", "the 8 held-out images", "0.1235 to 0.02346"):
        assert word in text
    assert [name for name, definition in DEFINITIONS.items() if definition not in text] == []


def test_the_metadata_survive_the_hubs_client_and_hold_both_results(tmp_path, source):
    (tmp_path / "README.md").write_text(card(source), encoding="utf-8")
    write_eval_results(tmp_path, source.recipe, source.summary, NAME, folded=False)
    assert check_metadata(tmp_path) == 2 * (1 + len(source.summary["metrics"]["last"]))
    written = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert (written["license"], written["library_name"]) == ("apache-2.0", "timm")
    assert written["pipeline_tag"] == "image-classification"
    assert {"timm", "transformers", "cskd", "arxiv:2003.13964"} <= set(written["tags"])
    assert "datasets" not in written  # a folder of the publisher's is no set of the Hub
    (index,) = written["model-index"]
    (result,) = index["results"]
    first = {metric["type"]: metric["value"] for metric in reversed(result["metrics"])}
    assert first["accuracy"] == 100 - source.summary["metrics"]["last"]["top1_error"]
    assert first["ece"] == source.summary["metrics"]["last"]["ece"]
    assert (index["name"], result["dataset"]["name"], result["dataset"]["split"]) == ("cskd-tiny", "my images", "test")


def test_metadata_that_the_client_reads_otherwise_are_our_mistake(tmp_path, source):
    text = card(source).replace("library_name: timm", "library_name: timm\nmodel_name: lost")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(RuntimeError, match="do not survive huggingface_hub"):
        check_metadata(tmp_path)


def test_folded_weights_are_published_with_the_calibrated_numbers_first(tmp_path, source):
    summary, told = numbered(source)
    text = card(source, summary=summary, folded=["fc"])
    (index,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    eces = [metric["value"] for metric in index["results"][0]["metrics"] if metric["type"] == "ece"]
    assert eces == [told["metrics_scaled", "ece"], told["last", "ece"]]
    assert "probabilities = logits.softmax(dim=-1)[0]" in text
    assert "weight and bias of fc are divided by T" in text
    assert 'create_model(f"local-dir:{folder}/raw", pretrained=True)' in text
    write_eval_results(tmp_path, source.recipe, summary, NAME, folded=True)
    (entry,) = yaml.safe_load((tmp_path / ".eval_results" / "my-images.yaml").read_text())
    assert entry["value"] == 100 - told["metrics_scaled", "top1_error"]
    assert entry["dataset"] == {"id": "acme/my-images", "task_id": "default"}  # nobody else's leaderboard


def test_a_set_of_the_hub_is_named_with_its_terms_and_the_papers_numbers_stand_beside(tmp_path, source):
    recipe = cub200(tmp_path, source)
    text = card(source, recipe, licence="other")
    written = yaml.safe_load(text.split("---\n")[1])
    assert written["datasets"] == ["bentrevett/caltech-ucsd-birds-200-2011"]
    assert (written["license"], written["license_name"]) == ("other", "non-commercial-research")
    assert written["license_link"] == "LICENSE"
    figures = paper_figures(recipe)
    mean, std = figures["top1_error"].mean, figures["top1_error"].std
    assert re.search(rf"^\| top1_error \|.*\| {mean:.4g} ± {std:.4g} \|", text, re.MULTILINE)
    assert re.search(r"^\| brier \|.*\| – \|", text, re.MULTILINE)
    assert f"Terms of the data cub200: {CATALOG['cub200'].terms}." in text
    assert CATALOG["cub200"].citation in text
    assert str(tmp_path) not in text
    # The folder is the publisher's; the Hub has the same images.
    assert "cskd_hf.train recipe.yaml data.dataset=FOLDER" in text
    assert "data.dataset=bentrevett/caltech-ucsd-birds-200-2011" in text


def test_the_papers_column_is_left_out_where_it_has_no_such_experiment(source):
    assert paper_figures(source.recipe) == {}
    assert "| paper |" not in card(source)


def test_a_small_network_has_the_papers_name_and_smoothing_its_row(tmp_path, source):
    recipe = source.recipe.replace(data={"dataset": "cifar100"}, model={"model_name": "preact_resnet18_32px"})
    assert paper_figures(recipe)["top1_error"].mean == pytest.approx(21.99)
    smoothed = METHODS["cross_entropy"](name="cross_entropy", smoothing=0.1)
    other = paper_figures(recipe.model_copy(update={"method": smoothed}))
    plain = paper_figures(recipe.model_copy(update={"method": METHODS["cross_entropy"](name="cross_entropy")}))
    assert plain["top1_error"].mean == pytest.approx(24.71)
    assert other["top1_error"].mean not in (plain["top1_error"].mean, 21.99)


def test_weights_that_training_started_from_are_named_with_their_licence(source):
    recipe = source.recipe.replace(model={"model_name": "resnet50.a1_in1k", "pretrained": True})
    name, licence = pretrained_source(recipe)
    assert (name, licence) == ("timm/resnet50.a1_in1k", "apache-2.0")
    text = card(source, recipe)
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == name
    assert f"Terms of the pretrained weights {name}: {licence}." in text


def test_an_onnx_file_is_told_of_where_there_is_one(source):
    assert "`pixel_values` in" in card(source, onnx=True)
    assert "`logits` and `probabilities` out, calibrated" in card(source, onnx=True)
    assert "onnx" not in card(source)


def test_several_seeds_stand_as_mean_and_spread(source):
    means = {name: {"mean": 12.3456, "std": 0.789} for name in source.summary["metrics"]["last"]}
    seeds = {"n": 3, "seeds": [0, 1, 2], "published_seed": 0, "last": means, "metrics_scaled": None}
    text = card(source, seeds=seeds)
    assert "of 3 trainings with the seeds 0, 1, 2; published is seed 0" in text
    assert re.search(r"^\| ece \|.*\| 12\.35 ± 0\.79 \| – \|", text, re.MULTILINE)
    assert "n = 1" not in text


def test_without_a_held_out_image_the_card_says_that_nothing_is_calibrated():
    source = read_source(trained(holdout=0.0))
    text = card(source, holdout=None)
    assert "No image was held out, so no temperature was fitted" in text
    assert "on which the learning curves were drawn too" in text
    assert "| calibrated |" not in text
    assert "None" not in text.replace("[None]", "")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_paper(name):
    fields = {"teacher": "runs/t"} if "teacher" in METHODS[name].model_fields else {}
    paper = paper_of(METHODS[name](name=name, **fields))
    assert paper.title in paper.citation
    assert "https://" in paper.citation
    assert paper.arxiv is None or paper.arxiv in paper.citation


@pytest.mark.parametrize(
    ("dataset", "name", "hub_id"),
    [
        ("digits", "digits", None),
        ("cifar100", "cifar100", "uoft-cs/cifar100"),
        ("Donghyun99/CUB-200-2011", "cub200", "bentrevett/caltech-ucsd-birds-200-2011"),
        ("somebody/flowers", "flowers", None),  # perhaps a folder that is gone
        ("images/birds", "birds", None),
        ("/data/gone/flowers", "flowers", None),
        ("./flowers", "flowers", None),
    ],
)
def test_data_are_named_without_their_folder(source, dataset, name, hub_id):
    found = data_source(source.recipe.replace(data={"dataset": dataset}))
    assert (found.name, found.hub_id) == (name, hub_id)


def test_what_the_hubs_cache_holds_is_a_set_of_the_hub(source, tmp_path, monkeypatch):
    commit = "5f" * 20
    (tmp_path / "datasets--somebody--flowers" / "snapshots" / commit).mkdir(parents=True)
    (tmp_path / "datasets--somebody--flowers" / "refs").mkdir()
    (tmp_path / "datasets--somebody--flowers" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = source.recipe.replace(data={"dataset": "somebody/flowers"})
    found = data_source(recipe)
    assert (found.name, found.hub_id) == ("somebody/flowers", "somebody/flowers")
    assert Public(recipe).text("data.dataset=somebody/flowers") == "data.dataset=somebody/flowers"


@pytest.mark.parametrize(
    ("name", "short"),
    [("somebody/flowers", "flowers"), ("my data (2)", "my-data-2"), ("--", "images"), ("a..b", "a-b")],
)
def test_a_slug_is_a_legal_name(name, short):
    assert slug(name) == short
