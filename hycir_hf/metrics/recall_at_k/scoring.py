"""The arithmetic of R@K."""

import numpy as np


def recall_per_query(hits: np.ndarray, k: int) -> np.ndarray:
    """R@K of each query: 1 if any target is among the first K, else 0.

    Args:
        hits (`np.ndarray` of shape `(Q, max_k)`, bool): From `find_hits`.
        k (`int`): 1 <= k <= max_k.

    Returns:
        `np.ndarray` of shape `(Q,)`: 0.0 or 1.0.
    """
    return hits[:, :k].any(axis=1).astype(np.float64)
