"""Triplets: SynCir's folder, a table file, LaSCo's JSON, and the training parts of CIRR and FashionIQ."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset
from torch import Tensor

from ...files import read_json, read_record
from ...images import FeatureStore
from ...images.sources import FolderSource, ImageSource, source_from_record
from ...images.streams import open_images
from ...images.tables import as_id, read_rows

logger = logging.getLogger(__name__)

COLUMNS = ("reference_id", "target_id", "query_text")
"""Columns of SynCir's triplets, and of a table of triplets."""
_TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
_REMEDY = "Check the path, or set triplet_kind."


@dataclass
class Triplets:
    """Triplets by the ids of their images, and where the images are.

    Args:
        reference_ids (`list[str]` of length T): Reference images.
        target_ids (`list[str]` of length T): Target images.
        query_texts (`list[str]` of length T): Texts that lead from the reference image to the target image.
        images (`ImageSource`): The images by these ids.
        name (`str`): Path of the triplets, for messages.
    """

    reference_ids: list[str]
    target_ids: list[str]
    query_texts: list[str]
    images: ImageSource
    name: str

    def __len__(self) -> int:
        return len(self.reference_ids)

    def rows(self, ids: list[str] | None = None) -> tuple[list[int], list[int]]:
        """Return the row numbers of the reference and the target images.

        Args:
            ids (`list[str]`, *optional*): The ids that row numbers count in; by default those of `images`.

        Raises:
            ValueError: If a triplet names an unknown image.
        """
        row_of_id = {id_: row for row, id_ in enumerate(self.images.ids if ids is None else ids)}
        for what, wanted in (("reference", self.reference_ids), ("target", self.target_ids)):
            for number, id_ in enumerate(wanted):
                if id_ not in row_of_id:
                    raise ValueError(
                        f"The {what} image {id_!r} of triplet {number} of {self.name} is not among the "
                        f"{len(row_of_id)} images ({list(row_of_id)[:3]} ...). Give the images that the triplets were "
                        "made from, or remove the triplet."
                    )
        return [row_of_id[id_] for id_ in self.reference_ids], [row_of_id[id_] for id_ in self.target_ids]

    def without(self, ids: Iterable[str]) -> "Triplets":
        """Return the triplets that use none of these images, for example of those that cannot be read."""
        left_out = set(ids)
        pairs = zip(self.reference_ids, self.target_ids, strict=True)
        kept = [row for row, pair in enumerate(pairs) if left_out.isdisjoint(pair)]
        if len(kept) < len(self):
            logger.warning("Left out %d triplets of %s whose images are broken.", len(self) - len(kept), self.name)
        references, targets, texts = (
            [column[row] for row in kept] for column in (self.reference_ids, self.target_ids, self.query_texts)
        )
        return Triplets(references, targets, texts, self.images, self.name)


class TripletSource:
    """Triplets of one origin, and how many of them a global batch has.

    Args:
        triplets (`Triplets`): The triplets.
        features (`FeatureStore`, *optional*): Features of their images. Triplets whose images could not be read are
            left out.
        batch_size (`int`): Their number in a global batch.

    Raises:
        ValueError: If a triplet names an unknown image.
    """

    def __init__(self, triplets: Triplets, features: FeatureStore | None, batch_size: int) -> None:
        self.triplets = triplets if features is None else triplets.without(features.skipped_ids())
        if not len(self.triplets):
            raise ValueError(f"No triplet of {triplets.name} is left: an image of each of them cannot be read.")
        self.features, self.batch_size = features, batch_size
        pairs = self.triplets.rows(None if features is None else features.ids)
        self.pairs = np.array(pairs, np.int64).T  # (T, 2): reference and target image

    def load(self, row: int) -> list[Any]:
        """Return a triplet's reference and target image, as `load_image` takes them."""
        return [self.triplets.images.load(int(image)) for image in self.pairs[row]]

    def read_features(self, rows: list[int], column: int) -> Tensor:
        """Read the stored features `(R, D)` of these triplets' reference images (column 0) or target images (1)."""
        if self.features is None:
            raise ValueError(f"The triplets of {self.triplets.name} have no stored features. Set triplet_features.")
        return self.features.read(self.pairs[rows, column])


def open_triplets(path: str, kind: str = "auto", images: str | None = None, split: str | None = None) -> Triplets:
    """Open triplets.

    Args:
        path (`str`): SynCir's folder or Hub id; a Parquet, CSV or JSON lines file with the columns `reference_id`,
            `target_id` and `query_text`; LaSCo's JSON file; CIRR's or FashionIQ's folder.
        kind (`str`): A key of `KINDS`; "auto" finds it by the files.
        images (`str`, *optional*): The images, as `open_images` takes them. By default those that come with the
            triplets: SynCir's config "images", or the source that its recipe names; the folder's own images for LaSCo,
            CIRR and FashionIQ. A table of triplets has none.
        split (`str`, *optional*): Split of SynCir's dataset, if it has several.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file, a row or a column is not as this kind of triplets has it, or there are no triplets.
    """
    if kind == "auto":
        kind = _find_kind(path)
    if kind not in KINDS:
        raise ValueError(f"Expected a triplet_kind of {['auto', *KINDS]}, but found {kind!r}.")
    triplets = KINDS[kind](path, images, split)
    if not len(triplets):
        raise ValueError(f"There are no {kind} triplets in {path}. {_REMEDY}")
    for row, text in enumerate(triplets.query_texts):
        if not isinstance(text, str):
            raise ValueError(f"Expected a query_text in triplet {row} of {path}, but found {text!r}. Fill it in.")
    return triplets


