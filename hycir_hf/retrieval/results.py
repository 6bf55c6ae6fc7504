"""RetrievalResults: the checked value between a search and the metrics."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RetrievalResults:
    """Ranked gallery ids and their scores, one row for each query.

    Rows may differ in length: a query for which fewer than k candidates are left (a small gallery, a short
    `restrict_to`) has a shorter row. Nothing is padded.

    Args:
        ids (`list[list[str]]` of Q rows): Gallery ids, best first.
        scores (`list[list[float]]` of Q rows): Inner products, for unit features cosines in [-1, 1]; never increasing.

    Raises:
        ValueError: If ids and scores differ in shape, a score is not finite or larger than the one before it, or an id
            stands twice in a row.
    """

    ids: Sequence[Sequence[str]]
    scores: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.scores):
            raise ValueError(
                f"Expected one row of scores for each row of ids, but found {len(self.ids)} rows of ids and "
                f"{len(self.scores)} of scores."
            )
        for row, (ids, scores) in enumerate(zip(self.ids, self.scores, strict=True)):
            _check_row(row, ids, scores)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> list[tuple[str, float]]:
        """One query's ranking as (id, score) pairs."""
        return list(zip(self.ids[row], self.scores[row], strict=True))

    def __iter__(self) -> Iterator[list[tuple[str, float]]]:
        return (self[row] for row in range(len(self)))


def _check_row(row: int, ids: Sequence[str], scores: Sequence[float]) -> None:
    if isinstance(ids, str):
        raise ValueError(f"Row {row} must be a list of ids, not the string {ids!r}.")
    if len(ids) != len(scores):
        raise ValueError(f"Expected a score for each id, but row {row} holds {len(ids)} ids and {len(scores)} scores.")
    if len(set(ids)) != len(ids):
        twice = next(id_ for rank, id_ in enumerate(ids) if id_ in ids[:rank])
        raise ValueError(f"Row {row} holds the id {twice!r} twice. Keep its best rank only.")
    for rank, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(f"The score of row {row} at rank {rank + 1} is {score}. Check the features for NaN.")
        if rank and score > scores[rank - 1]:
            raise ValueError(
                f"The scores of row {row} rise from {scores[rank - 1]} to {score} at rank {rank + 1}. Sort each row."
            )
