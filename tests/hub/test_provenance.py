"""Where a run's images and method come from, and the paper's results for the same experiment."""

from __future__ import annotations

import pytest
from publishable_runs import trained

from cskd_hf.hub.paths import PathScrubber
from cskd_hf.hub.provenance import data_source, paper_of, published_results
from cskd_hf.hub.source import read_source
from cskd_hf.methods import METHODS


@pytest.fixture(scope="module")
def source():
    return read_source(trained())


def test_published_results_know_the_papers_names_of_networks_and_methods(source):
    recipe = source.recipe.replace(data={"dataset": "cifar100"}, model={"model_name": "preactresnet18_32px"})

    def top1_error(**method):
        changed = recipe.model_copy(update={"method": METHODS[method["name"]](**method)}) if method else recipe
        return published_results(changed)["top1_error"].mean if published_results(changed) else None

    assert top1_error() == pytest.approx(21.99)
    assert top1_error(name="cross_entropy") == pytest.approx(24.71)
    assert top1_error(name="cross_entropy", smoothing=0.1) not in (top1_error(), top1_error(name="cross_entropy"), None)
    assert top1_error(name="mixup_cskd") not in (top1_error(), None)
    for settings in (
        {"smoothing": 0.1},
        {"cutmix_alpha": 1.0},
        {"mixup_alpha": 1.0},
        {"bce_loss": True},
    ):  # not the paper's CS-KD
        assert top1_error(name="cskd", **settings) is None


@pytest.mark.parametrize("name", METHODS)
def test_every_method_cites_its_paper(name):
    fields = {"teacher": "runs/t"} if "teacher" in METHODS[name].model_fields else {}
    paper = paper_of(METHODS[name](name=name, **fields))
    if name == "cross_entropy":
        assert (paper.citation, paper.title, paper.arxiv) == (None, None, None)
        paper = paper_of(METHODS[name](smoothing=0.1))
        assert paper.arxiv == "1512.00567"
    assert paper.title in paper.citation
    assert "https://" in paper.citation
    assert paper.arxiv is None or paper.arxiv in paper.citation


@pytest.mark.parametrize(
    ("dataset", "name", "hub_id"),
    [
        ("digits", "digits", None),
        ("cifar100", "cifar100", "uoft-cs/cifar100"),
        ("Donghyun99/CUB-200-2011", "cub200", "bentrevett/caltech-ucsd-birds-200-2011"),
        ("somebody/flowers", "flowers", None),  # perhaps a deleted folder
        ("images/birds", "birds", None),
        ("/data/gone/flowers", "flowers", None),
        ("./flowers", "flowers", None),
    ],
)
def test_data_are_named_without_their_folder(source, dataset, name, hub_id):
    data = data_source(source.recipe.replace(data={"dataset": dataset}))
    assert (data.name, data.hub_id) == (name, hub_id)


def test_a_dataset_in_the_hubs_cache_is_a_hub_dataset(source, tmp_path, monkeypatch):
    commit = "5f" * 20
    (tmp_path / "datasets--somebody--flowers" / "snapshots" / commit).mkdir(parents=True)
    (tmp_path / "datasets--somebody--flowers" / "refs").mkdir()
    (tmp_path / "datasets--somebody--flowers" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = source.recipe.replace(data={"dataset": "somebody/flowers"})
    data = data_source(recipe)
    assert (data.name, data.hub_id) == ("somebody/flowers", "somebody/flowers")
    assert PathScrubber(recipe).text("data.dataset=somebody/flowers") == "data.dataset=somebody/flowers"
