"""WebDataset tar shards, read by row: they are indexed once by their headers, without reading the images."""

import glob
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..files import passing_error
from ..images_hycir import load_image
from .sources import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_COMPRESSED_SUFFIXES = (".tgz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")


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
            first = f" The first problem: {': '.join(self.skipped[0])}." if self.skipped else ""
            raise ValueError(
                f"The tar shards {self.paths[:3]} hold no image.{first} Give shards whose samples have a .jpg, .png or "
                ".webp file."
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
            reason = compression(self.paths[shard]) or f"the shard cannot be read to its end: {error}"
            self.skipped.append((self.paths[shard], reason))
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


def find_shards(path: str) -> list[str]:
    """Find the tar shards that a path means; none for other images.

    Args:
        path (`str`): A folder, a .tar file or address, a glob, a pattern such as "{000..009}.tar", or several of them
            joined by "::".

    Raises:
        ValueError: If a named shard is not there, or the shards are compressed.
    """
    path = path.removeprefix("webdataset:")  # which `datasets` would call them
    if Path(path).is_dir():
        return sorted(str(shard) for shard in Path(path).glob("*.tar"))
    patterns = [one for part in path.split("::") for one in _expand_braces(part)]
    compressed = [one for one in patterns if one.lower().endswith(_COMPRESSED_SUFFIXES)]
    if compressed:
        raise ValueError(f"{compressed[0]} is compressed. Unpack it to a .tar file: samples are read by their place.")
    if not all(one.endswith(".tar") for one in patterns):
        if "::" in path:
            raise ValueError(f"Several paths must all be .tar shards, but they are {path.replace('::', ' and ')}.")
        return []
    return [shard for pattern in patterns for shard in _expand_glob(pattern)]


def _expand_glob(pattern: str) -> list[str]:
    """The files that a glob means, sorted; an address elsewhere stays as it is."""
    if "://" in pattern or Path(pattern).is_file():
        return [pattern]
    found = sorted(glob.glob(pattern))  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses
    if not found:
        raise ValueError(f"There are no tar shards at {pattern}. Check the path or the pattern.")
    return found


def _expand_braces(pattern: str) -> list[str]:
    """Expand "{000..009}" and "{a,b}", as WebDataset and the shell do; a file of that name stays as it is."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if braces is None or Path(pattern).exists():
        return [pattern]
    start, stop, names = braces.groups()
    width = len(start or "")
    middles = names.split(",") if names else [f"{number:0{width}d}" for number in range(int(start), int(stop) + 1)]
    ends = _expand_braces(pattern[braces.end() :])
    return [pattern[: braces.start()] + middle + end for middle in middles for end in ends]


def _split_key(name: str) -> tuple[str, str]:
    """A tar member's sample key and suffix: WebDataset splits at the first dot of the file's own name."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else "", f".{suffix.lower()}" if dot else "")


def compression(path: str) -> str:
    """Say that a shard is compressed; "" if it is not."""
    with Path(path).open("rb") as file:
        start = file.read(6)
    kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
    return f"the shard is compressed ({kind}); unpack it, so that samples can be read by their place" if kind else ""
