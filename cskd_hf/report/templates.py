"""The Jinja templates beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render_template(name: str, **values: Any) -> str:
    """The text of a template; HTML and SVG escape every value, and a name that is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=name.endswith((".html.jinja", ".svg.jinja")),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(name).render(values)
