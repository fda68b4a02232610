"""Images of a dataset that training can open, as the shards of another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.draws import rank_in_class
from cskd_hf.data.duplicates import read_content
from cskd_hf.data.splits import ImageSplit
from cskd_hf.errors import UserError

ROWS_PER_READ = 64


def draw(labels: np.ndarray, per_class: np.ndarray | int, seed: int) -> np.ndarray:
    """Indices of random images, ascending: at most `per_class` of each class, one number or (K,)."""
    # NumPy guarantees RandomState's stream: every version draws the same.
    rank = rank_in_class(labels, np.random.RandomState(seed).permutation(len(labels)))
    return np.flatnonzero(rank < (per_class if isinstance(per_class, int) else per_class[labels]))


@dataclass(frozen=True)
class StoredImages:
    """A `Shard` with the rows of a split; images keep their bytes.

    Args:
        num_bytes: estimate for the progress bar; 0 if unknown.
        first_label: new label of the split's class 0.
    """

    split: ImageSplit
    num_bytes: int = 0
    first_label: int = 0

    end = 0

    @property
    def path(self) -> Path:
        return Path(self.split.name)

    @property
    def num_images(self) -> int:
        return len(self.split)

    def images(self) -> Iterator[tuple[int, str, bytes]]:
        """(label, file name, content) of each, a few rows in memory at a time.

        Raises:
            UserError: see `content`.
        """
        for start in range(0, len(self.split), ROWS_PER_READ):
            rows = range(start, min(start + ROWS_PER_READ, len(self.split)))
            for row, image in zip(rows, self.split.fetch(rows), strict=True):
                name = image["path"] or f"{self.split.name}_{self.split.rows[row]}"
                yield self.first_label + int(self.split.labels[row]), name, self.content(row, image)

    def content(self, row: int, image: Mapping[str, Any]) -> bytes:
        """The bytes to store for a row.

        Raises:
            UserError: the row has no image, or its file cannot be read.
        """
        try:
            return read_content(image)
        except UnreadableImageError as error:
            raise UserError(f"{self.split.describe(row, image)}: {error}") from None
