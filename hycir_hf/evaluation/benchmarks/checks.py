"""Your own data is checked whole before anything is encoded: all complaints at once, each with its place and id."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...settings import did_you_mean
from .annotations import first_repeated
from .types import Benchmark, BenchmarkData, BenchmarkPart, reference_ids_of

METRICS = ("R", "mAP", "share")
AVERAGE = "average"  # the part that is the mean of the others
_NUM_SHOWN = 10  # complaints in one message
_LISTS = {"target_ids": "target_ids", "subset_ids": "subset_ids", "hard_negative_ids": "negative_ids"}
"""A query's lists of images, and their names in a table."""


@dataclass(frozen=True)
class Complaint:
    """What is wrong.

    Args:
        place (`str`): File and row, or part and query.
        text (`str`): What is wrong there.
        unknown_id (`str`, *optional*): An id that is not there; the message names the nearest one.
    """

    place: str
    text: str
    unknown_id: str | None = None


def check_data(
    data: BenchmarkData,
    place_of: Callable[[str], str] | None = None,
    known: Sequence[Complaint] = (),
    is_ranked: bool = True,
) -> None:
    """Check queries, galleries and images of a benchmark that is not one of the package's own.

    Args:
        data (`BenchmarkData`): With images.
        place_of (function, *optional*): From a query's id to its place, for messages.
        known (`Sequence[Complaint]`): What is wrong already.
        is_ranked (`bool`): Whether the galleries must be known, as for anything but scoring.

    Raises:
        ValueError: With all complaints.
    """
    found = [*known, *(one for part in data.parts for one in _part_complaints(part, data, place_of))]
    found = found or list(_benchmark_complaints(data.benchmark, data.parts, is_ranked))
    if found:
        hints = [_hint(one.unknown_id, data.images) if one.unknown_id else "" for one in found[:_NUM_SHOWN]]
        shown = [f"{one.place}: {one.text}{hint}" for one, hint in zip(found, hints, strict=False)]
        more = f"; and {len(found) - _NUM_SHOWN} more" if len(found) > _NUM_SHOWN else ""
        count = f"{len(found)} mistakes" if len(found) > 1 else "a mistake"
        raise ValueError(f"{data.benchmark.title} has {count}. {'; '.join(shown)}{more}.")


def _part_complaints(
    part: BenchmarkPart, data: BenchmarkData, place_of: Callable[[str], str] | None
) -> Iterator[Complaint]:
    gone = next((id_ for id_ in part.gallery_ids if id_ not in data.images), None)
    if gone is not None:
        yield Complaint(f"part {part.name!r}", f"the data has no image {gone!r} of the gallery", gone)
    count_of = Counter(map(str, part.query_ids))
    gallery = frozenset(part.gallery_ids)
    for query in part.queries:
        id_ = str(query["query_id"])
        place = place_of(id_) if place_of else f"part {part.name!r}, query {id_!r}"
        if count_of[id_] > 1:
            yield Complaint(place, f"{count_of[id_]} queries have this query_id")
        for text, unknown_id in _query_complaints(query, gallery, data.images, data.benchmark):
            yield Complaint(place, text, unknown_id)


def _hint(unknown_id: str, known: Collection[str]) -> str:
    """Name the id that is meant: of the same file but for folder, suffix, case and zeros, or else the nearest one."""
    pieces = re.split(r"[;,]\s*|\s+", unknown_id)
    if len(pieces) > 1 and all(piece in known for piece in pieces):
        return " (write | between ids)"
    bare = _bare(unknown_id)
    same = next((id_ for id_ in known if _bare(id_) == bare), None)
    return did_you_mean(unknown_id, known) if same is None else f" (did you mean {same!r}?)"


def _bare(id_: str) -> str:
    return id_.replace("\\", "/").rpartition("/")[2].partition(".")[0].lower().lstrip("0")


def _benchmark_complaints(benchmark: Benchmark, parts: Sequence[BenchmarkPart], is_ranked: bool) -> Iterator[Complaint]:
    place = f"benchmark {benchmark.name!r}"
    if benchmark.metric not in METRICS:
        yield Complaint(place, f"metric must be one of {list(METRICS)}, but it is {benchmark.metric!r}")
    ranks = [*benchmark.ranks, *benchmark.subset_ranks]
    if not ranks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ranks):
        yield Complaint(place, f"ranks must be whole numbers of at least 1, but they are {ranks}")
        return
    depth, _ = (min(sizes, default=None) for sizes in benchmark.sizes(parts))
    if depth is not None and benchmark.ranks and max(benchmark.ranks) > depth:
        text = f"the rank {max(benchmark.ranks)} is too large: only {depth} images are ranked for a query"
        yield Complaint(place, f"{text}. Choose smaller ranks")
    for part in parts:
        if not part.queries:
            yield Complaint(place, f"the part {part.name!r} has no queries")
        if is_ranked and not part.gallery_ids:
            yield Complaint(place, f"the part {part.name!r} has no gallery")
        if part.name == AVERAGE:
            yield Complaint(place, f"no part may have the name {AVERAGE!r}, which is that of the parts' mean")


def _query_complaints(
    query: Mapping[str, Any], gallery: Collection[str], images: Collection[str], benchmark: Benchmark
) -> Iterator[tuple[str, str | None]]:
    """What is wrong with a query, and the id that is not there."""
    for name in ("query_id", "query_text"):
        if not isinstance(query[name], str) or not query[name].strip():
            yield f"{name} must be a text, but it is {query[name]!r}", None
    references = reference_ids_of(query)
    lists = {"reference_id": references} | {shown: query[name] for name, shown in _LISTS.items()}
    for name, ids in lists.items():
        yield from _ids_complaints(name, ids, images if name == "reference_id" or not gallery else gallery)
    if any(not _are_ids(ids) for ids in lists.values()):
        return
    targets = set(query["target_ids"])
    if not targets and benchmark.metric != "share":
        yield "target_ids is empty", None
    left_out = set(references) if benchmark.leaves_reference_out else set()
    for id_ in sorted(targets & left_out):
        yield f"the target {id_!r} is also the reference, which is left out of each ranking", None
    for id_ in sorted(targets & set(query["hard_negative_ids"])):
        yield f"{id_!r} is in both target_ids and negative_ids", None
    if benchmark.subset_ranks:
        subset = set(query["subset_ids"]) - left_out
        if len(subset) < max(benchmark.subset_ranks) or not targets & subset:
            needed = f"{max(benchmark.subset_ranks)} images or more, a target among them"
            yield f"subset_ids must hold {needed}, in each row or in none, but holds {sorted(subset)}", None


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, list | tuple) and all(isinstance(id_, str) and id_ for id_ in ids)


def _ids_complaints(name: str, ids: Any, known: Collection[str]) -> Iterator[tuple[str, str | None]]:
    if ids == [""]:
        yield f"{name} is empty", None
    elif not _are_ids(ids):
        yield f"{name} must hold ids, which are texts, but holds {ids!r}", None
    elif (twice := first_repeated(ids)) is not None:
        yield f"{name} names {twice!r} twice", None
    else:
        for id_ in ids:
            if id_ not in known:
                yield f"{name} names {id_!r}, which is not among the {len(known)} images", id_
