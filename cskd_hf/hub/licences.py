"""The licence of published weights, given the terms of the data and weights they were made from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from cskd_hf.errors import UserError

DEFAULT = "apache-2.0"
OTHER = "other"  # the Hub's identifier for terms that are given in LICENSE
RESTRICTED_NAME = "non-commercial-research"
_LIST = "https://huggingface.co/docs/hub/repositories-licenses"
# Of that page, and what its API accepted in 2026; not "unknown".
_LISTED = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unlicense wtfpl
zlib
"""
HUB_LICENCES = frozenset(_LISTED.split())
# Under these, and those of Creative Commons that ask for attribution alone, weights may be Apache-2.0.
_PERMISSIVE = re.compile(
    r"afl-3\.0|apache-2\.0|bsd(-[23]-clause(-clear)?)?|bsl-1\.0|cc-by-\d\.\d|cc0-1\.0|cdla-permissive-\d\.0|ecl-2\.0|isc|"
    r"mit|ms-pl|ncsa|odc-by|pddl|postgresql|unlicense|wtfpl|zlib"
)
# Identifiers of licences without commercial use: cc-by-nc-4.0, fair-noncommercial-research-license, other, …
_NON_COMMERCIAL = re.compile(r"(^|-)(nc|noncommercial|research)(-|$)|^(other|apple-amlr|deepfloyd-if-license)$")


@dataclass(frozen=True)
class Licence:
    """The licence of published weights.

    Attributes:
        identifier: of the Hub's list.
        name: of a licence that is not in the list, for the identifier `other`.
        link: its text: a URL, or LICENSE for the file.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return self.name or self.identifier


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


def choose_licence(
    requested: str | None,
    terms: Sequence[Terms],
    name: str | None = None,
    link: str | None = None,
    option: str = "--license",
    required: bool = True,
) -> Licence:
    """The weights' licence.

    The default is Apache-2.0 if all `terms` are permissive, or `other` with the terms in LICENSE if any of them forbids
    commercial use.

    Args:
        requested: an identifier of the Hub's list.
        terms: of everything the weights were made from.
        name: of a licence that is not in the list, with `other`.
        link: URL of its text.
        option: what the user writes to request a licence, for messages.
        required: otherwise `unknown` where nothing is requested and some of `terms` are unknown or not permissive.

    Raises:
        UserError: nothing is requested, some of `terms` are unknown or not permissive, and a licence is required;
            `requested` is not in the list, lacks its name and link, or allows commercial use that `terms` forbid.
    """
    forbidding = [term for term in terms if not allows_commercial_use(term.licence)]
    if requested is None and (name or link):
        raise UserError(f"--license-name and --license-link: only with {option} {OTHER}")
    if requested is None and forbidding:
        return Licence(OTHER, RESTRICTED_NAME, "LICENSE")
    if requested is None:
        return _default_licence(terms, option, required)
    if requested not in HUB_LICENCES:
        close = difflib.get_close_matches(requested.lower().replace(" ", "-"), sorted(HUB_LICENCES), n=1)
        hint = f" (did you mean {close[0]}?)" if close else f", such as {DEFAULT} or cc-by-nc-4.0"
        raise UserError(
            f"{option}: read {requested!r}; write an identifier of the Hub's list{hint}; for a licence that is not in "
            f"it, publish with --license {OTHER} --license-name NAME --license-link URL"
        )
    if forbidding and allows_commercial_use(requested):
        raise UserError(
            f"{option}: {requested} allows commercial use, which the terms of {forbidding[0].source} forbid "
            f"({forbidding[0].text}); write cc-by-nc-4.0 or another non-commercial licence, or omit {option}"
        )
    if requested != OTHER:
        if name or link:
            raise UserError(f"--license-name and --license-link: only with --license {OTHER}, read {requested}")
        return Licence(requested)
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name or "") or not re.match(r"https?://\S+$", link or ""):
        raise UserError(
            f"{option}: {OTHER}: read the name {name!r} and the link {link!r}; publish with --license-name NAME, of "
            "lower-case letters, digits, - and ., and --license-link URL, where its text is"
        )
    return Licence(OTHER, name, link)


def _default_licence(terms: Sequence[Terms], option: str, required: bool) -> Licence:
    """The licence beside terms that allow commercial use."""
    first = next((term for term in terms if not _PERMISSIVE.fullmatch(term.licence)), None)
    if first is None:
        return Licence(DEFAULT)
    if not required:
        return Licence("unknown")
    said = f" ({first.text})" if first.text and first.text != first.licence else ""
    terms_are = "are unknown" if first.licence == "unknown" else f"are those of {first.licence}"
    raise UserError(
        f"{option}: needed, because the terms of {first.source} {terms_are}{said}: write the licence that they allow "
        f"for the weights, such as {DEFAULT} if they are your own"
    )


def licence_text(licence: Licence, terms: Sequence[Terms], title: str) -> str:
    """The file LICENSE: the licence of the weights, then the terms of their sources."""
    if licence.name == RESTRICTED_NAME:
        own = (
            "The weights may be used for non-commercial research and education only, within the terms of their sources."
        )
    elif licence.identifier == "unknown":
        own = "No licence was chosen for the weights."
    elif licence.name is not None:
        own = f"The weights are licensed under {licence.name}: {licence.link}"
    else:
        own = f"The weights are licensed under {licence.identifier}, as {_LIST} names it."
    sources = "\n".join(f"  - {term.source}: {term.text or 'terms unknown'}" for term in terms)
    text = f"{title}\n\n{own}\n\nSources, each under its own terms:\n{sources}\n"
    return f"{text}\n{_apache_text()}" if licence.identifier == DEFAULT else text


def _apache_text() -> str:
    """This package's own LICENSE; its address if the package is not installed."""
    try:
        text = metadata.distribution("cskd-hf").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        text = None
    return text or "https://www.apache.org/licenses/LICENSE-2.0\n"
