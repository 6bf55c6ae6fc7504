"""Arrow files named by their checksum: how a store writes its blocks, and maps them into memory again."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import xxhash

from ..files import atomic_file
from ..formats import IMAGE_STORE


def to_bytes(text: str) -> bytes:
    """Encode a text that may hold half surrogates."""
    return text.encode("utf-8", "surrogatepass")  # file names need not be valid UTF-8


def binary_column(texts: Iterable[str]) -> pa.Array:
    """Make a column of texts."""
    return pa.array([to_bytes(text) for text in texts], pa.binary())


def texts_of(column: pa.ChunkedArray) -> list[str]:
    """Read a column of texts."""
    return [value.decode("utf-8", "surrogatepass") for value in column.to_pylist()]


def write_arrow(folder: Path, prefix: str, table: pa.Table) -> str:
    """Write a table under its checksum; returns the file's name."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    content = sink.getvalue()
    name = f"{prefix}{xxhash.xxh3_64_hexdigest(content)}.arrow"
    with atomic_file(folder / name) as file:
        file.write(content)
    return name


def read_arrow(path: Path, verify: bool = True) -> pa.Table:
    """Map a file into memory and check it against the checksum in its name."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. {IMAGE_STORE.remedy}")
    with pa.memory_map(str(path)) as source:
        content = source.read_buffer()
        if verify and path.stem.rpartition("-")[2] != xxhash.xxh3_64_hexdigest(content):
            raise ValueError(f"{path} is damaged: its checksum is another. {IMAGE_STORE.remedy}")
        return pa.ipc.open_file(content).read_all()
