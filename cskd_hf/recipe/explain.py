"""pydantic's validation errors as one line each: place, key, value read, what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cskd_hf.recipe.describe import describe
from cskd_hf.recipe.suggest import close_matches, paste, quote, suggest
from cskd_hf.recipe.yaml_io import COMMAND_LINE

OTHER_NAMES = {
    **dict.fromkeys(("learning_rate", "base_lr", "lr0"), "lr"),
    **dict.fromkeys(("epochs", "max_epochs", "num_train_epochs"), "num_epochs"),
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size", "bs"), "batch_size"),
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), "workers"),
    **dict.fromkeys(("image_size", "imgsz", "resolution"), "input_size"),
    **dict.fromkeys(("data_dir", "data_path", "dataset_name", "root"), "dataset"),
    **dict.fromkeys(("optim", "optimizer_name"), "opt"),
    **dict.fromkeys(("arch", "backbone", "model_name_or_path"), "model_name"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type"), "sched"),
    **dict.fromkeys(("amp", "precision", "fp16", "bf16"), "mixed_precision"),
    **dict.fromkeys(("accum_iter", "grad_accum_steps"), "gradient_accumulation_steps"),
    **{"aa": "auto_augment", "reprob": "re_prob", "remode": "re_mode", "recount": "re_count"},
    **{"drop": "drop_rate", "drop_path": "drop_path_rate", "gp": "global_pool", "initial_checkpoint": "checkpoint"},
    **{"val_split": "test_split", "log_interval": "logging_steps", "patience": "early_stopping_patience"},
}
"""Names of keys in other programs → ours."""

MAIN_KEYS = {
    **{"data": "dataset", "model": "model_name", "method": "name", "optimizer": "opt", "scheduler": "sched"},
    **{"transform": "input_size", "run": "output_dir"},
}
"""What a single word in place of a section is meant for."""

REQUIRED = MAIN_KEYS | {"optimizer": "lr", "scheduler": "num_epochs"}
"""What a missing section must have."""

_MISSING = object()


class Checked(NamedTuple):
    """Settings, and the classes that they were validated as: one per section, one per method for `method`."""

    settings: Mapping[str, Any]
    sections: Mapping[str, Any]
    methods: Mapping[str, type[BaseModel]]

    def value(self, keys: Sequence[str]) -> Any:
        """The value of a section or key, or _MISSING."""
        value: Any = self.settings
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return _MISSING
            value = value[key]
        return value

    def fields(self, section: str) -> Mapping[str, Any]:
        """Key → field of a known section; of `method`, the named method's, or none if the name is unknown."""
        return self.kind(section).model_fields

    def kind(self, section: str) -> type[BaseModel]:
        """The class of a known section; of `method`, the named method's, or one without fields."""
        if section != "method":
            return self.sections[section]
        name = self.value(["method", "name"])
        return self.methods.get(name, BaseModel) if isinstance(name, str) else BaseModel


def explain(error: ValidationError, checked: Checked, source: str, places: Mapping[str, str]) -> str:
    """One line for each mistake that pydantic found.

    Args:
        checked: the settings, and what they were validated as.
        source: the place of mistakes that no single line made.
        places: 'section.key' → the line or command line that set it.
    """
    mistakes: dict[str, ErrorDetails] = {}
    for details in error.errors(include_url=False):
        keys = [str(part) for part in details["loc"]]
        if keys[0] == "method" and len(keys) > 1 and keys[1] in checked.methods:
            del keys[1]  # pydantic's name for the member of the union, absent from the file
        elif details["type"] == "union_tag_invalid":
            keys.append("name")  # the discriminator
        # Deeper parts are list positions or union members; the line shows the whole value, once.
        mistakes.setdefault(".".join(keys[:2]), details)
    lines = []
    if places.get("method.name") == COMMAND_LINE:
        left_over = [name for name in mistakes if _is_another_methods(name, checked) and places[name] != COMMAND_LINE]
        if left_over:
            lines.append(f"{COMMAND_LINE}: method.name: {_left_over(left_over, checked)}")
            mistakes = {name: details for name, details in mistakes.items() if name not in left_over}
    for name, details in mistakes.items():
        keys = name.split(".", 1)
        place = places.get(name) or places.get(keys[0]) or source
        lines.append(f"{place}: {name}: {_message(details, keys, checked, place)}")
    return "\n".join(lines)


