"""Checks of what enters a gallery: features and ids, from arrays, tensors and lists."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

PerQueryIds = Sequence[str] | Sequence[Sequence[str] | None] | None
"""One list of ids for all queries, or one list (or None) for each."""


def as_features(features: Any, what: str, allow_one: bool = False) -> np.ndarray:
    """Check features and return them as float32 (rows, D)."""
    if hasattr(features, "detach"):  # a torch tensor, without importing torch
        features = features.detach().cpu().float().numpy()
    try:
        array = np.ascontiguousarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {what} are no array of numbers: {error}. Pass an array of shape (rows, D).") from error
    if np.ndim(features) == 1 and allow_one:
        array = array.reshape(1, -1)
    if np.ndim(features) != 2 and not (allow_one and np.ndim(features) == 1):
        raise ValueError(f"Expected {what} of shape (rows, D), but found shape {np.shape(features)}.")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} rows of the {what} hold NaN or infinity, the first is row {bad[0]}. Check that image, or "
            "encode in float32."
        )
    return array


def check_ids(ids: list[str], count: int) -> None:
    """Raise unless there is one id for each image, a string, and each only once."""
    if len(ids) != count:
        raise ValueError(f"Expected one id for each image, but found {len(ids)} ids and {count} images.")
    seen: set[str] = set()
    for row, id_ in enumerate(ids):
        if not isinstance(id_, str):
            raise TypeError(f"Ids must be strings, but the id of row {row} is {id_!r}. Use [str(id) for id in ids].")
        if id_ in seen:
            raise ValueError(f"The id {id_!r} of row {row} occurs twice. Rename or drop one.")
        seen.add(id_)


def check_new_ids(features: np.ndarray, ids: list[str], known: Iterable[str]) -> None:
    """Raise unless the ids fit the features and none is known already."""
    check_ids(ids, len(features))
    repeated = [id_ for id_ in ids if id_ in known]
    if repeated:
        raise ValueError(
            f"The gallery already holds {len(repeated)} of the new ids, such as {repeated[0]!r}. Remove those first, "
            "or rename the new ones."
        )


def per_query_ids(ids: PerQueryIds, num_queries: int, name: str) -> list[tuple[str, ...] | None]:
    """One tuple of ids (or None) for each query, from a shared list or a list for each."""
    if ids is None:
        return [None] * num_queries
    if isinstance(ids, str):
        raise ValueError(f"{name} must be a list of ids, not the string {ids!r}. Wrap it in a list.")
    entries = list(ids)
    if all(isinstance(entry, str) for entry in entries):
        return [tuple(entries)] * num_queries  # type: ignore[arg-type]
    if any(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{name} mixes ids and lists of ids. Give one list for all queries, or one for each.")
    if len(entries) != num_queries:
        raise ValueError(
            f"{name} holds {len(entries)} lists for {num_queries} queries. Give one for each, or one list of ids for "
            "all."
        )
    return [None if entry is None else tuple(entry) for entry in entries]
