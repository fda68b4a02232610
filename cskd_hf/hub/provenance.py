"""Where a run's data, pretrained weights and method come from, and what the paper reports of the same experiment."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cskd_hf.hub.licences import Terms
from cskd_hf.methods import Method
from cskd_hf.paper.blocks import PAPER_NAMES, MeanStd, paper_tables
from cskd_hf.recipe.catalog import CATALOG, CatalogEntry, entry_of
from cskd_hf.recipe.recipe import Recipe

# The paper calls its 32-pixel networks by the names of the large ones.
_PAPER_NETWORKS = {
    "preact_resnet18_32px": "resnet18",
    "preact_resnet10_32px": "resnet10",
    "densenet121_32px": "densenet121",
}


@dataclass(frozen=True)
class DataSource:
    """The images of a run.

    Attributes:
        name: the catalog's, else the Hub id or the folder's own name.
        hub_id: where the Hub has the same images; None where they came from somebody's folder, or may have.
        entry: the catalog's facts, where it knows the set.
    """

    name: str
    hub_id: str | None
    entry: CatalogEntry | None


def data_source(recipe: Recipe) -> DataSource:
    read = recipe.data.dataset
    entry = entry_of(read)
    if entry is not None:
        return DataSource(next(name for name in CATALOG if CATALOG[name] is entry), entry.path, entry)
    # owner/name may also have been a folder, gone since: only the Hub's cache tells.
    if read.count("/") == 1 and not read.startswith(("/", ".", "~")) and not Path(read).exists():
        from cskd_hf.data.hub import cached_commit

        if cached_commit(recipe.data) is not None:
            return DataSource(read, read, None)
    return DataSource(Path(read).name or "images", None, None)


@dataclass(frozen=True)
class Paper:
    """The paper of a method, as its file's docstring gives it.

    Attributes:
        summary: one line: what the method is.
        citation: authors, title, venue, link, on one line.
        title: of the first paper named.
        arxiv: its number, where it is on arXiv.
    """

    summary: str
    citation: str
    title: str
    arxiv: str | None


def paper_of(method: Method) -> Paper:
    docstring = sys.modules[type(method).__module__].__doc__
    assert docstring is not None, "every method's file names its paper"
    summary, _, rest = docstring.strip().partition("\n\n")
    citation = " ".join(rest.split())
    title, arxiv = re.search(r"\*([^*]+)\*", citation), re.search(r"arxiv\.org/abs/(\d+\.\d+)", citation)
    assert title is not None
    return Paper(" ".join(summary.split()), citation, title[1], arxiv[1] if arxiv else None)


def pretrained_source(recipe: Recipe) -> tuple[str, str | None] | None:
    """Hub id, or timm's name, and licence of the weights that training started from; None where it started anew."""
    if not recipe.model.pretrained:
        return None
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(recipe.model.model_name)
    if known is None:
        return recipe.model.model_name, None
    name = recipe.model.model_name.partition(".")[0]
    return known.hf_hub_id or f"timm/{name}.{known.tag}", known.license


def terms_of(recipe: Recipe) -> list[Terms]:
    """Of everything that the weights were made from."""
    data = data_source(recipe)
    terms = [Terms(f"the data {data.name}", data.entry.terms if data.entry else None)]
    pretrained = pretrained_source(recipe)
    if pretrained is not None:
        terms.append(Terms(f"the pretrained weights {pretrained[0]}", pretrained[1]))
    return terms


def paper_figures(recipe: Recipe) -> dict[str, MeanStd]:
    """Metric → what the CS-KD paper reports of this method, network and image set; its other settings may differ."""
    method, network = recipe.method.name, recipe.model.model_name.partition(".")[0]
    if method == "cross_entropy" and recipe.to_dict()["method"]["smoothing"]:
        method = "label_smoothing"
    cell = PAPER_NAMES.get(method, method), data_source(recipe).name, _PAPER_NETWORKS.get(network, network)
    blocks = [block for table in paper_tables().values() for block in table]
    return {block.metric: block.paper[cell] for block in blocks if cell in block.paper}
