"""From rankings to each query's values, and from those to means with 95% intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import average_precision_per_query, find_hits, recall_per_query
from ..metrics.intervals import Interval
from .benchmarks import Benchmark, BenchmarkPart

NUM_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class PartScores:
    """Each query's value of each metric.

    Args:
        query_ids (`Sequence[str]`): Q of them.
        groups (`Sequence[str]`): Queries that are resampled together: all wordings of one change of one image.
        values (`Mapping[str, np.ndarray]`): Metric -> `(Q,)`, fractions in [0, 1]; NaN: the metric leaves it out.
    """

    query_ids: Sequence[str]
    groups: Sequence[str]
    values: Mapping[str, np.ndarray]


def score_part(
    benchmark: Benchmark,
    part: BenchmarkPart,
    rankings: Sequence[Sequence[str]] | None,
    subset_rankings: Sequence[Sequence[str]] | None = None,
) -> PartScores:
    """Score one method's rankings of a part's queries.

    Args:
        benchmark (`Benchmark`): How it counts.
        part (`BenchmarkPart`): With known targets.
        rankings (`Sequence` of Q rows, *optional*): Gallery ids, best first, as many as the largest rank; already
            without the references where the benchmark leaves them out.
        subset_rankings (`Sequence` of Q rows, *optional*): The same for R_subset@K.

    Raises:
        ValueError: If rankings are too short, repeat an id, or are not one for each query.
    """
    targets = [query["target_ids"] for query in part.queries]
    values: dict[str, np.ndarray] = {}
    if rankings is not None:
        hits = _find_hits(benchmark, rankings, targets)
        counts = np.array([len(row) for row in targets])
        for k in benchmark.ranks:
            values[f"{benchmark.metric}@{k}"] = _METRICS[benchmark.metric](hits, counts, k)
        if benchmark.averages_ranks:
            values["avg"] = np.mean(list(values.values()), axis=0)
        if benchmark.first_target_ranks:
            first = find_hits(rankings, [row[:1] for row in targets], max(benchmark.first_target_ranks))
            values |= {f"R@{k}": recall_per_query(first, k) for k in benchmark.first_target_ranks}
        if benchmark.aspect_rank:
            values |= _by_aspect(part.queries, f"{benchmark.metric}@{benchmark.aspect_rank}", values)
    if subset_rankings is not None:
        subset_hits = find_hits(subset_rankings, targets, max(benchmark.subset_ranks))
        values |= {f"R_subset@{k}": recall_per_query(subset_hits, k) for k in benchmark.subset_ranks}
    if rankings is not None and benchmark.hard_negative_rank:
        k = benchmark.hard_negative_rank
        values[f"HN@{k}"] = hard_negative_share(rankings, [query["hard_negative_ids"] for query in part.queries], k)
    groups = groups_of(part.queries)
    if rankings is not None and benchmark.wording_rank:
        k = benchmark.wording_rank
        values[f"wording spread@{k}"] = spread_in_groups(recall_per_query(hits, k), groups)
    return PartScores(part.query_ids, groups, values)


def _by_aspect(
    queries: Sequence[Mapping[str, Any]], metric: str, values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """A metric over the queries of each semantic aspect: "mAP@10 negation" -> `(Q,)`, NaN for the other queries."""
    aspects = [query.get("semantic_aspects", ()) for query in queries]
    has = {
        name: np.array([name in one for one in aspects]) for name in sorted({name for one in aspects for name in one})
    }
    return {f"{metric} {name}": np.where(is_asked, values[metric], np.nan) for name, is_asked in has.items()}


def _find_hits(benchmark: Benchmark, rankings: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> np.ndarray:
    """Hits `(Q, max rank)`; Pic2Word's domain conversion counts 0 where the gallery has no target for a query."""
    depth = max(benchmark.ranks)
    if benchmark.metric != "share":
        return find_hits(rankings, targets, depth)
    rows = [row for row, ids in enumerate(targets) if ids]
    hits: np.ndarray = np.zeros((len(targets), depth), dtype=bool)
    hits[rows] = find_hits([rankings[row] for row in rows], [targets[row] for row in rows], depth)
    return hits


_METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "R": lambda hits, counts, k: recall_per_query(hits, k),
    "mAP": average_precision_per_query,
    "share": lambda hits, counts, k: hits[:, :k].sum(axis=1) / np.maximum(counts, 1),
}


def hard_negative_share(rankings: Sequence[Sequence[str]], hard_negatives: Sequence[Sequence[str]], k: int) -> Any:
    """Share of hard negatives among the first K of each query: `(Q,)`, in [0, 1], the lower the better."""
    found = [len(set(ids[:k]) & set(wrong)) for ids, wrong in zip(rankings, hard_negatives, strict=True)]
    return np.array(found) / k


def spread_in_groups(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Largest minus smallest value of each query's group: `(Q,)`.

    Of R@K over the wordings of one query: 1 where one wording finds a target and another does not.
    """
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    largest, smallest = np.full(numbers.max() + 1, -np.inf), np.full(numbers.max() + 1, np.inf)
    np.maximum.at(largest, numbers, values)
    np.minimum.at(smallest, numbers, values)
    return (largest - smallest)[numbers]


def groups_of(queries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each query's group: its own, or the wordings of one change of one image; otherwise the query is alone."""
    return [_group_of(query) for query in queries]


def _group_of(query: Mapping[str, Any]) -> str:
    if query.get("group"):
        return f"group {query['group']}"  # apart from query ids
    return (
        "|".join((query["rule"], query["reference_id"], *query["target_ids"])) if query["rule"] else query["query_id"]
    )


def mean_intervals(scores: PartScores, seed: int = 0) -> dict[str, Interval]:
    """Mean of each metric with its 95% interval."""
    resampled = resampled_means(scores, seed)
    return {name: as_interval(values, resampled[name]) for name, values in scores.values.items()}


def as_interval(values: np.ndarray, resampled: np.ndarray) -> Interval:
    """A mean with the 2.5th and 97.5th percentile of its resampled means."""
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Interval(float(np.nanmean(values)), float(low), float(high))


def resampled_means(scores: PartScores, seed: int = 0) -> dict[str, np.ndarray]:
    """Bootstrap: means over groups drawn with replacement, metric -> `(NUM_RESAMPLES,)`.

    Groups, not queries, are drawn: the wordings of one query are not independent of each other.
    """
    random = np.random.default_rng(seed)
    _, numbers = np.unique(np.asarray(scores.groups), return_inverse=True)
    num_groups = int(numbers.max()) + 1
    values = list(scores.values.values())
    columns = [*map(np.nan_to_num, values), *(~np.isnan(one) for one in values)]
    sums = np.stack([np.bincount(numbers, weights=column, minlength=num_groups) for column in columns], axis=1)
    totals = []
    for start in range(0, NUM_RESAMPLES, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, NUM_RESAMPLES - start)
        drawn = random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=count)  # (R, G)
        totals.append(drawn @ sums)  # (R, 2 * metrics)
    total, counts = np.split(np.concatenate(totals), 2, axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no query of an aspect was drawn
        means = total / counts
    return {name: means[:, column] for column, name in enumerate(scores.values)}
