"""Benchmarks whose images are not all there, or not all readable: an error that names some, or what is left."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .types import Benchmark, BenchmarkData, BenchmarkPart, path_of, reference_ids_of

logger = logging.getLogger(__name__)

_NUM_NAMED = 3  # missing images named in one message


def without_missing(
    benchmark: Benchmark, split: str, parts: list[BenchmarkPart], images: Mapping[str, Any], allow_missing: bool
) -> BenchmarkData:
    """Check that the images are there; drop those that are not, where that is allowed."""
    used = _used(parts)
    present = {
        id_: image
        for id_, image in images.items()
        if id_ in used and ((path := path_of(image)) is None or path.is_file())
    }
    missing = {id_: str(path_of(images.get(id_)) or id_) for id_ in sorted(used - present.keys())}
    data = BenchmarkData(benchmark.fitted(parts), split, parts, present)
    return _without(data, missing, FileNotFoundError, "are missing", "Download them", allow_missing)


def without_broken(data: BenchmarkData, reasons: Mapping[str, str], allow_missing: bool) -> BenchmarkData:
    """Refuse images that cannot be read; drop them, where missing ones are allowed.

    Args:
        data (`BenchmarkData`): As read.
        reasons (`Mapping[str, str]`): Id of each such image -> why.
        allow_missing (`bool`): Whether they are dropped.
    """
    named = {id_: f"{path_of(data.images.get(id_)) or id_} ({reason})" for id_, reason in reasons.items()}
    return _without(data, named, ValueError, "cannot be read", "Replace them", allow_missing)


def _used(parts: list[BenchmarkPart]) -> set[str]:
    used = {id_ for part in parts for id_ in part.gallery_ids}
    return used | {id_ for part in parts for query in part.queries for id_ in reference_ids_of(query)}


def _without(
    data: BenchmarkData, gone: Mapping[str, str], error: type[Exception], what: str, remedy: str, allow_missing: bool
) -> BenchmarkData:
    """Drop images, each with its name for the messages, and the queries that need them."""
    if not gone:
        return data
    some = ", ".join(list(gone.values())[:_NUM_NAMED])
    text = f"{len(gone)} of {len(_used(list(data.parts)))} images of {data.benchmark.title} {what}, such as {some}"
    if not allow_missing:
        raise error(f"{text}. {remedy}, or pass allow_missing.")
    fewest = max(data.benchmark.subset_ranks, default=0)
    kept = [_reduce_part(part, set(gone), fewest) for part in data.parts]
    num_dropped = sum(len(before.queries) - len(after.queries) for before, after in zip(data.parts, kept, strict=True))
    logger.warning("%s: %d queries are left out.", text, num_dropped)
    empty = [part.name for part in kept if not part.queries]
    if empty:
        raise error(f"{text}, and no query is left in {empty}. {remedy}.")
    return replace(
        data,
        benchmark=data.benchmark.fitted(kept),
        parts=kept,
        images={id_: image for id_, image in data.images.items() if id_ not in gone},
        missing_ids=[*data.missing_ids, *gone],
        num_dropped_queries=data.num_dropped_queries + num_dropped,
    )


def _reduce_part(part: BenchmarkPart, gone: set[str], fewest: int) -> BenchmarkPart:
    """Leave out the images that are gone, and the queries that need them.

    A query needs its reference, one of its targets, and at least `fewest` images of its subset.
    """
    queries = []
    for query in part.queries:
        targets = [id_ for id_ in query["target_ids"] if id_ not in gone]
        subset = [id_ for id_ in query["subset_ids"] if id_ not in gone]
        has_targets = bool(targets) or not query["target_ids"]
        if gone.isdisjoint(reference_ids_of(query)) and has_targets and len(subset) >= fewest:
            negatives = [id_ for id_ in query["hard_negative_ids"] if id_ not in gone]
            queries.append({**query, "target_ids": targets, "subset_ids": subset, "hard_negative_ids": negatives})
    return BenchmarkPart(part.name, queries, [id_ for id_ in part.gallery_ids if id_ not in gone])
