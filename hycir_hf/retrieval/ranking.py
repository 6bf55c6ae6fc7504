"""Ranking whole galleries for many queries at once: blocked matrix products and a partial top-k, in bounded memory.

`Gallery.search` answers queries against a kept index, one set of allowed images at a time. A benchmark asks thousands
of queries, each without its own reference. That is one matrix product; everything else here costs a few percent of it.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

_PRODUCT_ELEMENTS = 2**27  # scores held at once (512 MB): a matrix product is slow in thin slices
_SELECTED_ELEMENTS = 2**19  # scores searched at once, so that they stay in the processor's cache
_GROUPS_PER_RANK = 4
_LOW_32_BITS = 0xFFFFFFFF


def rank_gallery(
    query_features: Any,
    gallery_features: Any,
    k: int,
    exclude_rows: Sequence[Sequence[int]] | None = None,
    *,
    product_elements: int = _PRODUCT_ELEMENTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k gallery images with the highest inner product for each query.

    Args:
        query_features (`np.ndarray` or `torch.Tensor` of shape `(Q, D)`): Finite.
        gallery_features (`np.ndarray` or `torch.Tensor` of shape `(N, D)`): Finite.
        k (`int`): At least 1, at most the images left to each query.
        exclude_rows (`Sequence` of Q rows, *optional*): Gallery rows that a query never finds: its own reference.
        product_elements (`int`): Scores held at once.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Gallery rows (int64) and scores (float32), both `(Q, k)`, best first; equal
        scores in gallery order.

    Raises:
        ValueError: If widths differ, features are not finite, an excluded row is none of the gallery's, or fewer than
            k images are left to a query.
    """
    queries, gallery = _as_matrix(query_features, "query features"), _as_matrix(gallery_features, "gallery features")
    _check_request(queries, gallery, k, exclude_rows)
    rows: np.ndarray = np.empty((len(queries), k), dtype=np.int64)
    scores: np.ndarray = np.empty((len(queries), k), dtype=np.float32)
    counts = [len(excluded) for excluded in exclude_rows or ()]
    out_queries: np.ndarray = np.repeat(np.arange(len(counts)), counts)  # (E,) rising
    out_rows = np.fromiter(chain.from_iterable(exclude_rows or ()), np.int64, len(out_queries))
    num_blocks = max(1, -(-len(queries) * len(gallery) // product_elements))
    step = max(1, -(-len(queries) // num_blocks))
    buffer: np.ndarray = np.empty((step, len(gallery)), dtype=np.float32)
    for start in range(0, len(queries), step):
        block = slice(start, min(start + step, len(queries)))
        product = np.matmul(queries[block], gallery.T, out=buffer[: block.stop - start])  # (B, N)
        out = slice(np.searchsorted(out_queries, block.start), np.searchsorted(out_queries, block.stop))
        product[out_queries[out] - start, out_rows[out]] = -np.inf
        slice_rows = max(1, _SELECTED_ELEMENTS // len(gallery))
        for first in range(0, len(product), slice_rows):
            found = slice(start + first, min(start + first + slice_rows, block.stop))
            rows[found], scores[found] = _select_top(product[first : first + slice_rows], k)
    return rows, scores


def rank_candidates(query_features: Any, gallery_features: Any, candidates: Sequence[Sequence[int]]) -> list[list[int]]:
    """Order each query's own few gallery rows by inner product: CIRR's subsets.

    Args:
        query_features (`np.ndarray` or `torch.Tensor` of shape `(Q, D)`): Finite.
        gallery_features (`np.ndarray` or `torch.Tensor` of shape `(N, D)`): Finite.
        candidates (`Sequence` of Q rows): The gallery rows of each query.

    Returns:
        `list[list[int]]`: The same rows, best first; equal scores in gallery order.

    Raises:
        ValueError: If widths differ, features are not finite, or there are not Q rows of candidates.
    """
    queries, gallery = _as_matrix(query_features, "query features"), _as_matrix(gallery_features, "gallery features")
    if len(candidates) != len(queries) or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Expected candidates for each of {len(queries)} queries, and one width, but found {len(candidates)} "
            f"candidates and the widths {queries.shape[1]} and {gallery.shape[1]}."
        )
    ranked = []
    for query, rows in zip(queries, candidates, strict=True):
        in_order = np.sort(np.asarray(rows, dtype=np.int64))
        best = np.argsort(-(gallery[in_order] @ query), kind="stable")
        ranked.append(in_order[best].tolist())
    return ranked


def _select_top(product: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values `(B, k)` of the k largest of each row of `(B, N)`, in order.

    The columns are cut into groups. The k-th largest of the groups' maxima is at most the k-th largest of the row, so
    what lies below it is out, and little more than k is left to be sorted.
    """
    num_rows, num_columns = product.shape
    group_size = max(1, num_columns // (_GROUPS_PER_RANK * k))
    num_groups = num_columns // group_size
    grouped = product[:, : num_groups * group_size].reshape(num_rows, group_size, num_groups)
    bounds = np.partition(grouped.max(axis=1), num_groups - k, axis=1)[:, num_groups - k]  # (B,)
    found = np.flatnonzero(product >= bounds[:, None])
    rows, columns = np.divmod(found, num_columns)
    counts = np.bincount(rows, minlength=num_rows)
    places = np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts)
    # One integer a candidate, the score in its upper and the column in its lower half, sorts by score, then column.
    keys = np.full((num_rows, counts.max()), np.iinfo(np.int64).max)
    keys[rows, places] = (~_sortable(product.ravel()[found]) << 32) | columns
    keys.sort(axis=1)
    best = keys[:, :k]  # (B, k)
    return best & _LOW_32_BITS, _unsortable(~(best >> 32))


def _sortable(scores: np.ndarray) -> np.ndarray:
    """Integers in the order of float32 scores (the bit patterns of negative numbers run backwards)."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 becomes 0.0
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _unsortable(integers: np.ndarray) -> np.ndarray:
    """The scores of `_sortable`'s integers."""
    return np.where(integers < 0, integers ^ 0x7FFFFFFF, integers).astype(np.int32).view(np.float32)


def _as_matrix(features: Any, what: str) -> np.ndarray:
    if hasattr(features, "detach"):  # a torch tensor, without importing torch
        features = features.detach().cpu().float().numpy()
    array = np.ascontiguousarray(features, dtype=np.float32)
    if array.ndim != 2 or not len(array):
        raise ValueError(f"Expected {what} of shape (rows, D), but found shape {array.shape}.")
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(array.sum(axis=1)))  # NaN and infinity stay in a sum, and it is quick
    bad = suspects[~np.isfinite(array[suspects]).all(axis=1)]
    if len(bad):
        raise ValueError(
            f"{len(bad)} rows of the {what} hold NaN or infinity, the first is row {bad[0]}. Check that image, or "
            "encode in float32."
        )
    return array


def _check_request(
    queries: np.ndarray, gallery: np.ndarray, k: int, exclude_rows: Sequence[Sequence[int]] | None
) -> None:
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Expected query features of width {gallery.shape[1]}, but found {queries.shape[1]}. Use the gallery's "
            "encoder."
        )
    if exclude_rows is not None and len(exclude_rows) != len(queries):
        raise ValueError(
            f"exclude_rows holds {len(exclude_rows)} lists for {len(queries)} queries. Give one for each; it may be "
            "empty."
        )
    excluded = [set(rows) for rows in exclude_rows or ()]
    outside = next((row for rows in excluded for row in rows if not 0 <= row < len(gallery)), None)
    if outside is not None:
        raise ValueError(f"exclude_rows holds {outside}, but the gallery's rows go from 0 to {len(gallery) - 1}.")
    num_left = len(gallery) - max(map(len, excluded), default=0)
    if not 1 <= k <= num_left:
        raise ValueError(
            f"k must be between 1 and {num_left}, the images left to each query, not {k}. Choose smaller ranks, or a "
            "larger gallery."
        )
