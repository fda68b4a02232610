"""`section.key=value` from the command line: values are YAML, the last one wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.recipe.suggest import paste, quote
from cskd_hf.recipe.yaml_io import COMMAND_LINE, parse

_CLOSING = {"[": "]", "{": "}"}
_QUOTES = "'\"“”„‘’‚«»"


def apply_overrides(settings: dict[str, Any], overrides: Sequence[str], places: dict[str, str]) -> None:
    """Set each `section.key=value` or `section={…}` in `settings`, and its place in `places`.

    Raises:
        UserError: something that is not an override, or a value that is not YAML; with what to write instead.
    """
    for number, override in enumerate(overrides):
        name, equals, text = (part.strip() for part in override.partition("="))
        section, *key = name.split(".")
        if not equals or not all([section, *key]) or len(key) > 1 or name.startswith("-"):
            raise UserError(_not_an_override(override, overrides[number + 1 :]))
        if text[:1] in _CLOSING and _CLOSING[text[0]] not in text:
            raise UserError(_cut(overrides[number:], _CLOSING[text[0]]))
        value = parse_value(name, text)
        earlier = [set_ for set_ in places if set_.startswith(f"{name}.") and places[set_] == COMMAND_LINE]
        if earlier:
            raise UserError(f"{override}: replaces the whole section and drops {', '.join(earlier)}; write it first")
        _set(settings, section, key, value, override)
        for replaced in [place for place in places if place.startswith(f"{name}.")]:
            del places[replaced]
        places.setdefault(section, COMMAND_LINE)
        places[name] = COMMAND_LINE


def parse_value(name: str, text: str) -> Any:
    """The value of an override.

    Raises:
        UserError: not YAML, or YAML that reads less than what is written: `#` begins a comment.
    """
    quoted = f"quote it: {paste(COMMAND_LINE, name, text.strip(_QUOTES))}"
    place = f"{COMMAND_LINE}: {name}"
    value, _ = parse(text, lambda _: place, advice=lambda _: quoted)
    if re.search(r"(^|\s)#", text) and text[:1] not in ("'", '"'):
        raise UserError(f"{place}: read {text!r}, where # begins a comment; {quoted}")
    return value


def _set(settings: dict[str, Any], section: str, key: Sequence[str], value: Any, override: str) -> None:
    if not key:
        settings[section] = value
        return
    keys = settings.setdefault(section, {})
    if not isinstance(keys, dict):
        raise UserError(f"{override}: {section} is {'null' if keys is None else repr(keys)}, which has no keys")
    keys[key[0]] = value


def _not_an_override(override: str, following: Sequence[str]) -> str:
    """The override that this was probably meant to be."""
    start = f"{override}: not an override; write "
    name, rest = override.lstrip("-"), [word for word in following if word != "="]
    if override.endswith((".yaml", ".yml")):
        return f"{override}: a second recipe; a command reads one"
    if match := re.fullmatch(r"([A-Za-z_]+\.[A-Za-z_]\w*)\s*:\s*(\S.*)", " ".join([name, *rest[:1]])):
        return f"{start}{quote(f'{match[1]}={match[2]}')}"
    if re.fullmatch(r"[A-Za-z_]+(\.[A-Za-z_]\w*)?=.*", name):
        return f"{start}{quote(name)}, without dashes"
    if re.fullmatch(r"[A-Za-z_]+\.[A-Za-z_]\w*", name):
        value = rest[0].removeprefix("=") if rest else "VALUE"
        return f"{start}{quote(f'{name}={value}')}, without spaces"
    return f"{start}section.key=value, for example optimizer.lr=0.05"


def _cut(words: Sequence[str], closing: str) -> str:
    """A list or mapping without its end: the shell cut it at a space, or the end was forgotten."""
    end = next((number for number, word in enumerate(words) if closing in word), None)
    whole = words[0] + closing if end is None else " ".join(words[: end + 1])
    why = f"no {closing}" if end is None else "cut at a space by the shell"
    return f"{words[0]}: {why}; write {quote(whole)}"
