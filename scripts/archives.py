"""Read the members of tar and zip archives and of folders in place, without unpacking them.

A plain tar and a zip are read by offset. A compressed tar does not allow that: it is decompressed once into a temporary
tar next to the output. Archives that could write outside a folder if they were unpacked are rejected.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cskd_hf.errors import UserError

ZIP_HEADER = struct.Struct("<4s5H3I2H")


class Member(NamedTuple):
    """Position of a file's bytes; the last three fields are for zip archives only."""

    size: int
    offset: int = 0  # of the data; in a zip, of the local header in front of it
    packed: int = 0
    method: int = 0
    crc: int = 0


@dataclass(frozen=True)
class Tree:
    """The files of an archive or folder by name, such as "a/b.jpg".

    Attributes:
        path: the folder or archive; for a compressed tar, its decompressed copy.
        shown: its name in messages.
    """

    path: Path
    shown: str
    kind: str  # folder, tar or zip
    members: dict[str, Member]

    def only(self, names: Iterable[str]) -> Tree:
        """The tree with these members alone, which is cheaper to send to a worker process."""
        return Tree(self.path, self.shown, self.kind, {name: self.members[name] for name in names})

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """Open the archive; yields a function from a member's name to its bytes.

        Raises:
            UserError: the archive is truncated or damaged; the message names the member.
        """
        if self.kind == "folder":
            yield self._read_file
        else:
            with open(self.path, "rb", buffering=0) as file:
                yield lambda name: self._read_member(file.fileno(), name)

    def read(self, name: str) -> bytes:
        with self.reader() as read:
            return read(name)

    def _read_file(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.shown}: {name} cannot be read: {error.strerror}") from error

    def _read_member(self, file: int, name: str) -> bytes:
        member = self.members[name]
        if self.kind == "tar":
            data = os.pread(file, member.size, member.offset)
        else:
            header = ZIP_HEADER.unpack(os.pread(file, ZIP_HEADER.size, member.offset).ljust(ZIP_HEADER.size))
            data = os.pread(file, member.packed, member.offset + ZIP_HEADER.size + header[-2] + header[-1])
            try:
                data = zlib.decompress(data, -zlib.MAX_WBITS) if member.method == zipfile.ZIP_DEFLATED else data
            except zlib.error as error:
                raise UserError(f"{self.shown} is damaged: {name}: {error}") from error
            if zlib.crc32(data) != member.crc:
                raise UserError(f"{self.shown} is damaged: the checksum of {name} is wrong")
        if len(data) != member.size:
            raise UserError(f"{self.shown} is truncated: it ends inside {name}")
        return data


class _Window(io.RawIOBase):
    """Part of a file as a file object, from which `tarfile` reads headers."""

    def __init__(self, file: int, start: int, size: int) -> None:
        self.file, self.start, self.size, self.position = file, start, size, 0

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self.position, 0)
        data = os.pread(self.file, left if count < 0 else min(count, left), self.start + self.position)
        self.position += len(data)
        return data

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        self.position = position + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position


def index_tar(path: Path, shown: str, start: int = 0, size: int | None = None) -> Tree:
    """List the members of a plain tar, or of a tar at `start` inside another one.

    Raises:
        UserError: not a tar, truncated, or an unsafe member; the message names the member.
    """
    members: dict[str, Member] = {}
    last = ""
    with open(path, "rb", buffering=0) as file:
        window = _Window(file.fileno(), start, path.stat().st_size - start if size is None else size)
        try:
            archive = tarfile.TarFile(fileobj=window)
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # saves a kilobyte per member
                last = info.name
                kind = "" if (info.isreg() and not info.issparse()) or info.isdir() else "not a plain file"
                kind = "a link" if info.issym() or info.islnk() else "a device" if info.isdev() else kind
                name = safe_name(shown, info.name, kind)
                if info.isreg():
                    if info.offset_data + info.size > window.size:
                        raise UserError(f"{shown} is truncated: it ends inside {name}")
                    members[name] = Member(info.size, start + info.offset_data)
        except tarfile.TarError as error:
            after = f"is truncated or damaged after {last}" if last else "is not a tar archive"
            raise UserError(f"{shown} {after}: {error}") from error
        # tarfile stops silently at a header it cannot read; a complete tar ends with blocks of zeros.
        window.seek(archive.offset)
        if window.read(512) != bytes(512):
            raise UserError(f"{shown} is truncated or damaged after {last}: it has no end mark")
    return Tree(path, shown, "tar", members)


def index_zip(path: Path) -> Tree:
    """List the members of a zip; raises like `index_tar`."""
    members: dict[str, Member] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is truncated or damaged: it ends inside or after {_last_in_zip(path)}") from error
    for info in infos:
        mode = stat.S_IFMT(info.external_attr >> 16)
        kind = "a link" if mode == stat.S_IFLNK else "a device" if mode not in (0, stat.S_IFREG, stat.S_IFDIR) else ""
        name = safe_name(str(path), info.orig_filename, kind)
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: {name} is encrypted or not compressed with deflate")
        if not info.is_dir():
            members[name] = Member(info.file_size, info.header_offset, info.compress_size, info.compress_type, info.CRC)
    return Tree(path, str(path), "zip", members)


def _last_in_zip(path: Path) -> str:
    """Name of the last member that has a header; a truncated zip lacks the directory at its end."""
    position, last = 0, "its first member"
    with open(path, "rb") as file:
        while len(block := file.read(ZIP_HEADER.size)) == ZIP_HEADER.size and block.startswith(b"PK\3\4"):
            header = ZIP_HEADER.unpack(block)
            name = file.read(header[-2])
            last = name.decode(errors="replace") if len(name) == header[-2] else last
            position += ZIP_HEADER.size + header[7] + header[-2] + header[-1]
            file.seek(position)
    return last


def index_folder(path: Path) -> Tree:
    """List the files below a folder, except hidden ones; links are followed.

    A member's `offset` is its modification time here, so that two versions of a file differ.
    """
    members = {}
    for parent, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = "" if parent == str(path) else f"{os.path.relpath(parent, path)}/"
        for name in sorted(names):
            if not name.startswith("."):
                status = os.stat(os.path.join(parent, name))
                members[prefix + name] = Member(status.st_size, status.st_mtime_ns)
    return Tree(path, str(path), "folder", members)


def safe_name(shown: str, name: str, kind: str) -> str:
    """A member's name without "./"; `kind` is what else than a plain file it is, for the message, or "".

    Raises:
        UserError: unpacking the member could write outside the folder.
    """
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        kind = "an absolute path"
    elif ".." in parts:
        kind = "a path that leaves the folder"
    if kind:
        raise UserError(f"{shown} is not safe: its member {name!r} is {kind}")
    return "/".join(part for part in name.split("/") if part not in ("", "."))
