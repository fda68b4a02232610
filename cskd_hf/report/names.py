"""Class names in figures, shortened to the room that they have."""

from __future__ import annotations

from collections.abc import Callable


def shortened(name: str, fits: Callable[[str], bool]) -> str:
    """The name on one line, without its middle if it does not fit; two thirds are its end, where names often differ.

    Example:
        >>> shortened("Boat tailed\\nGrackle", lambda text: len(text) <= 10)
        'Boa…rackle'
    """
    name = " ".join(name.split())
    if fits(name):
        return name
    for length in range(len(name) - 1, 1, -1):
        head = length // 3
        shorter = f"{name[:head].rstrip()}…{name[head - length :].lstrip()}"
        if fits(shorter):
            return shorter
    return "…"
