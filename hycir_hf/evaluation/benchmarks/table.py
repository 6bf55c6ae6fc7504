"""Your own benchmark: a table of queries (CSV, TSV, JSON lines or Parquet) over your own images.

Columns: reference_id, query_text, target_ids; and, if you like, query_id, group, subset_ids, negative_ids, part.
"""

import codecs
import contextlib
import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...files import read_record
from ...formats import GALLERY, GALLERY_IDS
from ...images import FolderSource, open_source
from ...images.sources import source_from_record
from ...images.store import is_store
from ...retrieval.build import FEATURES_NAME
from ...retrieval.gallery_files import MANIFEST_NAME, read_manifest
from ...settings import ParameterError
from .annotations import first_repeated
from .checks import Complaint, check_data
from .missing import without_missing
from .types import Benchmark, BenchmarkData, BenchmarkPart, SourceImage, SubmissionFile

RANKS, SUBSET_RANKS, HARD_NEGATIVE_RANK = (1, 5, 10, 50), (1, 2, 3), 10
SEPARATOR = "|"
"""Stands between the ids of a list in one cell."""
_ALIASES = {"reference_ids": "reference_id", "target_id": "target_ids", "hard_negative_ids": "negative_ids"}
_NEEDED = ("reference_id", "query_text", "target_ids")
_TYPO = 0.85  # similarity of an unknown column's name to a known one's, above which it is a typo

Rows = list[tuple[int, Mapping[str, Any]]]
"""Row numbers, from 1 as a spreadsheet shows them, and rows: column -> value."""


def read_table(
    queries: str | os.PathLike | Iterable[Mapping[str, Any]],
    images: str | os.PathLike | Mapping[str, Any] | None,
    *,
    name: str | None = None,
    metric: str = "R",
    ranks: Sequence[int] | None = None,
    leaves_reference_out: bool = True,
    part_names: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> BenchmarkData:
    """Read your own benchmark. Everything is checked, before anything is encoded.

    Args:
        queries (`str`, `Path` or `Iterable[Mapping]`): A .csv, .tsv, .jsonl or .parquet file, its rows, or a DataFrame.

            *Input columns*: `reference_id` (one or several), `query_text`, `target_ids`; optional `query_id` (by
            default the row's number), `group` (queries that are resampled together), `subset_ids` (candidates of
            R_subset@K), `negative_ids` (images that are wrong, for HN@K), `part`. Other columns are left alone. A cell
            with several ids has `|` between them, or is a JSON list.
        images (`str`, `Path` or `Mapping`): The gallery: a folder of images, a gallery's folder, PATH[:CONFIG] of a
            dataset, or image id -> image. None if only rankings are scored.
        name (`str`, *optional*): Of the benchmark; by default the file's.
        metric (`str`): "R", "mAP" or "share", as in `Benchmark`.
        ranks (`Sequence[int]`, *optional*): The K of the metric; by default those of 1, 5, 10, 50 that the gallery
            allows.
        leaves_reference_out (`bool`): Whether a query's references are dropped from its ranking.
        part_names (`Sequence[str]`, *optional*): Only these parts.
        allow_missing (`bool`): Leave out images that are not there, as `read_benchmark` does.

    Raises:
        FileNotFoundError: If a file is missing, or images are.
        ValueError: With all complaints about rows and ids. Each names file, row and id.
    """
    if isinstance(queries, str | os.PathLike):
        place, name, rows = str(queries), name or Path(queries).stem, read_rows(queries)
    else:
        given: Any = queries
        given = given.to_dict("records") if hasattr(given, "iterrows") else given
        place, name, rows = "queries", name or "table", list(enumerate(given, start=1))
    if not rows:
        raise ValueError(f"{place} has no rows. Write one for each query.")
    if ranks is not None and (not ranks or any(type(k) is not int or k < 1 for k in ranks)):
        raise ParameterError(f"ranks must be whole numbers of at least 1, but they are {ranks!r}.", "ranks")
    parsed, complaints = _parse(place, rows)
    wanted = _of_parts(parsed, part_names)
    gallery = dict(images) if isinstance(images, Mapping) else {} if images is None else _open_images(str(images))
    named = dict.fromkeys(id_ for query in wanted.values() for id_ in _ids_of(query))
    parts = _parts(wanted, list(dict.fromkeys([*gallery, *named]) if allow_missing and gallery else gallery))
    benchmark = _specify(name, metric, ranks, leaves_reference_out, parts)
    number_of = {query["query_id"]: number for number, query in wanted.items()}
    check_data(
        BenchmarkData(benchmark, "table", parts, named | gallery if allow_missing or not gallery else gallery),
        lambda id_: _place(place, number_of[id_], id_),
        complaints,
        is_ranked=images is not None,
    )
    if images is None:
        return BenchmarkData(benchmark, "table", parts)
    data = without_missing(benchmark, "table", parts, gallery, allow_missing)
    stored = None if isinstance(images, Mapping) else Path(images) / FEATURES_NAME
    return replace(data, stored_features=stored if stored is not None and is_store(stored) else None)


def _specify(
    name: str, metric: str, ranks: Sequence[int] | None, leaves_reference_out: bool, parts: Sequence[BenchmarkPart]
) -> Benchmark:
    """What the table asks: R_subset@K and HN@K where it names subsets and negatives."""
    queries = [query for part in parts for query in part.queries]
    chosen = RANKS if ranks is None else tuple(sorted(set(ranks)))
    subset_ranks = SUBSET_RANKS if any(query["subset_ids"] for query in queries) else ()
    files = [SubmissionFile("rankings.json", max(chosen, default=1), takes_longer=True)]
    if subset_ranks:
        header = {"metric": "recall_subset"}
        files.append(SubmissionFile("rankings_subset.json", max(subset_ranks), header, True, takes_longer=True))
    hard_rank = min(HARD_NEGATIVE_RANK, max(chosen, default=1))
    fitted = Benchmark(
        name=name,
        title=name,
        metric=metric,
        ranks=chosen,
        splits=("table",),
        submissions=tuple(files),
        leaves_reference_out=leaves_reference_out,
        subset_ranks=subset_ranks,
        hard_negative_rank=hard_rank if any(query["hard_negative_ids"] for query in queries) else None,
        averages_parts=len(parts) > 1,
        fits_ranks=True,
    ).fitted(parts)
    if ranks is None:
        return fitted
    return replace(fitted, ranks=chosen, submissions=(files[0], *fitted.submissions[1:]), fits_ranks=False)


def read_rows(table: str | os.PathLike) -> Rows:
    """Read a table file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another kind, or damaged.
    """
    path = Path(table)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}. Check the path.")
    readers: dict[str, Callable[[Path], Rows]] = {
        **dict.fromkeys((".csv", ".tsv", ".txt"), _read_text_table),
        **dict.fromkeys((".jsonl", ".ndjson"), _read_json_lines),
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} is no table that can be read. Save it as one of {list(readers)}.")
    return readers[path.suffix.lower()](path)


