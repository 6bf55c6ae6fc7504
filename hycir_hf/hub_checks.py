"""Find secrets and local paths in the files of an upload: their texts, values, metadata and names (extra `push`).

A file is read as places with text: a line, the value of a JSON or YAML key, a Parquet value, an image's metadata.
The places are searched by our own patterns (`names.py`) and by Kingfisher's rules.
"""

import functools
import io
import json
import re
import struct
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import ExifTags, Image

from .names import is_secret_key, secrets_in

try:
    from kingfisher_sdk import Rules, Scanner
except ImportError as error:
    raise ImportError(
        "hycir_hf.hub needs kingfisher-secret-scanner, which cannot be imported. Install it with pip install "
        "'hycir_hf[push]'."
    ) from error

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Strings in these files are vocabulary: none is a path.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "vocab.txt", "merges.txt")
_BATCH = 2000  # places, or rows of a table, that are searched at once
_EXIF_FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.IFD1)  # others are read as raw bytes
_SHOWN = 20  # findings in an error
_MAX_HEADER = 100_000_000  # bytes, as in safetensors itself

_ROOTS = {
    "home",
    "Users",
    "root",
    "mnt",
    "media",
    "data",
    "scratch",
    "srv",
    "tmp",
    "var",
    "work",
    "workspace",
    "Volumes",
}
# "and/or", the path of a URL and a closing tag are no local paths. A Windows path needs two names: code holds "Q:\n".
_PATH = re.compile(
    r"file://[^\s\"'<>]+"
    r"|(?<![\w./~<?-])(?:~?(?:/[^\s\"'<>,;:)\]}`|/\\]+){2,}|~/[^\s\"'<>,;:)\]}`|/\\]+"
    r"|[A-Za-z]:(?:\\{1,2}[\w. -]+\\|/Users/)[^\s\"'<>]*)"
)
_DAMAGED = (ValueError, OSError, yaml.YAMLError, RecursionError, SyntaxError, struct.error, pa.ArrowException)
_DATA_URI = re.compile(r"data:[\w./+-]+;base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class Leak:
    """A secret or a local path in a file.

    Args:
        file (`str`): Path in the folder.
        place (`str`): "line 3", the key of a value, "column x, row 4", "EXIF" or "file name".
        what (`str`): What was found there. Never the secret itself.
    """

    file: str
    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.file} ({self.place}): {self.what}"


@dataclass(frozen=True)
class _Text:
    place: str
    text: str
    key: str = ""


def find_leaks(files: dict[str, Path | bytes]) -> list[Leak]:
    """Search files for secrets and local paths.

    Args:
        files (`dict[str, Path | bytes]`): Path in the repository -> file, or its content.

    Returns:
        `list[Leak]`: Each kind once for each place.

    Raises:
        ValueError: If a file is damaged, so that it cannot be searched.
    """
    leaks: dict[Leak, None] = {}
    for name, content in files.items():
        texts = iter([_Text("file name", name), *(_Text("file name", part) for part in Path(name).parts)])
        leaks |= dict.fromkeys(_search(name, texts))
        try:
            leaks |= dict.fromkeys(_search(name, _read(name, content)))
        except (
            ValueError,
            OSError,
            yaml.YAMLError,
            RecursionError,
            SyntaxError,
            struct.error,
            pa.ArrowException,
        ) as error:
            raise ValueError(
                f"{name} cannot be searched for secrets, because it is damaged: {error}. Repair it, or remove it."
            ) from error
    return list(leaks)


def _search(name: str, texts: Iterator[_Text]) -> Iterator[Leak]:
    is_vocabulary = Path(name).name in _VOCABULARIES
    while batch := list(islice(texts, _BATCH)):
        lines = [f"{one.key} = {one.text}" if one.key else one.text for one in batch]
        joined = "\n".join(lines)
        starts = [0, *accumulate(len(line) + 1 for line in lines)]
        for position, what in _found(joined, with_paths=not is_vocabulary):
            yield Leak(name, batch[bisect(starts, position) - 1].place, what)
        for one in batch:
            if is_vocabulary:
                continue
            if one.text and is_secret_key(one.key):
                yield Leak(name, one.place, f"a value for {one.key!r}")
            elif _is_local(one.text):
                yield Leak(name, one.place, "a local path")


def _found(text: str, with_paths: bool) -> Iterator[tuple[int, str]]:
    """Find secrets and paths: position and kind."""
    text = _DATA_URI.sub(lambda found: " " * len(found[0]), text)
    yield from ((position, what) for what, position in secrets_in(text))
    findings = _scanner().scan(text)
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))] if findings else []
    yield from ((starts[one.location["line"] - 1], f"a secret ({one.rule_name})") for one in findings)
    if with_paths:
        yield from ((one.start(), "a local path") for one in _PATH.finditer(text) if _is_local(one[0]))


@functools.cache
def _scanner() -> Scanner:
    return Scanner(Rules(confidence="low"))


