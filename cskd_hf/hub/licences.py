"""The licence of published weights, given the terms of the data and weights they were made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from cskd_hf.errors import UserError

DEFAULT = "apache-2.0"
RESTRICTED = "other"  # the Hub's identifier for terms that are given in LICENSE
RESTRICTED_NAME = "non-commercial-research"
# Identifiers of licences without commercial use: cc-by-nc-4.0, fair-noncommercial-research-license, other, …
_NON_COMMERCIAL = re.compile(r"(^|-)(nc|noncommercial|research)(-|$)|^other$")


@dataclass(frozen=True)
class Terms:
    """Terms of something the weights were made from.

    Attributes:
        source: 'the data cub200', 'the pretrained weights …'.
        licence: the Hub's identifier.
        text: None if unknown.
    """

    source: str
    licence: str
    text: str | None


def allows_commercial_use(licence: str) -> bool:
    return _NON_COMMERCIAL.search(licence) is None


def choose_licence(requested: str | None, terms: Sequence[Terms]) -> str:
    """The Hub's identifier of the weights' licence.

    The default is Apache-2.0, or `other` with the terms in LICENSE if any of `terms` forbids commercial use.

    Raises:
        UserError: `requested` is not an identifier, or allows commercial use that `terms` forbid.
    """
    forbidding = [term for term in terms if not allows_commercial_use(term.licence)]
    if requested is None:
        return RESTRICTED if forbidding else DEFAULT
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", requested):
        raise UserError(
            f"--license: read {requested!r}; write an identifier of the Hub's list, such as {DEFAULT} or cc-by-nc-4.0"
        )
    if forbidding and allows_commercial_use(requested):
        raise UserError(
            f"--license: {requested} allows commercial use, which the terms of {forbidding[0].source} forbid "
            f"({forbidding[0].text}); write cc-by-nc-4.0 or another non-commercial licence, or omit --license"
        )
    return requested


def licence_text(licence: str, terms: Sequence[Terms], title: str) -> str:
    """The file LICENSE: the licence of the weights, then the terms of their sources."""
    if licence == RESTRICTED:
        own = (
            "The weights may be used for non-commercial research and education only, within the terms of their sources."
        )
    else:
        own = f"The weights are licensed under {licence}: https://spdx.org/licenses/ has the text."
    sources = "\n".join(f"  - {term.source}: {term.text or 'terms unknown'}" for term in terms)
    text = f"{title}\n\n{own}\n\nSources, each under its own terms:\n{sources}\n"
    return f"{text}\n{_apache_text()}" if licence == DEFAULT else text


def _apache_text() -> str:
    """This package's own LICENSE; its address if the package is not installed."""
    try:
        text = metadata.distribution("cskd-hf").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        text = None
    return text or "https://www.apache.org/licenses/LICENSE-2.0\n"
