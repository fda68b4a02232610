"""The two columns that `cskd-check` prints."""

from __future__ import annotations


def row(label: str, *lines: str) -> str:
    return f"{label:11s}" + f"\n{'':11s}".join(lines)
