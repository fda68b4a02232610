"""Which splits of the data are read: the ones that the recipe names, otherwise the unambiguous ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from datasets import Split
from datasets.data_files import SPLIT_KEYWORDS

from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import same_split
from cskd_hf.recipe.sections import DataSection
from cskd_hf.recipe.suggest import paste
from cskd_hf.recipe.yaml_io import COMMAND_LINE

Choose = Callable[[Iterable[str]], list[str]]
"""The splits that exist → those to read."""

TEST_SHARE = 0.2  # what messages propose [ours]
_ROLES = {"train": (Split.TRAIN,), "test": (Split.TEST, Split.VALIDATION)}  # in order of preference


def is_split_word(name: str) -> bool:
    """Whether a folder of this name probably is a split: `train`, `Val`, `testing`, … by `datasets`' list."""
    return any(name.lower() in words for words in SPLIT_KEYWORDS.values())


def choose_splits(data: DataSection, available: Sequence[str], train: bool = True) -> dict[str, str]:
    """Role ("train", "test", "holdout") → split; "test" is absent if it is a share of the training split.

    A split that `data` does not name is the one called `train`, or `test`, else the only one with a usual name.

    Args:
        available: the splits that exist.
        train: False for testing alone: then the training split is only chosen for a share of it.

    Raises:
        UserError: no such split, or none is clearly meant; with the setting to write.

    Example:
        >>> from cskd_hf.recipe.sections import DataSection
        >>> choose_splits(DataSection(dataset="birds"), ["train", "val"])
        {'train': 'train', 'test': 'val'}
        >>> choose_splits(DataSection(dataset="birds", test_split=0.2), ["train"])
        {'train': 'train'}
    """
    share = isinstance(data.test_split, float)
    roles = [*["train"] * (train or share), *["test"] * (not share), *["holdout"] * train]
    named = {role: name for role, name in written_names(data).items() if role in roles}
    stored = {same_split(name): name for name in available} | {name: name for name in available}
    missing = {role: name for role, name in named.items() if name not in stored and same_split(name) not in stored}
    if missing:
        raise UserError(
            f"data: {data.dataset} has no split {', '.join(map(repr, missing.values()))}; it has "
            f"{', '.join(available) or 'none'}; write {_proposals(data, available, missing)}"
        )
    chosen = {role: stored.get(name) or stored[same_split(name)] for role, name in named.items()}
    for role in [role for role in ("train", "test") if role in roles and role not in chosen]:
        fitting = _fitting(role, [name for name in available if name not in chosen.values()])
        if len(fitting) != 1:
            problem = f"of which {' and '.join(fitting)} fit" if fitting else "none of which clearly fits"
            found = "one split" if len(available) == 1 else f"{', '.join(available) or 'no split'}, {problem}"
            raise UserError(
                f"data.{role}_split: not set, and {data.dataset} has {found}; write "
                f"{_proposals(data, available, [role], fitting)}"
            )
        chosen[role] = fitting[0]
    return {role: chosen[role] for role in ("train", "test", "holdout") if role in chosen}


def written_names(data: DataSection) -> dict[str, str]:
    """Role → split, as the recipe names them."""
    named = {"train": data.train_split, "test": data.test_split, "holdout": data.holdout}
    return {role: name for role, name in named.items() if isinstance(name, str)}


def _fitting(role: str, free: Sequence[str]) -> list[str]:
    """Of the splits without a role those that may have this one."""
    for split in _ROLES[role]:
        fitting = [name for name in free if name.lower() in SPLIT_KEYWORDS[split]]
        if fitting:
            return [role] if role in fitting else fitting
    return list(free) if role == "train" and len(free) == 1 else []


def _proposals(data: DataSection, available: Sequence[str], roles: Iterable[str], fitting: Sequence[str] = ()) -> str:
    """Settings to paste for roles whose split is missing: another one, or a share where there is none."""
    taken = {same_split(name) for role, name in written_names(data).items() if role not in roles}
    free = [name for name in available if same_split(name) not in taken]
    settings = []
    for role in roles:
        likely = fitting or (_fitting(role, free) if role in _ROLES else []) or (free if role == "train" else [])
        value = likely[0] if likely else {"test": TEST_SHARE, "holdout": 0.1}.get(role, "NAME")
        free = [name for name in free if name != value]
        key = "data.holdout" if role == "holdout" else f"data.{role}_split"
        settings.append(paste(COMMAND_LINE, key, value))
    return " ".join(settings)
