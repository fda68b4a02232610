from __future__ import annotations

import dataclasses
import json
import re

import pytest
import yaml
from cards import APACHE, NAME, card, metadata
from huggingface_hub import ModelCard, eval_result_entries_to_yaml, parse_eval_result_entries
from publishable_runs import trained
from summaries import measured, metric_values

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.hub.card_metadata import slug, write_eval_results
from cskd_hf.hub.licences import Licence
from cskd_hf.hub.provenance import PretrainedSource, pretrained_source, published_results
from cskd_hf.hub.source import Release, read_source
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.runs.selected import Selected


@pytest.fixture(scope="module")
def source():
    return read_source(trained())


@pytest.fixture
def numbered(source):
    """The same run with conspicuous numbers."""
    values = {"last": metric_values(1000.5), "metrics_scaled": metric_values(1020.5, recall_at_1=None)}
    metrics = source.summary.metrics.model_copy(update={**values, "temperature": 1.23456})
    costs = {"images_per_second": 4321.0, "train_seconds": 7.77 * 3600, "peak_memory_bytes": 9 * 2**29}
    throughput = source.summary.throughput.model_copy(update=costs)
    changes = {"metrics": metrics, "throughput": throughput, "epochs": 777, "seed": 4242, "recipe_hash": "feedbeef"}
    return dataclasses.replace(source, summary=source.summary.model_copy(update=changes))


def cub200(tmp_path, source):
    """The run's recipe as if trained on CUB-200 in a folder that a script prepared."""
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "manifest.json").write_text(json.dumps({"name": "cub200"}))
    return source.recipe.replace(data={"dataset": str(tmp_path / "birds")}, model={"model_name": "resnet18"})


def test_every_number_comes_from_the_summary(numbered):
    text, metrics = card(numbered), numbered.summary.metrics
    for values in (metrics.last, metrics.metrics_scaled):
        for name, value in values:
            assert value is None or re.search(rf"^\| {name} \|.* {value:.4g} \|", text, re.MULTILINE), name
    for word in ("T = 1.23456", "(logits / 1.23456)", "4321 images/s", "7.77 hours", "4.5 GiB", "777 epochs"):
        assert word in text
    for word in ("seed 4242", "`feedbeef`", "the 208 images of the hold-out"):
        assert word in text
    assert f"from {numbered.holdout['nll']:.4g} to" in text
    assert [name for name, definition in DEFINITIONS.items() if definition not in text] == []


def test_the_hubs_client_reads_the_metadata_and_both_results(tmp_path, source):
    (tmp_path / "README.md").write_text(card(source), encoding="utf-8")
    last = source.summary.metrics.last
    read = ModelCard.load(tmp_path / "README.md").data
    written = metadata((tmp_path / "README.md").read_text())
    assert read.to_dict() == written
    assert len(read.eval_results) == 2 * (1 + len(measured(last)))
    assert (written["license"], written["library_name"]) == ("apache-2.0", "timm")
    assert written["pipeline_tag"] == "image-classification"
    assert {"timm", "transformers", "cskd", "arxiv:2003.13964"} <= set(written["tags"])
    assert "datasets" not in written  # the publisher's folder is not on the Hub
    (index,) = written["model-index"]
    (result,) = index["results"]
    first = {metric["type"]: metric["value"] for metric in reversed(result["metrics"])}
    assert (first["accuracy"], first["ece"]) == (100 - last.top1_error, last.ece)
    assert (index["name"], result["dataset"]["name"], result["dataset"]["split"]) == ("cskd-tiny", "my images", "test")


def test_folded_weights_list_the_calibrated_results_first(tmp_path, numbered):
    text, metrics = card(numbered, folded=["fc"]), numbered.summary.metrics
    (index,) = metadata(text)["model-index"]
    eces = [metric["value"] for metric in index["results"][0]["metrics"] if metric["type"] == "ece"]
    assert eces == [metrics.metrics_scaled.ece, metrics.last.ece]
    assert "probabilities = logits.softmax(dim=-1)[0]" in text
    assert "weight and bias of fc are divided by T" in text
    assert 'create_model(f"local-dir:{folder}/raw", pretrained=True)' in text
    write_eval_results(Release(numbered, NAME, APACHE, folded=["fc"]), tmp_path)
    entries = yaml.safe_load((tmp_path / ".eval_results" / "my-images.yaml").read_text())
    assert eval_result_entries_to_yaml(parse_eval_result_entries(entries)) == entries
    assert entries[0]["value"] == 100 - metrics.metrics_scaled.top1_error
    assert entries[0]["dataset"] == {"id": "acme/my-images", "task_id": "default"}  # nobody else's leaderboard


def test_a_hub_dataset_is_named_with_its_terms_and_the_papers_results(tmp_path, source):
    recipe = cub200(tmp_path, source)
    text = card(source, recipe, licence=Licence("other", "non-commercial-research", "LICENSE"))
    written = metadata(text)
    assert written["datasets"] == ["bentrevett/caltech-ucsd-birds-200-2011"]
    assert (written["license"], written["license_name"]) == ("other", "non-commercial-research")
    assert written["license_link"] == "LICENSE"
    result = published_results(recipe)["top1_error"]
    assert re.search(rf"^\| top1_error \|.*\| {result.mean:.4g} ± {result.std:.4g} \|", text, re.MULTILINE)
    assert re.search(r"^\| brier \|.*\| – \|", text, re.MULTILINE)
    assert f"Terms of the data cub200: {CATALOG['cub200'].terms}." in text
    assert CATALOG["cub200"].citation in text
    assert str(tmp_path) not in text
    # Others have the images from the Hub, not from the publisher's folder.
    assert "cskd_hf.train recipe.yaml data.dataset=FOLDER" in text
    assert "data.dataset=bentrevett/caltech-ucsd-birds-200-2011" in text


