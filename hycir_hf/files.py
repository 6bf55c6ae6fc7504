"""Files that are whole or absent: atomic writes, checked JSON, locks, and which I/O errors pass by themselves.

Every module that writes a result or reads one of our JSON files uses these functions.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

JsonType = type | tuple[type, ...]

_PASSING_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EDQUOT", "EBUSY", "EAGAIN", "EINTR"),
        *("ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ECONNRESET", "ECONNREFUSED"),
        *("ENOTCONN", "EREMOTEIO", "ENODEV", "ENXIO"),
    )
    if hasattr(errno, name)
)


def passing_error(error: BaseException | None) -> BaseException | None:
    """Return the cause of an error that says nothing about the file: a lost file server, a full disk, no free handle.

    Args:
        error (`BaseException`, *optional*): Its causes and contexts are looked through too.

    Returns:
        The `OSError` or `MemoryError` found, or None. The same file may be readable in a minute.
    """
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING_ERRNOS):
            return error
        error = error.__cause__ or error.__context__
    return None


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to disk (folders: where the system can)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when all of it is on disk.

    Args:
        path (`str` or `Path`): The final place; missing folders are made, an existing file is replaced.

    Raises:
        OSError: If it cannot be written. The message names the file. Nothing half-written is left.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(place: str | os.PathLike) -> Iterator[Path]:
    """Fill a new folder that takes its place only when all of it is on disk.

    Args:
        place (`str` or `Path`): The final place; an existing folder is replaced.

    Raises:
        OSError: If it cannot be written. The message names the folder. Nothing half-written is left.
    """
    place = Path(place)
    aside = place.with_name(f"{place.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in aside.rglob("*"):
            sync(path)
        sync(aside)
        if place.exists():
            shutil.rmtree(place)
        aside.replace(place)
        sync(place.parent)
    except Exception as error:
        if _is_about_writing(error):
            raise _write_error(place, error) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_new_folder(place: str | os.PathLike) -> None:
    """Raise ValueError if a folder to write is a file or has content, such as a model that would be lost."""
    place = Path(place)
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ValueError(f"{place} is not a new or empty folder. Choose another output, or remove it first.")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, in UTF-8; half surrogates (of file names) are escaped."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """Write a value as a JSON file, atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: str | os.PathLike, kind: JsonType = dict, *, remedy: str) -> Any:
    """Read a JSON file and check what kind of value it holds.

    Args:
        path (`str` or `Path`): The file.
        kind (`type` or `tuple[type, ...]`): `dict` or `list`, or both.
        remedy (`str`): The last sentence of the error: what to do.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8, not JSON, repeats a key or holds another kind of value.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}. {remedy}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is damaged or not JSON: {error}. {remedy}") from error
    if not isinstance(value, kind):
        raise ValueError(f"Expected {_type_name(kind)} in {path}, but found {_type_name(type(value))}. {remedy}")
    return value


def read_record(path: str | os.PathLike, keys: Mapping[str, JsonType], *, remedy: str) -> dict[str, Any]:
    """Read a JSON object and check its keys.

    Args:
        path (`str` or `Path`): The file.
        keys (`Mapping[str, type]`): Each key that must be there -> the type of its value; further keys may be there.
        remedy (`str`): The last sentence of the error: what to do.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is missing, or a value has another type. The message names the file and the key.
    """
    record = read_json(path, dict, remedy=remedy)
    check_keys(record, keys, path, remedy)
    return record


def check_keys(record: Mapping[str, Any], keys: Mapping[str, JsonType], path: str | os.PathLike, remedy: str) -> None:
    """Raise ValueError if a key of a file's record is missing or has another type; arguments as in `read_record`."""
    for key, kind in keys.items():
        if key not in record:
            raise ValueError(f"Expected the key {key!r} in {path}, but it is missing. {remedy}")
        value = record[key]
        is_wrong_bool = isinstance(value, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,))
        if is_wrong_bool or not isinstance(value, kind):
            found = _type_name(type(value))
            raise ValueError(f"Expected {_type_name(kind)} as {key!r} in {path}, but found {found}. {remedy}")


@contextlib.contextmanager
def single_writer(lock_path: str | os.PathLike, what: str | os.PathLike) -> Iterator[None]:
    """Hold a lock, so that two processes never write the same thing.

    Args:
        lock_path (`str` or `Path`): The lock file; it stays.
        what (`str` or `Path`): What is written, for the message.

    Raises:
        ValueError: If another process holds it. The message gives its process id where that is known.
    """
    lock_path = Path(lock_path)
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    owner = lock_path.with_suffix(".pid")
    try:
        with FileLock(lock_path, timeout=0):
            owner.write_text(str(os.getpid()), encoding="ascii")
            try:
                yield
            finally:
                owner.unlink(missing_ok=True)
    except Timeout as error:
        pid = owner.read_text(encoding="ascii").strip() if owner.is_file() else ""
        named = f" (pid {pid})" if pid else ""
        raise ValueError(f"Another process{named} is writing to {what}. Wait for it, or stop it.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys must all differ: the parser itself would keep the last one silently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def _is_about_writing(error: BaseException) -> bool:
    """Whether an error comes from the disk: safetensors raises its own kind, tokenizers a bare Exception."""
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    return type(error) is Exception and "os error" in str(error)


def _write_error(path: Path, error: BaseException) -> OSError:
    number = error.errno if isinstance(error, OSError) and error.errno is not None else errno.EIO
    if number in (errno.ENOSPC, errno.EDQUOT):
        text = f"No space left while writing {path}. Free some space and run the same command again."
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        text = f"No permission to write {path}. Change the permissions, or choose another place."
    else:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = f"Writing {path} failed: {reason}. What was saved before is whole; run the same command again."
    return _WriteError(number, text)


class _WriteError(OSError):
    """An OSError with its number, whose text is one sentence."""

    def __str__(self) -> str:
        return str(self.args[1])


_TYPE_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}


def _type_name(kind: JsonType) -> str:
    if isinstance(kind, tuple):
        return " or ".join(_type_name(one) for one in kind)
    return {**_TYPE_NAMES, float: "a number", type(None): "null"}.get(kind, kind.__name__)
