"""Where a run's images, pretrained weights and method come from, and the paper's results for the same experiment."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.hub.licences import Terms
from cskd_hf.methods import CrossEntropy, Method
from cskd_hf.methods.task_loss import TaskLoss
from cskd_hf.paper.blocks import PAPER_NAMES, MeanStd, paper_tables
from cskd_hf.recipe.catalog import CATALOG, CatalogEntry, catalog_name, same_split
from cskd_hf.recipe.pretrained import find_pretrained, read_config
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.summary import ModelSummary, read_recipe, read_summary

# The paper uses the names of the large networks for its 32-pixel ones.
_PAPER_NETWORKS = {
    "preactresnet18_32px": "resnet18",
    "preactresnet10_32px": "resnet10",
    "densenet121_32px": "densenet121",
}


@dataclass(frozen=True)
class DataSource:
    """The images of a run.

    Attributes:
        name: of the catalog, else the Hub id or the folder's name.
        hub_id: None unless the images are known to come from the Hub.
        entry: the catalog's facts, if the set is listed.
    """

    name: str
    hub_id: str | None
    entry: CatalogEntry | None

    def official_split(self, data: DataSection) -> str | None:
        """Who divided the images into training and test; None if the publisher did, or it is unknown."""
        if self.entry is None or same_split(str(data.test_split)) != same_split(self.entry.test_split):
            return None
        return self.entry.official_split if data.train_split == self.entry.train_split else None


def data_source(recipe: Recipe) -> DataSource:
    dataset = recipe.data.dataset
    name = catalog_name(dataset)
    if name is not None:
        return DataSource(name, CATALOG[name].path, CATALOG[name])
    # owner/name may also have been a folder, deleted since: only the Hub's cache tells.
    if dataset.count("/") == 1 and not dataset.startswith(("/", ".", "~")) and not Path(dataset).exists():
        from cskd_hf.data.hub import cached_commit

        if cached_commit(recipe.data) is not None:
            return DataSource(dataset, dataset, None)
    return DataSource(Path(dataset).name or "images", None, None)


@dataclass(frozen=True)
class Paper:
    """A method's paper, from the docstring of its file.

    Attributes:
        summary: the method in one line.
        citation: authors, title, venue and link in one line; None for plain cross-entropy, which no paper proposes.
        title: of the first paper cited, if any.
        arxiv: its arXiv number, if any.
    """

    summary: str
    citation: str | None
    title: str | None
    arxiv: str | None


def paper_of(method: Method) -> Paper:
    docstring = sys.modules[type(method).__module__].__doc__
    assert docstring is not None, "every method's file cites its paper"
    summary, _, rest = docstring.strip().partition("\n\n")
    citation = " ".join(rest.split())
    title, arxiv = re.search(r"\*([^*]+)\*", citation), re.search(r"arxiv\.org/abs/(\d+\.\d+)", citation)
    assert title is not None
    if type(method) is CrossEntropy and not method.smoothing:
        return Paper(" ".join(summary.split()), None, None, None)
    return Paper(" ".join(summary.split()), citation, title[1], arxiv[1] if arxiv else None)


@dataclass(frozen=True)
class PretrainedSource:
    """The weights that training started from.

    Attributes:
        name: repository on the Hub, `local-dir:FOLDER` or file.
        licence: "unknown" unless timm or config.json says.
        hub_id: None unless they are the Hub's.
    """

    name: str
    licence: str
    hub_id: str | None


def pretrained_source(recipe: Recipe, trained: ModelSummary | None = None) -> PretrainedSource | None:
    """The weights that training started from, as the summary recorded them; None for random weights."""
    model = recipe.model
    if not model.from_weights:
        return None
    if trained is not None and trained.finetuned_from is not None:
        name, licence = trained.finetuned_from, trained.finetuned_license or "unknown"
    elif model.checkpoint is not None:
        name, licence = model.checkpoint, "unknown"
    else:
        found = find_pretrained(model)
        name, licence = found.name, found.license
    local = model.checkpoint is not None or model.model_name.startswith("local-dir:")
    return PretrainedSource(name, licence, None if local else name.partition("@")[0])


def terms_of(recipe: Recipe, trained: ModelSummary | None = None) -> list[Terms]:
    """Terms of everything the weights were made from."""
    data, pretrained = data_source(recipe), pretrained_source(recipe, trained)
    licence, text = (data.entry.licence, data.entry.terms) if data.entry else ("unknown", None)
    terms = [Terms(f"the data {data.name}", licence, text)]
    if pretrained is not None:
        licence = pretrained.licence
        text = None if licence == "unknown" else licence
        name = pretrained.name if pretrained.hub_id else Path(pretrained.name).name  # of a teacher's, paths are private
        terms.append(Terms(f"the pretrained weights {name}", licence, text))
    terms += _terms_of_teacher(getattr(recipe.method, "teacher", None))
    return list(dict.fromkeys(terms))


def _terms_of_teacher(teacher: str | None) -> list[Terms]:
    """What a run that taught was made from, else the licence in a teacher's config.json; "unknown" without either."""
    if teacher is None:
        return []
    licence = None
    try:
        if not teacher.startswith(("local-dir:", "hf-hub:")):
            return terms_of(read_recipe(Path(teacher)), read_summary(Path(teacher)).model)
        licence = read_config(teacher).get("pretrained_cfg", {}).get("license")
    except (OSError, ValueError, UserError):  # moved or deleted since, or no network
        pass
    name = teacher if teacher.startswith("hf-hub:") else Path(teacher).name
    return [Terms(f"the teacher {name}", licence or "unknown", licence)]


def published_results(recipe: Recipe) -> dict[str, MeanStd]:
    """Metric → the CS-KD paper's result for this method, network and image set.

    The paper's other settings may differ from the recipe's; none if the images are divided otherwise.
    """
    network = recipe.model.model_name.partition(".")[0]
    data = data_source(recipe)
    if data.official_split(recipe.data) is None:
        return {}
    cell = _paper_method(recipe.method), data.name, _PAPER_NETWORKS.get(network, network)
    blocks = [block for table in paper_tables().values() for block in table]
    return {block.metric: block.paper[cell] for block in blocks if cell in block.paper}


def _paper_method(method: Method) -> str:
    """The paper's row; '' if the method has a term in its task loss that the paper's has not."""
    if isinstance(method, TaskLoss):
        added = {
            key
            for key, field in TaskLoss.model_fields.items()
            if key != "name" and getattr(method, key) != field.default
        }
        if method.name == "cross_entropy" and added == {"smoothing"}:
            return "label_smoothing"
        if added != ({"mixup_alpha"} if method.name in ("mixup", "mixup_cskd") else set()):
            return ""
    return PAPER_NAMES.get(method.name, method.name)
