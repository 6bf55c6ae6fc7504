"""What identifies an image's content, and where files lie."""

import contextlib
import os
from pathlib import Path

import xxhash

from ..files import passing_error


def content_stamp(content: bytes) -> str:
    """The stamp of an image that is known by its bytes alone: 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(content)


def file_stamp(path: Path) -> str:
    """Size and modification time of a file; "unreadable" where it cannot be looked at.

    Raises:
        OSError: If the storage fails for a moment.
    """
    try:
        status = path.stat()
    except OSError as error:
        if passing_error(error) is not None:
            raise
        return "unreadable"
    return f"{status.st_size}-{status.st_mtime_ns}"


def locations(path: Path, gallery_directory: Path | None) -> dict[str, str]:
    """A path as a record keeps it: absolute and, where a gallery's folder is known, relative to it."""
    places = {"path": str(path.resolve())}
    if gallery_directory is not None:
        with contextlib.suppress(ValueError):  # another drive on Windows
            places["relative"] = os.path.relpath(path.resolve(), gallery_directory.resolve())
    return places


def locate(record: dict[str, str], directory: Path) -> str:
    """Where a record's folder or file lies now: relative to `directory` if it is there, or else where it was."""
    near = os.path.normpath(directory.resolve() / record["relative"]) if record.get("relative") else ""
    return near if near and Path(near).exists() else record["path"]
