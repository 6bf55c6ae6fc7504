"""Which ranks of which rankings hold a target: reading and checking what a metric gets."""

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np


def find_hits(rankings: Any, target_ids: Sequence[Sequence[Any]], max_k: int) -> np.ndarray:
    """Find the targets among the first ranks of each query.

    Args:
        rankings (`Sequence` of Q rows): Gallery ids, best first, each once; strings or integers. An integer array of
            shape `(Q, R)` is read without a detour over lists.
        target_ids (`Sequence` of Q rows): The correct ids of each query, at least one, each once.
        max_k (`int`): Ranks looked at.

    Returns:
        `np.ndarray` of shape `(Q, max_k)`, bool: Whether the id at that rank is a target.

    Raises:
        ValueError: If queries are missing, a row repeats an id, has no target, or is shorter than `max_k`.
        TypeError: If ids are neither strings nor integers, or rankings and targets differ in that.
    """
    targets = _as_lists(target_ids)
    is_array = isinstance(rankings, np.ndarray) and rankings.ndim == 2 and rankings.dtype.kind in "iu"
    rows: Any = rankings if is_array else _as_lists(rankings)
    if len(rows) != len(targets) or not targets:
        raise ValueError(
            f"Expected one ranking for each query, but found {len(rows)} rankings and the targets of {len(targets)} "
            "queries. Give every query its ranking, in the same order."
        )
    _check_each_once(targets, "targets")
    _check_each_once(rows, "ranking")
    _check_lengths(rows, targets, max_k)
    flat_targets = list(chain.from_iterable(targets))
    if is_array:
        _check_types({int}, set(map(type, flat_targets)))
        ranked, codes = rows[:, :max_k], np.asarray(flat_targets)
    else:
        cut = list(chain.from_iterable(row[:max_k] for row in rows))
        _check_types(set(map(type, cut)), set(map(type, flat_targets)))
        code_of = {id_: code for code, id_ in enumerate(dict.fromkeys(flat_targets))}
        codes = np.fromiter(map(code_of.__getitem__, flat_targets), np.int64, len(flat_targets))
        # An id that is nobody's target gets a code that no target has.
        ranked = np.fromiter(map(code_of.get, cut, repeat(len(code_of))), np.int64, len(cut)).reshape(len(rows), max_k)
    return _match(ranked, codes, [len(row) for row in targets])


def check_ks(k: Any) -> list[int]:
    """One K or several as a list; ValueError unless each is a whole number of at least 1."""
    ks = list(k) if isinstance(k, Sequence) else [k]
    if not ks or any(isinstance(one, bool) or not isinstance(one, int | np.integer) or one < 1 for one in ks):
        raise ValueError(f"Expected k as whole numbers of at least 1, but found {k!r}. Pass for example k=[1, 5, 10].")
    return [int(one) for one in ks]


def _match(ranked: np.ndarray, codes: np.ndarray, counts: list[int]) -> np.ndarray:
    """Compare ranked codes `(Q, K)` with each query's target codes, `counts` of them in turn: `(Q, K)`, bool."""
    hits = np.zeros(ranked.shape, dtype=bool)
    num_targets, first = np.asarray(counts), np.cumsum(counts) - counts  # (Q,) each
    for number in range(max(counts)):  # few: the most targets that a query has
        has_it = number < num_targets
        hits[has_it] |= ranked[has_it] == codes[first[has_it] + number, None]
    return hits


def _as_lists(rows: Any) -> list[list[Any]]:
    """Rows as lists of Python's own integers and strings."""
    if isinstance(rows, str):
        raise TypeError(f"Expected a list of ids for each query, but found the string {rows!r}. Pass lists of ids.")
    found = []
    for number, row in enumerate(rows):
        row = row.tolist() if hasattr(row, "tolist") else row
        if isinstance(row, str) or not isinstance(row, Sequence):
            raise TypeError(f"Expected a list of ids for query {number}, but found {row!r}. Wrap it in a list.")
        found.append(list(row))
    return found


def _check_each_once(rows: Any, what: str) -> None:
    if isinstance(rows, np.ndarray):
        in_order = np.sort(rows, axis=1)
        repeating = np.flatnonzero((in_order[:, 1:] == in_order[:, :-1]).any(axis=1)).tolist()
    else:
        repeating = [number for number, row in enumerate(rows) if len(set(row)) != len(row)]
    if repeating:
        row = list(rows[repeating[0]])
        twice = next(id_ for rank, id_ in enumerate(row) if id_ in row[:rank])
        raise ValueError(
            f"Expected each id once, but the {what} of query {repeating[0]} hold {twice!r} twice. Keep the first."
        )


def _check_lengths(rows: Any, targets: list[list[Any]], max_k: int) -> None:
    for number, wanted in enumerate(targets):
        if not wanted:
            raise ValueError(
                f"Expected at least one target for each query, but query {number} has none. Leave it out, or score it "
                "where its answers are."
            )
    lengths = [rows.shape[1]] if isinstance(rows, np.ndarray) else map(len, rows)
    for number, length in enumerate(lengths):
        if length < max_k:
            raise ValueError(
                f"Expected at least {max_k} ranked ids for K={max_k}, but the ranking of query {number} holds "
                f"{length}. Rank more of the gallery, or choose a smaller K."
            )


def _check_types(ranked: set[type], targets: set[type]) -> None:
    if ranked != targets or ranked not in ({str}, {int}):
        names = [sorted(kind.__name__ for kind in found) for found in (ranked, targets)]
        raise TypeError(
            f"Expected ids that are all strings or all integers, but found {names[0]} in the rankings and {names[1]} "
            "in the targets. Convert both with str(id)."
        )
