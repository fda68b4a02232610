"""pydantic's validation errors as one line each: place, key, value read, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

REMOVED = {
    "data.worker_type": "removed, loader threads were never faster than processes; delete it",
    "data.decode": "removed, CPU workers decode all images (GPU decoding was never run); delete it",
}
"""Keys of earlier versions."""

_MISSING = object()


class Checked(NamedTuple):
    """Settings, and the classes that they were validated as: one per section, one per method for `method`."""

    settings: Mapping[str, Any]
    sections: Mapping[str, Any]
    methods: Mapping[str, type[BaseModel]]

    def value(self, keys: Sequence[str]) -> Any:
        """The value of a section or key, or _MISSING."""
        value: Any = self.settings
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return _MISSING
            value = value[key]
        return value

    def types(self, section: str) -> dict[str, Any]:
        """Key → type of a known section, or of a known method."""
        kind = self.methods[self.value(["method", "name"])] if section == "method" else self.sections[section]
        return {key: field.annotation for key, field in kind.model_fields.items()}


def explain(error: ValidationError, checked: Checked, source: str, places: Mapping[str, str]) -> str:
    """One line for each mistake.

    Args:
        error: what pydantic raised.
        checked: the settings, and what they were validated as.
        source: the place of mistakes that no single line made.
        places: 'section.key' → the line or command line that set it.
    """
    mistakes: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        keys = [str(part) for part in details["loc"]]
        if keys[0] == "method" and len(keys) > 1 and keys[1] in checked.methods:
            del keys[1]  # pydantic's name for the member of the union, absent from the file
        elif details["type"] == "union_tag_invalid":
            keys.append("name")  # the discriminator
        keys = keys[:2]  # deeper parts are list positions or union members; the line shows the whole value
        name = ".".join(keys)
        place = places.get(name) or places.get(keys[0]) or source
        mistakes.setdefault(f"{place}: {name}", []).append(_message(details, keys, checked))
    lines = []
    for start, messages in mistakes.items():
        first, *others = dict.fromkeys(messages)
        read = first.partition("allowed: ")[0]  # the members of a union each report the same value
        lines.append(f"{start}: {', or '.join([first, *(other.removeprefix(f'{read}allowed: ') for other in others)])}")
    return "\n".join(lines)


def _message(details: Mapping[str, Any], keys: Sequence[str], checked: Checked) -> str:
    kind, value = details["type"], checked.value(keys)
    if kind == "extra_forbidden":
        return _unknown_key(keys, value, checked)
    if kind == "missing" and value is _MISSING:
        return "missing; it has no default"
    if kind == "union_tag_not_found":
        return f"no name; allowed names: {', '.join(checked.methods)}"
    if kind in ("missing", "too_long"):  # of a list
        annotation = checked.types(keys[0])[keys[1]]
        length = next(len(get_args(part)) for part in (annotation, *get_args(annotation)) if get_origin(part) is tuple)
        allowed = f"a list of {length}"
    elif kind in ("literal_error", "union_tag_invalid"):
        allowed = details["ctx"]["expected" if kind == "literal_error" else "expected_tags"].replace("'", "")
        allowed += _did_you_mean(str(value), allowed.replace(" or ", ", ").split(", "))
    elif kind == "model_type":
        allowed = "a section with keys"
    elif kind == "dict_type":  # of the union of methods
        allowed = f"a section with a name, one of {', '.join(checked.methods)}"
    elif kind == "tuple_type":
        allowed = "a list"
    else:
        allowed = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if value is _MISSING:  # a default that another key rules out
        return f"missing; write {allowed}"
    return f"read {_show(value)}; allowed: {allowed}"


def _unknown_key(keys: Sequence[str], value: Any, checked: Checked) -> str:
    if len(keys) == 1:
        return f"no such section; allowed: {', '.join(checked.sections)}{_did_you_mean(keys[0], checked.sections)}"
    section, key = keys
    if f"{section}.{key}" in REMOVED:
        return REMOVED[f"{section}.{key}"]
    method, methods, allowed = checked.value(["method", "name"]), checked.methods, checked.types(section)
    if section != "method" and key.startswith(("mixup", "cutmix", "smoothing", "label_smoothing")):
        owners = [name for name in methods if "mixup_alpha" in methods[name].model_fields]
        return (
            f"read {_show(value)}, but mixing and label smoothing belong to the method; write method.mixup_alpha, "
            f"method.cutmix_alpha or method.smoothing, of {', '.join(owners)}"
        )
    owners = [name for name in methods if key in methods[name].model_fields]
    if section == "method" and owners:
        verb = "has" if len(owners) == 1 else "have"
        return (
            f"read {_show(value)}, but {method} has no such field, {', '.join(owners)} {verb}; "
            f"allowed: {', '.join(allowed)} (to drop another method's fields: 'method={{name: {method}}}')"
        )
    return f"unknown key, read {_show(value)}; allowed: {', '.join(allowed)}{_did_you_mean(key, allowed)}"


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "a mapping" if isinstance(value, Mapping) else repr(value)


def _did_you_mean(word: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {close[0]}?" if close else ""
