"""What stages draw: seeds, and prompts taken from stored masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Seed = tuple[int, int]
"""Of a training, and the number of the stage: two stages of a kind draw other batches."""

BOX_LABELS = (2, 3)
POINT_LABELS = (1,)
_INSIDE = 250  # of 255: a cell that a point prompt may be in


def inside_point(rng: np.random.Generator, mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A random point (1, 2) well inside a mask of (M, M) shares, 255 all; in shares of the sides."""
    rows, columns = np.nonzero(mask >= min(_INSIDE, int(mask.max())))
    index, side = int(rng.integers(len(rows))), mask.shape[0]
    return np.asarray([[(columns[index] + rng.random()) / side, (rows[index] + rng.random()) / side]])
