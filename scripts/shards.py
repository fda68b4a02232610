"""Shards: the images of an archive, a folder or another dataset that go into one Arrow file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from archives import Tree, index_tar

Item = TypeVar("Item")
Row: TypeAlias = tuple[int, str, bytes]  # label, file name, content


class Shard(Protocol):
    """Images that are stored in one file.

    Attributes:
        path: the archive or folder they come from, for messages.
        num_images: None if it is unknown before reading.
        num_bytes: about what is read, for the progress bar.
        end: position in the archive behind the last image; 0 where it is not read from start to end.
    """

    @property
    def path(self) -> Path: ...
    @property
    def num_images(self) -> int | None: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def end(self) -> int: ...

    def images(self) -> Iterator[Row]:
        """Each image."""


class InMemory(NamedTuple):
    """Images that are in memory already."""

    path: Path
    rows: Sequence[Row]
    end: int = 0

    @property
    def num_images(self) -> int:
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        return sum(len(content) for _, _, content in self.rows)

    def images(self) -> Iterator[Row]:
        return iter(self.rows)


@dataclass(frozen=True)
class Listed:
    """Members of an archive or folder in the order of a list; `rows` are (label, member)."""

    tree: Tree
    rows: tuple[tuple[int, str], ...]

    @property
    def path(self) -> Path:
        return self.tree.path

    @property
    def num_images(self) -> int:
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        return sum(member.size for member in self.tree.members.values())

    @property
    def end(self) -> int:
        """Position in the archive behind the last of the images."""
        ends = [member.offset + member.size for member in self.tree.members.values()]
        return 0 if self.tree.kind == "folder" else max(ends, default=0)

    def images(self) -> Iterator[Row]:
        with self.tree.reader() as read:
            for label, name in self.rows:
                yield label, name, read(name)


class ClassTar(NamedTuple):
    """The tar of one class: a file, or a member of an outer tar."""

    label: int
    path: Path
    shown: str
    start: int
    size: int


@dataclass(frozen=True)
class ClassTars:
    """Images of whole classes, by class and then by file name."""

    tars: tuple[ClassTar, ...]

    @property
    def path(self) -> Path:
        return self.tars[0].path

    @property
    def num_images(self) -> None:
        return None

    @property
    def num_bytes(self) -> int:
        return sum(tar.size for tar in self.tars)

    @property
    def end(self) -> int:
        return max(tar.start + tar.size for tar in self.tars)

    def images(self) -> Iterator[Row]:
        for tar in self.tars:
            tree = index_tar(tar.path, tar.shown, tar.start, tar.size)
            with tree.reader() as read:
                for name in sorted(tree.members):
                    yield tar.label, name, read(name)


def even_parts(items: Sequence[Item], sizes: Sequence[int], limit: int) -> list[Sequence[Item]]:
    """Contiguous parts of about `limit` bytes each, none of them empty unless all are."""
    total = sum(sizes)
    num_parts = max(1, round(total / limit))
    parts: list[list[Item]] = [[] for _ in range(num_parts)]
    before = 0
    for item, size in zip(items, sizes, strict=True):
        parts[min(num_parts - 1, (2 * before + size) * num_parts // max(1, 2 * total))].append(item)
        before += size
    return [part for part in parts if part] or [[]]


def listed(tree: Tree, rows: Sequence[tuple[int, str]], shard_bytes: int) -> list[Listed]:
    """The shards of a split that a list defines."""
    parts = even_parts(rows, [tree.members[name].size for _, name in rows], shard_bytes)
    return [Listed(tree.only(name for _, name in part), tuple(part)) for part in parts]
