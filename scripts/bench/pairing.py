"""Time and memory to draw an epoch of class pairs at ImageNet's size, compared with a list of lists.

    python scripts/bench/pairing.py [--images 1281167] [--classes 1000] [--repeats 7] [--output FOLDER]

The reference is what most code does: for each class a Python list of its images, for each image a random choice from
its class's list. Both draw with replacement, the anchor included. Runs alternate. Memory is counted by tracemalloc.
"""

from __future__ import annotations

import random
import statistics
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
from reporting import alternate, bench_parser, ratios, report, seconds, spread, table

from cskd_hf.data.pairing import ClassPairSampler


def list_of_lists_index(labels: list[int]) -> list[list[int]]:
    by_class: list[list[int]] = [[] for _ in range(max(labels) + 1)]
    for index, label in enumerate(labels):
        by_class[label].append(index)
    return by_class


def list_of_lists_epoch(labels: list[int], by_class: list[list[int]], seed: int) -> list[tuple[int, int]]:
    generator = random.Random(seed)
    order = list(range(len(labels)))
    generator.shuffle(order)
    return [(index, generator.choice(by_class[labels[index]])) for index in order]


def mebibytes(call: Callable[[], object]) -> tuple[float, float]:
    """At the peak, and in the end."""
    tracemalloc.start()
    result = call()
    final, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return peak / 2**20, final / 2**20


def main() -> None:
    parser = bench_parser(__doc__, repeats=7)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    args = parser.parse_args()

    labels = np.random.RandomState(0).randint(0, args.classes, args.images)
    as_list = labels.tolist()
    by_class = list_of_lists_index(as_list)
    sampler = ClassPairSampler(labels)
    not_self = ClassPairSampler(labels, partner="not_self")

    calls: dict[str, Callable[[], object]] = {
        "list of lists: index": lambda: list_of_lists_index(as_list),
        "list of lists: epoch": lambda: list_of_lists_epoch(as_list, by_class, seed=1),
        "ours: index and first epoch": lambda: ClassPairSampler(labels),
        "ours: epoch": lambda: sampler.set_epoch(1),
        "ours: epoch, partner not_self": lambda: not_self.set_epoch(1),
    }
    times = alternate({name: partial(seconds, call) for name, call in calls.items()}, args.repeats)
    memory = {name: mebibytes(call) for name, call in calls.items()}

    rows = [[name, spread(times[name], 3), *(f"{part:.0f}" for part in memory[name])] for name in calls]
    faster = ratios(times["list of lists: epoch"], times["ours: epoch"])
    setting = f"{args.images:,} images, {args.classes:,} classes, n = {args.repeats}."
    ratio = (
        f"An epoch, list of lists / ours: {statistics.median(faster):.0f}× ({min(faster):.0f} to {max(faster):.0f}) in "
        f"time, {memory['list of lists: epoch'][0] / memory['ours: epoch'][0]:.0f}× in peak memory."
    )
    head = ["", "seconds", "peak MiB", "final MiB"]
    figures = {
        name: {"seconds": times[name], "peak_mib": memory[name][0], "final_mib": memory[name][1]} for name in calls
    }
    report("Pairing at ImageNet's size", "pairing", [setting, table(head, rows), ratio], figures, args.output)


if __name__ == "__main__":
    main()