@functools.cache
def _roots() -> set[str]:
    """The folders at this machine's root that hold people's files."""
    system = {"bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "usr"}
    return _ROOTS | {path.name for path in Path("/").iterdir() if path.is_dir()} - system


def _is_local(text: str) -> bool:
    """Tell whether a text is an absolute path of a person's folder, or of anything on this machine."""
    if not _PATH.match(text) or "\n" in text:
        return False
    if not text.startswith("/"):
        return True
    parts = text.split("/")
    return len(parts) > 2 and (parts[1] in _roots() or _exists(text.rstrip(".,;")))


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or a NUL
        return False


def _read(name: str, content: Path | bytes) -> Iterator[_Text]:
    """Read a file's texts."""
    suffix = Path(name).suffix
    if suffix == ".parquet":
        return _parquet(content if isinstance(content, Path) else io.BytesIO(content))
    if suffix == ".safetensors":
        return _safetensors(content)
    data = content.read_bytes() if isinstance(content, Path) else content
    if suffix in _IMAGE_SUFFIXES:
        return _image(data)
    return _text(suffix, data)


def _text(suffix: str, data: bytes) -> Iterator[_Text]:
    """Read a text file's values, then its lines: comments and damaged characters are in these alone."""
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", errors="surrogateescape")
    text = re.sub("[\ud800-\udfff]", "\ufffd", text).removeprefix("\ufeff")
    if suffix == ".json":
        yield from _values(_json(text))
    elif suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):  # `splitlines` would also break a string at U+2028
            yield from _values(_json(line), f"line {number}: ") if line.strip() else ()
    elif suffix in (".yaml", ".yml"):
        for document in yaml.safe_load_all(text):
            yield from _values(document)
    if suffix not in (".json", ".jsonl"):
        yield from (_Text(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1))


class _Object(list):
    """A JSON object as pairs: a key that stands twice is searched twice."""


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_Object)


def _values(value: Any, place: str = "", key: str = "") -> Iterator[_Text]:
    """Go through the strings of a JSON value, with their keys."""
    if isinstance(value, dict):
        value = _Object(value.items())
    if isinstance(value, _Object):
        for name, item in value:
            yield _Text(f"{place}a key", str(name))
            yield from _values(item, place, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _values(item, place, key)
    elif isinstance(value, str):
        yield _Text(place + (key or "text"), re.sub("[\ud800-\udfff]", "\ufffd", value), key)


def _parquet(source: Any) -> Iterator[_Text]:
    """Read a table's metadata, names and values; of values that are images, their metadata."""
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        entries = [*(schema.metadata or {}).items(), *(file.metadata.metadata or {}).items()]
        for field in _fields(schema):
            yield _Text(f"name of column {field.name}", field.name)
            entries += (field.metadata or {}).items()
        entries = [entry for entry in dict.fromkeys(entries) if entry[0] != b"ARROW:schema"]
        yield from (_Text("metadata", _decoded(value), _decoded(key)) for key, value in entries)
        for key, value in entries:
            yield from _metadata_values(_decoded(key), _decoded(value))
        row = 0
        for batch in file.iter_batches(_BATCH):
            for record in batch.to_pylist():
                yield from _cells(record, f"row {row}")
                row += 1


def _fields(parents: Iterable[pa.Field]) -> Iterator[pa.Field]:
    for field in parents:
        yield field
        yield from _fields(field.type.field(number) for number in range(field.type.num_fields))


def _metadata_values(key: str, text: str) -> Iterator[_Text]:
    """Read metadata that is JSON, as that of datasets and pandas is."""
    try:
        return _values(_json(text), f"metadata {key}: ")
    except ValueError:
        return iter(())


def _cells(value: Any, row: str, column: str = "") -> Iterator[_Text]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _cells(item, row, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _cells(item, row, column)
    elif isinstance(value, bytes):
        yield from _embedded(value, f"column {column}, {row}")
    elif isinstance(value, str):
        yield _Text(f"column {column}, {row}", value, column)


def _embedded(data: bytes, place: str) -> Iterator[_Text]:
    try:
        yield from (_Text(f"{place}: {one.place}", one.text, one.key) for one in _image(data))
    except _DAMAGED:  # no image
        yield _Text(place, _decoded(data))


def _image(data: bytes) -> Iterator[_Text]:
    """Read an image's metadata: PNG texts, also behind the pixels, EXIF with all its folders, XMP and comments."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            image.load()
        entries = [*image.info.items(), *getattr(image, "text", {}).items()]
        exif = image.getexif()
        tags = [*exif.items(), *(entry for folder in _EXIF_FOLDERS for entry in exif.get_ifd(folder).items())]
        entries += [(f"EXIF {ExifTags.TAGS.get(tag, tag)}", value) for tag, value in tags]
    for key, value in entries:
        for one in value if isinstance(value, list | tuple) else [value]:
            yield _Text(f"image metadata {key}", str(key))
            yield from (_Text(f"image metadata {key}", text, str(key)) for text in _spellings(one))


def _spellings(value: Any) -> Iterator[str]:
    """Metadata as text; bytes may be of one or two a character."""
    if not isinstance(value, bytes):
        yield str(value)
        return
    yield _decoded(value).replace("\0", " ")
    if b"\0" in value:
        yield _decoded(value).replace("\0", "")


def _decoded(data: bytes) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", data.decode("utf-8", errors="replace"))


def _safetensors(content: Path | bytes) -> Iterator[_Text]:
    """Read the header: names of tensors, and metadata."""
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        (size,) = struct.unpack("<Q", file.read(8))
        yield from _values(_json(file.read(min(size, _MAX_HEADER)).decode()))


def refuse_leaks(leaks: Sequence[Leak]) -> None:
    """Raise ValueError with what was found, if anything was."""
    if leaks:
        more = f"; and {len(leaks) - _SHOWN:,} more; `find_leaks` lists all" if len(leaks) > _SHOWN else ""
        raise ValueError(
            f"Secrets or local paths found: {'; '.join(map(str, leaks[:_SHOWN]))}{more}. Remove them; revoke secrets "
            "if the folder was shared. Nothing was sent."
        )
