"""pydantic's findings, told as one line each: where, which key, what was read, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cskd_hf.methods import METHODS

_MISSING = object()


def explain(
    error: ValidationError, settings: Mapping[str, Any], recipe: type[BaseModel], source: str, where: Mapping[str, str]
) -> Iterator[str]:
    """One line for each mistake in `settings`.

    Args:
        error: what validating `settings` as `recipe` raised.
        source: the file's name, for mistakes that no single line made.
        where: 'section.key' → the place that set it.
    """
    seen: dict[str, list[str]] = {}
    for finding in error.errors(include_url=False):
        keys = [str(part) for part in finding["loc"]]
        if keys[:1] == ["method"] and len(keys) > 1 and keys[1] in METHODS:
            del keys[1]  # pydantic names the member of the union; the user did not
        elif finding["type"] == "union_tag_invalid":
            keys.append("name")  # the discriminator's own key
        keys = keys[:2]  # deeper parts are positions in a list or members of a union: the line shows the whole value
        name = ".".join(keys)
        place = where.get(name) or where.get(keys[0] if keys else "") or source
        message = _message(finding, keys, _read(settings, keys), recipe, settings)
        seen.setdefault(f"{place}: {name}", []).append(message)
    for start, messages in seen.items():
        first, *others = dict.fromkeys(messages)
        read = first.partition("allowed: ")[0]  # members of a union each report the same value
        yield f"{start}: {', or '.join([first, *(other.removeprefix(f'{read}allowed: ') for other in others)])}"


def _read(settings: Mapping[str, Any], keys: list[str]) -> Any:
    value: Any = settings
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value) if not isinstance(value, Mapping) else "a mapping"


def _message(
    finding: Mapping[str, Any], keys: list[str], value: Any, recipe: type[BaseModel], settings: Mapping[str, Any]
) -> str:
    kind = finding["type"]
    if kind == "extra_forbidden":
        return _unknown_key(keys, value, recipe, settings)
    if kind == "missing" and value is _MISSING:
        return "missing; it has no default"
    if kind in ("missing", "too_long"):
        annotation = _fields(keys[0], recipe, settings)[keys[1]].annotation
        length = next(len(get_args(part)) for part in (annotation, *get_args(annotation)) if get_origin(part) is tuple)
        return f"read {_show(value)}; allowed: a list of {length}"
    if kind == "union_tag_not_found":
        return f"no name; allowed names: {', '.join(METHODS)}"
    if kind == "union_tag_invalid":
        return f"read {_show(value)}; allowed: {', '.join(METHODS)}{_did_you_mean(str(value), list(METHODS))}"
    if kind == "literal_error":
        allowed = finding["ctx"]["expected"].replace("'", "")
        names = allowed.replace(" or ", ", ").split(", ")
        return f"read {_show(value)}; allowed: {allowed}{_did_you_mean(str(value), names)}"
    expected = finding["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "model_type":
        expected = "a section with keys of its own"
    elif kind == "dict_type":  # of the union of methods
        expected = f"a section with a name, which is one of {', '.join(METHODS)}"
    elif kind == "tuple_type":
        expected = "a list"
    if value is _MISSING:  # a default that another key rules out
        return f"missing; write {expected}"
    return f"read {_show(value)}; allowed: {expected}"


def _unknown_key(keys: list[str], value: Any, recipe: type[BaseModel], settings: Mapping[str, Any]) -> str:
    if len(keys) == 1:
        allowed = list(recipe.model_fields)
        return f"no such section; allowed: {', '.join(allowed)}{_did_you_mean(keys[0], allowed)}"
    section, key = keys
    allowed = list(_fields(section, recipe, settings))
    mixing = [name for name, method in METHODS.items() if "mixup_alpha" in method.model_fields]
    if key.startswith(("mixup", "cutmix")) and _read(settings, ["method", "name"]) not in mixing:
        return (
            f"read {_show(value)}, but mixing images is a method of its own, and this one learns from one label an "
            f"image; write 'method={{name: {mixing[0]}, mixup_alpha: 0.4}}', or {' or '.join(mixing[1:])}"
        )
    if section == "method":
        name = settings["method"]["name"]
        owners = [other for other, method in METHODS.items() if key in method.model_fields]
        if owners:
            return (
                f"read {_show(value)}, but {name} has no such field, {', '.join(owners)} has; "
                f"allowed: {', '.join(allowed)} (to leave another method's fields behind: 'method={{name: {name}}}')"
            )
    return f"unknown key, read {_show(value)}; allowed: {', '.join(allowed)}{_did_you_mean(key, allowed)}"


def _fields(section: str, recipe: type[BaseModel], settings: Mapping[str, Any]) -> dict[str, FieldInfo]:
    """The keys a section has, by name."""
    if section == "method":
        return METHODS[settings["method"]["name"]].model_fields
    kind: Any = recipe.model_fields[section].annotation
    return kind.model_fields


def _did_you_mean(word: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""
