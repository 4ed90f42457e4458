"""Questions that depend on each other, as the clusters that intervals take together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

CLUSTER_BY = ("group", "subject", "none")
"""What the questions of a cluster can have in common."""


def cluster_index(names: Sequence[Hashable | None]) -> NDArray[np.int64] | None:
    """Clusters by name: rows of one name belong together, a row without a name stands alone.

    Returns:
        int64 (N,); None where every row stands alone, which is what all functions take for independent rows.

    >>> cluster_index(["a", None, "a", None]).tolist()
    [0, 1, 0, 2]
    """
    known: dict[Hashable, int] = {}
    index = [known.setdefault((row,) if name is None else name, len(known)) for row, name in enumerate(names)]
    return np.array(index, dtype=np.int64) if len(known) < len(index) else None
