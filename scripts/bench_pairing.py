"""Time and memory of an epoch of class pairs at ImageNet's size, beside the usual list of lists.

    python scripts/bench_pairing.py [--images 1281167] [--classes 1000] [--repeats 7]

The reference is what most code does, written plainly here: for each class a Python list of its images, for each image a
random choice from its class's list. Both draw with replacement, the image itself included. Runs alternate; times are
medians with the range, memory is the peak that building an epoch allocates, as tracemalloc counts it.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

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


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_mib(call: Callable[[], object]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    labels = np.random.RandomState(0).randint(0, args.classes, args.images)
    as_list = labels.tolist()
    by_class = list_of_lists_index(as_list)
    sampler = ClassPairSampler(labels)
    apart = ClassPairSampler(labels, partner="not_self")

    calls: dict[str, Callable[[], object]] = {
        "list of lists: index": lambda: list_of_lists_index(as_list),
        "list of lists: epoch": lambda: list_of_lists_epoch(as_list, by_class, seed=1),
        "ours: index and first epoch": lambda: ClassPairSampler(labels),
        "ours: epoch": lambda: sampler.set_epoch(1),
        "ours: epoch, partner not_self": lambda: apart.set_epoch(1),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    memory = {name: peak_mib(call) for name, call in calls.items()}

    print(f"{args.images:,} images, {args.classes:,} classes, n = {args.repeats}, alternating")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}\n")
    print("| what | seconds, median (min to max) | MiB allocated at the peak |")
    print("|---|---|---|")
    for name, measured in times.items():
        spread = f"{min(measured):.3f} to {max(measured):.3f}"
        print(f"| {name} | {statistics.median(measured):.3f} ({spread}) | {memory[name]:.0f} |")
    ratios = [a / b for a, b in zip(times["list of lists: epoch"], times["ours: epoch"], strict=True)]
    memory_ratio = memory["list of lists: epoch"] / memory["ours: epoch"]
    print(
        f"\nan epoch: list of lists / ours = {statistics.median(ratios):.0f}x ({min(ratios):.0f} to {max(ratios):.0f}) "
        f"in time, {memory_ratio:.0f}x in memory"
    )


if __name__ == "__main__":
    main()
