"""The other processes of a run: who they are, and which of them is gone when the others can no longer go on."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import DistError, TCPStore


class Peers:
    """Knows every process by rank, host and pid, and calls the roll when a collective has failed. A collective.

    The roll is called at a store of its own in process 0: torch's collectives cannot be asked anything once one of
    them has failed.

    Args:
        accelerator: its processes.

    Attributes:
        names: "process 1 on HOST (pid 123)", by rank.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank = accelerator.process_index
        self.names: list[str] = gather_object([f"process {self.rank} on {socket.gethostname()} (pid {os.getpid()})"])
        self.store: TCPStore | None = None
        if len(self.names) > 1:
            # Where the launcher's own store is, process 0 is.
            host, port = os.environ.get("MASTER_ADDR", "localhost"), 0
            if self.rank == 0:
                self.store = _store(host, 0, True)
                port = self.store.port
            port = broadcast_object_list([port])[0]
            self.store = self.store or _store(host, port, False)
            self.address = (host, port)

    def missing(self, patience: float = 5.0) -> list[int]:
        """Ranks that do not answer the roll. Every process that still lives calls it, at about the same time.

        Args:
            patience: seconds that the others have to answer.
        """
        assert self.store is not None
        end = time.monotonic() + patience
        absent = set(range(len(self.names)))
        try:
            # Asked first, because the store's own client tells of a lost server by pages of stack frames.
            socket.create_connection(self.address, timeout=patience).close()
            self.store.set(f"here/{self.rank}", "")
            while absent and time.monotonic() < end:
                absent -= {rank for rank in absent if self.store.check([f"here/{rank}"])}
                time.sleep(0.1)
        except (DistError, OSError):
            return [0]  # the store is in process 0, and gone with it
        if self.rank == 0:
            time.sleep(1.0)  # who asks last shall still find the store
        return sorted(absent)


def _store(host: str, port: int, is_master: bool) -> TCPStore:
    return TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=60))


def is_broken_collective(error: BaseException) -> bool:
    """Whether a collective failed because of another process; gloo has no type of its own for that."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