def _read_parquet(path: Path) -> Rows:
    try:
        return list(enumerate(pq.read_table(path).to_pylist(), start=1))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or not Parquet: {error}. Write it again.") from error


def _read_json_lines(path: Path) -> Rows:
    rows: Rows = []
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise ValueError(f"{path}, row {number}, is not JSON: {error}. Correct the line.") from error
        if row is not None:
            rows.append((number, row))
    return rows


def _read_text_table(path: Path) -> Rows:
    """CSV or TSV, separated by commas, semicolons or tabs; rows are counted as a spreadsheet does."""
    text = _text_of(path)
    headers = {delimiter: next(_cells(text, delimiter, strict=False), []) for delimiter in ",;\t"}
    delimiter = max(
        headers, key=lambda one: len({*_READERS, *_ALIASES} & {cell.strip().lower() for cell in headers[one]})
    )
    header, number = headers[delimiter], 0
    rows: Rows = []
    if (twice := first_repeated([cell for cell in header if cell.strip()])) is not None:
        raise ValueError(f"{path} has the column {twice!r} twice. Remove one.")
    advice = f"Put a cell that holds {delimiter!r} or a quote into double quotes, and write its quotes twice."
    try:
        for number, cells in enumerate(_cells(text, delimiter, strict=True), start=1):
            if any(cell.strip() for cell in cells[len(header) :]):
                raise ValueError(f"{path}, row {number}: {len(cells)} cells for {len(header)} columns. {advice}")
            if number > 1 and any(cell.strip() for cell in cells):
                rows.append((number, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise ValueError(f"{path}, row {number + 1}: {error}. {advice}") from error
    return rows


def _cells(text: str, delimiter: str, strict: bool) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)


def _text_of(path: Path) -> str:
    """A file's text: UTF-8 with or without a byte order mark, or UTF-16 with one, as spreadsheets write them."""
    content = path.read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_wide else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Save it as 'CSV UTF-8'.") from error


def _read_id(value: Any) -> str:
    """A cell with one text, or nothing; whole numbers are texts too, as in CIRCO's files."""
    if value is None or value != value:  # NaN is how pandas writes an empty cell
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"must be a text, but it is {value!r}")
    return str(value).strip()


def _read_ids(value: Any) -> list[str]:
    """A cell with ids: a list, a JSON list, or ids with `|` between them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str) and value.strip().startswith("["):
        with contextlib.suppress(ValueError):  # a file's name may begin with a bracket
            value = json.loads(value)
    if isinstance(value, list | tuple):
        return [str(one) if type(one) in (str, int) else _read_id(one) for one in value]
    return [id_ for one in _read_id(value).split(SEPARATOR) if (id_ := one.strip())]


_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("query_id", "query_text", "group", "part"), _read_id),
    **dict.fromkeys(("reference_id", "target_ids", "subset_ids", "negative_ids"), _read_ids),
}
"""A table's columns, and how a cell of each is read."""


