"""The JSON Schema of recipes: it accepts what is shipped, and refuses what loading refuses."""

from __future__ import annotations

import importlib.util
import json
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import GOOD, SHIPPED, run
from recipe_mistakes import MISTAKES

from cskd_hf.methods import METHODS
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.resolve import resolve


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    result = run(Path.cwd(), "-m", "cskd_hf.recipe", "--schema")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


COMPARISONS = {"minimum": ge, "maximum": le, "exclusiveMinimum": gt, "exclusiveMaximum": lt}


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "") -> list[str]:
    """What JSON Schema 2020-12 has against a value, for the keywords that our schema uses; another one is an error."""
    schema = dict(schema)
    for annotation in ("title", "description", "default", "discriminator", "$defs"):
        schema.pop(annotation, None)
    found = []
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    types = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": is_number,
        "integer": is_number and value == int(value),
    }
    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                found += violations(value, root["$defs"][rule.removeprefix("#/$defs/")], root, at)
            case "type":
                found += [] if types[rule] else [f"{at}: {value!r} is no {rule}"]
            case "enum" | "const":
                found += [] if value in (rule if keyword == "enum" else [rule]) else [f"{at}: {value!r} is not {rule}"]
            case "anyOf" | "oneOf":
                fitting = sum(not violations(value, one, root, at) for one in rule)
                found += [] if fitting == 1 or (fitting and keyword == "anyOf") else [f"{at}: fits {fitting} of {rule}"]
            case "properties":
                for name in value.keys() & rule.keys() if types["object"] else ():
                    found += violations(value[name], rule[name], root, f"{at}.{name}")
            case "additionalProperties":
                assert rule is False
                known = schema.get("properties", {})
                found += [f"{at}: unknown {name}" for name in value if name not in known] if types["object"] else []
            case "required":
                found += [f"{at}: no {name}" for name in rule if name not in value] if types["object"] else []
            case "items":
                for position, item in enumerate(value) if types["array"] else ():
                    found += violations(item, rule, root, f"{at}[{position}]")
            case "prefixItems":
                for position, (item, one) in enumerate(zip(value, rule, strict=False)) if types["array"] else ():
                    found += violations(item, one, root, f"{at}[{position}]")
            case "minItems" | "maxItems":
                fits = not types["array"] or (len(value) >= rule if keyword == "minItems" else len(value) <= rule)
                found += [] if fits else [f"{at}: {keyword} {rule}"]
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                fits = not is_number or COMPARISONS[keyword](value, rule)
                found += [] if fits else [f"{at}: {value} against {keyword} {rule}"]
            case _:
                raise AssertionError(f"{at}: {keyword} is no keyword of JSON Schema, or this test does not know it")
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_recipe_as_written_and_as_resolved(path: Path, schema: dict[str, Any]) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert violations(written, schema, schema) == []
    assert violations(resolve(load_recipe(path)).to_dict(), schema, schema) == []


@pytest.mark.parametrize(
    "mistake", ["unknown key", "unknown section", "wrong type", "quoted number", "missing key", "section that is empty"]
)
def test_the_schema_refuses_what_the_recipe_refuses(mistake: str, schema: dict[str, Any]) -> None:
    assert violations(yaml.safe_load(MISTAKES[mistake][0]), schema, schema)
    assert not violations(yaml.safe_load(GOOD), schema, schema)


def test_the_schema_explains_every_section_and_names_every_method(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert set(schema["properties"]["method"]["discriminator"]["mapping"]) == set(METHODS)
    for name, definition in schema["$defs"].items():
        assert definition["description"], name
        assert definition["additionalProperties"] is False, name


@pytest.mark.skipif(importlib.util.find_spec("jsonschema") is None, reason="needs the jsonschema package")
def test_the_schema_is_valid_json_schema(schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)
    for path in SHIPPED:
        Draft202012Validator(schema).validate(yaml.safe_load(path.read_text(encoding="utf-8")))