def _find_kind(path: str) -> str:
    """Find the kind of triplets by the files that are there."""
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
    """SynCir's dataset, configs "triplets" and "images". `images` may name other images with the same ids."""
    try:
        loaded = load_dataset(path, "triplets")
    except Exception as error:  # datasets raises nearly everything
        raise ValueError(
            f"There is no SynCir dataset with a config 'triplets' at {path}: {error}. Give the folder that "
            "`hycir syncir` made."
        ) from error
    name = split or next(iter(loaded))
    if name not in loaded:
        raise ValueError(f"Expected a triplet_split of {list(loaded)} in {path}, but found {name!r}.")
    columns = _columns(loaded[name].with_format("arrow"), path)
    return Triplets(*columns, open_images(images) if images else _syncir_images(Path(path)), path)


def _syncir_images(path: Path) -> ImageSource:
    """The images of SynCir's dataset: its own, or those that its recipe names."""
    recipe = path / "recipe.json"
    if recipe.is_file():
        record = read_record(recipe, {"settings": dict}, remedy="Set triplet_images.")
        if record["settings"].get("store_images") == "reference":
            return source_from_record(record["source_record"], path)
    return open_images(f"{path}:images")


def _open_table(path: str, images: str | None, split: str | None) -> Triplets:
    """A Parquet, CSV or JSON lines file with SynCir's columns."""
    if images is None:
        raise ValueError(f"The table {path} has no images of its own. Set triplet_images to a folder or a dataset.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no table {path}. {_REMEDY}")
    try:
        table = _read_table(Path(path))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a {Path(path).suffix} table: {error}. Write it again.") from error
    return Triplets(*_columns(table, path), open_images(images), path)


def _read_table(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    rows = list(read_rows(path))  # texts stay as they are: "007" and "2024-01-01" are ids
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _columns(loaded: Any, path: str) -> tuple[list[str], list[str], list[Any]]:
    """Reference ids, target ids and query texts of columns by name, an Arrow table, or a dataset in that format."""
    names = list(loaded) if isinstance(loaded, dict) else loaded.column_names
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise ValueError(f"Expected the columns {list(COLUMNS)} in {path}, but found {names}.")
    values = [loaded[one] if isinstance(loaded, dict) else loaded[one][:].to_pylist() for one in COLUMNS]
    ids = [[as_id(id_, row, name) for row, id_ in enumerate(values[column])] for column, name in enumerate(COLUMNS[:2])]
    return ids[0], ids[1], values[2]


def _open_lasco(path: str, images: str | None, split: str | None) -> Triplets:
    """LaSCo (Levy et al., 2024), with images by path or, if the source does not have that path, by number."""
    source = open_images(images or str(Path(path).parent))
    known = frozenset(source.ids)

    def id_of(image: list[Any]) -> str:
        number, place = str(image[0]), image[1]
        return number if place not in known and number in known else str(place)

    needs = '"query-image" and "target-image": [number, path], "query-text": text'
    columns = _read_rows(
        [Path(path)], needs, lambda row: (id_of(row["query-image"]), id_of(row["target-image"]), row["query-text"])
    )
    return Triplets(*columns, source, path)


def _open_cirr(path: str, images: str | None, split: str | None) -> Triplets:
    """CIRR's training part. The JSON in `image_splits` gives each image's file."""
    places = read_json(Path(path) / "image_splits" / "split.rc2.train.json", dict, remedy=_REMEDY)
    source: ImageSource = FolderSource(images or path)
    by_name = {Path(id_).name: id_ for id_ in source.ids}  # the folders above the files differ between downloads
    id_of = {name: by_name.get(Path(place).name, place) for name, place in places.items()}
    needs = '"reference" and "target_hard": image, "caption": text'
    captions = Path(path) / "captions" / "cap.rc2.train.json"
    columns = _read_rows(
        [captions],
        needs,
        lambda row: (
            id_of.get(row["reference"], row["reference"]),
            id_of.get(row["target_hard"], row["target_hard"]),
            row["caption"],
        ),
    )
    return Triplets(*columns, source, path)


def _open_fashioniq(path: str, images: str | None, split: str | None) -> Triplets:
    """FashionIQ's training part, all categories. Its JSON calls the reference image "candidate".

    The two captions of a pair are joined by "and", as in Pic2Word.
    """
    source: ImageSource = FolderSource(images or path)
    id_of = {Path(id_).stem: id_ for id_ in source.ids}
    needs = '"candidate" and "target": image, "captions": texts'
    captions = sorted((Path(path) / "captions").glob("cap.*.train.json"))
    columns = _read_rows(
        captions,
        needs,
        lambda row: (
            id_of.get(row["candidate"], row["candidate"]),
            id_of.get(row["target"], row["target"]),
            " and ".join(caption.strip() for caption in row["captions"]),
        ),
    )
    return Triplets(*columns, source, path)


def _read_rows(
    places: list[Path], needs: str, triplet_of: Callable[[dict[str, Any]], tuple[str, str, str]]
) -> tuple[list[str], list[str], list[str]]:
    """Read JSON lists of triplets.

    Args:
        places (`list[Path]`): The files.
        needs (`str`): What each row needs, for the message.
        triplet_of (function): A row -> reference id, target id, query text.
    """
    found = []
    for place in places:
        for number, row in enumerate(read_json(place, list, remedy=_REMEDY)):
            try:
                found.append(triplet_of(row))
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(f"Row {number} of {place} is no triplet ({reason}). It needs {needs}.") from error
    return [one[0] for one in found], [one[1] for one in found], [one[2] for one in found]


KINDS: dict[str, Callable[[str, str | None, str | None], Triplets]] = {
    "syncir": _open_syncir,
    "table": _open_table,
    "lasco": _open_lasco,
    "cirr": _open_cirr,
    "fashioniq": _open_fashioniq,
}
"""Kind of triplets -> how it is opened: path, images, split."""
