"""What tables and report page of an evaluation show; `reports/` turns it into text.

The page has the figures, wins and losses between two methods with their images, and a row for each query.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..images_hycir import load_image
from ..reports.pages import PageQuery, PageResult, PageTable, render_search_page, render_table
from .benchmarks import BenchmarkData, BenchmarkPart, name_of, open_image, reference_ids_of
from .evaluate import Evaluation, PartRankings
from .results import Difference, EvaluationResults, Interval
from .scoring import groups_of

__all__ = ["difference_table", "render_report", "render_table", "result_tables"]

NUM_SHOWN = 8  # wins of each benchmark part that are shown with images, and as many losses
NUM_IMAGES = 6  # of each ranking
_MAX_ROWS = 5000  # of the table with a row for each query


def result_tables(results: EvaluationResults) -> list[PageTable]:
    """Make one table for each part: methods by metrics, in percent with half the width of the 95% interval.

    Metrics by semantic aspect have a table of their own.
    """
    intervals = results.intervals()
    names = list(dict.fromkeys(part for parts in intervals.values() for part in parts))
    tables = []
    for name in names:
        rows = {method: parts[name] for method, parts in intervals.items() if name in parts}
        metrics = list(next(iter(rows.values())))
        place = "" if name == "all" else f", {part_title(name)}"
        caption = f"{results.title} {results.split}{place}: percent, with half the width of the 95% interval"
        aspects = [metric for metric in metrics if " " in metric]  # such as "mAP@10 cardinality"
        by_aspect = f"{aspects[0].split()[0]} " if aspects else "?"
        for start, shown in (("", [metric for metric in metrics if metric not in aspects]), (by_aspect, aspects)):
            cells = [[method, *(_shown_interval(row[metric]) for metric in shown)] for method, row in rows.items()]
            header = [
                "method",
                *(metric.removeprefix(start).replace("_", " ") if start else metric for metric in shown),
            ]
            if shown:
                tables.append(PageTable(f"{caption}; {by_aspect}by aspect" if start else caption, header, cells))
    return tables


def _shown_interval(one: Interval) -> str:
    return f"{100 * one.mean:.2f} ±{50 * (one.high - one.low):.2f}"


def difference_table(differences: Sequence[Difference], first: str, second: str) -> PageTable:
    """Make a table of paired differences, in percent points."""
    rows = [
        [
            f"{one.part} {one.metric}",
            f"{100 * one.first:.2f}",
            f"{100 * one.second:.2f}",
            f"{100 * one.difference.mean:+.2f}",
            f"[{100 * one.difference.low:+.2f}, {100 * one.difference.high:+.2f}]",
            f"{one.wins} : {one.losses}",
        ]
        for one in differences
    ]
    caption = f"{first} minus {second}, the same queries; percent, with the 95% interval of the difference"
    return PageTable(caption, ["", first, second, "difference", "95% interval", "higher : lower"], rows)


def render_report(data: BenchmarkData, evaluation: Evaluation, first: str, second: str) -> str:
    """Render an evaluation as one self-contained HTML page.

    Args:
        data (`BenchmarkData`): With images and known targets.
        evaluation (`Evaluation`): From `evaluate_benchmark`.
        first (`str`): Method whose wins and losses are shown.
        second (`str`): Method that it is compared with.

    Raises:
        ValueError: If a method is unknown, or the split's targets are not known.
    """
    if evaluation.results is None:
        raise ValueError(f"The targets of {data.benchmark.name} {data.split} are not known. Report another split.")
    unknown = [name for name in (first, second) if name not in evaluation.rankings]
    if unknown:
        raise ValueError(f"There are no methods {unknown}. Choose among {list(evaluation.rankings)}.")
    queries, every_query, counts = [], [], []
    for part in data.parts:
        ranks = {name: first_ranks(part, evaluation.rankings[name][part.name]) for name in (first, second)}
        rankings = {name: evaluation.rankings[name][part.name] for name in (first, second)}
        queries += _wins_and_losses(data, part, rankings, ranks)
        every_query.append(_query_table(data, part, ranks))
        counts.append([part_title(part.name), *_count_wins(*ranks.values())])
    intro = (
        f"{data.benchmark.title}, {data.split}. For each part of the benchmark you see the queries in which "
        f"“{first}” wins most against “{second}”, and those in which it loses most, by the rank of the first target. "
        "If a query has several wordings, only one is shown. A green frame marks a target. The last table lists the "
        "queries."
    )
    tables = [_unbroken(table) for table in result_tables(evaluation.results)]
    depth = len(next(iter(evaluation.rankings[first].values())).ids[0])
    caption = f"Number of queries in which a method ranks the first target earlier (among the first {depth} images)"
    tables.append(PageTable(caption, ["part", first, "equal", second], counts))
    return render_search_page(queries, f"{data.benchmark.title}: evaluation", intro, tables, every_query)


def part_title(name: str) -> str:
    """A part's name in words."""
    return name.replace("_two_references", ", two references").replace("_", " ")


