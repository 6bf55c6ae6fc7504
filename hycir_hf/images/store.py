"""The one store of what was computed from images: features or captions, in blocks that are whole or absent.

A store is a folder:

    manifest.json        what the values depend on; once complete also the rows file, the counts and the skipped images
    rows-DIGEST.arrow    image id, stamp, block and row of each image, in the order of the source
    blocks/DIGEST.arrow  ids, stamps and values of some images; DIGEST is the checksum of the file

Blocks are memory-mapped and never joined. A value belongs to an image id and a stamp, which changes with the image. So
a new run computes only what is new or changed, and what is gone leaves.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from filelock import FileLock

from ..files import write_json
from ..formats import IMAGE_STORE
from .blocks import binary_column, read_arrow, texts_of, to_bytes, write_arrow

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
BLOCKS = "blocks"
_OPEN_BLOCKS = 512  # each open block holds a file handle, and systems often allow 1,024
_NUM_TRIES = 5
_OLD_SECONDS = 3600.0  # after which a temporary file is a leftover of a killed process

Skip = tuple[str, str, str]
"""Image id, stamp and reason of an image that could not be read."""


class ImageStore:
    """Values of images on disk, found by image id and stamp.

    Make one with `begin`, or open a complete one with `open`.

    Args:
        directory (`Path`): Its folder.
        settings (`dict`): What the values depend on; JSON.

    Attributes:
        ids (`list[str]` of length N): Ids of a complete store's images, in the order of their source.
        skipped (`list[tuple[str, str]]`): Id and reason of each image that could not be read.
        value_shape (`tuple[int, ...]`): Shape of one value, `(V, D)` for features; empty for texts.
        source (`dict`, *optional*): Where the images lie.
        is_complete (`bool`): Whether each image of the source is stored or skipped.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.directory, self.settings, self.key = directory, settings, key_of(settings)
        self.ids: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self.source: dict[str, Any] | None = None
        self.is_complete = False
        self.value_shape: tuple[int, ...] = ()
        self._blocks: list[str] = []
        self._known: dict[str, int] = {}  # id and stamp -> place, or -1 - number of the skip
        self._skips: list[Skip] = []
        self._places = _Places()
        self._order: np.ndarray = np.empty(0, np.int64)  # (N,) places of `ids`
        self._rows_file = ""
        self._verified: set[str] = set()
        self._block = lru_cache(_OPEN_BLOCKS)(self._open_block)

    def __reduce__(self) -> Any:
        """Open the store anew in a worker process instead of copying its values there."""
        return (_open_same, (self.directory, self._rows_file))

    @classmethod
    def begin(cls, directory: str | os.PathLike, settings: Mapping[str, Any]) -> "ImageStore":
        """Open a store for writing, complete or not; begin it where there is none.

        Raises:
            ValueError: If the folder holds something else, or values made with other settings. The message names the
                first setting that differs.
        """
        store = cls(Path(directory), dict(settings))
        path = store.directory / MANIFEST
        if not path.is_file():
            _check_free(store.directory)
            write_json(path, {**IMAGE_STORE.header(), "settings": store.settings, "is_complete": False})
        manifest = IMAGE_STORE.read(path)
        for name, wanted in settings.items():
            found = manifest["settings"].get(name)
            if found != wanted:
                raise ValueError(
                    f"{directory} holds values with {name} {found!r}, not {wanted!r}. Use another folder, or remove it."
                )
        store.refresh()
        return store

    @classmethod
    def open(cls, directory: str | os.PathLike) -> "ImageStore":
        """Open a complete store for reading.

        Raises:
            FileNotFoundError: If there is none, or it is not complete.
            ValueError: If a file of it is damaged. The message names the file.
        """
        directory = Path(directory)
        for _ in range(_NUM_TRIES):  # another process may complete the store anew between two reads
            try:
                return cls._open(directory)
            except _RowsGoneError as error:
                gone = error
        raise gone

    @classmethod
    def _open(cls, directory: Path) -> "ImageStore":
        path = directory / MANIFEST
        manifest = IMAGE_STORE.read(path) if path.is_file() else None
        if manifest is None or not manifest["is_complete"]:
            state = "nothing" if manifest is None else "only a part"
            raise FileNotFoundError(
                f"Expected complete features in {directory}, but found {state}. Run `hycir features` (again)."
            )
        store = cls(directory, manifest["settings"])
        store.source, store.is_complete = manifest["source"], True
        store.value_shape = tuple(manifest["shape"])
        store._skips = [(id_, stamp, reason) for id_, stamp, reason in manifest["skipped"]]
        store.skipped = [(id_, reason) for id_, _, reason in store._skips]
        store._rows_file = manifest["rows_file"]
        if not (directory / store._rows_file).is_file():
            raise _RowsGoneError(f"There is no file {directory / store._rows_file}. {IMAGE_STORE.remedy}")
        rows = read_arrow(directory / store._rows_file)
        store._blocks = manifest["blocks"]
        store._places.extend(rows["block"].to_numpy(), rows["row"].to_numpy())
        store.ids = texts_of(rows["id"])
        store._order = np.arange(len(store.ids))
        return store

    @staticmethod
    def remove(directory: str | os.PathLike) -> None:
        """Remove a store's files, and nothing else that its folder may hold."""
        directory = Path(directory)
        for path in [*directory.glob(f"{BLOCKS}/*.arrow"), *directory.glob("rows-*.arrow")]:
            path.unlink(missing_ok=True)
        (directory / MANIFEST).unlink(missing_ok=True)  # last: values without their settings must never be left

    def refresh(self) -> None:
        """Read the blocks that this or another process has written since the last look."""
        seen = set(self._blocks)
        for path in sorted((self.directory / BLOCKS).glob("*.arrow")):
            if path.name not in seen:
                self._take(path.name)

    def stamps(self) -> list[str]:
        """Stamps of `ids`, of a complete store."""
        return texts_of(read_arrow(self.directory / IMAGE_STORE.read(self.directory / MANIFEST)["rows_file"])["stamp"])

    def holds(self, image_id: str, stamp: str) -> bool:
        """Whether the value of an image was stored. One that could not be read is tried again by each run."""
        return self._known.get(_key(image_id, stamp), -1) >= 0

    def append(
        self, ids: Sequence[str], stamps: Sequence[str], values: np.ndarray | Sequence[str], skipped: Sequence[Skip]
    ) -> None:
        """Write one block.

        Args:
            ids (`Sequence[str]` of length M): Image ids.
            stamps (`Sequence[str]` of length M): Their stamps.
            values (`np.ndarray` of shape `(M, ...)` or `Sequence[str]`): Their values.
            skipped (`Sequence[Skip]`): Images of the same run that could not be read.

        Raises:
            OSError: If it cannot be written; nothing half-written is left.
        """
        shape = values.shape[1:] if isinstance(values, np.ndarray) else ()
        if isinstance(values, np.ndarray):
            width = int(np.prod(shape))
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
        else:
            column = pa.array([to_bytes(text) for text in values], pa.binary())
        table = pa.table(
            {"id": binary_column(ids), "stamp": binary_column(stamps), "value": column},
            metadata={"key": self.key, "shape": json.dumps(shape), "skipped": json.dumps(list(skipped))},
        )
        self._take(write_arrow(self.directory / BLOCKS, "", table))

    def finish(
        self, ids: Sequence[str], stamps: Sequence[str], source: dict[str, Any] | None = None, prune: bool = True
    ) -> bool:
        """Complete the store if a value or a reason is there for each image of a source. One process at a time.

        Args:
            ids (`Sequence[str]`): The images' ids in the order of the source.
            stamps (`Sequence[str]`): Their stamps.
            source (`dict`, *optional*): Where the images lie (`ImageSource.describe()`).
            prune (`bool`): Whether to remove the values of other images.

        Returns:
            `bool`: Whether it is complete; if not, another process still has to write its share.
        """
        with FileLock(self.directory / ".lock"):
            self._forget_removed_blocks()
            self.refresh()
            return self._finish(ids, stamps, source, prune)

    def _finish(self, ids: Sequence[str], stamps: Sequence[str], source: dict[str, Any] | None, prune: bool) -> bool:
        found = [self._known.get(_key(id_, stamp)) for id_, stamp in zip(ids, stamps, strict=True)]
        if any(place is None for place in found):
            return False
        places = [(row, place) for row, place in enumerate(found) if place is not None]
        self._order = np.array([place for _, place in places if place >= 0], np.int64)
        self.ids = [ids[row] for row, place in places if place >= 0]
        skips = [self._skips[-1 - place] for _, place in places if place < 0]
        self.skipped, self.source, self.is_complete = [(id_, reason) for id_, _, reason in skips], source, True
        blocks, rows = self._places.of(self._order)
        # Blocks are numbered by name, so that every process writes the same rows file.
        used = np.array(sorted(np.unique(blocks).tolist(), key=lambda block: self._blocks[block]), np.int64)
        number_of: np.ndarray = np.zeros(len(self._blocks), np.int32)
        number_of[used] = np.arange(len(used))
        table = pa.table(
            {
                "id": binary_column(self.ids),
                "stamp": binary_column([stamps[row] for row, place in places if place >= 0]),
                "block": pa.array(number_of[blocks]),
                "row": pa.array(rows),
            }
        )
        self._rows_file = write_arrow(self.directory, "rows-", table)
        manifest = {
            **IMAGE_STORE.header(),
            "settings": self.settings,
            "is_complete": True,
            "count": len(self.ids),
            "shape": self.value_shape,
            "rows_file": self._rows_file,
            "blocks": [self._blocks[block] for block in used],
            "skipped": skips,
            "source": source,
        }
        write_json(self.directory / MANIFEST, manifest)
        if prune:
            self._remove_leftovers({self._rows_file, *manifest["blocks"]}, {_key(s[0], s[1]) for s in skips})
        return True

    def _forget_removed_blocks(self) -> None:
        """Begin anew if another process has removed a block that this one knows."""
        if any(not (self.directory / BLOCKS / name).is_file() for name in self._blocks):
            self._blocks, self._known, self._skips, self._places = [], {}, [], _Places()
            self._block.cache_clear()

    def read(self, rows: Sequence[int] | np.ndarray, views: np.ndarray | int | None = 0) -> np.ndarray:
        """Read the features of some images.

        Args:
            rows (`Sequence[int]` of length B): Rows of `ids`.
            views (`np.ndarray` of shape `(B,)` or `int`, *optional*): Which view of each; None for all.

        Returns:
            `np.ndarray` of shape `(B, D)`, or `(B, V, D)` for all views: As stored, not normalised.
        """
        blocks, places = self._places.of(self._order[np.asarray(rows, np.int64)])
        chosen = None if views is None else np.broadcast_to(np.asarray(views), len(blocks))
        shape = self.value_shape if chosen is None else self.value_shape[1:]
        out: np.ndarray = np.empty((0, *shape), np.float32)
        for block in np.unique(blocks):
            mine, vectors = blocks == block, self._vectors(int(block))
            if not len(out):
                out = np.empty((len(blocks), *shape), vectors.dtype)  # (B, D) or (B, V, D)
            out[mine] = vectors[places[mine]] if chosen is None else vectors[places[mine], chosen[mine]]
        return out

    def texts(self) -> dict[str, str]:
        """Image id -> stored text (a caption)."""
        blocks, places = self._places.of(self._order)
        columns = {int(block): texts_of(self._block(int(block))["value"]) for block in np.unique(blocks)}
        return {id_: columns[int(b)][p] for id_, b, p in zip(self.ids, blocks, places, strict=True)}

    def _vectors(self, block: int) -> np.ndarray:
        """The features of a block, memory-mapped: `(M, V, D)`."""
        column = self._block(block)["value"].combine_chunks()
        return column.values.to_numpy(zero_copy_only=True).reshape(len(column), *self.value_shape)

    def _open_block(self, number: int) -> pa.Table:
        name = self._blocks[number]
        table = read_arrow(self.directory / BLOCKS / name, verify=name not in self._verified)
        self._verified.add(name)
        return table

    def _take(self, name: str) -> None:
        """Take in a block; one with a wrong checksum is removed, and its images are computed again."""
        path = self.directory / BLOCKS / name
        try:
            table = read_arrow(path)
        except FileNotFoundError:  # another process has completed the store and removed what is no longer used
            return
        except ValueError as error:
            logger.warning("%s Its images are computed again.", error)
            path.unlink(missing_ok=True)
            return
        if table.schema.metadata[b"key"].decode() != self.key:  # of other settings: a removal was interrupted
            return
        self._verified.add(name)
        self.value_shape = tuple(json.loads(table.schema.metadata[b"shape"])) or self.value_shape
        number, first = len(self._blocks), len(self._places)
        self._blocks.append(name)
        self._places.extend(np.full(len(table), number, np.int32), np.arange(len(table), dtype=np.int32))
        keys = map(_key, texts_of(table["id"]), texts_of(table["stamp"]))
        self._known.update((key, first + row) for row, key in enumerate(keys))
        for id_, stamp, reason in json.loads(table.schema.metadata[b"skipped"]):
            self._skips.append((id_, stamp, reason))
            self._known.setdefault(_key(id_, stamp), -len(self._skips))

    def _remove_leftovers(self, used: set[str], skips: set[str]) -> None:
        """Remove blocks whose images are gone or changed, older rows files, and what killed processes left."""
        noted = {_key(id_, stamp) for id_, stamp, _ in self._skips}
        for folder, pattern in ((self.directory / BLOCKS, "*.arrow"), (self.directory, "rows-*.arrow")):
            for path in folder.glob(pattern):
                if path.name not in used and not (pattern == "*.arrow" and self._holds_skips(path, noted & skips)):
                    path.unlink(missing_ok=True)
        for path in self.directory.rglob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                    path.unlink()

    def _holds_skips(self, path: Path, keys: set[str]) -> bool:
        """Whether a block without images in use still says why images were skipped."""
        metadata = read_arrow(path).schema.metadata if keys else {b"key": b"", b"skipped": b"[]"}
        skips = json.loads(metadata[b"skipped"]) if metadata[b"key"].decode() == self.key else []
        return any(_key(id_, stamp) in keys for id_, stamp, _ in skips)


