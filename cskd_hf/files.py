"""Files that are complete or absent, never half-written, and their checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


_SPACE = "free some disk space"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "free some of your disk quota",
    errno.EFBIG: "use a file system that takes larger files",
    errno.EROFS: "make the file system writable again",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.ESTALE: "remount the network file system",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096) or lower data.workers",
    errno.ENFILE: "close other programs: the system has too many open files",
}


def advice(error: OSError, folder: Path) -> str | None:
    """What to do about an error of the file system; None if it is none.

    Args:
        folder: where the file was to be written. Libraries that write by themselves do not say that the disk is full.
    """
    if error.errno is not None:
        return _ADVICE.get(error.errno)
    with contextlib.suppress(OSError):
        return _SPACE if shutil.disk_usage(folder).free < 1 << 20 else None
    return None


def sha256(path: Path) -> str:
    """64 hexadecimal digits, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` atomically. The mode follows the umask."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # half a file on a full disk
        raise


def write_text(path: Path, content: str) -> None:
    """Replace `path` atomically, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` atomically with indented JSON, which has neither NaN nor infinity: they become null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Replace `path` atomically with a safetensors file.

    Args:
        path: the file.
        tensors: any device, layout or sharing; a contiguous CPU copy of each is written.
        metadata: the header's strings; transformers wants `{"format": "pt"}` with weights.
    """
    from safetensors.torch import save

    # Safetensors rejects tensors that share memory or are channels_last; others are not copied, they may be large.
    copies: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        copies[name] = copy.clone() if copy.untyped_storage().data_ptr() in storages else copy
        storages.add(copy.untyped_storage().data_ptr())
    # Not `save_file`: it makes the file private to its owner, whatever the umask.
    write_bytes(path, save(copies, metadata=None if metadata is None else dict(metadata)))