@pytest.mark.parametrize(
    ("settings", "official"),
    [
        ({}, True),
        ({"test_split": 0.2}, False),
        ({"test_split": "train", "train_split": "test"}, False),
        ({"train_split": "trainval"}, False),
    ],
)
def test_only_results_on_the_official_split_go_under_the_sets_name(tmp_path, source, settings, official):
    recipe = cub200(tmp_path, source).replace(data=settings)
    text = card(source, recipe)
    assert (f"Split of the images: {CATALOG['cub200'].official_split}." in text) == official
    assert ("Split of the images: the publisher's own." in text) != official
    assert ("| paper |" in text) == official
    write_eval_results(Release(dataclasses.replace(source, recipe=recipe), NAME, APACHE), tmp_path)
    (entry,) = yaml.safe_load((tmp_path / ".eval_results" / "cub200.yaml").read_text())
    assert entry["dataset"]["id"] == (CATALOG["cub200"].path if official else "acme/cub200")
    assert "20 images of split " in entry["notes"]
    assert ("not the official test split" in entry["notes"]) != official


def test_an_experiment_that_the_paper_lacks_has_no_paper_column(source):
    assert published_results(source.recipe) == {}
    assert "| paper |" not in card(source)


def test_pretrained_weights_are_named_with_their_licence(source):
    recipe = source.recipe.replace(model={"model_name": "resnet50.a1_in1k", "pretrained": True})
    name = "timm/resnet50.a1_in1k"
    assert pretrained_source(recipe) == PretrainedSource(name, "apache-2.0", hub_id=name)
    text = card(source, recipe)
    assert metadata(text)["base_model"] == "timm/resnet50.a1_in1k"
    assert "Terms of the pretrained weights timm/resnet50.a1_in1k: apache-2.0." in text


@pytest.mark.parametrize(
    ("model", "name", "hub_id"),
    [
        ({"model_name": "hf-hub:org/net@v1", "pretrained": True}, "org/net@v1", "org/net"),
        ({"model_name": "local-dir:net", "pretrained": True}, "local-dir:net", None),
        ({"checkpoint": "net.safetensors"}, "net.safetensors", None),
    ],
)
def test_weights_of_the_hub_are_the_base_model_and_local_ones_are_not(source, model, name, hub_id):
    recorded = {"finetuned_from": name, "finetuned_license": "mit", "loaded": "all but fc, which starts at random"}
    trained = source.summary.model.model_copy(update=recorded)
    source = dataclasses.replace(source, summary=source.summary.model_copy(update={"model": trained}))
    recipe = source.recipe.replace(model=model)
    assert pretrained_source(recipe, trained) == PretrainedSource(name, "mit", hub_id)
    text = card(source, recipe)
    assert metadata(text).get("base_model") == hub_id
    assert f"Fine-tuned from `{name}` (licence: mit); loaded: all but fc, which starts at random.\n\n```" in text
    assert f"Terms of the pretrained weights {name}: mit." in text


def test_an_onnx_file_is_described_if_there_is_one(source):
    assert "Input: `pixel_values`" in card(source, onnx=True)
    assert "Outputs: `logits` and `probabilities`, calibrated." in card(source, onnx=True)
    assert "onnx" not in card(source)


def test_several_seeds_are_reported_as_mean_and_std(source):
    means = {name: {"mean": 12.3456, "std": 0.789} for name in DEFINITIONS}
    seeds = {"n": 3, "seeds": [0, 1, 2], "published_seed": 0, "last": means, "metrics_scaled": None}
    text = card(source, seeds=seeds)
    assert "over 3 trainings with the seeds 0, 1, 2. The weights are those of seed 0" in text
    assert re.search(r"^\| ece \|.*\| 12\.35 ± 0\.79 \|", text, re.MULTILINE)
    assert "n = 1" not in text


def test_weights_of_another_epoch_than_the_last_are_named(tmp_path, source):
    selected = Selected(epoch=1, epochs_trained=2, metric="nll", best_epoch=1, best_value=0.5)
    changes = {"selection": "best_holdout", "selected": selected, "epochs": 5}
    summary = source.summary.model_copy(update=changes | {"notes": (selected.note("best_holdout", 5),)})
    chosen = dataclasses.replace(source, summary=summary)
    text = card(chosen)
    assert "Metrics of epoch 1 of 5 on split" in text
    assert ": 2 of 5 epochs, seed" in text
    assert "* weights of epoch 1 of 5, chosen by hold-out NLL; hold-out metrics of the chosen epoch are" in text
    assert "last epoch" not in text
    write_eval_results(Release(chosen, NAME, APACHE), tmp_path)
    (entry,) = yaml.safe_load(next((tmp_path / ".eval_results").iterdir()).read_text())
    assert ", epoch 1 of 5, seed " in entry["notes"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("somebody/flowers", "flowers"), ("my data (2)", "my-data-2"), ("--", "images"), ("a..b", "a-b")],
)
def test_a_slug_is_a_legal_name(name, expected):
    assert slug(name) == expected
