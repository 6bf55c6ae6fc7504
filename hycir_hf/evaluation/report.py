"""Results as tables, and as one HTML page: figures, wins and losses between two methods with pictures, every query."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..processing_hycir import load_image
from ..search_page import PageQuery, PageResult, PageTable, render_search_page
from .benchmarks import BENCHMARKS, BenchmarkData, BenchmarkPart, reference_ids_of
from .evaluating import Evaluation, PartRankings
from .pictures import open_picture
from .results import Difference, EvaluationResults

NUM_SHOWN = 10  # wins, and losses, of each part with pictures
NUM_PICTURES = 6
_MAX_ROWS = 5000  # of the per-query table


def result_tables(results: EvaluationResults) -> list[PageTable]:
    """One table a part: methods by metrics, in percent with half the width of the 95% interval."""
    intervals = results.intervals()
    names = list(dict.fromkeys(part for parts in intervals.values() for part in parts))
    tables = []
    for name in names:
        rows = {method: parts[name] for method, parts in intervals.items() if name in parts}
        metrics = list(next(iter(rows.values())))
        cells = [
            [method, *(f"{100 * one.mean:.1f} ±{50 * (one.high - one.low):.1f}" for one in row.values())]
            for method, row in rows.items()
        ]
        title = BENCHMARKS[results.benchmark].title
        place = "" if name == "all" else f", {name.replace('_', ' ')}"
        caption = f"{title} {results.split}{place}: percent, with half the width of the 95% interval"
        tables.append(PageTable(caption, ["method", *metrics], cells))
    return tables


def difference_table(differences: Sequence[Difference], first: str, second: str) -> PageTable:
    """Paired differences as a table, in percent points."""
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


def render_table(table: PageTable) -> str:
    """A table as Markdown."""
    lines = [table.caption, "", _markdown_row(table.header), "|---" * len(table.header) + "|"]
    return "\n".join(lines + [_markdown_row(row) for row in table.rows])


def render_report(data: BenchmarkData, evaluation: Evaluation, first: str, second: str) -> str:
    """Render an evaluation as one self-contained HTML page.

    Args:
        data (`BenchmarkData`): With pictures and known answers.
        evaluation (`Evaluation`): From `evaluate_benchmark`.
        first (`str`): Method whose wins and losses are shown.
        second (`str`): Method that it is compared with.

    Returns:
        `str`: HTML 5: tables of figures, pictures of the largest wins and losses, one row for every query.

    Raises:
        ValueError: If a method is unknown or the answers are.
    """
    if evaluation.results is None:
        raise ValueError("Expected a split with answers for a report, but they are not known. Report the val split.")
    unknown = [name for name in (first, second) if name not in evaluation.rankings]
    if unknown:
        raise ValueError(f"Expected methods of {list(evaluation.rankings)}, but found {unknown}. Choose among them.")
    queries, every_query = [], []
    for part in data.parts:
        ranks = {name: first_ranks(part, evaluation.rankings[name][part.name]) for name in (first, second)}
        queries += _wins_and_losses(data, part, evaluation.rankings[first][part.name], ranks, first, second)
        every_query.append(_query_table(part, ranks))
    intro = (
        f"{data.benchmark.title}, {data.split}. Then, for each part, the queries in which “{first}” gains most over "
        f"“{second}”, and loses most, by the rank of the first target; shown is what “{first}” found. A green frame "
        "marks a target."
    )
    tables = result_tables(evaluation.results)
    return render_search_page(queries, f"{data.benchmark.title}: evaluation", intro, tables, every_query)


def first_ranks(part: BenchmarkPart, rankings: PartRankings) -> list[int | None]:
    """Rank of each query's first target, from 1; None where it is beyond the ranking."""
    found: list[int | None] = []
    for query, ids in zip(part.queries, rankings.ids, strict=True):
        targets = set(query["target_ids"])
        found.append(next((rank for rank, id_ in enumerate(ids, 1) if id_ in targets), None))
    return found


def _wins_and_losses(
    data: BenchmarkData,
    part: BenchmarkPart,
    rankings: PartRankings,
    ranks: Mapping[str, Sequence[int | None]],
    first: str,
    second: str,
) -> list[PageQuery]:
    depth = len(rankings.ids[0]) + 1
    gains = [
        1 / (one or depth) - 1 / (two or depth)  # of the reciprocal rank: early ranks count most
        for one, two in zip(ranks[first], ranks[second], strict=True)
    ]
    order = sorted(range(len(gains)), key=lambda row: -gains[row])
    wins = [row for row in order[:NUM_SHOWN] if gains[row] > 0]
    losses = [row for row in order[::-1][:NUM_SHOWN] if gains[row] < 0]
    pages = []
    for word, rows in (("Win", wins), ("Loss", losses)):
        for row in rows:
            query = part.queries[row]
            places = "; ".join(f"{name}: {_shown_rank(ranks[name][row], depth - 1)}" for name in (first, second))
            best = list(zip(rankings.ids[row], rankings.scores[row], strict=True))[:NUM_PICTURES]
            results = [
                PageResult(id_, score, _picture(data, id_), id_ in query["target_ids"], id_.rpartition("/")[2])
                for id_, score in best
            ]
            references = [image for id_ in reference_ids_of(query) if (image := _picture(data, id_)) is not None]
            note = f"{word}, {part.name}, query {query['query_id']}. Rank of the first target: {places}."
            pages.append(PageQuery(references, query["query_text"], results, note, query["reference_id"]))
    return pages


def _query_table(part: BenchmarkPart, ranks: Mapping[str, Sequence[int | None]]) -> PageTable:
    rows = [
        [query["query_id"], query["query_text"], *(str(ranked[row] or "–") for ranked in ranks.values())]
        for row, query in enumerate(part.queries[:_MAX_ROWS])
    ]
    caption = f"Every query of {part.name}: rank of the first target (–: beyond the ranking)"
    return PageTable(caption, ["query", "text", *ranks], rows)


def _picture(data: BenchmarkData, id_: str) -> Any:
    picture = data.pictures.get(id_)
    return None if picture is None else load_image(open_picture(picture))


def _shown_rank(rank: int | None, depth: int) -> str:
    return f"beyond {depth}" if rank is None else str(rank)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
