"""Triplets: SynCir's folder, a file of one's own, LaSCo's JSON, and the training parts of CIRR and FashionIQ."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from ...images.sources import FolderSource, ImageSource, source_from_record
from ...images.streams import open_images

logger = logging.getLogger(__name__)

SYNCIR_COLUMNS = ("reference_id", "target_id", "query_text")
_TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass
class Triplets:
    """Triplets by the ids of their pictures, and where the pictures lie.

    Args:
        reference_ids (`list[str]` of length T): Reference images.
        target_ids (`list[str]` of length T): Target images.
        query_texts (`list[str]` of length T): What leads from the one to the other.
        images (`ImageSource`): The pictures, found by these ids.
        name (`str`): Where they come from, for messages.
    """

    reference_ids: list[str]
    target_ids: list[str]
    query_texts: list[str]
    images: ImageSource
    name: str

    def __len__(self) -> int:
        return len(self.reference_ids)

    def rows(self, ids: list[str] | None = None) -> tuple[list[int], list[int]]:
        """Row numbers of the reference and the target images.

        Args:
            ids (`list[str]`, *optional*): What the row numbers count in: by default the images' own ids.

        Raises:
            ValueError: If a triplet points to an unknown image; the message names both.
        """
        row_of_id = {id_: row for row, id_ in enumerate(self.images.ids if ids is None else ids)}
        for what, wanted in (("reference", self.reference_ids), ("target", self.target_ids)):
            for number, id_ in enumerate(wanted):
                if id_ not in row_of_id:
                    raise ValueError(
                        f"Expected the {what} image {id_!r} of triplet {number} of {self.name} among the "
                        f"{len(row_of_id)} images, but it is not there (found: {list(row_of_id)[:3]} ...). Give the "
                        "images that the triplets were made from, or leave the triplet out."
                    )
        return [row_of_id[id_] for id_ in self.reference_ids], [row_of_id[id_] for id_ in self.target_ids]

    def without(self, ids: Iterable[str]) -> "Triplets":
        """The triplets that use none of these images, for example those that cannot be read."""
        left_out = set(ids)
        pairs = zip(self.reference_ids, self.target_ids, strict=True)
        kept = [row for row, pair in enumerate(pairs) if left_out.isdisjoint(pair)]
        if len(kept) < len(self):
            logger.warning("Left out %d triplets of %s: a picture is broken.", len(self) - len(kept), self.name)
        return Triplets(
            [self.reference_ids[row] for row in kept],
            [self.target_ids[row] for row in kept],
            [self.query_texts[row] for row in kept],
            self.images,
            self.name,
        )


def open_triplets(path: str, kind: str = "auto", images: str | None = None, split: str | None = None) -> Triplets:
    """Open triplets.

    Args:
        path (`str`): SynCir's folder or Hub id; a Parquet, CSV or JSON lines file with the columns `reference_id`,
            `target_id` and `query_text`; LaSCo's JSON file, CIRR's or FashionIQ's folder.
        kind (`str`): One of `KINDS`; "auto" tells them by their files.
        images (`str`, *optional*): The pictures as `open_images` takes them; by default those that belong to the data:
            SynCir's config "images" (where it holds ids alone, the source that its recipe names), the folder's own
            pictures elsewhere. A file of triplets has none.
        split (`str`, *optional*): Of SynCir's data set where there are several.

    Raises:
        ValueError: If there is nothing of that kind there, a column is missing, or there are no triplets.
    """
    if kind == "auto":
        kind = _tell_kind(path)
    if kind not in KINDS:
        raise ValueError(f"Expected triplets of a kind of {['auto', *KINDS]}, but found {kind!r}. Choose one of them.")
    try:
        triplets = KINDS[kind](path, images, split)
    except (KeyError, TypeError, IndexError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Expected {kind} triplets in {path}, but reading them failed: {type(error).__name__}: {error}. Check the "
            f"path, or say which kind they are ({list(KINDS)})."
        ) from error
    if not len(triplets):
        raise ValueError(f"Expected triplets in {path}, but it holds none. Check path and split.")
    empty = next((row for row, text in enumerate(triplets.query_texts) if not isinstance(text, str)), None)
    if empty is not None:
        raise ValueError(
            f"Expected a text for each triplet, but query_text of triplet {empty} of {path} is "
            f"{triplets.query_texts[empty]!r}. Fill it in or leave the row out."
        )
    return triplets


def _tell_kind(path: str) -> str:
    """Tell the kind of triplets by the files that are there."""
    place = Path(path)
    if place.suffix in _TABLE_SUFFIXES:
        return "table"
    if place.suffix == ".json":
        return "lasco"
    if any(place.glob("captions/cap.rc2.train.json")):
        return "cirr"
    if any(place.glob("captions/cap.*.train.json")):
        return "fashioniq"
    return "syncir"


def _open_syncir(path: str, images: str | None, split: str | None) -> Triplets:
    """SynCir's data set: configs "triplets" and "images"; `images` may name other pictures with the same ids."""
    from datasets import load_dataset

    try:
        loaded = load_dataset(path, "triplets")
    except Exception as error:  # datasets raises nearly everything
        raise ValueError(
            f"Expected SynCir's data set at {path}, with a config 'triplets', but loading it failed: {error}. Give the "
            "folder that `hycir syncir` made."
        ) from error
    name = split or next(iter(loaded))
    if name not in loaded:
        raise ValueError(f"Expected a split of {list(loaded)} in {path}, but found {name!r}. Choose one of them.")
    reference_ids, target_ids, texts = _columns(loaded[name].with_format("arrow"), path)
    source = open_images(images) if images else _syncir_images(Path(path))
    return Triplets(reference_ids, target_ids, texts, source, path)


