"""Captions that are there already: a file, a column of the dataset, or metadata beside the images."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images import FileSource
from ..images.tables import as_id, load_split
from ..names import public_path
from ..settings import ParameterError

CAPTION_COLUMNS = ("caption", "text")
ID_COLUMNS = ("image_id", "file_name", "filename", "image", "filepath", "path", "id")
BY_MODEL = "model"


@dataclass(frozen=True)
class GivenCaptions:
    """One caption for each image.

    Args:
        texts (`list[str]`): In the order of the source; none is empty.
        origin (`str`): Where they come from, for the card.
    """

    texts: list[str]
    origin: str

    @property
    def key(self) -> str:
        """Identify the captions: 16 hex digits."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:16]


def read_captions(source: FileSource, captions: str | None, column: str | None) -> GivenCaptions | None:
    """Read and check the captions that are there already, before anything is computed.

    Args:
        source (`FileSource`): The images.
        captions (`str`, *optional*): A CSV, TSV, JSON, JSON lines or Parquet file; "model" reads none. By default the
            dataset's column, or metadata.csv, .jsonl or .parquet beside the images (the form of `ImageFolder`).
        column (`str`, *optional*): The captions' column; by default "caption" or "text" of a file.

    Returns:
        `GivenCaptions`: None if a captioner has to make them.

    Raises:
        ValueError: If a file or column is missing, or an image has no caption, two, or an empty one.
    """
    if captions == BY_MODEL:
        return None
    if captions is not None:
        return _matched(source, [(Path(captions), "")], column)
    if hasattr(source, "column"):
        return None if column is None else _of_column(source, column)
    files = [(path, _prefix(source, path)) for path in getattr(source, "metadata", ())]
    if column is not None and not files:
        raise ParameterError(
            "caption_column needs a dataset, captions= or a file metadata.csv beside the images. Leave it out.",
            "caption_column",
        )
    return _matched(source, files, column, is_needed=column is not None)


def _of_column(source: Any, column: str) -> GivenCaptions:
    texts = [_caption(text, row, column) for row, text in enumerate(source.column(column))]
    return GivenCaptions(texts, f"the column `{column}`")


def _prefix(source: Any, path: Path) -> str:
    folder = path.parent.relative_to(source.root).as_posix()
    return "" if folder == "." else f"{folder}/"


def _matched(
    source: FileSource, files: Sequence[tuple[Path, str]], column: str | None, is_needed: bool = True
) -> GivenCaptions | None:
    """Give each image its caption of the files, whose ids begin with a prefix; None if no file has captions."""
    known, found, origins = set(source.ids), dict[str, str](), []
    for path, prefix in files:
        table = load_split(str(path), None, None)[0].with_format(None)
        columns = _find_columns(path, list(table.features), column, is_needed)
        if columns is None:
            continue
        origins.append(f"`{public_path(str(path))}`, column `{columns[1]}`")
        for row, (id_, text) in enumerate(zip(table[columns[0]][:], table[columns[1]][:], strict=True)):
            name = prefix + as_id(id_, row, columns[0])
            name = name if name in known else name.replace("\\", "/").removeprefix("./")
            if name in found and name in known:
                raise ValueError(f"{path} has two captions of the image {name!r}. Keep one.")
            found[name] = _caption(text, row, columns[1])
    missing = [id_ for id_ in source.ids if id_ not in found] if origins else []
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(source.ids)} images have no caption in {files[0][0]}, such as {missing[0]!r}. "
            f"Its images are named like {next(iter(found), '(none)')!r}. Add the captions, or move the images away."
        )
    return GivenCaptions([found[id_] for id_ in source.ids], origins[0]) if origins else None


def _find_columns(path: Path, names: list[str], column: str | None, is_needed: bool) -> tuple[str, str] | None:
    """The id column and the caption column of a file; None if there are none and they are not needed."""
    ids = [name for name in ID_COLUMNS if name in names and name != column]
    captions = [name for name in ((column,) if column else CAPTION_COLUMNS) if name in names]
    if ids and captions:
        return ids[0], captions[0]
    if not is_needed:
        return None
    wanted = repr(column or " or ".join(CAPTION_COLUMNS)) if ids else f"id column ({', '.join(ID_COLUMNS)})"
    raise ParameterError(
        f"{path} has no column {wanted}. Its columns are {names}. Name the captions' as caption_column.",
        "caption_column",
    )


def _caption(text: Any, row: int, column: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"Row {row} holds {text!r} in the column {column!r}, which is no caption. Fill it in.")
    return text.encode("utf-8", errors="replace").decode()
