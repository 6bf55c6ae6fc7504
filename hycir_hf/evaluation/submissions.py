"""Files of rankings: what the test servers take, checked as they state it, and scored where the answers are known."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import read_json, write_json
from .benchmarks import BenchmarkData, BenchmarkPart, SubmissionFile, reference_ids_of
from .results import EvaluationResults, describe_run
from .scoring import score_part

Rankings = Mapping[str, Sequence[str]]
"""Query id -> gallery ids, best first."""


def write_submission(
    data: BenchmarkData, rankings: Rankings, subset_rankings: Rankings | None = None, *, directory: str | os.PathLike
) -> list[Path]:
    """Write the files that a benchmark's test server takes.

    Args:
        data (`BenchmarkData`): The split; its answers need not be known.
        rankings (`Mapping`): At least as many ids a query as the server wants; references left out where the benchmark
            leaves them out.
        subset_rankings (`Mapping`, *optional*): The same of each query's subset, where the benchmark has one.
        directory (`str` or `Path`): Made if missing.

    Returns:
        `list[Path]`: The files, each read again and checked.

    Raises:
        ValueError: If a file breaks the server's rules.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in data.benchmark.submissions:
        source = subset_rankings if kind.ranks_subset else rankings
        if source is None:
            continue
        as_id: Any = int if kind.has_integer_ids else str
        content = {id_: [as_id(found) for found in ids[: kind.length]] for id_, ids in source.items()}
        path = directory / kind.name.format(split=data.split)
        write_json(path, {**kind.header, **content}, indent=None)
        read_rankings(path, data)
        paths.append(path)
    return paths


def read_rankings(path: str | os.PathLike, data: BenchmarkData) -> tuple[SubmissionFile, dict[str, list[str]]]:
    """Read a file of rankings and check it against its server's rules.

    Args:
        path (`str` or `Path`): The file.
        data (`BenchmarkData`): The split that it answers.

    Returns:
        `tuple[SubmissionFile, dict[str, list[str]]]`: Which of the benchmark's files it is, and its rankings, ids as
        strings.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it breaks a rule; the message has file and query.
    """
    path = Path(path)
    content = read_json(path, dict, remedy='Give a file of rankings: {"query id": [ids]}.')
    kind = _kind_of(path, content, data)
    if kind.max_bytes is not None and path.stat().st_size > kind.max_bytes:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes; the server takes at most {kind.max_bytes:,}. Write it without "
            f"spaces and with {kind.length} ids a query."
        )
    rankings = {id_: ids for id_, ids in content.items() if id_ not in kind.header}
    queries = {query["query_id"]: (query, part) for part in data.parts for query in part.queries}
    _check_queries(path, rankings, queries)
    galleries = {part.name: set(part.gallery_ids) for part in data.parts}
    for id_, ids in rankings.items():
        query, part = queries[id_]
        _check_ranking(path, kind, query, ids, data)
        allowed = set(query["subset_ids"]) if kind.ranks_subset else galleries[part.name]
        unknown = [found for found in map(str, ids) if found not in allowed] if allowed else []
        if unknown:
            what = "the query's subset" if kind.ranks_subset else "the gallery"
            raise _broken(path, id_, f"ids of {what}", repr(unknown[0]), "Correct the ranking.")
    return kind, {id_: [str(found) for found in ids] for id_, ids in rankings.items()}


def score_rankings(paths: Sequence[str | os.PathLike], data: BenchmarkData, seed: int = 0) -> EvaluationResults:
    """Score files of rankings, any system's, against the split's answers; no model is needed.

    Args:
        paths (`Sequence`): One file, or each kind that the benchmark has.
        data (`BenchmarkData`): A split with known answers.
        seed (`int`): Random seed of the bootstrap.

    Raises:
        ValueError: If a file breaks a rule, two are of one kind, or the split's answers are not known.
    """
    if not data.has_targets:
        raise ValueError(
            f"Only the test server knows the targets of {data.benchmark.name} {data.split}. Score the val split, or "
            "send the file to the server."
        )
    by_kind: dict[bool, dict[str, list[str]]] = {}
    for path in paths:
        kind, rankings = read_rankings(path, data)
        if kind.ranks_subset in by_kind:
            raise ValueError(
                f"{path} is the second file of one kind ({dict(kind.header) or 'ranking'}). Give one of each."
            )
        by_kind[kind.ranks_subset] = rankings
    scores = {
        part.name: score_part(
            data.benchmark, part, _in_order(by_kind.get(False), part), _in_order(by_kind.get(True), part)
        )
        for part in data.parts
    }
    provenance = describe_run(data, predictions=[Path(path).name for path in paths])
    return EvaluationResults(data.benchmark.name, data.split, {"predictions": scores}, provenance, seed)


def _in_order(rankings: Rankings | None, part: BenchmarkPart) -> list[Sequence[str]] | None:
    return None if rankings is None else [rankings[id_] for id_ in part.query_ids]


def _kind_of(path: Path, content: Mapping[str, Any], data: BenchmarkData) -> SubmissionFile:
    """Find which of the benchmark's files it is: the one whose header it has."""
    kinds = sorted(data.benchmark.submissions, key=lambda kind: -len(kind.header))
    for kind in kinds:
        if all(content.get(key) == value for key, value in kind.header.items()):
            return kind
    keys = {key: content.get(key) for kind in kinds for key in kind.header}
    raise ValueError(
        f"Expected one of the headers {[dict(kind.header) for kind in kinds]} in {path}, but found {keys}. Add it."
    )


def _check_queries(path: Path, rankings: Mapping[str, Any], queries: Mapping[str, Any]) -> None:
    missing, unknown = [id_ for id_ in queries if id_ not in rankings], [id_ for id_ in rankings if id_ not in queries]
    if missing or unknown:
        raise ValueError(
            f"Expected a ranking for each of {len(queries)} queries in {path}, but {len(missing)} are missing and "
            f"{len(unknown)} are unknown, such as {(missing or unknown)[0]!r}. Answer this split's queries, all."
        )


def _check_ranking(path: Path, kind: SubmissionFile, query: Mapping[str, Any], ids: Any, data: BenchmarkData) -> None:
    id_, id_type = query["query_id"], int if kind.has_integer_ids else str
    if not isinstance(ids, list) or any(type(found) is not id_type for found in ids):
        raise _broken(path, id_, f"a list of ids of type {id_type.__name__}", repr(ids)[:60], "Convert them.")
    if len(ids) < kind.length or (len(ids) > kind.length and not kind.takes_longer):
        raise _broken(path, id_, f"{kind.length} ids", str(len(ids)), f"Give the best {kind.length}.")
    if len(set(ids)) != len(ids):
        twice = next(found for rank, found in enumerate(ids) if found in ids[:rank])
        raise _broken(path, id_, "each id once", f"{twice!r} twice", "Keep the first.")
    references = reference_ids_of(query) if data.benchmark.leaves_reference_out else []
    if found := [reference for reference in references if reference in ids]:
        raise _broken(path, id_, "a ranking without the reference", repr(found[0]), "Leave it out.")


def _broken(path: Path, query_id: str, expected: str, found: str, advice: str) -> ValueError:
    return ValueError(f"Expected {expected} in {path}, query {query_id!r}, but found {found}. {advice}")
