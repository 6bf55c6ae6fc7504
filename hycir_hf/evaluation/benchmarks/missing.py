"""Benchmarks whose images are not all there: an error that names some, or the part of it that is left."""

import logging
from typing import Any

from .types import Benchmark, BenchmarkData, BenchmarkPart, path_of, reference_ids_of

logger = logging.getLogger(__name__)

_NUM_NAMED = 3  # missing images named in one message


def without_missing(
    benchmark: Benchmark, split: str, parts: list[BenchmarkPart], images: dict[str, Any], allow_missing: bool
) -> BenchmarkData:
    """Check that the images are there; drop those that are not, where that is allowed."""
    used = {id_ for part in parts for id_ in part.gallery_ids}
    used |= {id_ for part in parts for query in part.queries for id_ in reference_ids_of(query)}
    present = {
        id_: image
        for id_, image in images.items()
        if id_ in used and ((path := path_of(image)) is None or path.is_file())
    }
    missing = sorted(used - present.keys())
    if not missing:
        return BenchmarkData(benchmark, split, parts, present)
    named = ", ".join(str(path_of(images.get(id_)) or id_) for id_ in missing[:_NUM_NAMED])
    if not allow_missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(used)} images of {benchmark.title} are missing, such as {named}. Download them, "
            "or pass allow_missing."
        )
    gone = set(missing)
    fewest = max(benchmark.subset_ranks, default=0)
    kept = [_reduce_part(part, gone, fewest) for part in parts]
    num_dropped = sum(len(before.queries) - len(after.queries) for before, after in zip(parts, kept, strict=True))
    logger.warning(
        "%d of %d images are missing, such as %s: %d queries are left out.", len(missing), len(used), named, num_dropped
    )
    empty = [part.name for part in kept if not part.queries]
    if empty:
        raise FileNotFoundError(
            f"{len(missing)} of {len(used)} images of {benchmark.title} are missing, such as {named}, and no query is "
            f"left in {empty}. Download them."
        )
    return BenchmarkData(benchmark, split, kept, present, missing, num_dropped)


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