def _open_table(path: str, images: str | None, split: str | None) -> Triplets:
    """A Parquet, CSV or JSON lines file with SynCir's columns."""
    if images is None:
        raise ValueError(
            f"Expected the pictures of the triplets in {path}, but none are given. Name them as triplet_images: a "
            "folder or a data set whose ids the triplets use."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        table = _read_table(Path(path))
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"Expected a table of triplets in {path}, but reading it failed: {error}. Write it anew as Parquet, CSV or "
            "JSON lines."
        ) from error
    return Triplets(*_columns(table, path), open_images(images), path)


def _read_table(path: Path) -> pa.Table:
    if path.suffix == ".csv":
        as_written = pa.csv.ConvertOptions(column_types=dict.fromkeys(SYNCIR_COLUMNS, pa.string()))  # "007" is an id
        return pa.csv.read_csv(path, pa.csv.ReadOptions(), pa.csv.ParseOptions(newlines_in_values=True), as_written)
    return pa.json.read_json(path) if path.suffix == ".jsonl" else pq.read_table(path)


def _columns(loaded: Any, path: str) -> tuple[list[str], list[str], list[Any]]:
    """Reference ids, target ids and texts of an Arrow table, or of a data set in that format, without other columns."""
    missing = [column for column in SYNCIR_COLUMNS if column not in loaded.column_names]
    if missing:
        raise ValueError(
            f"The triplets data set must have the columns {list(SYNCIR_COLUMNS)}, but {missing} are missing in {path} "
            f"(found: {loaded.column_names}). Rename them with dataset.rename_column(...)."
        )
    reference_ids, target_ids, texts = (loaded[column][:].to_pylist() for column in SYNCIR_COLUMNS)
    return [*map(str, reference_ids)], [*map(str, target_ids)], texts


def _syncir_images(path: Path) -> ImageSource:
    """The pictures of SynCir's data set: its own, or, where it only names them, those it was made from."""
    recipe = path / "recipe.json"
    if recipe.is_file():
        record = json.loads(recipe.read_text(encoding="utf-8"))
        if record["settings"]["store_images"] == "reference":
            return source_from_record(record["source_record"], path)
    return open_images(f"{path}:images")


def _open_lasco(path: str, images: str | None, split: str | None) -> Triplets:
    """LaSCo (Levy et al., 2024): `query-image` and `target-image` are [id, path], `query-text` the text."""
    records = json.loads(Path(path).read_text(encoding="utf-8"))
    source = open_images(images or str(Path(path).parent))
    is_by_path = records[0]["query-image"][1] in set(source.ids) if records else True

    def id_of(image: list[Any]) -> str:
        return str(image[1] if is_by_path else image[0])

    return Triplets(
        [id_of(record["query-image"]) for record in records],
        [id_of(record["target-image"]) for record in records],
        [record["query-text"] for record in records],
        source,
        path,
    )


def _open_cirr(path: str, images: str | None, split: str | None) -> Triplets:
    """CIRR's training part: names are looked up in `image_splits`, which gives the files' relative paths."""
    records = json.loads((Path(path) / "captions" / "cap.rc2.train.json").read_text(encoding="utf-8"))
    places = json.loads((Path(path) / "image_splits" / "split.rc2.train.json").read_text(encoding="utf-8"))
    source: ImageSource = FolderSource(images or path)
    by_name = {Path(id_).name: id_ for id_ in source.ids}  # the folders above differ between downloads
    id_of = {name: by_name.get(Path(place).name, place) for name, place in places.items()}
    return Triplets(
        [id_of.get(record["reference"], record["reference"]) for record in records],
        [id_of.get(record["target_hard"], record["target_hard"]) for record in records],
        [record["caption"] for record in records],
        source,
        path,
    )


def _open_fashioniq(path: str, images: str | None, split: str | None) -> Triplets:
    """FashionIQ's training part, all categories; its JSON calls the reference image "candidate".

    The two captions of a pair are joined by "and", as Pic2Word does.
    """
    records = []
    for place in sorted((Path(path) / "captions").glob("cap.*.train.json")):
        records += json.loads(place.read_text(encoding="utf-8"))
    source: ImageSource = FolderSource(images or path)
    by_stem = {Path(id_).stem: id_ for id_ in source.ids}
    return Triplets(
        [by_stem.get(record["candidate"], record["candidate"]) for record in records],
        [by_stem.get(record["target"], record["target"]) for record in records],
        [" and ".join(caption.strip() for caption in record["captions"]) for record in records],
        source,
        path,
    )


KINDS: dict[str, Callable[[str, str | None, str | None], Triplets]] = {
    "syncir": _open_syncir,
    "table": _open_table,
    "lasco": _open_lasco,
    "cirr": _open_cirr,
    "fashioniq": _open_fashioniq,
}
"""Kind of triplets -> how it is opened: path, images, split."""
