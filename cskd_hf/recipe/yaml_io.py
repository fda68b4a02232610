"""YAML as recipes use it: exact about types, duplicate keys and where a value was written."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml

from cskd_hf.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `1e-4` is a number and `no` a word, which YAML 1.1 reads as a string and as false."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False|TRUE|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9][0-9_]*|[0-9][0-9_]*\.?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.nan$"
    ),
    list("-+.0123456789"),
)


def _shipped() -> Path:
    """The recipes' folder: inside an installed package, or beside it in a checkout."""
    installed = _PACKAGE / "_recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def find(path: str | Path) -> Path:
    """The file at `path`, else the shipped recipe of that name."""
    path = Path(path)
    if os.path.isfile(path):  # where Path.is_file raises, for a name too long or a closed folder, this is false
        return path
    if os.path.isdir(path):
        raise UserError(f"{path}: a folder, not a recipe; name a YAML file in it")
    shipped = (_shipped() / path.name).with_suffix(".yaml")
    if path.parent.as_posix() in (".", "recipes") and os.path.isfile(shipped):
        return shipped
    names = sorted(file.stem for file in _shipped().glob("*.yaml"))
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean recipes/{close[0]}.yaml?" if close else f"shipped recipes: {', '.join(names)}"
    raise UserError(f"{path}: no such recipe; {hint}")


def read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """A YAML mapping, and the line each of its keys was written on."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise UserError(f"{path}: empty; a recipe has the sections data, model, method, optimizer and scheduler")
        if not isinstance(node, yaml.MappingNode):
            kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
            raise UserError(f"{path}: a {kind}, where a mapping of sections is needed (data: …, model: …)")
        lines: dict[tuple[str, ...], int] = {}
        _walk(node, (), lines, path)
        return _construct(loader, node), lines
    except yaml.YAMLError as error:
        line, problem = _problem(error)
        place = f"{path}:{line}" if line else path
        raise UserError(f"{place}: not YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deep; a recipe has two levels, section and key") from None


def _construct(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, KeyError) as error:  # PyYAML lets these through, from `!!int x`
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from None


def _problem(error: yaml.YAMLError) -> tuple[int | None, str]:
    """PyYAML's complaint on one line, and the line of the file it is about."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        parts = (error.context, error.problem, error.note)
        return error.problem_mark.line + 1, " ".join(", ".join(part for part in parts if part).split())
    return None, " ".join(str(error).split())


def _walk(node: yaml.MappingNode, above: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    for key, value in node.value:
        name = (*above, str(key.value))
        line = key.start_mark.line + 1
        if name in lines:  # PyYAML itself lets the last one win without a word
            raise UserError(f"{path}:{line}: {'.'.join(name)}: written twice, first on line {lines[name]}; keep one")
        lines[name] = line
        if isinstance(value, yaml.MappingNode):
            _walk(value, name, lines, path)


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set `section.key=value` or `section={…}` in place."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys) or len(keys) > 2:
        raise UserError(f"{override}: not an override; write section.key=value, for example optimizer.lr=0.05")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            _walk(node, tuple(keys), {}, Path("command line"))
        value = None if node is None else _construct(loader, node)
    except yaml.YAMLError as error:
        raise UserError(f"{override}: the value is not YAML: {_problem(error)[1]}") from None
    if len(keys) == 1:
        settings[keys[0]] = value
        return
    section = settings.setdefault(keys[0], {})
    if not isinstance(section, dict):
        held = "null" if section is None else repr(section)
        raise UserError(f"{override}: {keys[0]} holds {held}, which has no keys")
    section[keys[1]] = value


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def dumps(settings: dict[str, Any]) -> str:
    """Sections as blocks, lists on one line: the way recipes are written by hand."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def write(settings: dict[str, Any], path: Path) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(dumps(settings), encoding="utf-8")
    os.replace(temporary, path)
