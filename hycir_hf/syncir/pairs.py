"""Image pair extraction: groups of six similar but not near-identical images, and nine pairs from each group.

Paper: Pseudo Triplet Generation, first step.
Shapes: N images, D feature width, G groups, S images in a group, P pairs.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

faiss: Any = importlib.import_module("faiss")  # untyped: its stubs lack half of what we use

EXACT_UP_TO = 200_000  # images; above, the search is approximate (inverted lists)
_FIRST_NEIGHBOURS = 64  # searched first; rows that need more are searched again
_GROWTH = 4
_MAX_APPROXIMATE_NEIGHBOURS = 4096
_MAX_ELEMENTS = 2**22  # similarities held at once
_BLOCK = 4096  # rows searched at once
_DECIMALS = 6  # similarities are rounded, so that float32 noise does not order exact duplicates


def find_image_pairs(
    features: Any,
    max_similarity: float = 0.94,
    min_similarity_gap: float = 0.002,
    group_size: int = 6,
    seed: int = 0,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Find the pairs (reference, target) of a set of images.

    Args:
        features (`np.ndarray` or `torch.Tensor` of shape `(N, D)`): Finite, no zero rows; unit norm is not needed.
        max_similarity (`float`): Two images at this cosine similarity or above count as near-identical, in [-1, 1].
        min_similarity_gap (`float`): How much less similar to the group's first image each next image must be.
        group_size (`int`): S, at least 3 (paper: 6).
        seed (`int`): Random seed of the approximate search, which is used above 200,000 images.
        progress (`bool`): Whether to show a progress bar.

    Returns:
        `np.ndarray` of shape `(P, 2)`, int64: Row numbers, group by group in row order. Only the first of equal pairs
        is kept; (a, b) and (b, a) are different pairs.

    Raises:
        ValueError: If the features or an option are out of range.
    """
    groups = find_image_groups(features, max_similarity, min_similarity_gap, group_size, seed, progress=progress)
    return pairs_of_groups(groups)[0]


