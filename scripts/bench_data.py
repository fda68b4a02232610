"""Preparing, opening and checking image sets: the figures of the README.

    python scripts/bench_data.py [--scratch FOLDER] [--images 20000] [--rows 1281167] [--repeats 3]

Preparing: archives in ImageNet's layout (a tar of class tars; JPEGs of about 110 kB, the real mean) and in CUB-200's
(a tgz), beside `tar -xf` of the same archives, inner ones included; runs alternate, each ends with a sync. The archives
are in the page cache for both, so this is the worst case for ours: a cold disk would hide its arithmetic (SHA-256 of
archives and images).

Opening: a prepared set of ImageNet's size, of tiny images, in a fresh process: its labels read, its splits made, as
training does; then what training checks at its start. Memory is the growth of the process's resident set;
pages of the memory-mapped file that were read are part of it.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPTS = Path(__file__).resolve().parent

OPEN = """
import json, resource, sys, time
from cskd_hf.data.inspect import quick_check
from cskd_hf.data.splits import load_images
from cskd_hf.recipe.recipe import parse_data
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import TransformSection
folder, holdout = sys.argv[1], float(sys.argv[2])
data = resolve_data(parse_data({"dataset": folder, "test_split": "validation", "holdout": holdout}, "bench_data"))
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
before, started = resident(), time.perf_counter()
images = load_images(data)
opened, grown = time.perf_counter() - started, resident() - before
started = time.perf_counter()
quick_check(images, data, TransformSection())
print(json.dumps([opened, grown, time.perf_counter() - started]))
"""


def jpeg(generator: np.random.RandomState) -> bytes:
    """500 × 375 pixels of soft noise; about 110 kB."""
    coarse = Image.fromarray(generator.randint(0, 256, (94, 125, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
    fine = generator.randint(-14, 15, (375, 500, 3))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def imagenet_archives(folder: Path, images: list[bytes], num_classes: int = 20) -> list[Path]:
    """The three archives of ILSVRC 2012, with fewer classes and images."""
    from scipy.io import savemat

    wnids = [f"n{10_000_000 + number}" for number in range(num_classes)]
    validation = images[: num_classes * 2]
    train, val, devkit = (
        folder / f"ILSVRC2012_{name}" for name in ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz")
    )
    with tarfile.open(train, "w") as outer:
        for number, wnid in enumerate(wnids):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for place, image in enumerate(images[number::num_classes]):
                    add(inner, f"{wnid}_{place}.JPEG", image)
            add(outer, f"{wnid}.tar", buffer.getvalue())
    with tarfile.open(val, "w") as archive:
        for number, image in enumerate(validation):
            add(archive, f"ILSVRC2012_val_{number + 1:08d}.JPEG", image)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    kinds += [("children", "O"), ("wordnet_height", "f8"), ("num_train_images", "f8")]
    rows = [(i + 1, wnid, f"word {i}", "", 0, np.zeros(0), 0, 1300) for i, wnid in enumerate(wnids)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    truth = "".join(f"{i % num_classes + 1}\n" for i in range(len(validation)))
    with tarfile.open(devkit, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    return [train, val, devkit]


def cub_archive(folder: Path, images: list[bytes], num_classes: int = 20) -> list[Path]:
    names = [f"{i % num_classes + 1:03d}.Bird_{i % num_classes}/Bird_{i:04d}.jpg" for i in range(len(images))]
    lists = {
        "images.txt": [f"{i + 1} {name}" for i, name in enumerate(names)],
        "image_class_labels.txt": [f"{i + 1} {i % num_classes + 1}" for i in range(len(images))],
        "train_test_split.txt": [f"{i + 1} {i // num_classes % 2}" for i in range(len(images))],
        "classes.txt": [f"{label + 1} {label + 1:03d}.Bird_{label}" for label in range(num_classes)],
    }
    path = folder / "CUB_200_2011.tgz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, lines in lists.items():
            add(archive, f"CUB_200_2011/{name}", "".join(f"{line}\n" for line in lines).encode())
        for name, image in zip(names, images, strict=True):
            add(archive, f"CUB_200_2011/images/{name}", image)
    return [path]


def untar(archives: list[Path], out: Path) -> None:
    """What one does by hand: every archive, then the class archives inside."""
    out.mkdir()
    for archive in archives:
        subprocess.run(["tar", "-xf", archive, "-C", out], check=True)
    for inner in sorted(out.glob("n*.tar")):
        folder = out / inner.stem
        folder.mkdir()
        subprocess.run(["tar", "-xf", inner, "-C", folder], check=True)
        inner.unlink()


def prepare(script: str, archives: list[Path], out: Path) -> None:
    command = [sys.executable, SCRIPTS / f"prepare_{script}.py", *archives, out, "--allow-other-counts"]
    subprocess.run(command, check=True, capture_output=True)


def seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    os.sync()
    return time.perf_counter() - started


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def large_set(folder: Path, rows: int) -> None:
    """A saved dataset of ImageNet's shape: 1,000 classes in order, one tiny PNG a row, each different."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(buffer, "PNG")
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=1000)})

    def split(count: int, salt: str) -> Dataset:
        labels = np.arange(count) * 1000 // count
        # Bytes after a PNG's end mean nothing to decoders; they make the images differ.
        images = [{"bytes": buffer.getvalue() + f"{salt}{i}".encode(), "path": f"{i}.png"} for i in range(count)]
        return Dataset.from_dict({"image": images, "label": labels}, features=features)

    DatasetDict(train=split(rows, "t"), validation=split(50_000, "v")).save_to_disk(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write, and to remove again (the temporary folder)")
    parser.add_argument("--images", type=int, default=20_000, help="in each archive")
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    import json

    import datasets
    import pyarrow

    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"datasets {datasets.__version__}, pyarrow {pyarrow.__version__}; n = {args.repeats}, median (min to max)\n")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        root = Path(scratch)
        generator = np.random.RandomState(0)
        distinct = [jpeg(generator) for _ in range(200)]
        images = [distinct[i % 200] + str(i).encode() for i in range(args.images)]
        print(f"preparing {args.images:,} images of {sum(map(len, images)) / len(images) / 1000:.0f} kB\n")
        print("| archive | tar -xf, s | prepare, s | ratio |\n|---|---|---|---|")
        for script, make in (("imagenet", imagenet_archives), ("cub200", cub_archive)):
            archives = make(root, images)
            os.sync()
            times: dict[str, list[float]] = {"tar": [], "prepare": []}
            for repeat in range(args.repeats):
                times["tar"].append(seconds(lambda: untar(archives, root / f"{script}-tar-{repeat}")))  # noqa: B023
                times["prepare"].append(
                    seconds(lambda: prepare(script, archives, root / f"{script}-out-{repeat}"))  # noqa: B023
                )
                for kind in ("tar", "out"):
                    subprocess.run(["rm", "-rf", root / f"{script}-{kind}-{repeat}"], check=True)
            ratios = [b / a for a, b in zip(times["tar"], times["prepare"], strict=True)]
            print(f"| {script} | {spread(times['tar'])} | {spread(times['prepare'])} | {spread(ratios)} |")

        print(f"\nopening {args.rows:,} + 50,000 rows\n")
        large_set(root / "large", args.rows)
        print("| held out | open and read labels, s | memory, MiB | check at start, s |\n|---|---|---|---|")
        for holdout in ("0.0", "0.01"):
            runs = []
            for _ in range(args.repeats):
                command = [sys.executable, "-c", OPEN, root / "large", holdout]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            opened, grown, checked = (list(column) for column in zip(*runs, strict=True))
            print(f"| {holdout} | {spread(opened)} | {spread(grown, 0)} | {spread(checked)} |")


if __name__ == "__main__":
    main()
