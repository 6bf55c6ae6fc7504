"""What all readers share: annotation files are read entry by entry, and errors name file and entry."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import read_json
from .types import BenchmarkPart

Parts = tuple[list[BenchmarkPart], dict[str, Any]]
"""A split's parts, and its images by id."""


_REMEDY = "Download the official file of this version."


class AnnotationsMissingError(FileNotFoundError):
    """A benchmark's folder has no annotations of a split."""


def find_annotations(folder: Path, name: str) -> Path:
    """Find an annotation file; the error lists what the folder holds instead."""
    if (folder / name).is_file():
        return folder / name
    others = sorted(path.name for path in folder.glob("*.*")) if folder.is_dir() else []
    found = f"The folder holds {others[:6]}. " if others else ""
    raise AnnotationsMissingError(f"There is no file {folder / name}. {found}Give the benchmark's folder. {_REMEDY}")


def read_annotations(path: Path, kind: type) -> Any:
    """Read an annotation file that must hold a list or an object, not empty."""
    value = read_json(path, kind, remedy=_REMEDY)
    if not value:
        raise ValueError(f"{path} is empty. {_REMEDY}")
    return value


def entries(path: Path, keys: Mapping[str, type]) -> Iterable[tuple[int, dict[str, Any]]]:
    """Give the file's entries with their numbers from 0, each checked for its keys and their types."""
    for number, entry in enumerate(read_annotations(path, list)):
        if not isinstance(entry, dict):
            raise bad_entry(path, str(number), f"an object with the keys {list(keys)}", repr(entry)[:80])
        wrong = [key for key, kind in keys.items() if type(entry.get(key)) is not kind]
        if wrong:
            kinds = {key: keys[key].__name__ for key in wrong}
            raise bad_entry(path, str(number), f"the keys and types {kinds}", f"the keys {list(entry)}")
        yield number, entry


def query_row(
    query_id: Any, reference_id: str, text: str, target_ids: Iterable[str], subset_ids: Iterable[str], split: str
) -> dict[str, Any]:
    """Make a row in the QUERY schema."""
    return {
        "query_id": str(query_id),
        "reference_id": reference_id,
        "query_text": text,
        "target_ids": list(target_ids),
        "subset_ids": list(subset_ids),
        "hard_negative_ids": [],
        "rule": "",
        "wording": 0,
        "split": split,
    }


def check_part(part: BenchmarkPart, path: Path, gallery_path: Path, has_references: bool = True) -> None:
    """Check that each query occurs once, and that the gallery (if the files say what it is) holds its images."""
    seen: dict[str, int] = {}
    gallery = set(part.gallery_ids)
    for number, query in enumerate(part.queries):
        if query["query_id"] in seen:
            first = seen[query["query_id"]]
            raise bad_entry(path, str(number), "each query id once", f"{query['query_id']!r}, as in entry {first}")
        seen[query["query_id"]] = number
        if not gallery:
            continue
        references = [(query["reference_id"], "reference")] if has_references else []
        named = [*((id_, "target") for id_ in query["target_ids"]), *((id_, "member") for id_ in query["subset_ids"])]
        for id_, what in [*references, *named]:
            if id_ not in gallery:
                raise ValueError(
                    f"The gallery of {gallery_path} lacks the {what} {id_!r} of entry {number} (query "
                    f"{query['query_id']!r}) in {path}. Take both files from the same release."
                )


def first_repeated(ids: Sequence[Any]) -> Any:
    """Find the first id that occurs twice; None if there is none."""
    seen: set[Any] = set()
    for id_ in ids:
        if id_ in seen:
            return id_
        seen.add(id_)
    return None


def bad_entry(path: Path, entry: str, expected: str, found: str) -> ValueError:
    """Make the error about one entry of an annotation file."""
    return ValueError(f"Expected {expected} in {path}, entry {entry}, but found {found}. {_REMEDY}")
