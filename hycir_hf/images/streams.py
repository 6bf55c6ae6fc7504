"""Unlabeled images: a folder, a `datasets` path (streamed too), WebDataset tar shards, or CC3M's TSV beside a folder.

All but streams give access by row, so that the order of training is a function of seed and step alone. Tar shards are
indexed once by their headers, without reading the images.
"""

import glob
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..files import passing_error
from ..images_hycir import load_image
from .sources import IMAGE_SUFFIXES, FolderSource, ImageSource, file_stamp, open_source, split_config

logger = logging.getLogger(__name__)


class TarSource:
    """WebDataset tar shards, as img2dataset writes CC3M: files of one sample share the name before the first dot.

    Args:
        paths (`list[str]`): The shards; uncompressed.

    Attributes:
        ids (`list[str]`): The samples' keys; where two shards use the same key, SHARD/KEY, with as much of the shard's
            path as tells the shards apart.
        skipped (`list[tuple[str, str]]`): Key and reason of each sample without an image, and of each shard that ends
            too early.

    Raises:
        ValueError: If no shard holds an image.
    """

    def __init__(self, paths: list[str]) -> None:
        self.paths = sorted(set(paths))
        self.skipped: list[tuple[str, str]] = []
        keys: list[str] = []
        places: list[tuple[int, int, int]] = []
        for shard in range(len(self.paths)):
            for key, offset, size in self._read_headers(shard):
                keys.append(key)
                places.append((shard, offset, size))
        if not keys:
            raise ValueError(
                f"The tar shards {self.paths[:3]} hold no image ({len(self.skipped)} samples without one). Give shards "
                "whose samples have a .jpg, .png or .webp file."
            )
        self._times = [Path(path).stat().st_mtime_ns for path in self.paths]
        self._places = np.array(places, dtype=np.int64)  # (N, 3): shard, offset, size
        counts, names = Counter(keys), _shard_names(self.paths)
        self.ids = [key if counts[key] == 1 else f"{names[p[0]]}/{key}" for key, p in zip(keys, places, strict=True)]
        if self.skipped:
            logger.warning("Skipped %d samples of %d shards; first: %s", len(self.skipped), len(paths), self.skipped[0])

    def stamp(self, row: int) -> str:
        """Shard, byte offset and size of the image, and the shard's modification time."""
        shard, offset, size = self._places[row]
        return f"{Path(self.paths[shard]).name}-{offset}-{size}-{self._times[shard]}"

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError naming shard and sample if it is broken."""
        shard, offset, size = self._places[row]
        try:
            with Path(self.paths[shard]).open("rb") as file:
                file.seek(offset)
                return load_image(file.read(size))
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.paths[shard]}, sample {self.ids[row]}: {error}") from error

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """The shards' names and sizes."""
        shards = [[Path(path).name, Path(path).stat().st_size] for path in self.paths]
        return {"type": "tar", "shards": shards}

    def _read_headers(self, shard: int) -> Iterator[tuple[str, int, int]]:
        """Give each sample's key, and its image's byte offset and size; samples without one are added to `skipped`."""
        seen: set[str] = set()
        found: set[str] = set()
        try:
            with tarfile.open(self.paths[shard], "r:") as tar:
                end = Path(self.paths[shard]).stat().st_size
                for member in tar:
                    key, suffix = _split_key(member.name)
                    if not member.isfile() or not key:
                        continue
                    seen.add(key)
                    is_image_file = suffix in IMAGE_SUFFIXES and member.size and key not in found
                    if is_image_file and member.offset_data + member.size <= end:
                        found.add(key)
                        yield key, member.offset_data, member.size
                _check_end(tar)
        except (tarfile.TarError, OSError) as error:
            if passing_error(error) is not None:
                raise OSError(f"Reading {self.paths[shard]} failed: {error}. Run the same command again.") from error
            self.skipped.append((self.paths[shard], f"the shard cannot be read to its end: {error}"))
        missing = sorted(seen - found)
        self.skipped.extend((key, f"no image in {Path(self.paths[shard]).name}") for key in missing)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise unless the archive's members end at its end marker: tarfile takes a damaged header for the end, silently.

    The marker is 1,024 zero bytes; some writers leave it at 512.
    """
    if tar.fileobj is None:
        return
    tar.fileobj.seek(tar.offset)
    found = tar.fileobj.read(2 * tarfile.BLOCKSIZE)
    if len(found) < tarfile.BLOCKSIZE or any(found):
        what = "a damaged header" if found else "the file's end"
        raise tarfile.ReadError(f"{what} at byte {tar.offset}, where the archive should continue")


def _shard_names(paths: list[str]) -> list[str]:
    """A name of each shard: its file's, or where several folders use the same, its path below the common folder."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    common = os.path.commonpath([Path(path).resolve().parent for path in paths])
    return [Path(path).resolve().relative_to(common).with_suffix("").as_posix() for path in paths]


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
        return str(row[self.id_column]) if self.id_column else str(number)


