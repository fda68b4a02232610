"""Export the weights of a plain timm model: `timm.create_model("local-dir:…/model", pretrained=True)` loads them.

`timm.models.save_for_hf` would copy the tag, licence, paper and test size of the architecture's default checkpoint, and
write `num_classes` twice, which transformers rejects.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from cskd_hf.files import write_json, write_tensors, write_text
from cskd_hf.models import small
from cskd_hf.models.cosine import has_cosine_head
from cskd_hf.models.factory import starting_weights
from cskd_hf.recipe.sections import TRANSFORM_DEFAULTS, ModelSection, TransformSection, fill

# timm can build the 224-px ResNet-10 from its ResNet-18, so loading it does not need this package.
_TIMM_EQUIVALENTS = {"resnet10": ("resnet18", {"layers": [1, 1, 1, 1]})}
_TRAINING_ONLY = ("drop_rate", "drop_path_rate", "zero_init_last")


def architecture_of(settings: ModelSection, model: Any) -> str:
    """timm's name of the network; `hf-hub:` and `local-dir:` name it in their config.json."""
    name = settings.model_name
    return model.pretrained_cfg["architecture"] if ":" in name else name.partition(".")[0]


def needs_cskd_hf(architecture: str, model: Any) -> bool:
    """Whether loading needs `import cskd_hf.models` first because timm lacks the architecture."""
    return (architecture in small.default_cfgs and architecture not in _TIMM_EQUIVALENTS) or has_cosine_head(model)


def model_config(
    model: Any, settings: ModelSection, transform: TransformSection, class_names: Sequence[str]
) -> dict[str, Any]:
    """timm's config.json: how to rebuild the network and how to preprocess an image for it."""
    architecture = architecture_of(settings, model)
    model_args = {**getattr(model, "pretrained_model_args", {}), **settings.keywords}
    # The first three affect training only; fine-tuning chooses its own. The last is the first entry of the input size.
    model_args = {k: v for k, v in model_args.items() if k not in (*_TRAINING_ONLY, "in_chans")}
    architecture, timm_args = _TIMM_EQUIVALENTS.get(architecture, (architecture, {}))
    model_args |= timm_args
    default, transform = model.pretrained_cfg, fill(transform.for_evaluation(), TRANSFORM_DEFAULTS)
    if default.get("fixed_input_size") and settings.img_size is None:
        # timm would build the network for `input_size`, although this one was built for the default and adapts.
        model_args["img_size"] = list(default["input_size"][1:])
    if architecture == "fbnetc_100":  # `pretrained`, which loading sets, changes timm's default
        model_args.setdefault("bn_eps", model.bn1.eps)
    if has_cosine_head(model) and architecture != "cosine_classifier":
        architecture, model_args = "cosine_classifier", {"backbone": architecture, **model_args}
    pretrained_cfg = {
        "tag": "cskd",
        "custom_load": False,
        "input_size": list(transform.input_size),
        "fixed_input_size": bool(default.get("fixed_input_size", False)),
        "interpolation": "bilinear" if transform.interpolation == "random" else transform.interpolation,
        "crop_pct": transform.crop_pct,
        "crop_mode": transform.crop_mode,
        "mean": list(transform.mean or ()),
        "std": list(transform.std or ()),
        "num_classes": model.num_classes,
        "pool_size": None,
        # Before 1.0.31, timm cannot adapt weights of four channels and starts them at random.
        "first_conv": None if transform.input_size[0] == 4 else default.get("first_conv"),
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
    start = starting_weights(model)
    if start is not None:
        config["finetuned_from"] = start.name
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
    """Write `folder`, reload it through timm, compare bit by bit, and only then move it into place.

    Args:
        model: the plain timm model, as evaluated.
        settings: how the recipe builds it.
        transform: its preprocessing, mean and std included.
        class_names: K names, in label order.
        readme: the folder's README.md.
        facts: config.json's entry `cskd`, ignored by timm and transformers: method, temperature.

    Raises:
        RuntimeError: the reloaded weights differ from the saved ones.

    Example:
        >>> import timm
        >>> from pathlib import Path
        >>> from cskd_hf import export_model
        >>> from cskd_hf.recipe.sections import ModelSection, TransformSection
        >>> settings = ModelSection(model_name="test_resnet")
        >>> transform = TransformSection(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> export_model(model, Path("weights"), settings, transform, ("cat", "dog"), readme="", facts={})
        >>> timm.create_model("local-dir:weights", pretrained=True).num_classes
        2
    """
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    write_tensors(partial / "model.safetensors", weights, {"format": "pt"})
    config = model_config(model, settings, transform, class_names) | {"cskd": dict(facts)}
    write_json(partial / "config.json", config)
    write_class_map(partial, class_names)
    write_text(partial / "README.md", readme)

    saved = load_file(partial / "model.safetensors")
    loaded = timm.create_model(f"local-dir:{partial}", pretrained=True).state_dict()
    # `local-dir:` tolerates a name prefix that `hf-hub:` does not, so compare the file's own names, too.
    differences = (set(saved) ^ set(weights)) | (set(loaded) ^ set(weights))
    if differences:
        raise RuntimeError(f"{partial}: reloading changed the weights' names: {sorted(differences)[:5]}")
    changed = [name for name in weights if not torch.equal(loaded[name], weights[name])]
    if changed:
        raise RuntimeError(f"{partial}: reloading changed the weights: {changed[:5]}")

    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)


def write_class_map(folder: Path, class_names: Sequence[str]) -> None:
    """Write class_map.txt, which timm's `--class-map` reads: the classes in label order, one a line.

    Without it, timm numbers the folders of a split by themselves, wrong if one class has none. Not written unless they
    are `listable`.
    """
    if listable(class_names):
        write_text(folder / "class_map.txt", "".join(f"{name}\n" for name in class_names))


def listable(class_names: Sequence[str]) -> bool:
    """Whether class_map.txt can hold the names: timm would cut line breaks and outer blanks."""
    return all(name and name == name.strip() and not set(name) & set("\r\n") for name in class_names)


def loading_code(location: str, needs_cskd_hf: bool) -> str:
    """Python that loads the weights."""
    first = "import cskd_hf.models  # registers the architecture with timm\n" if needs_cskd_hf else ""
    return f'{first}import timm\n\nmodel = timm.create_model("{location}", pretrained=True).eval()\n'
