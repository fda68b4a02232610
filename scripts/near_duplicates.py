"""Near duplicates among drawings: the same shape, wherever and however large it is drawn."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 32  # of a shape
BLOCK = 512  # rows compared at a time: 60 MB for 20,000 shapes


def shape_of(drawing: np.ndarray) -> np.ndarray | None:
    """The ink of a drawing, (S, S) uint8, dark on white, in the smallest square around it, scaled to 32 × 32.

    Returns:
        (1024,) bool, true where there is ink; None if there is none.
    """
    ink = 255 - drawing
    rows, columns = (np.flatnonzero((ink > 63).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side, margin = max(bottom - top, right - left), len(ink)
    x, y = (left + right - side) / 2 + margin, (top + bottom - side) / 2 + margin
    framed = Image.fromarray(np.pad(ink, margin))
    square = framed.resize((SIDE, SIDE), Image.Resampling.BOX, box=(x, y, x + side, y + side))
    return np.asarray(square).ravel() > 100


def similar_pairs(shapes: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of shapes that are at least this similar.

    The similarity is the smaller of two intersections over unions, that of the ink and that of the ground: a thin
    line differs from its neighbour in ink, a disc with a cross from a plain disc in ground.

    Args:
        shapes: (N, D) bool.
        least: in (0, 1].

    Returns:
        (M, 2) indices i < j, ascending, and the (M,) similarities.
    """
    ink = shapes.astype(np.float32)
    area, num_pixels = ink.sum(axis=1), shapes.shape[1]
    pairs, similarities = [], []
    for start in range(0, len(ink), BLOCK):
        common = ink[start : start + BLOCK] @ ink[start:].T  # exact: whole numbers below 2²⁴
        union = area[start : start + BLOCK, None] + area[start:] - common
        ground = (num_pixels - union) / np.maximum(num_pixels - common, 1)
        ground[common == num_pixels] = 1  # both are all ink
        similarity = np.minimum(common / np.maximum(union, 1), ground)
        found = np.argwhere(np.triu(similarity >= least, k=1))
        pairs.append(found + start)
        similarities.append(similarity[tuple(found.T)])
    return np.concatenate(pairs), np.concatenate(similarities)
