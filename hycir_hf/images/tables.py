"""Tables: datasets with an image column, and local CSV, TSV, JSON and Parquet files, whose texts stay as they are.

The builders of `datasets` read a text such as "2024-01-01" of a JSON lines file as a time, and "007" of a CSV file as a
number. So text files are read here.
"""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..images_hycir import load_image
from ..names import is_hub_id
from ..settings import ParameterError
from .stamps import content_stamp, file_stamp, locations

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
_ARCHIVES = (".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".tar")
_PATH_COLUMNS = ("image", "file_name", "filepath")


class DatasetSource:
    """The image column of a `datasets` path: a local folder or table, or a Hub id.

    An image is one of type Image, the plain bytes of an image file, or a path relative to the table's folder.

    Args:
        path (`str`): PATH or PATH:CONFIG.
        split (`str`, *optional*): Needed where there are several.
        image_column (`str`, *optional*): By default the column "image", or the only one with images.
        id_column (`str`, *optional*): By default "image_id", or else the row number.

    Raises:
        ValueError: If path, split or column cannot be found, or an id stands twice.
    """

    def __init__(
        self, path: str, split: str | None = None, image_column: str | None = None, id_column: str | None = None
    ) -> None:
        self.path, self.config = split_config(path)
        dataset, self.split = load_split(self.path, self.config, split)
        self.image_column = _find_image_column(dataset, image_column)
        self.id_column = _find_id_column(dataset, id_column)
        self.ids = _dataset_ids(dataset, self.id_column)
        self._folder = Path(self.path).parent if Path(self.path).is_file() else Path()
        self._columns = dataset
        self._dataset = dataset.select_columns([self.image_column]).cast_column(
            self.image_column, datasets.Image(decode=False)
        )

    def stamp(self, row: int) -> str:
        """Checksum of the image's bytes; size and modification time where it is a file of its own."""
        entry = self._entry(row)
        if entry is None:
            return "none"
        return file_stamp(entry["path"]) if entry["bytes"] is None else content_stamp(entry["bytes"])

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError naming dataset, row and id if it is broken."""
        entry = self._entry(row)
        try:
            if entry is None:
                raise ValueError("the row holds no image")
            return load_image(entry["bytes"] if entry["bytes"] is not None else entry["path"])
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path} row {row} (id {self.ids[row]!r}): {error}") from error

    def read_bytes(self, row: int) -> bytes:
        """Read the image's file as it is."""
        entry = self._entry(row) or {"bytes": b""}
        return entry["bytes"] if entry["bytes"] is not None else entry["path"].read_bytes()

    def _entry(self, row: int) -> dict[str, Any] | None:
        """The undecoded image of a row."""
        entry = self._dataset[row][self.image_column]
        if entry is None or (entry["bytes"] is None and entry["path"] is None):
            return None
        return entry if entry["bytes"] is not None else {"bytes": None, "path": self._folder / entry["path"]}

    def column(self, name: str) -> list[Any]:
        """Read another column, row by row; ValueError if there is none of that name."""
        if name not in self._columns.features:
            raise ValueError(f"{self.path} has no column {name!r}. Its columns are {list(self._columns.features)}.")
        return self._columns.with_format(None)[name][:]

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """Path, config, split and columns."""
        is_local = Path(self.path).exists()
        places = locations(Path(self.path), gallery_directory) if is_local else {"path": self.path}
        return {
            "type": "dataset",
            **places,
            "config": self.config,
            "split": self.split,
            "image_column": self.image_column,
            "id_column": self.id_column,
        }


def split_config(path: str) -> tuple[str, str | None]:
    """Split PATH[:CONFIG] into its two parts; a path that exists as it stands has no config."""
    head, colon, tail = path.rpartition(":")
    if not colon or Path(path).exists() or not head or os.sep in tail:
        return path, None
    return head, tail


def load_split(path: str, config: str | None, split: str | None) -> tuple[Any, str | None]:
    """Load one split of PATH and CONFIG; returns it and its name. A local path is never looked up on the Hub.

    Raises:
        ValueError: If there is nothing there, or the split is missing or must be chosen.
    """
    check_place(path)
    place = Path(path)
    try:
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)
        elif place.is_file() and place.suffix.lower() in TEXT_SUFFIXES:
            loaded = {"train": _as_dataset(place)}
        elif place.is_file():
            loaded = datasets.load_dataset(_BUILDERS[place.suffix.lower()], config, data_files=path)
        else:
            loaded = datasets.load_dataset(path, config)
    except Exception as error:
        raise ValueError(
            f"{path!r} (config {config!r}) cannot be loaded as a folder of images or a dataset: {error}. Check the "
            "path, or name one of its configs as PATH:CONFIG."
        ) from error
    if not isinstance(loaded, dict):
        return loaded, split
    names = list(loaded)
    if split is None and len(names) > 1:
        raise ParameterError(f"{path} has the splits {names}. Choose one of them as split.", "split")
    chosen = names[0] if split is None else split
    if chosen not in loaded:
        raise ParameterError(f"{path} has no split {chosen!r}. Its splits are {names}.", "split")
    return loaded[chosen], chosen


