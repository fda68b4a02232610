"""The JSON Schema accepts and rejects what `load_recipe` accepts and rejects."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import yaml
from recipe_files import GOOD, SHIPPED, changed

from cskd_hf.methods import METHODS
from cskd_hf.recipe.__main__ import main
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.resolve import resolve

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def schema():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["--schema"]) == 0
    schema = json.loads(printed.getvalue())
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def test_every_shipped_recipe_is_valid_as_written_and_as_resolved(schema):
    validator = jsonschema.Draft202012Validator(schema)
    for path in SHIPPED:
        validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        validator.validate(resolve(load_recipe(path)).to_dict())


@pytest.mark.parametrize(
    "content",
    [
        changed("lr: 0.1", "lr: 0.1\n  momentun: 0.8"),
        GOOD + "optimiser:\n  lr: 1\n",
        changed("num_epochs: 2", "num_epochs: two"),
        changed("0.1", '"0.1"'),
        changed("num_epochs: 2", "sched: cosine"),
        changed("temperature: 4.0", "last_alpha: 0.1"),
        GOOD + "run:\n",
    ],
)
def test_mistakes_are_invalid(content, schema):
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load(GOOD))
    assert not validator.is_valid(yaml.safe_load(content))


def test_every_section_and_method_is_described(schema):
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert set(schema["properties"]["method"]["discriminator"]["mapping"]) == set(METHODS)
    for name, definition in schema["$defs"].items():
        assert definition["description"], name
        assert definition["additionalProperties"] is False, name
