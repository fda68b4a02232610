"""A setting's type in words, for messages and for the settings reference."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

_WORDS = {float: "number", int: "whole number", str: "text", bool: "true or false", NoneType: "null"}
_SIGNS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def describe(field: FieldInfo) -> str:
    """What may be written for a setting.

    Example:
        >>> from cskd_hf.recipe.sections import TransformSection
        >>> describe(TransformSection.model_fields["ratio"]), describe(TransformSection.model_fields["mean"])
        ('list of 2 numbers > 0', 'list of numbers from 0 to 1, or null')
    """
    return _describe(field.annotation, field.metadata)


def parts_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type, the type alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _describe(annotation: Any, limits: Iterable[Any] = (), plural: bool = False) -> str:
    parts = parts_of(annotation)
    if len(parts) > 1:
        *first, last = (_describe(part) for part in parts)
        return f"{', '.join(first)}, or {last}"
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        named = [note.description for note in notes if isinstance(note, FieldInfo) and note.description]
        if named:
            return named[0]
        limits = [limit for note in notes for limit in getattr(note, "metadata", [note])]
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        *first, last = map(str, arguments)
        return f"{', '.join(first)} or {last}" if first else last
    if get_origin(annotation) is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"list of {count}{_describe(arguments[0], plural=True)}"
    return _WORDS[annotation] + ("s" if plural else "") + _range(limits)


def _range(limits: Iterable[Any]) -> str:
    """Limits as ` > 0`, ` ≥ 1`, or ` from 0 to 0.5`."""
    bounds = [(sign, getattr(limit, name)) for limit in limits for name, sign in [_SIGNS[type(limit)]]]
    if [sign for sign, _ in bounds] == ["≥", "≤"]:
        return f" from {bounds[0][1]:g} to {bounds[1][1]:g}"
    return " and".join(f" {sign} {bound}" for sign, bound in bounds)
