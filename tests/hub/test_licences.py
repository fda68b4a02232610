"""The licence of published weights, and the terms that it follows from."""

from __future__ import annotations

import json

import pytest
from publishable_runs import copied, trained

from cskd_hf.errors import UserError
from cskd_hf.hub.card_metadata import card_metadata
from cskd_hf.hub.licences import Licence, Terms, choose_licence, licence_text
from cskd_hf.hub.provenance import terms_of
from cskd_hf.hub.source import Release, read_source
from cskd_hf.methods import METHODS
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import dump_recipe, load_recipe

NAME = "acme/cskd-tiny"


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.licence == "other"])
def test_a_permissive_licence_is_rejected_if_the_data_forbid_commercial_use(name):
    terms = [Terms(f"the data {name}", CATALOG[name].licence, CATALOG[name].terms)]
    assert choose_licence(None, terms) == Licence("other", "non-commercial-research", "LICENSE")
    assert choose_licence("cc-by-nc-sa-4.0", terms) == Licence("cc-by-nc-sa-4.0")
    for licence in ("apache-2.0", "mit", "cc-by-4.0", "openrail"):
        with pytest.raises(UserError, match=f"--license: {licence} allows commercial use, which the terms of the data"):
            choose_licence(licence, terms)


def test_unknown_terms_are_asked_for():
    cifar = [Terms("the data cifar100", CATALOG["cifar100"].licence, CATALOG["cifar100"].terms)]
    with pytest.raises(UserError, match=r"the terms of the data cifar100 are unknown \(no licence stated"):
        choose_licence(None, cifar)
    assert choose_licence(None, cifar, required=False) == Licence("unknown")
    terms = [Terms("the data stamps", "unknown", None), Terms("the pretrained weights timm/x", "mit", "mit")]
    with pytest.raises(
        UserError, match=r"^run\.hub_license: needed, because the terms of the data stamps are unknown: "
    ):
        choose_licence(None, terms, option="run.hub_license")
    assert choose_licence("cc-by-4.0", terms) == Licence("cc-by-4.0")
    terms.append(Terms("the pretrained weights timm/y", "cc-by-nc-4.0", "cc-by-nc-4.0"))
    assert choose_licence(None, terms).identifier == "other"


@pytest.mark.parametrize(
    "licence", ["dinov3-license", "seer-license", "gemma", "apple-ascl", "gpl-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0"]
)
def test_no_licence_is_chosen_beside_terms_that_are_not_permissive(licence):
    terms = [Terms("the data", "mit", "MIT"), Terms("the pretrained weights timm/x", licence, licence)]
    message = rf"--license: needed, because the terms of the pretrained weights timm/x are those of {licence}: write"
    with pytest.raises(UserError, match=message):
        choose_licence(None, terms)
    assert choose_licence(None, terms, required=False) == Licence("unknown")
    assert choose_licence("cc-by-4.0", terms) == Licence("cc-by-4.0")


@pytest.mark.parametrize("licence", ["apache-2.0", "bsd-3-clause", "bsd", "cc-by-4.0", "cc0-1.0", "isc"])
def test_weights_are_apache_by_default_beside_permissive_terms(licence):
    terms = [Terms("the data", licence, None)]
    assert choose_licence(None, terms) == Licence("apache-2.0")
    assert choose_licence("mit", terms) == Licence("mit")


def test_a_student_has_its_teachers_terms(tmp_path):
    student = load_recipe(trained() / "recipe.yaml")

    def terms_beside_the_data(teacher):
        method = METHODS["distillation"](name="distillation", teacher=teacher)
        data, *others = terms_of(student.model_copy(update={"method": method}))
        assert data.source == "the data my images"
        return [(term.source, term.licence) for term in others]

    assert terms_beside_the_data(str(trained())) == []  # of the same images
    run = copied(trained(), tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    summary["model"] |= {"finetuned_from": "timm/net.fb", "finetuned_license": "cc-by-nc-4.0", "loaded": "all"}
    (run / "summary.json").write_text(json.dumps(summary))
    dump_recipe(student.replace(model={"pretrained": True}), run / "recipe.yaml")
    assert terms_beside_the_data(str(run)) == [("the pretrained weights timm/net.fb", "cc-by-nc-4.0")]
    assert terms_beside_the_data(str(tmp_path / "moved")) == [("the teacher moved", "unknown")]
    config = json.loads((run / "model" / "config.json").read_text())
    for licence, expected in (("cc-by-nc-4.0", "cc-by-nc-4.0"), (None, "unknown")):
        config["pretrained_cfg"]["license"] = licence
        (run / "model" / "config.json").write_text(json.dumps(config))
        assert terms_beside_the_data(f"local-dir:{run}/model") == [("the teacher model", expected)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Apache 2",), r"read 'Apache 2'; write an identifier of the Hub's list \(did you mean apache-2\.0\?\)"),
        (("MIT",), r"did you mean mit\?"),
        (("cc-by-nc-4",), r"did you mean cc-by-nc-4\.0\?"),
        (("unknown",), "read 'unknown'"),
        (("my-licence",), "for a licence that is not in it, publish with --license other --license-name NAME"),
        (("",), "such as apache-2.0"),
        (("other",), "read the name None and the link None; publish with --license-name NAME"),
        (("other", "my-licence"), "the link None"),
        (("other", "My Licence", "https://example.org/terms"), "the name 'My Licence'"),
        (("other", "my-licence", "example.org"), "the link 'example.org'"),
        (("mit", "my-licence"), "only with --license other, read mit"),
    ],
)
def test_a_licence_that_the_hub_does_not_list_is_rejected(arguments, message):
    requested, name, link = (*arguments, None, None)[:3]
    with pytest.raises(UserError, match=message):
        choose_licence(requested, [], name, link)


def test_another_licence_is_named_and_linked_in_the_release():
    licence = choose_licence("other", [Terms("the data", "unknown", None)], "my-licence", "https://example.org/terms")
    assert licence == Licence("other", "my-licence", "https://example.org/terms")
    assert "licensed under my-licence: https://example.org/terms\n" in licence_text(licence, [], NAME)
    written = card_metadata(Release(read_source(trained()), NAME, licence)).to_dict()
    assert (written["license"], written["license_name"]) == ("other", "my-licence")
    assert written["license_link"] == "https://example.org/terms"


def test_the_licence_file_states_the_terms_of_the_sources():
    terms = [Terms("the data cub200", "other", CATALOG["cub200"].terms), Terms("the data mine", "unknown", None)]
    text = licence_text(choose_licence(None, terms), terms, NAME)
    assert "non-commercial research and education only" in text
    assert f"the data cub200: {CATALOG['cub200'].terms}" in text
    assert "the data mine: terms unknown" in text
    assert "Version 2.0, January 2004" in licence_text(Licence("apache-2.0"), [], NAME)
    assert "cc-by-nc-4.0" in licence_text(Licence("cc-by-nc-4.0"), terms, NAME)
