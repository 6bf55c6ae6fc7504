"""Unlabeled images: a folder, a `datasets` path (streamed too), WebDataset tar shards, or CC3M's TSV beside a folder.

All but streams give access by row, so that the order of training is a function of seed and step alone.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..images_hycir import load_image
from .shards import TarSource, compression, find_shards
from .sources import FolderSource, ImageSource, open_source
from .stamps import file_stamp
from .tables import TEXT_SUFFIXES, as_id, check_place, read_rows, split_config

logger = logging.getLogger(__name__)


class TsvSource:
    """CC3M's TSV beside a folder of its downloaded images.

    Two forms are read: with a header that has a column `filepath` (relative to the folder or absolute), as Pic2Word and
    open_clip use it; and Google's own, without header (caption, URL), whose images are named by their row's number
    ("000010023.jpg" is row 10023), anywhere in the folder. Rows without an image are left out and counted.

    Args:
        path (`str`): The TSV.
        folder (`str`, *optional*): Folder of the images; by default the TSV's own.

    Raises:
        ValueError: If no row has its image, or a row is not UTF-8.
    """

    def __init__(self, path: str, folder: str | None = None) -> None:
        self.path, self.folder = Path(path), Path(folder or Path(path).parent)
        rows = list(_read_rows(self.path))
        header = rows[0] if rows else []
        names = self._named_files(rows) if "filepath" in header else self._numbered_files(len(rows))
        present = list(dict.fromkeys(name for name in names if name is not None))  # an image may be in several rows
        if not present:
            raise ValueError(
                f"None of the {len(rows)} rows of {path} has its image in {self.folder}. Give the folder of the "
                "images. Those of a TSV without header are named by row number; another needs a column 'filepath' "
                f"(found: {header[:5]})."
            )
        self.skipped = [(f"row {row}", "no such image") for row, name in enumerate(names) if name is None]
        self.ids = present
        if self.skipped:
            logger.warning("%d of the %d rows of %s have no image.", len(self.skipped), len(names), path)

    def stamp(self, row: int) -> str:
        """Size and modification time of the file."""
        return file_stamp(self.folder / self.ids[row])

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError or OSError naming the file if it is broken."""
        return load_image(self.folder / self.ids[row])

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """The TSV's name and the number of images."""
        return {"type": "tsv", "path": self.path.name, "num_images": len(self.ids)}

    def _named_files(self, rows: list[list[str]]) -> list[str | None]:
        column = rows[0].index("filepath")
        names = (row[column] if len(row) > column else "" for row in rows[1:])
        return [name if name and (self.folder / name).is_file() else None for name in names]

    def _numbered_files(self, count: int) -> list[str | None]:
        found: list[str | None] = [None] * count
        for name in FolderSource(self.folder).ids:
            stem = Path(name).stem
            if stem.isdecimal() and int(stem) < count:
                found[int(stem)] = name
        return found


def _read_rows(path: Path) -> Iterator[list[str]]:
    """A TSV's rows. Only a line feed ends one (a caption may hold other line breaks), and quotes mean nothing."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                yield line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"Row {number} of {path} is not UTF-8 ({error}). Convert the file, for example with iconv."
                ) from error


class ImageStream:
    """Images that can only be read in order: tar shards, or what `datasets` can stream, from here or the Hub.

    Shuffled by blocks, so that a place in the stream is exact: `buffer_size` images are read, put in an order that
    depends on seed, epoch and block alone, and given out.

    Args:
        path (`str`): A .tar of WebDataset, a glob of such (or its "https://..." or "hf://..." address) or a folder of
            them; or PATH[:CONFIG] that `datasets` can load (a Parquet or JSON lines file, a dataset's folder, a Hub
            id).
        split (`str`): The split.
        image_column (`str`, *optional*): By default "image", or the first of "jpg", "png", "webp".
        id_column (`str`, *optional*): By default "image_id" or "__key__", else the image's number in the stream.
        buffer_size (`int`): Images in a block; their undecoded bytes are held in memory.
        seed (`int`): Random seed of the order.

    Raises:
        ValueError: If path or column cannot be found, or while reading, if what is there is broken.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
        buffer_size: int = 1000,
        seed: int = 0,
    ) -> None:
        self.path, self.buffer_size, self.seed = path, buffer_size, seed
        self.split = split or "train"
        self._dataset = _load_stream(path, self.split)
        columns = self._dataset.column_names or list(next(self._rows(), {}))
        self.image_column = _choose(columns, image_column, ("image", "jpg", "png", "webp"), path)
        ids = [name for name in (id_column, "image_id", "__key__") if name in columns]
        self.id_column = ids[0] if ids else None
        if id_column is not None and id_column not in columns:
            _choose(columns, id_column, (), path)
        self._dataset = _undecoded(self._dataset, self.image_column)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Give id and undecoded content of each image once, in the order of the stream."""
        for number, row in enumerate(self._rows()):
            yield self._id_of(row, number), row[self.image_column]

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """Path, split and columns."""
        columns = {"image_column": self.image_column, "id_column": self.id_column}
        return {"type": "stream", "path": self.path, "split": self.split, **columns}

    def samples(self, state: dict[str, Any] | None = None) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Give id, undecoded image and the state after it, epoch after epoch without end.

        Args:
            state (`dict`, *optional*): Where to resume: a state that was given out.

        Raises:
            ValueError: If the stream is empty.
        """
        epoch, block, position, read, inner = 0, 0, 0, 0, None
        if state is not None:
            epoch, block, position, read = (state[name] for name in ("epoch", "block", "position", "read"))
            inner = state["dataset"]
        while True:
            self._dataset.set_epoch(epoch)
            self._dataset.load_state_dict(inner)  # None: from the epoch's beginning
            rows = self._rows()
            while True:
                buffer = [row for _, row in zip(range(self.buffer_size), rows, strict=False)]
                if not buffer:
                    break
                order = np.random.default_rng([self.seed, epoch, block]).permutation(len(buffer))
                after = self._dataset.state_dict()
                for place in range(position, len(buffer)):
                    row, number = buffer[order[place]], read + int(order[place])
                    now = {"epoch": epoch, "block": block, "position": place + 1, "read": read, "dataset": inner}
                    yield self._id_of(row, number), row[self.image_column], now
                block, position, read, inner = block + 1, 0, read + len(buffer), after
            if read == 0:
                raise ValueError(f"The stream {self.path} (split {self.split!r}) holds no image. Check path and split.")
            epoch, block, position, read, inner = epoch + 1, 0, 0, 0, None

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Give the dataset's rows; an error of its reader names the path."""
        try:
            yield from self._dataset
        except Exception as error:  # datasets and its file systems raise nearly everything
            raise ValueError(
                f"Reading the stream {self.path} (split {self.split!r}) failed: {type(error).__name__}: {error}. "
                "Repair or leave out the broken file. Without streaming, tar shards are read up to where they are "
                "broken."
            ) from error

    def _id_of(self, row: dict[str, Any], number: int) -> str:
        return as_id(row[self.id_column], number, self.id_column) if self.id_column else str(number)


