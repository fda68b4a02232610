"""Time to prepare, open and check datasets.

    python scripts/bench/image_sets.py [--scratch FOLDER] [--images 20000] [--rows 1281167] [--repeats 3]

Preparing: archives in the layouts of ImageNet (a tar of class tars; JPEGs of about 95 kB; the real mean is 110) and of
CUB-200 (a tgz), compared with `tar -xf` of the same archives, inner ones included. Runs alternate and end with a sync.
The archives are in the page cache, our worst case: a cold disk would hide the SHA-256 of archives and images.

Opening: a fresh process opens a saved dataset of ImageNet's size, with tiny images, as training does: it reads the
labels and makes the splits. Then it runs the checks of a training start. Memory is the growth of the resident set,
including the pages read from the memory-mapped file.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pictures import jpegs, save_tiny_images
from reporting import bench_parser, ratios, report, seconds, spread, table

SCRIPTS = Path(__file__).resolve().parents[1]
CLASSES = 20

OPEN = """
import json, resource, sys, time
from cskd_hf.data.inspect import quick_check
from cskd_hf.data.splits import load_images
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import TransformSection
folder, holdout = sys.argv[1], float(sys.argv[2])
data = resolve_data(parse_data({"dataset": folder, "holdout": holdout}, source="command line"))
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
before, start = resident(), time.perf_counter()
images = load_images(data)
opened, growth = time.perf_counter() - start, resident() - before
start = time.perf_counter()
quick_check(images, data, TransformSection())
print(json.dumps([opened, growth, time.perf_counter() - start]))
"""


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def imagenet_archives(folder: Path, images: Sequence[bytes]) -> list[Path]:
    """The three archives of ILSVRC 2012, with fewer classes and images."""
    from scipy.io import savemat

    wnids = [f"n{10_000_000 + number}" for number in range(CLASSES)]
    names = ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz")
    train, val, devkit = (folder / f"ILSVRC2012_{name}" for name in names)
    with tarfile.open(train, "w") as outer:
        for number, wnid in enumerate(wnids):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for index, image in enumerate(images[number::CLASSES]):
                    add(inner, f"{wnid}_{index}.JPEG", image)
            add(outer, f"{wnid}.tar", buffer.getvalue())
    validation = images[: 2 * CLASSES]
    with tarfile.open(val, "w") as archive:
        for number, image in enumerate(validation, 1):
            add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", image)
    fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    fields += [("children", "O"), ("wordnet_height", "f8"), ("num_train_images", "f8")]
    synsets = [(number, wnid, f"word {number}", "", 0, np.zeros(0), 0, 1300) for number, wnid in enumerate(wnids, 1)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(synsets, dtype=fields).reshape(-1, 1)})
    truth = "".join(f"{index % CLASSES + 1}\n" for index in range(len(validation)))
    with tarfile.open(devkit, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    return [train, val, devkit]


def cub_archive(folder: Path, images: Sequence[bytes]) -> list[Path]:
    names = [f"{i % CLASSES + 1:03d}.Bird_{i % CLASSES}/Bird_{i:04d}.jpg" for i in range(len(images))]
    lists = {
        "images.txt": [f"{i + 1} {name}" for i, name in enumerate(names)],
        "image_class_labels.txt": [f"{i + 1} {i % CLASSES + 1}" for i in range(len(images))],
        "train_test_split.txt": [f"{i + 1} {i // CLASSES % 2}" for i in range(len(images))],
        "classes.txt": [f"{label + 1} {label + 1:03d}.Bird_{label}" for label in range(CLASSES)],
    }
    path = folder / "CUB_200_2011.tgz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, lines in lists.items():
            add(archive, f"CUB_200_2011/{name}", "".join(f"{line}\n" for line in lines).encode())
        for name, image in zip(names, images, strict=True):
            add(archive, f"CUB_200_2011/images/{name}", image)
    return [path]


ARCHIVES: dict[str, Callable[[Path, Sequence[bytes]], list[Path]]] = {
    "imagenet": imagenet_archives,
    "cub200": cub_archive,
}


def untar(archives: Sequence[Path], out: Path) -> None:
    """Unpack every archive, then the class archives inside."""
    out.mkdir()
    for archive in archives:
        subprocess.run(["tar", "-xf", archive, "-C", out], check=True)
    for inner in sorted(out.glob("n*.tar")):
        inner.with_suffix("").mkdir()
        subprocess.run(["tar", "-xf", inner, "-C", inner.with_suffix("")], check=True)
        inner.unlink()


def measure_preparing(root: Path, images: Sequence[bytes], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of `tar` and of the script, by dataset."""
    times: dict[str, dict[str, list[float]]] = {}

    def synced(call: Callable[[], object]) -> None:
        call()
        os.sync()

    for name, make in ARCHIVES.items():
        archives, out = make(root, images), root / f"{name}-out"
        script = [sys.executable, SCRIPTS / f"prepare_{name}.py", *archives, out, "--allow-other-counts"]
        calls: dict[str, Callable[[], object]] = {
            "tar": partial(untar, archives, out),
            "prepare": partial(subprocess.run, script, check=True, capture_output=True),
        }
        times[name] = {kind: [] for kind in calls}
        for _ in range(repeats):
            for kind, call in calls.items():
                os.sync()
                times[name][kind].append(seconds(partial(synced, call)))
                subprocess.run(["rm", "-rf", out], check=True)
    return times


def measure_opening(root: Path, rows: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds to open, MiB and seconds to check, by hold-out share."""
    save_tiny_images(root / "large", rows, 50_000)
    results = {}
    for holdout in ("0.0", "0.01"):
        command = [sys.executable, "-c", OPEN, str(root / "large"), holdout]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats)]
        columns = zip(*(json.loads(run.stdout.splitlines()[-1]) for run in runs), strict=True)
        results[holdout] = dict(zip(("open", "memory", "check"), map(list, columns), strict=True))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, repeats=3)
    parser.add_argument("--scratch", type=Path, help="where to write, and delete again (default: temporary folder)")
    parser.add_argument("--images", type=int, default=20_000, help="in each archive")
    parser.add_argument("--rows", type=int, default=1_281_167)
    args = parser.parse_args(argv)

    distinct = jpegs(200)
    images = [distinct[i % 200] + str(i).encode() for i in range(args.images)]
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        preparing = measure_preparing(Path(scratch), images, args.repeats)
        opening = measure_opening(Path(scratch), args.rows, args.repeats)
    prepared: list[Any] = [
        (name, spread(times["tar"]), spread(times["prepare"]), spread(ratios(times["prepare"], times["tar"])))
        for name, times in preparing.items()
    ]
    opened = [
        (holdout, spread(values["open"]), spread(values["memory"], 0), spread(values["check"]))
        for holdout, values in opening.items()
    ]
    mean = sum(map(len, images)) / len(images) / 1000
    tables = [
        f"Preparing {args.images:,} images of {mean:.0f} kB",
        table(("archive", "tar -xf, s", "prepare, s", "ratio"), prepared),
        f"Opening {args.rows:,} + 50,000 rows",
        table(("hold-out share", "open and read labels, s", "memory, MiB", "check at start, s"), opened),
    ]
    figures = {"preparing": preparing, "opening": opening}
    report(f"Preparing and opening datasets; n = {args.repeats}", "image_sets", tables, figures, args.output)


if __name__ == "__main__":
    main()