def _message(details: ErrorDetails, keys: Sequence[str], checked: Checked, place: str) -> str:
    kind, value, name = details["type"], checked.value(keys), ".".join(keys)
    if kind == "extra_forbidden":
        return _no_such_section(keys[0], value, checked) if len(keys) == 1 else _unknown_key(keys, value, checked)
    if kind == "union_tag_not_found":
        written = next(filter(None, map(_mangled, value)), None)
        return f"no name; write {written}" if written else f"no name; allowed names: {', '.join(checked.methods)}"
    if kind == "union_tag_invalid":
        return f"read {_show(value)}; allowed: {', '.join(checked.methods)}{_did_you_mean(value, checked.methods)}"
    if len(keys) == 1:
        return _no_keys(keys[0], value)
    field = checked.fields(keys[0])[keys[1]]
    if kind == "missing" and value is _MISSING:
        return f"missing, without a default; write {paste(place, name, '…')} ({describe(field)})"
    if kind == "value_error":
        allowed = details["msg"].removeprefix("Value error, ")
    else:
        allowed = "a finite number" if kind == "finite_number" else describe(field)
    if value is _MISSING:  # a default that another key rules out
        return f"missing; write {allowed}"
    instead = suggest(checked.kind(keys[0]), checked.settings[keys[0]], keys[1], place, name)
    return f"read {_show(value)}; allowed: {allowed}{instead}"


def _no_keys(section: str, value: Any) -> str:
    """A section that is absent, empty or a single value, which is probably meant for its main key."""
    if value is _MISSING:
        return f"missing; write a section {section} with {REQUIRED[section]} in it"
    key = MAIN_KEYS[section]
    if isinstance(value, str) and " " not in value and not _mangled(value):
        assigned = f"method={{name: {value}}}" if section == "method" else f"{section}.{key}={value}"
        return f"read {_show(value)}; allowed: a section with keys; write {quote(assigned)}"
    written = _mangled(str(value)) or f"{key}: … below {section}:"
    return f"read {_show(value)}; allowed: a section with keys; write {written}"


def _no_such_section(name: str, value: Any, checked: Checked) -> str:
    return "no such section; " + (
        (f"write {_mangled(name)}" if _mangled(name) else None)
        or (None if close_matches(name, checked.sections) else _elsewhere(name, value, checked))
        or f"allowed: {', '.join(checked.sections)}{_did_you_mean(name, checked.sections)}"
    )


def _unknown_key(keys: Sequence[str], value: Any, checked: Checked) -> str:
    (section, key), name, fields = keys, ".".join(keys), checked.fields(keys[0])
    if section != "method" and key.startswith(("mixup", "cutmix", "smoothing", "label_smoothing", "bce_")):
        owners = [method for method in checked.methods if "mixup_alpha" in checked.methods[method].model_fields]
        return (
            f"read {_show(value)}, but mixing, label smoothing and the loss belong to the method; write "
            f"method.mixup_alpha, method.cutmix_alpha, method.smoothing or method.bce_loss, of {', '.join(owners)}"
        )
    if _is_another_methods(name, checked):
        owners = [method for method in checked.methods if key in checked.methods[method].model_fields]
        return (
            f"read {_show(value)}, but {checked.value(['method', 'name'])} has no such field; delete it "
            f"({', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it); allowed: {', '.join(fields)}"
        )
    return f"unknown key, read {_show(value)}; " + (
        (f"write {_mangled(key)}" if _mangled(key) else None)
        or (_elsewhere(key, value, checked) if key.lower() in OTHER_NAMES or not close_matches(key, fields) else None)
        or f"allowed: {', '.join(fields)}{_did_you_mean(key, fields)}"
    )


def _is_another_methods(name: str, checked: Checked) -> bool:
    """Whether 'section.key' is a field of some methods, but not of the named one."""
    section, _, key = name.partition(".")
    fields = checked.fields(section) if section == "method" else {}
    return bool(fields) and key not in fields and any(key in kind.model_fields for kind in checked.methods.values())


def _left_over(names: Sequence[str], checked: Checked) -> str:
    """The override changed the method; the recipe's fields of the earlier one do not fit."""
    fields = [name.partition(".")[2] for name in names]
    method = {key: value for key, value in checked.settings["method"].items() if key not in fields}
    return (
        f"read {_show(method['name'])}, which has no {', '.join(fields)}, set in the recipe; "
        f"write {paste(COMMAND_LINE, 'method', method)}"
    )


def _mangled(key: str) -> str | None:
    """A colon without a space, or an equals sign, within braces or a file: `{name:cskd}` is a key without a value."""
    match = re.fullmatch(r"(\w+)\s*[:=]\s*(\S.*)", key)
    return f"{match[1]}: {match[2]}, with a colon and a space" if match else None


def _elsewhere(key: str, value: Any, checked: Checked) -> str | None:
    """The section that the key belongs to, under its own name or under other programs' name for it."""
    ours = OTHER_NAMES.get(key.lower(), key)
    value = "…" if isinstance(value, Mapping) else value  # no setting is one
    for section in checked.sections:
        if ours in checked.fields(section):
            return f"{ours} belongs to {section}; write {paste(COMMAND_LINE, f'{section}.{ours}', value)}"
    return None


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "a mapping" if isinstance(value, Mapping) else repr(value)


def _did_you_mean(word: Any, allowed: Iterable[str]) -> str:
    return "".join(f"; did you mean {close}?" for close in close_matches(str(word), allowed))
