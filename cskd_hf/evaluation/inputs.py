"""What a command line names, checked before torch is imported: the images to predict, the files to write."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cskd_hf.errors import UserError

if TYPE_CHECKING:
    from cskd_hf.data.corruptions import Corruption

MAX_HEADER = 99_000_000  # bytes; safetensors allows 100 million
MAPS = ("temperature", "vector", "isotonic")  # of logits, see calibrators.py


def parse_names(text: str, option: str, allowed: Collection[str]) -> list[str]:
    """Names separated by commas, each once; raises UserError unless all are allowed."""
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise UserError(f"{option}: read {unknown[0]!r}; allowed: {', '.join(allowed)}")
    return names


def parse_coverages(text: str, option: str) -> list[float]:
    """Coverages separated by commas, each once; raises UserError unless all are numbers between 0 and 1."""
    if not re.fullmatch(r"0?\.\d*[1-9]\d*(,0?\.\d*[1-9]\d*)*", text):
        raise UserError(f"{option}: read {text!r}; write shares between 0 and 1, such as 0.9 or 0.8,0.9,0.95")
    return list(dict.fromkeys(map(float, text.split(","))))


def find_images(arguments: Sequence[str]) -> list[str]:
    """Image files in the order of the arguments, each once; those of a folder or pattern are sorted.

    Args:
        arguments: a file, taken as it is; a folder, of whose files, at any depth, those with an image's extension are
            taken; a glob pattern, where ** stands for folders at any depth; or - for files and folders on standard
            input, one a line.

    Raises:
        UserError: a folder has no image, a pattern no match, no file exists, or several processes would read standard
            input. One missing among others is returned: it counts as unreadable.
    """
    paths: list[str] = []
    for argument in arguments:
        if argument == "-":
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each would read a part of it
                raise UserError("-: several processes cannot share standard input; name a folder, or start one process")
            lines = sys.stdin.buffer.read().splitlines()
            named = [os.fsdecode(line) for line in lines if line.strip()]
            if not named:
                raise UserError("-: standard input is empty; write a path on each line")
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            named = sorted(glob.glob(argument, recursive=True))
            if not named:
                raise UserError(f"{argument}: no file matches this pattern")
        else:
            named = [argument]
        for name in named:
            paths += _images_below(name) if os.path.isdir(name) else [name]
    paths = list(dict.fromkeys(paths))
    if not any(map(os.path.exists, paths)):
        others = f" (nor the other {len(paths) - 1})" if len(paths) > 1 else ""
        raise UserError(f"{paths[0]}: no such file{others}; name images, folders or patterns")
    for path in paths:
        if not path.isascii() and path != path.encode(errors="replace").decode():
            raise UserError(f"the file name {os.fsencode(path)!r} is not UTF-8; rename it")
    return paths


def _images_below(folder: str) -> list[str]:
    """Sorted; hidden files and folders are skipped."""
    from cskd_hf.data.formats import readable_extensions

    extensions, images = readable_extensions(), list[str]()
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        visible = [name for name in files if not name.startswith(".")]
        images += [os.path.join(parent, name) for name in visible if Path(name).suffix.lower() in extensions]
    if not images:
        raise UserError(f"{folder}: no image in this folder or below it; images end in .jpg, .png, .webp, …")
    return sorted(images)


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """Check that files can be written, before the work whose results they take.

    Raises:
        UserError: the folder of an option's file is missing or not writable, it is a folder, or two options name it.
    """
    options = dict[Path, str]()
    for option, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise UserError(f"{option}: {path} is a folder; name a file")
        if not path.parent.is_dir():
            raise UserError(f"{option}: {path.parent} is no folder; create it, or name a file elsewhere")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise UserError(f"{option}: {path.parent} is not writable; name a file elsewhere")
        first = options.setdefault(path.resolve(), option)
        if first != option:
            raise UserError(f"{option}: {path} is also the file of {first}; name another one")


def check_header(paths: Sequence[str], option: str) -> None:
    """Raises UserError unless a safetensors file has room for the paths."""
    header = json.dumps(json.dumps(list(paths), ensure_ascii=False), ensure_ascii=False).encode()
    if len(header) > MAX_HEADER:
        raise UserError(
            f"{option}: {len(paths):,} paths of {len(header):,} bytes do not fit into a safetensors file, which holds "
            f"{MAX_HEADER:,}; run the command on parts of the images, or with shorter paths"
        )


def parse_heights(text: str) -> list[int]:
    """The image heights that `--resolution` names, each once."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise UserError(f"--resolution: read {text!r}; write pixels separated by commas, such as 160,192,224")
    return [int(height) for height in dict.fromkeys(text.split(","))]


def parse_corruptions(kinds: str, severities: str) -> list[Corruption]:
    """The corruptions that `--corruptions` and `--severities` name, by kind, each once.

    Raises:
        UserError: there is no such kind or severity, or the library is not installed.
    """
    from cskd_hf.data.corruptions import KINDS, SEVERITIES, Corruption, require_library

    chosen = parse_names(kinds, "--corruptions", ("all", *KINDS))
    for severity in severities.split(","):
        if severity not in map(str, SEVERITIES):
            raise UserError(f"--severities: read {severity!r}; write some of 1,2,3,4,5")
    require_library()
    levels = sorted(set(map(int, severities.split(","))))
    return [Corruption(kind, severity) for kind in (KINDS if "all" in chosen else chosen) for severity in levels]


def parse_ood(arguments: Sequence[str]) -> list[str]:
    """The datasets and folders that the `--ood` options name, each once; a comma separates names."""
    names = [name for text in arguments for name in ([text] if os.path.exists(text) else text.split(","))]
    if not all(names):
        raise UserError("--ood: read an empty name; write datasets or folders separated by commas")
    return list(dict.fromkeys(names))
