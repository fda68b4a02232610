"""A finished run → the folder that is published.

config.json model.safetensors raw/      as timm and transformers load them; raw/ only if the temperature is folded
class_map.txt                           the classes for timm's --class-map
README.md .eval_results/*.yaml          the card, and the result in the Hub's leaderboard format
recipe.yaml environment.json metrics.json figures/ LICENSE
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

from cskd_hf.files import write_json, write_tensors
from cskd_hf.hub.card import release_card
from cskd_hf.hub.card_metadata import slug, write_eval_results
from cskd_hf.hub.licences import licence_text
from cskd_hf.hub.paths import PathScrubber
from cskd_hf.hub.provenance import data_source, paper_of, terms_of
from cskd_hf.hub.source import Release
from cskd_hf.models.export import write_class_map
from cskd_hf.recipe import yaml_io
from cskd_hf.report.pairs import NAME as PAIRS


def build_release(release: Release, folder: Path, model: Any) -> None:
    """Write a release into the empty `folder`, all but model.onnx.

    Args:
        model: the timm model to publish, folded if the release is.
    """
    source = release.source
    recipe, run = source.recipe, source.folder
    write_tensors(folder / "model.safetensors", model.state_dict(), {"format": "pt"})
    write_json(folder / "config.json", _config(release, folded=bool(release.folded)))
    write_class_map(folder, source.config["label_names"])
    if release.folded:
        (folder / "raw").mkdir()
        shutil.copyfile(run / "model" / "model.safetensors", folder / "raw" / "model.safetensors")
        write_json(folder / "raw" / "config.json", _config(release, folded=False))
    yaml_io.write(PathScrubber(recipe).recipe(recipe), folder / "recipe.yaml")
    write_json(folder / "environment.json", {"segments": source.environments})
    results = {"holdout": source.holdout, "folded": list(release.folded), "seeds": release.seeds}
    write_json(folder / "metrics.json", source.summary.model_dump(mode="json") | results)
    (folder / "figures").mkdir()
    for figure in sorted((run / "figures").glob("*")):
        if figure.name != PAIRS:  # training images, which may not be ours to publish
            shutil.copyfile(figure, folder / "figures" / figure.name)
    licence = licence_text(release.licence, terms_of(recipe, source.summary.model), release.repo_id)
    (folder / "LICENSE").write_text(licence, encoding="utf-8")
    (folder / "README.md").write_text(release_card(release), encoding="utf-8")
    write_eval_results(release, folder)


def _config(release: Release, *, folded: bool) -> dict[str, Any]:
    """The run's config.json with the origin of the weights; our own facts are under `cskd`."""
    source, summary = release.source, release.source.summary
    config, paper = copy.deepcopy(source.config), paper_of(source.recipe.method)
    pretrained_cfg: dict[str, Any] = config["pretrained_cfg"] | {
        "tag": f"{source.recipe.method.name}_{slug(data_source(source.recipe).name)}",
        "license": release.licence.identifier,
        "origin_url": f"https://huggingface.co/{release.repo_id}",
        "paper_name": paper.title,
        "paper_ids": f"arXiv:{paper.arxiv}" if paper.arxiv else None,
    }
    # timm refuses to load unknown keys.
    known = {field.name for field in fields(PretrainedCfg)}
    config["pretrained_cfg"] = {key: value for key, value in pretrained_cfg.items() if key in known}
    if "finetuned_from" in config:
        config["finetuned_from"] = PathScrubber(source.recipe).text(config["finetuned_from"])
    temperature = summary.metrics.temperature
    facts = summary.model_dump(mode="json", include={"method", "recipe_hash", "dataset", "epochs", "seed"})
    # A folded temperature must not divide a second time.
    facts |= {"temperature": 1.0 if folded else temperature, "calibration": summary.metrics.verdict}
    facts |= {"needs_cskd_hf": summary.model.needs_cskd_hf, "value_range": source.recipe.data.value_range}
    facts |= {"background": source.recipe.transform.background}
    facts |= {"train_images_per_class": facts["dataset"].pop("train_images_per_class")}
    facts |= {"folded_temperature": temperature, "folded_into": list(release.folded)} if folded else {}
    config["cskd"] = facts | {"cskd_hf": source.environments[-1]["cskd_hf"]}
    return config