def open_images(
    path: str | Sequence[str],
    split: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    tsv_folder: str | None = None,
) -> ImageSource:
    """Open unlabeled images with access by row.

    Args:
        path (`str` or `Sequence[str]`): A folder of images; WebDataset .tar shards (a folder, a glob, a pattern such as
            "{000..009}.tar", several joined by "::", or a list); a .tsv as CC3M's; or PATH[:CONFIG] that `datasets`
            can load (a table, a dataset's folder, a Hub id).
        split (`str`, *optional*): Of a dataset with several.
        image_column (`str`, *optional*): Of a dataset; by default "image", or the only one with images.
        id_column (`str`, *optional*): Of a dataset; by default "image_id", or else the row number.
        tsv_folder (`str`, *optional*): Where a .tsv's images lie; by default beside it.

    Raises:
        ValueError: If there is nothing there, or the column is missing.
    """
    if not isinstance(path, str):
        path = "::".join(path)
    if path.endswith(".tsv"):
        if not Path(path).is_file():
            raise ValueError(f"There is no TSV at {path}. Check the path.")
        return TsvSource(path, tsv_folder)
    shards = find_shards(path)
    return TarSource(shards) if shards else open_source(path, split, image_column, id_column)


def _load_stream(path: str, split: str) -> Any:
    try:
        shards = find_shards(path)
        wrong = next((shard for shard in shards if "://" not in shard and compression(shard)), None)
        if wrong is not None:
            raise ValueError(f"{wrong}: {compression(wrong)}")
        if shards:
            return datasets.load_dataset("webdataset", data_files={split: shards}, split=split, streaming=True)
        place, config = split_config(path)
        if "://" not in place:
            check_place(place)
        file = Path(place)
        if file.is_file() and file.suffix.lower() in TEXT_SUFFIXES:
            return datasets.IterableDataset.from_generator(_rows_of_file, gen_kwargs={"path": file})
        if file.is_file():
            kind = file.suffix.lstrip(".").lower()
            return datasets.load_dataset(kind, data_files={split: place}, split=split, streaming=True)
        return datasets.load_dataset(place, config, split=split, streaming=True)
    except Exception as error:  # datasets raises nearly everything
        raise ValueError(
            f"{path!r} (split {split!r}) cannot be streamed as a dataset: {error}. Check path "
            "and split, or name one of its configs as PATH:CONFIG."
        ) from error


def _rows_of_file(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a text table; a path of an image is relative to the table's folder."""
    for row in read_rows(path):
        yield row | {"image": str(path.parent / row["image"])} if isinstance(row.get("image"), str) else row


def _choose(columns: list[str], wanted: str | None, usual: tuple[str, ...], path: str) -> str:
    found = [name for name in ((wanted,) if wanted else usual) if name in columns]
    if not found:
        raise ValueError(
            f"{path} has no column {wanted or ' or '.join(usual)}. Its columns are {list(columns)}. Name one as "
            "image_column or id_column."
        )
    return found[0]


def _undecoded(dataset: Any, column: str) -> Any:
    """Give the stream with its images as bytes or paths, so that what is not used is not decoded."""
    is_image = dataset.features is not None and isinstance(dataset.features.get(column), datasets.Image)
    return dataset.cast_column(column, datasets.Image(decode=False)) if is_image else dataset