class _RowsGoneError(FileNotFoundError):
    """The manifest names a rows file that another process has just replaced."""


def _open_same(directory: Path, rows_file: str) -> ImageStore:
    """Open a store in a worker process, if it is still the one that the main process opened."""
    store = ImageStore.open(directory)
    if store._rows_file != rows_file:
        raise ValueError(f"The features in {directory} have changed since they were opened. Start again.")
    return store


class _Places:
    """Block and row of each stored value, growing in amortised constant time."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, blocks: np.ndarray, rows: np.ndarray) -> None:
        self._parts.append((blocks, rows))
        self._length += len(blocks)

    def of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Blocks and rows of some places, int32 each."""
        if len(self._parts) != 1:
            empty: list[np.ndarray] = [np.empty(0, np.int32)]
            blocks = np.concatenate(empty + [part[0] for part in self._parts])
            self._parts = [(blocks, np.concatenate(empty + [part[1] for part in self._parts]))]
        blocks, rows = self._parts[0]
        return blocks[places], rows[places]


def key_of(settings: Mapping[str, Any]) -> str:
    """Identify settings: 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(json.dumps(settings, sort_keys=True).encode())


def is_store(directory: str | os.PathLike) -> bool:
    """Whether a folder holds stored values, complete or not."""
    return all((Path(directory) / name).exists() for name in (MANIFEST, BLOCKS))


def holds_settings(directory: str | os.PathLike, settings: Mapping[str, Any]) -> bool:
    """Whether a folder is new, or holds a store whose values were made with these settings."""
    path = Path(directory) / MANIFEST
    return not path.is_file() or IMAGE_STORE.read(path)["settings"] == settings


def _key(image_id: str, stamp: str) -> str:
    return f"{image_id}\0{stamp}"


def _check_free(directory: Path) -> None:
    """Refuse a folder that holds something else, such as a model or images."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file. Give a folder for the features.")
    foreign = [path.name for path in directory.iterdir() if path.name != BLOCKS] if directory.is_dir() else []
    if any(not name.startswith((".", "rows-")) and name != MANIFEST for name in foreign):
        raise ValueError(f"{directory} holds something else ({foreign[0]}). Give a folder that is empty or new.")
