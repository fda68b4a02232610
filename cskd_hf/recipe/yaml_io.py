"""Recipe files: YAML 1.2 numbers and words, no duplicate keys, and the line of every key."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from cskd_hf.errors import UserError
from cskd_hf.files import write_text

_PACKAGE = Path(__file__).resolve().parents[1]
COMMAND_LINE = "command line"
"""The place of overrides."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `1e-4` is a number and `no` a word; YAML 1.1 reads a string and false."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:  # PyYAML raises these for `!!int x` and `!!bool x`
            raise ConstructorError(None, None, f"the value does not fit its tag: {error}", node.start_mark) from None


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in {
    "merge": "<<",
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(?:0|[1-9][0-9_]*)",
    "float": r"[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9][0-9_]*|[0-9][0-9_]*\.?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.nan",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


# What the parser says → what to write instead.
_ADVICE = {
    "found character '\\t'": "indent with spaces, not tabs",
    "that cannot start any token": "quote the value: '…'",
    "mapping values are not allowed": "quote a value that contains a colon and a space: '…'",
    "could not find expected ':'": "write a space after each colon, key: value",
    "expected alphabetic or numeric": "quote a value that starts with * or &: '…'",
    "undefined alias": "quote a value that starts with *: '…'",
    "escape": "quote a path with backslashes in single quotes: '…'",
    "found unexpected end of stream": "close the quote",
    "while parsing a flow": "close the bracket, or quote text that starts with a bracket: '…'",
    "could not determine a constructor": "quote a value that starts with !: '…'",
    "expected <block end>": "indent the keys of a section equally, and quote text: '…'",
    "expected the node content": "quote the value: '…'",
    "expected '<document start>'": "quote the value: '…'",
}


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists on one line, as people write recipes."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def _shipped() -> Path:
    """The folder of recipes: inside an installed package, or next to it in a checkout."""
    installed = _PACKAGE / "_recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def find(path: str | Path) -> Path:
    """The file at `path`, else the shipped recipe of that name."""
    path = Path(path)
    if os.path.isfile(path):  # unlike Path.is_file, false for an overlong name and an unreadable folder
        return path
    if os.path.isdir(path):
        instead = f"write {path / 'recipe.yaml'}" if (path / "recipe.yaml").is_file() else "name a YAML file in it"
        if not any(path.glob("*.y*ml")):
            instead = f"to train on its images, write finetune data.dataset={path}"
        raise UserError(f"{path}: a folder, not a recipe; {instead}")
    shipped = (_shipped() / path.name).with_suffix(".yaml")
    if path.parent.as_posix() in (".", "recipes") and os.path.isfile(shipped):
        return shipped
    raise UserError(f"{path}: no such recipe; {_similar_recipes(str(path))}")


def shipped_recipes() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(file.stem for file in _shipped().glob("*.yaml"))


def _similar_recipes(path: str) -> str:
    """At most three shipped recipes that the path may mean, the most similar first."""
    names, (word,) = shipped_recipes(), re.findall(r"([^/\\\\]*?)(?:\.ya?ml)?$", path.lower())[:1]
    if "=" in path:
        return "write the recipe first, then the overrides"
    close = [name for name in names if len(word) > 3 and word in name]
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.45)
    if not close:
        return "cskd-train --help lists the shipped ones"
    return f"did you mean {', '.join(f'recipes/{name}.yaml' for name in close[:3])}?"


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A YAML mapping, and the place of each key in it: 'section.key' → 'file:line'."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    settings, places = parse(text, lambda line: f"{path}:{line}")
    if settings is None:
        raise UserError(f"{path}: empty; a recipe has the sections data, model, method, optimizer and scheduler")
    if not isinstance(settings, dict):
        kind = "list" if isinstance(settings, list) else "single value"
        raise UserError(f"{path}: read a {kind}; write a mapping of sections (data: …, model: …)")
    return settings, places


def parse(
    text: str, place: Callable[[int], str], advice: Callable[[str], str] | None = None
) -> tuple[Any, dict[str, str]]:
    """The value, and the place of each key in it.

    Args:
        text: YAML.
        place: names a line.
        advice: what to write instead, for a problem that the parser states.
    """
    places: dict[str, str] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, places
        _check_quotes(node, place(1))
        _find_keys(node, (), places, place)
        return loader.construct_document(node), places
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{place(line)}: not YAML: {str(error).splitlines()[0]}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = " ".join(", ".join(part for part in (error.context, error.problem, error.note) if part).split())
        raise UserError(f"{place(line)}: not YAML: {problem}; {(advice or _advice)(problem)}") from None
    except RecursionError:
        raise UserError(f"{place(1)}: nested too deep; a recipe has two levels, section and key") from None


def _advice(problem: str) -> str:
    return next((advice for words, advice in _ADVICE.items() if words in problem), "quote text: '…'")


def _find_keys(node: yaml.Node, above: tuple[str, ...], places: dict[str, str], place: Callable[[int], str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = (*above, str(key.value))
        name, here = ".".join(path), place(key.start_mark.line + 1)
        if name in places:  # PyYAML silently takes the last one
            raise UserError(f"{here}: {name}: duplicate key, first at {places[name]}; delete one")
        places[name] = here
        _check_quotes(value, f"{here}: {name}")
        _find_keys(value, path, places, place)


def _check_quotes(node: yaml.Node, place: str) -> None:
    """Word processors curl quotes, which YAML takes for letters."""
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.value.startswith(tuple("“”„‘’‚«»")):
        straight = node.value.strip("“”„‘’‚«»")
        raise UserError(f"{place}: read {node.value}, in typographic quotes; write straight ones, or none: {straight}")


def dumps(settings: dict[str, Any]) -> str:
    """`settings` as the text of a recipe file."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def write(settings: dict[str, Any], path: Path) -> None:
    """Replace `path` atomically."""
    write_text(path, dumps(settings))
