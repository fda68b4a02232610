"""The two columns that `python -m cskd_hf.check` prints."""

from __future__ import annotations


def row(label: str, *lines: str) -> str:
    return f"{label:11s}" + f"\n{'':11s}".join(lines)