def check_place(path: str) -> None:
    """Raise ValueError unless a path is a folder, a table that is read here, or a Hub id."""
    place = Path(path)
    suffix = place.suffix.lower()
    known = [*TEXT_SUFFIXES, *_BUILDERS]
    if place.is_dir() or (place.is_file() and suffix in known):
        return
    if place.exists():
        remedy = "Unpack it and give the folder" if suffix in _ARCHIVES else f"Give a folder, or a table ({known})"
        raise ValueError(f"{path} is a file of type {suffix or '(none)'}, which is not read as a dataset. {remedy}.")
    is_near = place.parent.is_dir() and place.parent != Path()  # the folder above is here, so the name is a typo
    if not is_hub_id(path) or is_near or suffix in (*known, *_ARCHIVES):
        raise ValueError(
            f"There is no folder, no file and no dataset at {path}. Check the path. A dataset on the Hub is OWNER/NAME."
        )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read a CSV, TSV, JSON or JSON lines file row by row. Texts stay as they are; a CSV or TSV file begins with names.

    Raises:
        ValueError: If a row is damaged. The message names file and row; the first one below the names is row 1.
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            yield from _with_names(path, _csv_rows(path) if path.suffix.lower() == ".csv" else _tsv_rows(path))
            return
        for number, row in enumerate(_json_rows(path), 1):
            if not isinstance(row, dict):
                raise ValueError(f'Row {number} of {path} is no JSON object. Write rows like {{"image_id": "1.jpg"}}.')
            yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Convert it, for example with iconv.") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}. Write it again.") from error


def _csv_rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = file.readline()
        file.seek(0)
        yield from csv.reader(file, delimiter=max(",;\t", key=names.count))


def _tsv_rows(path: Path) -> Iterator[list[str]]:
    """Rows whose quotes mean nothing, unless they surround a whole text."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            texts = line.rstrip("\r\n").split("\t") if line.strip() else []
            is_quoted = [len(text) > 1 and text[0] == text[-1] == '"' for text in texts]
            yield [
                text[1:-1].replace('""', '"') if quoted else text for text, quoted in zip(texts, is_quoted, strict=True)
            ]


def _with_names(path: Path, rows: Iterator[list[str]]) -> Iterator[dict[str, str]]:
    names = [name.strip() for name in next(rows, [])]
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"The first row of {path} must name each column once, but it is {names}.")
    for number, row in enumerate(rows, 1):
        if row and len(row) != len(names):
            raise ValueError(
                f"Row {number} of {path} has {len(row)} fields, and {len(names)} columns are named. Quote a text that "
                "holds the separator."
            )
        if row:
            yield dict(zip(names, row, strict=True))


def _json_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        if path.suffix.lower() == ".json" and file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _parsed(path, 0, path.read_bytes())
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(path, number, line)


def _parsed(path: Path, line: int, content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        place = f"Line {line} of {path}" if line else str(path)
        raise ValueError(f"{place} is not JSON: {error}. Write it again.") from error


def _as_dataset(path: Path) -> Any:
    rows = list(read_rows(path))
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_dict({name: _alike([row.get(name) for row in rows], name) for name in names})


def _alike(values: list[Any], name: str) -> list[Any]:
    """Turn a column's numbers into texts if it also holds texts: ids are often written both ways."""
    texts = [row for row, value in enumerate(values) if isinstance(value, str)]
    odd = next((row for row, value in enumerate(values) if texts and isinstance(value, list | dict)), None)
    if odd is not None:
        raise ValueError(f"Row {odd} holds {values[odd]!r} in the column {name!r}, and row {texts[0]} holds a text")
    return [str(value) if texts and isinstance(value, int | float) else value for value in values]


def _find_image_column(dataset: Any, image_column: str | None) -> str:
    features = dataset.features
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = columns or [name for name, feature in features.items() if _holds_bytes(feature)]
    columns = columns or [
        name for name in (image_column, *_PATH_COLUMNS) if name in features and _is_text(features[name])
    ]
    if image_column is not None and image_column in columns:
        return image_column
    if image_column is None and "image" in columns:
        return "image"
    if image_column is None and len(columns) == 1:
        return columns[0]
    wanted = "has no single column of type Image" if image_column is None else f"has no image column {image_column!r}"
    raise ParameterError(
        f"The dataset {wanted}: its image columns are {columns}, all its columns {list(features)}. Name one as "
        "image_column.",
        "image_column",
    )


def _holds_bytes(feature: Any) -> bool:
    """Whether a column holds image files as plain bytes, or as records with them."""
    inner = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def holds_images(path: Path) -> bool:
    """Whether a Parquet or Arrow file has a column of bytes; one that cannot be read may have."""
    try:
        kinds = pq.read_schema(path).types if path.suffix == ".parquet" else []
    except (pa.ArrowException, OSError):
        kinds = []
    inner = [field.type for kind in kinds if pa.types.is_struct(kind) for field in kind]
    return not kinds or any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in [*kinds, *inner])


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _find_id_column(dataset: Any, id_column: str | None) -> str | None:
    if id_column is None:
        return "image_id" if "image_id" in dataset.features else None
    if id_column not in dataset.features:
        raise ParameterError(
            f"The dataset has no id column {id_column!r}. Name one of {list(dataset.features)} as id_column.",
            "id_column",
        )
    return id_column


def _dataset_ids(dataset: Any, id_column: str | None) -> list[str]:
    if id_column is None:
        return [str(row) for row in range(len(dataset))]
    first_row: dict[str, int] = {}
    for row, value in enumerate(dataset.with_format(None)[id_column]):
        id_ = as_id(value, row, id_column)
        if id_ in first_row:
            raise ValueError(
                f"The id {id_!r} stands in rows {first_row[id_]} and {row} of the column {id_column!r}. Name another "
                "as id_column."
            )
        first_row[id_] = row
    return list(first_row)


def as_id(value: Any, row: int, column: str) -> str:
    """Return a row's id as a text; ValueError if it is missing, or a number that is not whole."""
    if value is None or value == "":
        raise ValueError(f"Row {row} holds no id in the column {column!r}. Fill it in.")
    if isinstance(value, bool | float | list | dict):
        raise ValueError(f"Row {row} holds {value!r} in the column {column!r}. An id is a text or a whole number.")
    return str(value)
