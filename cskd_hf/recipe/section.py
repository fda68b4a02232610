"""What the sections of a recipe are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=0.5)]
TestShare = Annotated[float, Field(gt=0, le=0.5)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
# `10%` and `0,1` are shares written wrong.
SplitName = Annotated[str, Field(description="a split's name", pattern=r"[^\s\d.,%/]|^\d+$")]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


Kind = TypeVar("Kind", bound=Section)


def fill(section: Kind, defaults: Mapping[str, Any]) -> Kind:
    """A copy of `section` with `defaults` for its null keys."""
    return section.model_copy(update={key: value for key, value in defaults.items() if getattr(section, key) is None})
