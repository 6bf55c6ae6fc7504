"""Long stages in blocks: each block of rows is one file, whole or absent, so a stage goes on where it was stopped.

Several processes may share a stage: block i belongs to the shard i modulo their number.
"""

import errno
import hashlib
import importlib
import json
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..images import ImageSource

_PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)  # says nothing of the file: stop, do not note it
MAX_SIDE = 1024  # pixels; larger pictures are shrunk when read, since every model here takes fewer


class BlockStore:
    """One stage's results: a column of values for rows 0 .. N - 1, and why a row has none.

    Args:
        directory (`Path`): The stage's folder; `key_parts` decide the folder below it.
        key_parts: JSON values; whatever the results depend on. Another key starts anew.
        num_rows (`int`): N.
        block_size (`int`): Rows a file.
    """

    def __init__(self, directory: Path, key_parts: Any, num_rows: int, block_size: int) -> None:
        key = hashlib.sha256(json.dumps([key_parts, num_rows, block_size], sort_keys=True).encode()).hexdigest()
        self.directory = directory / key[:16]
        self.num_rows, self.block_size = num_rows, block_size
        self.directory.mkdir(parents=True, exist_ok=True)

    @property
    def num_blocks(self) -> int:
        """How many blocks there are in all."""
        return -(-self.num_rows // self.block_size)

    def rows(self, block: int) -> range:
        """The rows of a block."""
        return range(block * self.block_size, min(self.num_rows, (block + 1) * self.block_size))

    def pending(self, num_shards: int = 1, shard_index: int = 0) -> list[int]:
        """Blocks of a shard that are not there yet."""
        return [block for block in range(shard_index, self.num_blocks, num_shards) if not self._path(block).exists()]

    def write(self, block: int, values: Sequence[Any], reasons: Sequence[str | None]) -> None:
        """Write a block: a value, or None and the reason, for each of its rows."""
        path = self._path(block)
        aside = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        column = pa.array([_plain(value) for value in values])
        pq.write_table(pa.table({"value": column, "reason": pa.array(reasons, pa.string())}), aside)
        aside.replace(path)

    def read(self) -> Iterator[tuple[range, pa.Table]]:
        """Go through the blocks in order: rows, and a table of the columns `value` and `reason`."""
        for block in range(self.num_blocks):
            yield self.rows(block), pq.read_table(self._path(block))

    def values(self) -> list[Any]:
        """All values in row order, None where there is none."""
        return [value for _, table in self.read() for value in table["value"].to_pylist()]

    def reasons(self) -> dict[int, str]:
        """Row -> reason of the rows without a value."""
        return {
            rows[i]: reason
            for rows, table in self.read()
            for i, reason in enumerate(table["reason"].to_pylist())
            if reason is not None
        }

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """The vectors that are there, `(M, D)` float32, and the rows that they belong to, `(M,)`."""
        found: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        for block, table in self.read():
            is_there = np.array([reason is None for reason in table["reason"].to_pylist()], dtype=bool)
            rows.append(np.asarray(block)[is_there])
            if is_there.any():
                values = table["value"].combine_chunks().drop_null()
                found.append(values.flatten().to_numpy().reshape(len(values), -1).astype(np.float32))
        empty: np.ndarray = np.zeros((0, 0), np.float32)
        return np.concatenate(found) if found else empty, np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _path(self, block: int) -> Path:
        return self.directory / f"block-{block:06d}.parquet"


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | float) else np.asarray(value, np.float32)


def map_images(
    store: BlockStore,
    source: ImageSource,
    apply: Callable[[list[Any]], Any],
    label: str,
    *,
    batch_size: int,
    num_workers: int,
    num_shards: int = 1,
    shard_index: int = 0,
    progress: bool = True,
) -> None:
    """Fill a store with what a model says of each image; pictures are decoded by worker processes, some batches ahead.

    Args:
        store (`BlockStore`): Over the source's rows.
        source (`ImageSource`): The pictures.
        apply (`Callable`): PIL pictures in RGB -> one value each (a text or a vector).
        label (`str`): Of the progress bar.
        batch_size (`int`): Pictures at once; batches lie within blocks, so that a resumed run sees the same ones.
        num_workers (`int`): Decoding processes; 0 decodes here.
        num_shards (`int`): Processes that share the stage.
        shard_index (`int`): Which of them this is.
        progress (`bool`): Show a progress bar.
    """
    blocks = store.pending(num_shards, shard_index)
    if not blocks:
        return
    batches = {
        block: [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        for block in blocks
        for rows in [store.rows(block)]
    }
    pictures = _read_pictures(source, [rows for block in blocks for rows in batches[block]], num_workers)
    total = sum(len(store.rows(block)) for block in blocks)
    done = sum(len(store.rows(block)) for block in range(shard_index, store.num_blocks, num_shards)) - total
    with tqdm(total=done + total, initial=done, desc=label, unit=" images", disable=not progress) as bar:
        for block in blocks:
            values: list[Any] = []
            reasons: list[str | None] = []
            for _ in batches[block]:
                loaded = next(pictures)
                readable = [picture for picture in loaded if not isinstance(picture, str)]
                said = iter(apply(readable) if readable else [])
                for picture in loaded:
                    is_broken = isinstance(picture, str)
                    values.append(None if is_broken else next(said))
                    reasons.append(picture if is_broken else None)
                bar.update(len(loaded))
            store.write(block, values, reasons)


class _Pictures:
    """A source as torch's DataLoader takes it: batches of rows in, pictures or reasons out."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitem__(self, rows: list[int]) -> list[Any]:
        return [self._load(row) for row in rows]

    def _load(self, row: int) -> Any:
        try:
            picture = self.source.load(row)
            if max(picture.size) > MAX_SIDE:
                picture.thumbnail((MAX_SIDE, MAX_SIDE), reducing_gap=3.0)
            return picture
        except Exception as error:  # a decoder may raise anything on a damaged file
            if isinstance(error, OSError) and error.errno in _PASSING:
                raise
            return " ".join(str(error).split()) or type(error).__name__


def _read_pictures(source: ImageSource, batches: list[list[int]], num_workers: int) -> Iterator[list[Any]]:
    from torch.utils.data import DataLoader

    importlib.import_module("hycir_hf.processing_hycir")  # here once, not in each worker
    return iter(
        DataLoader(
            _Pictures(source),
            sampler=batches,
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=_ignore_interrupt,
        )
    )


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C to the main process, which then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
