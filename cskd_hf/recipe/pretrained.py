"""What is known of the weights that `model.model_name` names, before they are loaded: no weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError, one_line
from cskd_hf.recipe.sections import ModelSection


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights and the network that they are of.

    Attributes:
        architecture: timm's name of the network.
        cfg: timm's PretrainedCfg: preprocessing, classes, licence; None if timm knows no weights of the network.
        model_args: keywords of the network's constructor, of config.json.
        name: what to call the weights: their repository on the Hub, or `local-dir:FOLDER`.
    """

    architecture: str
    cfg: Any
    name: str
    model_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def license(self) -> str:
        return (self.cfg and self.cfg.license) or "unknown"


def read_config(location: str) -> dict[str, Any]:
    """The config.json of `hf-hub:OWNER/NAME[@REVISION]` or `local-dir:FOLDER`; `label_names` is a list or missing.

    Raises:
        OSError, ValueError: there is none, or it is no JSON; the Hub's errors are among these.
    """
    kind, _, name = location.partition(":")
    path = Path(name, "config.json")
    if kind == "hf-hub":
        from huggingface_hub import hf_hub_download

        repository, _, revision = name.partition("@")
        path = Path(hf_hub_download(repository, "config.json", revision=revision or None))
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names = config.get("label_names")
    if isinstance(names, dict):  # timm also allows label → name
        config["label_names"] = [names[label] for label in sorted(names, key=int)]
    return config


def find_pretrained(model: ModelSection) -> Pretrained:
    """Look up the weights of `hf-hub:OWNER/NAME`, `local-dir:FOLDER` or one of timm's names, whether used or not.

    Raises:
        UserError: there is no such repository, folder or tag.

    Example:
        >>> from cskd_hf.recipe.sections import ModelSection
        >>> found = find_pretrained(ModelSection(model_name="resnet50.a1_in1k"))
        >>> found.name, found.license, found.cfg.test_input_size
        ('timm/resnet50.a1_in1k', 'apache-2.0', (3, 288, 288))
    """
    from timm.models import PretrainedCfg, get_pretrained_cfg
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    name = model.model_name
    source, _, place = name.partition(":")
    if source not in ("hf-hub", "local-dir"):
        architecture = name.partition(".")[0]
        try:
            cfg = get_pretrained_cfg(name)
        except RuntimeError as error:  # no such tag
            raise UserError(f"model.model_name: read {name!r}: {error}") from None
        hub_id = cfg and (cfg.hf_hub_id or f"timm/{architecture}.{cfg.tag}")
        return Pretrained(architecture, cfg, hub_id or name)
    read = load_model_config_from_hf if source == "hf-hub" else load_model_config_from_path
    try:
        cfg, architecture, model_args = read(place)
        return Pretrained(architecture, PretrainedCfg(**cfg), place if source == "hf-hub" else name, model_args or {})
    except KeyError as error:
        raise UserError(f"model.model_name: {name} holds no timm model: its config.json has no {error}") from None
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # the Hub's are OSErrors or ValueErrors
        reason = one_line(error) or type(error).__name__
        raise UserError(f"model.model_name: the config.json of {name} cannot be read: {reason}") from error