def _unbroken(table: PageTable) -> PageTable:
    """Keep each row name, and each figure with its "±", on one line."""
    no_break = "\u00a0"
    rows = [
        [row[0].replace(" ", no_break), *(cell.replace(" ±", f"{no_break}±") for cell in row[1:])] for row in table.rows
    ]
    return PageTable(table.caption, table.header, rows)


def _count_wins(first: Sequence[int | None], second: Sequence[int | None]) -> list[str]:
    """Count the queries in which the first rank is smaller, the ranks are equal, the second is smaller."""
    pairs = [(one or math.inf, two or math.inf) for one, two in zip(first, second, strict=True)]
    wins, losses = sum(one < two for one, two in pairs), sum(one > two for one, two in pairs)
    return [str(wins), str(len(pairs) - wins - losses), str(losses)]


def first_ranks(part: BenchmarkPart, rankings: PartRankings) -> list[int | None]:
    """Find the rank of each query's first target, from 1; None where it is beyond the ranking."""
    found: list[int | None] = []
    for query, ids in zip(part.queries, rankings.ids, strict=True):
        targets = set(query["target_ids"])
        found.append(next((rank for rank, id_ in enumerate(ids, 1) if id_ in targets), None))
    return found


def _wins_and_losses(
    data: BenchmarkData,
    part: BenchmarkPart,
    rankings: Mapping[str, PartRankings],
    ranks: Mapping[str, Sequence[int | None]],
) -> list[PageQuery]:
    """The queries in which the first method wins or loses most against the second, with both rankings."""
    first, second = ranks
    depth = len(rankings[first].ids[0])
    gains = [
        1 / (one or depth + 1) - 1 / (two or depth + 1)  # differences of the reciprocal rank: early ranks count most
        for one, two in zip(ranks[first], ranks[second], strict=True)
    ]
    groups = groups_of(part.queries)
    order = sorted(range(len(gains)), key=lambda row: -gains[row])
    wins = _first_of_each(groups, [row for row in order if gains[row] > 0])
    losses = _first_of_each(groups, [row for row in order[::-1] if gains[row] < 0])
    pages = []
    for word, rows in (("Win", wins), ("Loss", losses)):
        for row in rows[:NUM_SHOWN]:
            query = part.queries[row]
            titles = [f"{name}: first target {_shown_rank(ranks[name][row], depth)}" for name in (first, second)]
            found = [_page_results(data, query, rankings[name], row) for name in (first, second)]
            references = [image for id_ in reference_ids_of(query) if (image := _image(data, id_)) is not None]
            label = " and ".join(_name(data, id_) for id_ in reference_ids_of(query))
            note = (
                f"{word} of {first} against {second}. {part_title(part.name).capitalize()}, query {query['query_id']}."
            )
            pages.append(
                PageQuery(references, query["query_text"], found[0], note, label, titles[0], titles[1], found[1])
            )
    return pages


def _first_of_each(groups: Sequence[str], rows: Sequence[int]) -> list[int]:
    """The first row of each group, in order."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(groups[row], row)
    return list(first.values())


def _page_results(data: BenchmarkData, query: Mapping[str, Any], rankings: PartRankings, row: int) -> list[PageResult]:
    best = list(zip(rankings.ids[row], rankings.scores[row], strict=True))[:NUM_IMAGES]
    targets = set(query["target_ids"])
    return [PageResult(id_, score, _image(data, id_), id_ in targets, _name(data, id_)) for id_, score in best]


def _query_table(data: BenchmarkData, part: BenchmarkPart, ranks: Mapping[str, Sequence[int | None]]) -> PageTable:
    rows = []
    for row, query in enumerate(part.queries[:_MAX_ROWS]):
        names = " and ".join(_name(data, id_) for id_ in reference_ids_of(query))
        found = [str(ranked[row] or "–") for ranked in ranks.values()]
        rows.append([f"{names} + “{query['query_text']}”", *found, query["query_id"]])
    all_ = len(part.queries)
    shown = f"All {all_:,} queries" if all_ == len(rows) else f"The first {len(rows):,} of {all_:,} queries"
    caption = f"{shown} of {part_title(part.name)}: rank of the first target (–: beyond the ranking)"
    return PageTable(caption, ["reference and text", *ranks, "query"], rows)


def _image(data: BenchmarkData, id_: str) -> Any:
    image = data.images.get(id_)
    return None if image is None else load_image(open_image(image))


def _name(data: BenchmarkData, id_: str) -> str:
    return name_of(data.images.get(id_), id_)


def _shown_rank(rank: int | None, depth: int) -> str:
    return f"beyond rank {depth}" if rank is None else f"at rank {rank}"