def _parse(place: str, rows: Rows) -> tuple[dict[int, dict[str, Any]], list[Complaint]]:
    """Read the cells: queries by row number, and what is wrong with other rows."""
    parsed: dict[int, dict[str, Any]] = {}
    row_of: dict[str, int] = {}
    complaints: list[Complaint] = []
    headers: dict[tuple[str, ...], list[str]] = {}
    for number, given in rows:
        try:
            row = _named(given)
            wrong = _column_complaints(tuple(row)) if tuple(row) not in headers else []
            complaints += [Complaint(_place(place, number), one) for one in wrong]
            if headers.setdefault(tuple(row), wrong):  # said once for all rows with these columns
                continue
            query = _read_row(row)
        except ValueError as error:
            complaints.append(Complaint(_place(place, number), str(error)))
            continue
        query["query_id"] = query["query_id"] or str(number)
        first = row_of.setdefault(query["query_id"], number)
        if first == number:
            parsed[number] = query
        else:
            complaints.append(Complaint(_place(place, number, query["query_id"]), f"row {first} has this query_id too"))
    return parsed, complaints


def _named(given: Any) -> dict[str, Any]:
    """A row by the columns' own names."""
    if not isinstance(given, Mapping):
        raise ValueError(f"expected an object with the columns {list(_NEEDED)}, but found {given!r}")
    names = [str(name).strip().lower() for name in given]
    names = [_ALIASES.get(name, name) for name in names]
    if (twice := first_repeated(names)) is not None:
        raise ValueError(f"there are two columns {twice}")
    return dict(zip(names, given.values(), strict=True))


def _column_complaints(names: Sequence[str]) -> list[str]:
    """Columns that are missing, and unknown ones whose name is nearly that of a known one."""
    wrong = [f"there is no column {name}, only {list(names)}" for name in _NEEDED if name not in names]
    others = [name for name in _READERS if name not in names]
    for name in names:
        near = difflib.get_close_matches(name, others, 1, _TYPO) if name not in _READERS else []
        wrong += [f"there is a column {name!r} (did you mean {near[0]!r}?)"] if near else []
    return wrong


def _read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Read a row's cells; ValueError with all that is wrong with them."""
    query, wrong = {}, []
    for name, read in _READERS.items():
        try:
            query[name] = read(row.get(name))
        except ValueError as error:
            wrong.append(f"{name} {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return query | {"part": query["part"] or "all"}


def _place(place: str, number: int, query_id: str = "") -> str:
    named = f" (query {query_id!r})" if query_id not in ("", str(number)) else ""
    return f"{place}, row {number}{named}"


def _of_parts(parsed: dict[int, dict[str, Any]], part_names: Sequence[str] | None) -> dict[int, dict[str, Any]]:
    known = list(dict.fromkeys(query["part"] for query in parsed.values()))
    unknown = sorted(set(part_names or ()) - set(known))
    if unknown and known:
        raise ParameterError(f"There are no parts {unknown}. Choose among {known}.", "part")
    return {number: query for number, query in parsed.items() if not part_names or query["part"] in part_names}


def _ids_of(query: Mapping[str, Any]) -> list[str]:
    return [id_ for name in ("reference_id", "target_ids", "subset_ids", "negative_ids") for id_ in query[name]]


def _parts(parsed: Mapping[int, Mapping[str, Any]], gallery_ids: list[str]) -> list[BenchmarkPart]:
    """The parts in the order of the table."""
    queries: dict[str, list[dict[str, Any]]] = {}
    for query in parsed.values():
        row = {name: value for name, value in query.items() if name != "part" and value != ""}
        queries.setdefault(query["part"], []).append(row)
    return [BenchmarkPart(name, rows, gallery_ids) for name, rows in queries.items()]


def _open_images(path: str) -> dict[str, Any]:
    """Open a folder of images, a gallery's folder or a dataset: image id -> image."""
    manifest = Path(path) / MANIFEST_NAME
    ids = None
    if manifest.is_file() and GALLERY.is_in(manifest):
        facts = read_manifest(path)
        ids = read_record(Path(path) / facts["ids_file"], GALLERY_IDS, remedy=GALLERY.remedy)["ids"]
        if facts["source"] is None:
            raise ValueError(f"The gallery {path} does not say where its images lie. Give the folder of the images.")
        source: Any = source_from_record(facts["source"], Path(path))
    else:
        source = open_source(path)
    if isinstance(source, FolderSource):
        return {id_: source.root / id_ for id_ in ids or source.ids}
    row_of = {id_: row for row, id_ in enumerate(source.ids)}
    gone = [id_ for id_ in ids or () if id_ not in row_of]
    if gone:
        raise ValueError(
            f"The images of {path} no longer hold {len(gone)} of its ids, such as {gone[0]!r}. Index them again."
        )
    return {id_: SourceImage(source, row_of[id_]) for id_ in ids or source.ids}
