"""The page that every benchmark prints: machine and versions, medians with their range, as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cskd_hf.runs.environment import describe_environment


def bench_parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="also write the page and its figures here")
    return parser


def seconds(call: Callable[[], object]) -> float:
    """Duration of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(calls: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each call returns in each repeat, which makes all of them in random order."""
    results: dict[str, list[float]] = {name: [] for name in calls}
    generator = random.Random(0)
    for _ in range(repeats):
        for name in generator.sample(list(calls), len(calls)):
            results[name].append(calls[name]())
    return results


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """Median (minimum to maximum)."""
    median, low, high = (scale * part for part in (statistics.median(values), min(values), max(values)))
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratio of each repeat: a machine that is slow for a while slows both down."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def report(title: str, name: str, tables: Sequence[str], figures: Mapping[str, Any], output: Path | None) -> None:
    """Print a page.

    Args:
        figures: every single measurement.
        output: folder to write the page to as `name`.md, and the figures as `name`.json.
    """
    environment = describe_environment(1, "no")
    hardware, packages = environment["hardware"], environment["packages"]
    command = " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    environment |= {"command": command, "time": datetime.now(timezone.utc).isoformat(timespec="minutes")}
    git = environment["git"]
    commit = "" if git is None else f", commit {git['commit'][:10]}{' and changes' * git['dirty']}"
    where = ", ".join([hardware["cpu"], f"{hardware['cpu_cores']} cores", *hardware["accelerators"]])
    versions = ", ".join(f"{part} {packages[part]}" for part in ("torch", "timm", "datasets", "pillow"))
    page = "\n\n".join(
        [
            f"# {title}",
            f"`{command}`, {environment['time']}{commit}\n\n{where}, {hardware['torch_threads']} threads; "
            f"Python {environment['python']}, {versions}. Medians (minimum to maximum); variants alternate.",
            *tables,
        ]
    )
    print(page, flush=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{name}.md").write_text(page + "\n", encoding="utf-8")
        content = {"environment": environment, "figures": figures}
        (output / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
