"""Which ranks of which rankings hold a target: reading and checking what a metric gets."""

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np


def find_hits(rankings: Sequence[Sequence[Any]], target_ids: Sequence[Sequence[Any]], max_k: int) -> np.ndarray:
    """Find the targets among the first ranks of each query.

    Args:
        rankings (`Sequence` of Q rows): Gallery ids, best first, each once; strings or integers (arrays as well).
        target_ids (`Sequence` of Q rows): The correct ids of each query, at least one, each once.
        max_k (`int`): Ranks looked at.

    Returns:
        `np.ndarray` of shape `(Q, max_k)`, bool: Whether the id at that rank is a target.

    Raises:
        ValueError: If queries are missing, a row repeats an id, has no target, or is shorter than `max_k`.
        TypeError: If ids are neither strings nor integers, or rankings and targets differ in that.
    """
    rankings, target_ids = _as_rows(rankings), _as_rows(target_ids)
    _check_rows(rankings, target_ids, max_k)
    cut = list(chain.from_iterable(row[:max_k] for row in rankings))
    targets = list(chain.from_iterable(target_ids))
    _check_types(cut, targets)
    codes = {id_: code for code, id_ in enumerate(dict.fromkeys(targets))}
    ranked = np.fromiter(map(codes.get, cut, repeat(-1)), np.int64, len(cut)).reshape(len(rankings), max_k)
    rows = np.repeat(np.arange(len(target_ids)), [len(row) for row in target_ids])  # (T,) the query of each target
    wanted = rows * len(codes) + np.fromiter(map(codes.__getitem__, targets), np.int64, len(targets))
    found = np.arange(len(rankings))[:, None] * len(codes) + ranked  # (Q, max_k)
    return np.isin(found, wanted) & (ranked >= 0)


def check_ks(k: int | Sequence[int]) -> list[int]:
    """One K or several as a list; ValueError unless each is a whole number of at least 1."""
    ks = list(k) if isinstance(k, Sequence) else [k]
    if not ks or any(isinstance(one, bool) or not isinstance(one, int | np.integer) or one < 1 for one in ks):
        raise ValueError(f"Expected k as whole numbers of at least 1, but found {k!r}. Pass for example k=[1, 5, 10].")
    return [int(one) for one in ks]


def _as_rows(rows: Any) -> list[list[Any]]:
    """Rows as lists: arrays become Python's own integers and strings."""
    if isinstance(rows, str):
        raise TypeError(f"Expected a list of ids for each query, but found the string {rows!r}. Pass lists of ids.")
    if hasattr(rows, "tolist"):
        rows = rows.tolist()
    found = []
    for number, row in enumerate(rows):
        row = row.tolist() if hasattr(row, "tolist") else row
        if isinstance(row, str) or not isinstance(row, Sequence):
            raise TypeError(f"Expected a list of ids for query {number}, but found {row!r}. Wrap it in a list.")
        found.append(list(row))
    return found


def _check_rows(rankings: list[list[Any]], target_ids: list[list[Any]], max_k: int) -> None:
    if len(rankings) != len(target_ids) or not rankings:
        raise ValueError(
            f"Expected one ranking for each query, but found {len(rankings)} rankings and the targets of "
            f"{len(target_ids)} queries. Give every query its ranking, in the same order."
        )
    for number, (ranking, targets) in enumerate(zip(rankings, target_ids, strict=True)):
        for ids, what in ((ranking, "ranking"), (targets, "targets")):
            if len(set(ids)) != len(ids):
                twice = next(id_ for rank, id_ in enumerate(ids) if id_ in ids[:rank])
                raise ValueError(
                    f"Expected each id once, but the {what} of query {number} hold {twice!r} twice. Keep the first."
                )
        if not targets:
            raise ValueError(
                f"Expected at least one target for each query, but query {number} has none. Leave it out, or score it "
                "where its answers are."
            )
        if len(ranking) < max_k:
            raise ValueError(
                f"Expected at least {max_k} ranked ids for K={max_k}, but the ranking of query {number} holds "
                f"{len(ranking)}. Rank more of the gallery, or choose a smaller K."
            )


def _check_types(ranked: list[Any], targets: list[Any]) -> None:
    kinds = [{type(id_) for id_ in ids} for ids in (ranked, targets)]
    if kinds[0] != kinds[1] or kinds[0] not in ({str}, {int}):
        names = [sorted(kind.__name__ for kind in found) for found in kinds]
        raise TypeError(
            f"Expected ids that are all strings or all integers, but found {names[0]} in the rankings and {names[1]} "
            "in the targets. Convert both with str(id)."
        )