def find_image_groups(
    features: Any,
    max_similarity: float = 0.94,
    min_similarity_gap: float = 0.002,
    group_size: int = 6,
    seed: int = 0,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Find the group of each image; arguments as in `find_image_pairs`.

    Returns:
        `np.ndarray` of shape `(G, S)`, int64: Row numbers, the starting image first, then by falling similarity to it.
    """
    # Paper: "distance less than 0.94 ... larger than 0.002" names neither the measure nor the order. CIRR, whose
    # procedure it follows, goes down the other images by cosine similarity to the first. Every image starts one group,
    # unless too few images are left for it.
    rule = _Rule(max_similarity, min_similarity_gap, group_size)
    unit = _as_unit_rows(features)
    index = _build_index(unit, seed)
    groups: np.ndarray = np.full((len(unit), group_size), -1, dtype=np.int64)
    with tqdm(total=len(unit), desc="Image pairs", unit=" images", disable=not progress) as bar:
        for start in range(0, len(unit), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(unit)))
            groups[rows] = _groups_of(rows, unit, index, rule)
            bar.update(len(rows))
    return groups[groups[:, -1] >= 0]


def pairs_of_groups(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the pairs of each group, without repeats.

    Args:
        groups (`np.ndarray` of shape `(G, S)`): Row numbers.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The pairs `(P, 2)`, int64, and the group of each pair, `(P,)`, int64.
    """
    # Paper: nine pairs of six images, without saying which. Counted in CIRR's annotations: the first image with each
    # other one but the last, the chain of the others, and from the last back to the first.
    size = groups.shape[1]
    pattern = np.array(
        [(0, i) for i in range(1, size - 1)] + [(i, i + 1) for i in range(1, size - 1)] + [(size - 1, 0)]
    )
    pairs = groups[:, pattern].reshape(-1, 2)  # (G * 9, 2)
    group_ids: np.ndarray = np.repeat(np.arange(len(groups)), len(pattern))
    if not len(pairs):
        return pairs, group_ids
    keys = pairs[:, 0] * (pairs.max() + 1) + pairs[:, 1]
    first = np.sort(np.unique(keys, return_index=True)[1])
    return pairs[first], group_ids[first]


@dataclass(frozen=True)
class _Rule:
    """Which images a group takes; arguments as in `find_image_pairs`."""

    max_similarity: float
    min_similarity_gap: float
    group_size: int

    def __post_init__(self) -> None:
        complaints = [
            f"{name} must be {expected}, but it is {getattr(self, name)!r}"
            for name, expected, is_good in (
                ("max_similarity", "in [-1, 1]", -1 <= self.max_similarity <= 1),
                ("min_similarity_gap", "at least 0", self.min_similarity_gap >= 0),
                ("group_size", "at least 3", self.group_size >= 3),
            )
            if not is_good
        ]
        if complaints:
            raise ValueError(f"Image pairs: {'; '.join(complaints)}.")


def _groups_of(rows: np.ndarray, unit: np.ndarray, index: Any, rule: _Rule) -> np.ndarray:
    """Find the groups `(B, S)` that some rows start; -1 where there is none."""
    groups: np.ndarray = np.full((len(rows), rule.group_size), -1, dtype=np.int64)
    limit = len(unit) if len(unit) <= EXACT_UP_TO else min(len(unit), _MAX_APPROXIMATE_NEIGHBOURS)
    open_rows, count = np.arange(len(rows)), min(_FIRST_NEIGHBOURS, limit)
    while len(open_rows):
        for part in np.array_split(open_rows, -(-len(open_rows) * count // _MAX_ELEMENTS)):
            similarity, neighbours = _search(index, unit[rows[part]], count)  # (B, count) each
            groups[part] = _choose(rows[part], similarity, neighbours, rule, is_all=count == len(unit))
        if count == limit:
            break
        open_rows, count = open_rows[groups[open_rows, -1] < 0], min(count * _GROWTH, limit)
    return groups


def _search(index: Any, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` nearest rows of each query, most similar first, ties by lower row."""
    similarity, neighbours = index.search(queries, count)
    similarity = similarity.astype(np.float64).round(_DECIMALS)
    order = np.lexsort((neighbours, -similarity), axis=1)
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(neighbours, order, 1)


def _choose(rows: np.ndarray, similarity: np.ndarray, neighbours: np.ndarray, rule: _Rule, is_all: bool) -> np.ndarray:
    """Go down the neighbours of all rows at once and take what the rule allows: `(B, S)`, -1 if too few are left."""
    chosen: np.ndarray = np.full((len(rows), rule.group_size), -1, dtype=np.int64)
    chosen[:, 0] = rows
    taken: np.ndarray = np.ones(len(rows), dtype=np.int64)
    last: np.ndarray = np.full(len(rows), np.inf)
    allowed = (neighbours >= 0) & (neighbours != rows[:, None]) & (similarity < rule.max_similarity)
    if not is_all:  # ties of the last neighbour may lie beyond it, with lower rows
        allowed &= similarity > similarity[:, -1:]
    for column in range(similarity.shape[1]):
        is_far = last - similarity[:, column] > rule.min_similarity_gap
        (hits,) = np.nonzero(allowed[:, column] & is_far & (taken < rule.group_size))
        chosen[hits, taken[hits]] = neighbours[hits, column]
        last[hits] = similarity[hits, column]
        taken[hits] += 1
        if (taken == rule.group_size).all():
            break
    return chosen


def _build_index(unit: np.ndarray, seed: int) -> Any:
    """Build an inner-product index: exact up to `EXACT_UP_TO` images, inverted lists above."""
    dim = unit.shape[1]
    index = faiss.IndexFlatIP(dim)
    if len(unit) > EXACT_UP_TO:
        num_lists = int(4 * len(unit) ** 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.nprobe = max(16, num_lists // 64)
        index.train(unit[np.random.default_rng(seed).permutation(len(unit))[: 40 * num_lists]])
    index.add(unit)
    return index


def _as_unit_rows(features: Any) -> np.ndarray:
    """Check the features and scale each row to unit norm, in float32."""
    array = np.ascontiguousarray(features, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"The features must be of shape (N, D), one row for each image, but they are {array.shape}.")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} rows of the features are zero or not finite, the first is row {bad[0]}. Leave these images "
            "out, or encode them again."
        )
    return array / norms
