"""Class folders: which files are images, and a count of every file that is left out.

Not `datasets`' imagefolder, which also assigns files to splits by words in their names (`train/robin/test_1.jpg` would
be trained and tested on) and gives each split its own list of classes.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from cskd_hf.data.choose import Choose, is_split_word
from cskd_hf.data.formats import DECODERS, readable_extensions
from cskd_hf.data.labels import some, timm_order
from cskd_hf.errors import UserError

MAX_EXAMPLES = 3  # paths that a note lists


@dataclass
class ScannedFolder:
    """The files below the class folders of one split.

    Attributes:
        images: (path, class), sorted by class, folder and name.
        left_out: kind → class → files and folders that are not read; the class is "" beside the class folders.
        examples: kind → the first of their paths, from the class folder on.
        nested: class → images in folders below the class folder.
    """

    images: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    nested: Counter[str] = field(default_factory=Counter)

    def leave_out(self, kind: str, name: str, path: str) -> None:
        self.left_out.setdefault(kind, Counter())[name] += 1
        if len(examples := self.examples.setdefault(kind, [])) < MAX_EXAMPLES:
            examples.append(path)

    def notes(self, split: str) -> tuple[str, ...]:
        """What was left out, by kind and class, with some of the paths, and what was read from nested folders."""
        notes = []
        if self.left_out:
            counts = [
                f"{kind}: {_count(self.left_out[kind])}, such as {', '.join(self.examples[kind])}"
                + ", …" * (self.left_out[kind].total() > MAX_EXAMPLES)
                for kind in sorted(self.left_out)
            ]
            notes.append(f"split {split!r}: left out {'; '.join(counts)}")
        if self.nested:
            nested = _count(self.nested)
            notes.append(f"split {split!r}: images in nested folders, of the outermost folder's class: {nested}")
        return tuple(notes)


def _count(by_class: Counter[str]) -> str:
    """The total and, in brackets, each class with its number."""
    of_class = [f"{by_class[name]:,} in {name}" for name in timm_order(by_class) if name]
    return f"{by_class.total():,}" + (f" ({some(of_class)})" if of_class else "")


def open_class_folders(root: Path, choose: Choose) -> tuple[DatasetDict, dict[str, tuple[str, ...]]]:
    """`root/split/class/**/image`, all splits sharing one list of classes, in timm's order; or `root/class/**/image`.

    Returns:
        The chosen splits, and remarks about each. A folder without splits is one, `train`.

    Raises:
        UserError: a split has no folder or no images, a class folder holds other files only, or a file's name is not
            UTF-8.
    """
    folders = split_folders(root)
    if not folders:
        raise UserError(
            f"data.dataset: {root} has no images that can be read; they lie in split/class/*.jpg or class/*.jpg"
        )
    splits = choose(folders)
    scanned = {split: scan(folders[split]) for split in splits}
    class_names = timm_order(name for folder in scanned.values() for _, name in folder.images)
    features = Features({"image": Value("string"), "label": ClassLabel(names=class_names)})
    number = {name: label for label, name in enumerate(class_names)}
    notes = {split: folder.notes(split) for split, folder in scanned.items()}
    loose = sum(_why_left_out(entry) == "" for entry in _entries(root))
    if loose and root not in folders.values():
        notes[splits[0]] += (f"left out images beside the folders of the splits: {loose:,}",)
    tables = {}
    for split, folder in scanned.items():
        columns = {"image": [path for path, _ in folder.images], "label": [number[name] for _, name in folder.images]}
        tables[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(tables), notes


def split_folders(root: Path) -> dict[str, Path]:
    """Split → its folder; if the folders are classes, which hold images, the root is the only split.

    The splits may also lie in the only folder of the root, as `data`.
    """
    folders = {entry.name: Path(entry.path) for entry in _entries(root) if _why_left_out(entry) == "folder"}
    # `train` may also be a class, beside `car`.
    if any(is_split_word(name) and _holds(folder, "folder") for name, folder in folders.items()):
        return folders
    if any(not is_split_word(name) and _holds(folder, "") for name, folder in folders.items()):
        return {"train": root}
    inside = split_folders(*folders.values()) if len(folders) == 1 else {}
    return (
        inside if any(_holds(folder, "folder") and is_split_word(name) for name, folder in inside.items()) else folders
    )


def _holds(folder: Path, kind: str) -> bool:
    """Whether anything in the folder is of this kind, see `_why_left_out`."""
    with os.scandir(folder) as entries:
        return any(_why_left_out(entry) == kind for entry in entries)


def scan(folder: Path) -> ScannedFolder:
    """Find the images below `folder/class`. Links are followed; no file is opened."""
    found, classes, imageless = ScannedFolder(), [], []
    for entry in _entries(folder):
        kind = _why_left_out(entry)
        if kind == "folder":
            classes.append(entry)
        else:
            found.leave_out(kind if kind in _UNSEEN else f"{kind or 'images'} beside the class folders", "", entry.name)
    for entry in classes:
        num_images = len(found.images)
        _scan_class(Path(entry.path), folder, [os.path.realpath(folder)], found)
        if len(found.images) == num_images:
            counts = {kind: found.left_out[kind][entry.name] for kind in sorted(found.left_out)}
            visible = [f"{kind}: {count:,}" for kind, count in counts.items() if count and kind not in _UNSEEN]
            if visible:
                imageless.append(f"{entry.path} has no image that can be read, but {'; '.join(visible)}")
            else:
                found.leave_out("class folders without images", entry.name, entry.name)
    for path, _ in found.images:
        if not path.isascii() and path != path.encode(errors="replace").decode():
            raise UserError(f"data.dataset: the file name {os.fsencode(path)!r} is not UTF-8; rename it")
    if not found.images:
        details = "".join(f"; {note}" for note in found.notes(folder.name))
        raise UserError(f"data.dataset: {folder} has no images; put them in {folder}/class/*.jpg{details}")
    if imageless:  # the class would vanish
        raise UserError(f"data.dataset: {imageless[0]}; rename or convert them, or remove the folder")
    return found


def _scan_class(folder: Path, root: Path, around: list[str], found: ScannedFolder) -> None:
    """Add the images of a folder, then those of the folders in it.

    Args:
        root: the folder of the split, which holds the class folders.
        around: the real paths of the folders that it is in, from `root` on.
    """
    name = folder.relative_to(root).parts[0]  # the class
    real_path = os.path.realpath(folder)
    if real_path in around:  # an endless loop
        found.leave_out("links to a folder that they are in", name, os.path.relpath(folder, root))
        return
    folders = []
    for entry in _entries(folder):
        kind = _why_left_out(entry)
        if kind == "folder":
            folders.append(Path(entry.path))
        elif kind:
            found.leave_out(kind, name, os.path.relpath(entry.path, root))
        else:
            found.images.append((entry.path, name))
            if len(around) > 1:
                found.nested[name] += 1
    for below in folders:
        _scan_class(below, root, [*around, real_path], found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


# Folders that storage boxes, archivers and operating systems put beside the images.
_SYSTEM = ("@eaDir", "@Recycle", "#recycle", "#snapshot", "__MACOSX", "$RECYCLE.BIN", "lost+found")
# Kinds that nobody misses: a class folder with nothing else counts as empty.
_UNSEEN = ("hidden files", "hidden folders", "macOS ._ files", *(f"{name} folders" for name in _SYSTEM))


def _why_left_out(entry: os.DirEntry[str]) -> str:
    """The kind of a file that is not read; "folder" for one to look into, "" for an image."""
    hidden = entry.name.startswith(".")
    if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
        if entry.name in _SYSTEM:
            return f"{entry.name} folders"
        return "hidden folders" if hidden else "folder"
    if hidden:
        return "macOS ._ files" if entry.name.startswith("._") else "hidden files"
    if not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
        # Reading a pipe would block forever.
        return "pipes, sockets and devices" if os.path.exists(entry.path) else "broken links"
    extension = os.path.splitext(entry.name)[1].lower()
    if extension in readable_extensions():
        return ""
    if extension in DECODERS:
        return f"{extension} files, {DECODERS[extension]}"
    return f"{extension} files" if extension else "files without extension"
