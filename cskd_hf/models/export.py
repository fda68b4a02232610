"""Trained network → a folder that plain timm loads: `timm.create_model("local-dir:…/model", pretrained=True)`.

Written here rather than by `timm.models.save_for_hf`, which keeps the architecture's default checkpoint's tag, licence,
paper and test size, and records `num_classes` twice, which transformers refuses.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from cskd_hf.files import write_tensors
from cskd_hf.models import small
from cskd_hf.models.cosine import has_cosine_head
from cskd_hf.recipe.sections import ModelSection, TransformSection

# The 224-px ResNet-10 is a ResNet-18 that timm itself can be told to build: nobody needs this package to load it.
_STOCK_EQUIVALENTS = {"resnet10": ("resnet18", {"layers": [1, 1, 1, 1]})}


def needs_cskd_hf(model_name: str, model: Any) -> bool:
    """Whether timm alone does not know the architecture, so that `import cskd_hf.models` must come first."""
    return (model_name in small.default_cfgs and model_name not in _STOCK_EQUIVALENTS) or has_cosine_head(model)


def model_config(
    model: Any, settings: ModelSection, transform: TransformSection, class_names: Sequence[str]
) -> dict[str, Any]:
    """timm's config.json: how to rebuild the network (a timm model) and how to prepare an image for it."""
    architecture = settings.model_name.partition(".")[0]
    keywords = settings.model_dump(exclude={"model_name", "pretrained", "num_classes"}, exclude_none=True)
    # Training's own: they do not shape the weights, and who fine-tunes chooses them anew.
    model_args = {k: v for k, v in keywords.items() if k not in ("drop_rate", "drop_path_rate", "zero_init_last")}
    architecture, stock_args = _STOCK_EQUIVALENTS.get(architecture, (architecture, {}))
    model_args |= stock_args
    if has_cosine_head(model):
        architecture, model_args = "cosine_classifier", {"backbone": architecture, **model_args}
    default = model.pretrained_cfg
    pretrained_cfg = {
        "tag": "cskd",
        "custom_load": False,
        "input_size": list(transform.input_size),
        "fixed_input_size": bool(default.get("fixed_input_size", False)),
        "interpolation": "bilinear" if transform.interpolation == "random" else transform.interpolation,
        "crop_pct": transform.crop_pct,
        "crop_mode": "center",
        "mean": list(transform.mean or ()),
        "std": list(transform.std or ()),
        "num_classes": model.num_classes,
        "pool_size": None,
        "first_conv": default.get("first_conv"),
        "classifier": default.get("classifier"),
    }
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "label_names": list(class_names),
        "pretrained_cfg": pretrained_cfg,
    }
    if model_args:
        config["model_args"] = model_args
    if settings.pretrained:
        config["finetuned_from"] = settings.model_name
    return config


def export_model(
    model: nn.Module,
    folder: Path,
    settings: ModelSection,
    transform: TransformSection,
    class_names: Sequence[str],
    readme: str,
    facts: Mapping[str, Any],
) -> None:
    """Write `folder`, load it back through timm, compare bit for bit, and only then put it in place.

    Args:
        model: the plain timm model, as evaluated.
        readme: the folder's README.md.
        facts: what config.json says under `cskd`, which timm and transformers pass over: method, temperature.

    Raises:
        RuntimeError: what was loaded is not what was saved.
    """
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    write_tensors(partial / "model.safetensors", weights, {"format": "pt"})
    config = model_config(model, settings, transform, class_names) | {"cskd": dict(facts)}
    (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (partial / "README.md").write_text(readme, encoding="utf-8")

    saved = load_file(partial / "model.safetensors")
    loaded = timm.create_model(f"local-dir:{partial}", pretrained=True).state_dict()
    # `local-dir:` forgives a prefix that `hf-hub:` does not, so the names are compared with the file's own.
    strange = (set(saved) ^ set(weights)) | (set(loaded) ^ set(weights))
    if strange:
        raise RuntimeError(f"{partial}: weights' names changed: {sorted(strange)[:5]}")
    different = [name for name in weights if not torch.equal(loaded[name], weights[name])]
    if different:
        raise RuntimeError(f"{partial}: weights changed: {different[:5]}")

    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)


def loading_code(location: str, needs_cskd_hf: bool) -> str:
    """The lines a user types to load the weights."""
    first = "import cskd_hf.models  # registers the architecture with timm\n" if needs_cskd_hf else ""
    return f'{first}import timm\n\nmodel = timm.create_model("{location}", pretrained=True).eval()\n'
