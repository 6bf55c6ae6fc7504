"""The arithmetic of mAP@K."""

import numpy as np


def average_precision_per_query(hits: np.ndarray, num_targets: np.ndarray, k: int) -> np.ndarray:
    """AP@K of each query: the sum of the precisions at the hits up to rank K, over min(targets, K).

    Args:
        hits (`np.ndarray` of shape `(Q, max_k)`, bool): From `find_hits`.
        num_targets (`np.ndarray` of shape `(Q,)`): All targets of each query, found or not; at least 1.
        k (`int`): 1 <= k <= max_k.

    Returns:
        `np.ndarray` of shape `(Q,)`: Fractions in [0, 1].
    """
    first: np.ndarray = hits[:, :k].astype(np.float64)
    precisions = first.cumsum(axis=1) / np.arange(1, k + 1)  # (Q, K)
    return (precisions * first).sum(axis=1) / np.minimum(num_targets, k)