def open_images(
    path: str,
    split: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    tsv_folder: str | None = None,
) -> ImageSource:
    """Open unlabeled images with access by row.

    Args:
        path (`str`): A folder of images; a folder or glob of WebDataset .tar shards; a .tsv as CC3M's; or
            PATH[:CONFIG] that `datasets` can load (a Parquet file, a dataset's folder, a Hub id).
        split (`str`, *optional*): Of a dataset with several.
        image_column (`str`, *optional*): Of a dataset; by default "image", or the only one of type Image.
        id_column (`str`, *optional*): Of a dataset; by default "image_id", or else the row number.
        tsv_folder (`str`, *optional*): Where a .tsv's images lie; by default beside it.

    Raises:
        ValueError: If there is nothing there, or the column is missing.
    """
    if path.endswith(".tsv"):
        if not Path(path).is_file():
            raise ValueError(f"There is no TSV at {path}. Check the path.")
        return TsvSource(path, tsv_folder)
    shards = _find_shards(path)
    if shards:
        return TarSource(shards)
    if path.endswith(".tar"):
        raise ValueError(f"There are no tar shards at {path}. Check the path or the glob.")
    return open_source(path, split, image_column, id_column)


def _find_shards(path: str) -> list[str]:
    """The .tar files that a path, glob or folder means."""
    if Path(path).is_dir():
        return sorted(str(shard) for shard in Path(path).glob("*.tar"))
    return _expand(path) if path.endswith(".tar") else []


def _expand(pattern: str) -> list[str]:
    """The files that a glob means, sorted."""
    return sorted(glob.glob(pattern))  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses


def _split_key(name: str) -> tuple[str, str]:
    """A tar member's sample key and suffix: WebDataset splits at the first dot of the file's own name."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else "", f".{suffix.lower()}" if dot else "")


def _load_stream(path: str, split: str) -> Any:
    try:
        shards = _find_streamed_shards(path)
        if shards:
            return datasets.load_dataset("webdataset", data_files={split: shards}, split=split, streaming=True)
        place, config = split_config(path)
        if Path(place).is_file():
            kind = Path(place).suffix.lstrip(".").lower()
            kind = _BUILDERS.get(kind, kind)
            return datasets.load_dataset(kind, data_files={split: place}, split=split, streaming=True)
        if os.sep in place and place.startswith((".", os.sep)) and not Path(place).exists():
            raise ValueError("there is nothing there")
        return datasets.load_dataset(place, config, split=split, streaming=True)
    except Exception as error:  # datasets raises nearly everything
        raise ValueError(
            f"{path!r} (split {split!r}) cannot be streamed as a dataset: {error}. Check path "
            "and split, or name one of its configs as PATH:CONFIG."
        ) from error


_BUILDERS = {"jsonl": "json", "ndjson": "json"}
"""A file's suffix -> the builder of `datasets` that reads it, where the names differ."""


def _find_streamed_shards(path: str) -> list[str] | str:
    """Find the tar shards that a stream's path means, or their address elsewhere; nothing for other datasets."""
    pattern = path.removeprefix("webdataset:")  # which `datasets` would call them
    shards = _find_shards(pattern) or (_expand(pattern) if pattern != path else [])
    if not shards and "://" not in pattern and pattern.endswith(".tar"):
        raise ValueError("there is no such file")
    return shards or (pattern if pattern != path or pattern.endswith(".tar") else [])


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
