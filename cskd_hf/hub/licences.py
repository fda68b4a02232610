"""Under which licence weights may be published, given the terms of what they were made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import cskd_hf
from cskd_hf.errors import UserError

DEFAULT = "apache-2.0"
RESTRICTED = "other"
RESTRICTED_NAME = "non-commercial-research"
# The Hub's own words for licences that keep to non-commercial use, or that state their terms in a file.
_KEEPS_TO_RESEARCH = re.compile(r"(^|-)(nc|noncommercial|research)(-|$)|^other$")


@dataclass(frozen=True)
class Terms:
    """What the weights were made from.

    Attributes:
        source: 'the data cub200', 'the pretrained weights …'.
        text: its licence or terms; None where they are not known.
    """

    source: str
    text: str | None

    @property
    def research_only(self) -> bool:
        return self.text is not None and bool(re.search(r"non-?commercial|research only|-nc\b", self.text))


def choose_licence(asked: str | None, terms: Sequence[Terms]) -> str:
    """The Hub's identifier of the weights' licence.

    Without a wish it is Apache-2.0, or `other` (named, with the terms in the file LICENSE) where any of `terms` keeps
    to non-commercial use.

    Raises:
        UserError: the wish is no identifier, or it allows the commercial use that the terms forbid.
    """
    forbidding = [term for term in terms if term.research_only]
    if asked is None:
        return RESTRICTED if forbidding else DEFAULT
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", asked):
        raise UserError(
            f"--license: read {asked!r}; write an identifier of the Hub's list, such as {DEFAULT} or cc-by-nc-4.0"
        )
    if forbidding and not _KEEPS_TO_RESEARCH.search(asked):
        term = forbidding[0]
        raise UserError(
            f"--license: {asked} allows commercial use, which the terms of {term.source} forbid ({term.text}); "
            "write cc-by-nc-4.0 or another non-commercial one, or leave it out"
        )
    return asked


def licence_metadata(licence: str) -> dict[str, Any]:
    """Its keys in the card's metadata."""
    if licence == RESTRICTED:
        return {"license": RESTRICTED, "license_name": RESTRICTED_NAME, "license_link": "LICENSE"}
    return {"license": licence}


def licence_text(licence: str, terms: Sequence[Terms], title: str) -> str:
    """The file LICENSE: what the weights may be used for, then the terms of what they were made from."""
    made_from = [f"{term.source}: {term.text or 'terms not known to the software that wrote this'}" for term in terms]
    below = "\n".join(["", "Made from, each under terms of its own:", *(f"  - {line}" for line in made_from), ""])
    if licence == RESTRICTED:
        return (
            f"{title}\n\nThe weights may be used for non-commercial research and education only, within the terms of "
            f"what they were made from.\n{below}"
        )
    own = f"{title}\n\nThe weights are under the licence {licence}"
    if licence == DEFAULT:
        return f"{own}, whose text follows.\n{below}\n{_apache_text()}"
    return f"{own}; its text: https://spdx.org/licenses/ (look for {licence}).\n{below}"


def _apache_text() -> str:
    """This package's own LICENSE: beside it in a checkout, among its metadata where it is installed."""
    root = Path(cskd_hf.__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():  # other packages leave files named LICENSE where this one is installed
        return (root / "LICENSE").read_text(encoding="utf-8")
    for file in metadata.files("cskd-hf") or []:
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    return "https://www.apache.org/licenses/LICENSE-2.0\n"
