"""The names and versions of our own file formats, and how such a file's header is written and checked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .files import JsonType, check_keys, read_json, read_record


@dataclass(frozen=True)
class FileFormat:
    """A JSON file of ours.

    Args:
        name (`str`): Stands in the file as "format".
        version (`int`): Stands in the file as "format_version"; raised when older code could not read the file.
        remedy (`str`): What to do where a file cannot be read.
        keys (`Mapping[str, type]`): Further keys that must be there, with their types.
    """

    name: str
    version: int
    remedy: str
    keys: Mapping[str, JsonType] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """The two keys that every such file begins with."""
        return {"format": self.name, "format_version": self.version}

    def read(self, path: str | os.PathLike) -> dict[str, Any]:
        """Read and check a file of this format.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, of another format, or of a newer version.
        """
        record = read_record(path, {"format": str, "format_version": int}, remedy=self.remedy)
        if record["format"] != self.name:
            raise ValueError(f"Expected the format {self.name!r} in {path}, but found {record['format']!r}.")
        if record["format_version"] > self.version:
            raise ValueError(f"{path} was written by a newer hycir_hf. Update with `pip install -U hycir_hf`.")
        check_keys(record, self.keys, path, self.remedy)
        return record

    def is_in(self, path: str | os.PathLike) -> bool:
        """Tell whether a JSON file says that it has this format."""
        content = read_json(path, (dict, list), remedy=self.remedy)
        return isinstance(content, dict) and content.get("format") == self.name


GALLERY = FileFormat(
    "hycir-gallery",
    1,
    "Index the images again.",
    {"kind": str, "count": int, "dim": int, "index_file": str, "ids_file": str, "files": dict},
)
"""`manifest.json` of a gallery folder."""

GALLERY_IDS: Mapping[str, JsonType] = {"ids": list, "keys": (list, type(None))}
"""Keys of the file that holds a gallery's ids."""

IMAGE_STORE = FileFormat(
    "hycir-image-store",
    1,
    "Remove the folder and run the same command again.",
    {"settings": dict, "is_complete": bool},
)
"""`manifest.json` of a folder with features or captions of images."""

EVALUATION = FileFormat(
    "hycir-evaluation",
    1,
    "Give a file that `hycir evaluate run ... --output FILE` wrote.",
    {"benchmark": str, "split": str, "results": dict},
)
"""What `hycir evaluate run --output` writes."""

TRIPLETS = FileFormat(
    "hycir-triplets",
    1,
    "Give the folder that `hycir syncir run` made, or run it again: it reuses the stored LLM answers.",
    {"settings": dict, "source_record": dict, "thresholds": dict, "counts": dict, "key": str},
)
"""`recipe.json` of a folder that SynCir wrote."""

ANSWERS = FileFormat("hycir-answers", 1, "Restore the file, or use another folder for the answers.")
"""`format.json` of a folder with LLM answers."""
