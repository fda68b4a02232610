"""The inputs of the prepare_*.py scripts: archives or folders, and the lists in them."""

from __future__ import annotations

import bz2
import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from archives import Member, Tree, index_folder, index_tar, index_zip

from cskd_hf.errors import UserError

BLOCK = 1 << 20
COMPRESSED: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),  # with gzip's header and checksum
    b"BZh": bz2.BZ2Decompressor,
}


class Input:
    """An archive, a folder or a single file; its SHA-256 is updated as it is read.

    Attributes:
        kind: folder, tar, compressed (a tar), zip or file.
        position: bytes that the SHA-256 covers.
        stamp: size and time of change, which identify it without reading it, whatever its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = "folder"
        self.position = 0
        self._sha256 = hashlib.sha256()
        try:
            if path.is_dir():
                self._files = index_folder(path)
                self.size = sum(member.size for member in self._files.members.values())
                listing = hashlib.sha256()
                for name, member in self._files.members.items():
                    listing.update(f"{name}\0{member.size}\0{member.offset}\0".encode(errors="surrogateescape"))
                self.stamp = [self.size, listing.hexdigest()]
                return
            with open(path, "rb") as file:
                status, start = os.fstat(file.fileno()), file.read(512)
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror}") from error
        self.size, self.stamp = status.st_size, [status.st_size, str(status.st_mtime_ns)]
        if start.startswith(b"PK\3\4"):
            self.kind = "zip"
        elif start.startswith(tuple(COMPRESSED)):
            self.kind = "compressed"
        else:
            # A tar from before 1988 has no magic bytes, but every tar has a checksum: octal, then a space or NUL.
            octal = re.fullmatch(rb" *[0-7]+[ \0]+", start[148:156])
            self.kind = "tar" if octal and len(start) == 512 else "file"

    def open(self, spool: Path, progress: Callable[[int], object]) -> Tree:
        """List the members.

        Args:
            spool: file to decompress a compressed tar to.
            progress: called with the number of compressed bytes that were read.

        Raises:
            UserError: the archive is truncated, damaged or unsafe; see `index_tar`.
        """
        if self.kind == "folder":
            return self._files
        if self.kind == "file":
            return Tree(self.path.parent, str(self.path), "folder", {self.path.name: Member(self.size)})
        if self.kind == "zip":
            return index_zip(self.path)
        if self.kind == "tar":
            return index_tar(self.path, str(self.path))
        failure = self._decompress(spool, progress)
        if failure is not None and spool.stat().st_size < 512:
            raise UserError(f"{self.path} is truncated or damaged before its first member: {failure}")
        try:
            tree = index_tar(spool, str(self.path))
        except UserError as error:  # names the member it ends in
            raise UserError(f"{error} ({failure})" if failure else str(error)) from failure
        if failure is not None:
            raise UserError(f"{self.path} is truncated or damaged at its end, after all its members: {failure}")
        return tree

    def _decompress(self, spool: Path, progress: Callable[[int], object]) -> Exception | None:
        """Write what can be decompressed; returns the error that stopped it before the end."""
        with open(self.path, "rb", buffering=0) as file, open(spool, "wb", buffering=BLOCK) as copy:
            decoder = None
            while block := file.read(BLOCK):
                self.feed(block)
                progress(len(block))
                while block:
                    if decoder is None or decoder.eof:  # streams may be concatenated, and padded with zeros
                        block = block.lstrip(b"\0")
                        magic = [magic for magic in COMPRESSED if block.startswith(magic)]
                        if not magic:
                            break
                        decoder = COMPRESSED[magic[0]]()
                    try:
                        copy.write(decoder.decompress(block))
                    except (OSError, zlib.error) as error:
                        if isinstance(error, OSError) and error.errno:  # of the disk; bz2 sets no errno
                            raise
                        return error
                    block = decoder.unused_data
        return None if decoder is not None and decoder.eof else EOFError("the compressed stream has no end")

    def advance(self, end: int | None = None) -> None:
        """Read on for the SHA-256, up to position `end` or to the end of the file."""
        end = self.size if end is None else end
        if self.kind == "folder" or self.position >= end:
            return
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.position)
            while self.position < end and (block := file.read(min(8 * BLOCK, end - self.position))):
                self.feed(block)

    def feed(self, block: bytes | memoryview) -> None:
        self._sha256.update(block)
        self.position += len(block)

    def describe(self) -> dict[str, Any]:
        """Entry of the manifest. A folder has no SHA-256: those of the splits identify its content."""
        if self.kind == "folder":
            return {"folder": self.path.resolve().name, "size": self.size, "sha256": None}
        self.advance()
        return {"file": self.path.name, "size": self.size, "sha256": self._sha256.hexdigest()}


def expand(paths: Sequence[Path], archives: Sequence[str]) -> list[Path]:
    """Replace a folder that holds the official archives by these."""
    expanded: list[Path] = []
    for path in paths:
        holds_archives = path.is_dir() and any((path / name).is_file() for name in archives[:1])
        expanded += [path / name for name in archives if (path / name).is_file()] if holds_archives else [path]
    return expanded


def locate(trees: Sequence[Tree], expected: str, *files: str) -> list[tuple[Tree, str]]:
    """(tree, member) of files by name in any folder, the outermost if there are several.

    Raises:
        UserError: a file is missing; `expected` is what the archives should contain.
    """
    members: dict[str, tuple[Tree, str]] = {}
    for tree in trees:
        for member in sorted(tree.members, key=lambda member: (member.count("/"), member)):
            members.setdefault(member.rsplit("/", 1)[-1], (tree, member))
    missing = [file for file in files if file not in members]
    if missing:
        raise missing_error(trees, expected, ", ".join(missing))
    return [members[file] for file in files]


def missing_error(trees: Sequence[Tree], expected: str, missing: str) -> UserError:
    """Names what is missing, what was expected and what the archives hold instead."""
    contents = []
    for tree in trees:
        names = list(tree.members)
        contents.append(f"{tree.shown} holds {', '.join(names[:3]) or 'nothing'}{', …' if len(names) > 3 else ''}")
    return UserError(f"found no {missing}; expected {expected}; {'; '.join(contents)}")


def lines(tree: Tree, member: str) -> Iterator[tuple[str, str]]:
    """(where, text) of the lines that are not blank, with either kind of line ending, with or without a BOM."""
    text = tree.read(member).decode("utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{member}, line {number}", line.strip()


def columns(tree: Tree, member: str, separator: str | None = None) -> Iterator[tuple[str, str, str]]:
    """(where, first column, second column) of the lines of a list."""
    for where, line in lines(tree, member):
        values = line.split(separator)
        if len(values) < 2:
            raise UserError(f"{where}: expected two columns, found {line!r}")
        yield where, values[0], values[1]


def image_folder(trees: Sequence[Tree], expected: str, wanted: Sequence[tuple[str, str]]) -> tuple[Tree, str]:
    """The tree of the images that a list names, and the prefix of their names in it.

    Args:
        wanted: (where, "class/file.jpg") of each image.

    Raises:
        UserError: there is no such folder, or an image is missing.
    """
    files = {file for _, file in wanted}
    folders: Counter[tuple[int, str]] = Counter()
    for number, tree in enumerate(trees):
        for member in tree.members:
            parts = member.rsplit("/", 2)
            if "/".join(parts[-2:]) in files:
                folders[number, "".join(f"{part}/" for part in parts[:-2])] += 1
    if not folders:
        raise missing_error(trees, expected, wanted[0][1] if wanted else "image")
    (number, folder), _ = folders.most_common(1)[0]
    tree = trees[number]
    missing = [(where, file) for where, file in wanted if folder + file not in tree.members]
    if missing:
        more = f" ({len(missing) - 1} more like it)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0][0]} names {missing[0][1]}, which is not in {tree.shown}{more}")
    return tree, folder
