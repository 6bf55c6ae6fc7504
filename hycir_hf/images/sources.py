"""Where images lie: a folder, or a list in memory; how a gallery's images are found again."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..files import passing_error
from ..images_hycir import NEEDS_HEIF, has_heif, load_image
from ..settings import ParameterError
from .stamps import content_stamp, file_stamp, locate, locations
from .tables import DatasetSource, holds_images

IMAGE_SUFFIXES = (
    *(
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".hif",
        ".ico",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
    ),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
)
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
_UNREAD = {
    **dict.fromkeys((".svg", ".svgz", ".eps", ".ps", ".ai"), "drawings are not read; export them as PNG"),
    **dict.fromkeys(_RAW_SUFFIXES, "camera RAW files are not read; export them as JPEG or TIFF"),
    **dict.fromkeys((".psd", ".xcf", ".jxl"), "this format is not read; export it as PNG or JPEG"),
}
"""Suffixes of pictures that are counted as not read, and why."""


class ImageSource(Protocol):
    """Images with an id and a stamp each; the stamp changes when the image may have changed."""

    ids: list[str]

    def stamp(self, row: int) -> str:
        """Identify the content of an image, so that stored values of an earlier content are not used."""

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError naming it if it is broken."""

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """Describe the source as JSON, so that `source_from_record` can open it again."""


class FileSource(ImageSource, Protocol):
    """A source whose images are whole files, so that they can be copied as they are."""

    def read_bytes(self, row: int) -> bytes:
        """Read the image's file as it is."""


class FolderSource:
    """All images under a folder, without hidden files and folders; ids are relative POSIX paths, sorted.

    A symbolic link to a folder is followed, once. One that leads back to the folder itself or above it is not.

    Args:
        root (`str` or `Path`): The folder.
        names (`Sequence[str]`, *optional*): Only these files, as relative POSIX paths.
        prefix (`str`): What each id begins with.

    Attributes:
        skipped (`list[tuple[str, str]]`): Id and reason of each file that is a picture and is not read, such as .svg.
        metadata (`list[Path]`): Files metadata.csv, .jsonl or .parquet beside the images (the form of `ImageFolder`).

    Raises:
        ValueError: If it holds no file with an image suffix.
    """

    def __init__(self, root: str | os.PathLike, names: Sequence[str] | None = None, prefix: str = "") -> None:
        self.root, self.prefix = Path(root), prefix
        files = [self.root / name for name in names] if names is not None else list(_files(self.root))
        self._names = sorted(path.relative_to(self.root).as_posix() for path in files if is_image_file(path))
        self.ids = [prefix + name for name in self._names]
        self.skipped = [
            (prefix + path.relative_to(self.root).as_posix(), unread_reason(path.suffix))
            for path in sorted(files)
            if unread_reason(path.suffix)
        ]
        self.metadata = sorted(path for path in files if path.name in METADATA_NAMES)
        if not self.ids:
            counts = Counter(Path(id_).suffix.lower() for id_, _ in self.skipped)
            found = "".join(
                f" It holds {count} {suffix} files: {unread_reason(suffix)}." for suffix, count in counts.items()
            )
            raise ValueError(
                f"No file under {self.root} has an image suffix such as .jpg.{found} Give another folder, or a dataset."
            )

    def stamp(self, row: int) -> str:
        """Size and modification time of the file."""
        return file_stamp(self.root / self._names[row])

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError or OSError naming the file if it is broken."""
        return load_image(self.root / self._names[row])

    def read_bytes(self, row: int) -> bytes:
        """Read the image's file as it is."""
        return (self.root / self._names[row]).read_bytes()

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """The folder's path, absolute and relative to the gallery."""
        prefix = {"prefix": self.prefix} if self.prefix else {}
        return {"type": "folder", **locations(self.root, gallery_directory), **prefix}


class ListSource:
    """Images given one by one: in memory, as bytes, as paths, or as objects with a `load()` method.

    Args:
        images (`Sequence`): N images, as `load_image` takes them, or with a `load()` method that gives such.
        ids (`Sequence[str]` of length N): Their ids.
    """

    def __init__(self, images: Sequence[Any], ids: Sequence[str]) -> None:
        self.images, self.ids = images, list(ids)
        self._broken: dict[int, Exception] = {}

    def stamp(self, row: int) -> str:
        """Size and modification time of a file, or a checksum of bytes, pixels or values."""
        image = self.images[row]
        is_record = isinstance(image, dict)
        content: Any = image.get("bytes") if is_record else image
        if isinstance(content, bytes | bytearray):
            return content_stamp(bytes(content))
        if hasattr(content, "detach"):  # a torch tensor
            content = content.detach().cpu().float().numpy()
        if hasattr(content, "tobytes"):  # PIL images and arrays
            shape = getattr(content, "shape", getattr(content, "size", None))
            try:
                return content_stamp(f"{shape} {getattr(content, 'mode', '')} ".encode() + content.tobytes())
            except Exception as error:  # a truncated file; PIL gives its pixels as black the second time
                self._broken[row] = error
                raise
        path = image.get("path") if is_record else getattr(image, "path", image)
        region = f" {image!r}" if hasattr(image, "box") else ""
        return file_stamp(Path(path)) + region if isinstance(path, str | Path) else "in memory"

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError or OSError naming it if it is broken."""
        if row in self._broken:
            raise ValueError(f"the image is damaged: {self._broken[row]}") from self._broken[row]
        image = self.images[row]
        return load_image(image.load() if hasattr(image, "box") else image)

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """That the images were a list."""
        return {"type": "list"}


class GalleryImages:
    """The images of a gallery by id, read from where its source record says they lie.

    Args:
        record (`dict`): The gallery's source: a folder, a dataset, or several ("parts").
        directory (`Path`): The gallery's folder.

    Raises:
        ValueError: If none of them can be found.
    """

    def __init__(self, record: dict[str, Any], directory: Path) -> None:
        self._folders = [(root, prefix) for root, prefix in folders_of(record, directory) if root.is_dir()]
        others = [part for part in _parts(record) if part.get("type") != "folder"]
        self._others = [source_from_record(part, directory) for part in others]
        if not self._folders and not self._others:
            raise ValueError(
                f"The images are no longer in {_parts(record)[0]['path']}. Put them back, or index them again."
            )

    @cached_property
    def _rows(self) -> dict[str, tuple[FolderSource | DatasetSource, int]]:
        return {id_: (source, row) for source in self._others for row, id_ in enumerate(source.ids)}

    def load(self, image_id: str) -> Any:
        """Load the image of a gallery id; ValueError if it is gone or broken."""
        for root, prefix in self._folders:
            path = root / image_id.removeprefix(prefix)
            if image_id.startswith(prefix) and path.is_file():
                return load_image(path)
        if image_id not in self._rows:
            raise ValueError(f"The image {image_id!r} is no longer there. Index the images again.")
        source, row = self._rows[image_id]
        return source.load(row)


def _parts(record: dict[str, Any]) -> list[dict[str, Any]]:
    return record["parts"] if record.get("type") == "parts" else [record]


def folders_of(record: dict[str, Any], directory: Path) -> list[tuple[Path, str]]:
    """The folders of a source record, where they lie now, each with what its ids begin with; longest prefix first."""
    folders = [part for part in _parts(record) if part.get("type") == "folder"]
    found = [(Path(locate(part, directory)), part.get("prefix", "")) for part in folders]
    return sorted(found, key=lambda one: -len(one[1]))


def open_source(
    path: str, split: str | None = None, image_column: str | None = None, id_column: str | None = None
) -> FolderSource | DatasetSource:
    """Open a folder of images, or PATH[:CONFIG] that `datasets` can load.

    Raises:
        ValueError: If there is nothing there, or an option for datasets is given with a folder of images.
    """
    folder = Path(path)
    if folder.is_file() and is_image_file(folder):
        raise ValueError(f"{path} is one image. Give the folder that holds it.")
    if not folder.is_dir() or _is_dataset(folder):
        return DatasetSource(path, split, image_column, id_column)
    given = {"split": split, "image_column": image_column, "id_column": id_column}
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ParameterError(f"{path} is a folder of images, which has no {', '.join(wrong)}. Leave that out.", *wrong)
    return FolderSource(folder)


def source_from_record(record: dict[str, Any], gallery_directory: Path) -> FolderSource | DatasetSource:
    """Open the source that a gallery's manifest names; a gallery moved together with its images finds them.

    Raises:
        ValueError: If the images are no longer there.
    """
    if record.get("type") not in ("folder", "dataset"):
        raise ValueError(f"The images came from a {record.get('type')}, and cannot be opened again by id.")
    path = locate(record, gallery_directory)
    if "relative" in record and not Path(path).exists():
        raise ValueError(f"The images are no longer in {record['path']}. Put them back, or index them again.")
    if record["type"] == "folder":
        return FolderSource(path, prefix=record.get("prefix", ""))
    named = f"{path}:{record['config']}" if record["config"] else path
    return DatasetSource(named, record["split"], record["image_column"], record["id_column"])


def is_image_file(path: Path) -> bool:
    """Whether a file's name ends as an image's that can be decoded here."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES and not unread_reason(suffix)


def unread_reason(suffix: str) -> str:
    """Say why pictures with this suffix are not read; "" for other files."""
    suffix = suffix.lower()
    if suffix in _HEIF_SUFFIXES and not has_heif():
        return NEEDS_HEIF
    return _UNREAD.get(suffix, "")


def _files(root: Path) -> Iterator[Path]:
    """All files under a folder. Linked folders follow the others, and each folder is listed once."""
    above = {root.resolve(), *root.resolve().parents}
    seen: set[Path] = set()
    waiting = [root]
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0), onerror=_raise_passing):
            folder = Path(place)
            if folder.resolve() in seen:
                folders.clear()
                continue
            seen.add(folder.resolve())
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links = [folder / name for name in folders if (folder / name).is_symlink()]
            waiting += [link for link in links if link.resolve() not in above]
            yield from (folder / name for name in names if not name.startswith("."))


def _raise_passing(error: OSError) -> None:
    """Stop where a folder cannot be listed for a moment: its images would seem to be gone."""
    if passing_error(error) is not None:
        raise OSError(f"Listing the images failed: {error}. Run the same command again.") from error


def _is_dataset(folder: Path) -> bool:
    """Whether a folder was written by `datasets`, holds tables with images, or a card that names configs."""
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return True
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        if text.startswith("---") and "\nconfigs:" in text.split("\n---", 1)[0]:
            return True
    tables = [path for pattern in ("*.parquet", "*/*.parquet", "*.arrow") for path in folder.glob(pattern)]
    tables = [path for path in tables if path.name not in METADATA_NAMES]
    if any(holds_images(path) for path in tables):
        return True
    return bool(tables) and not any(is_image_file(path) for path in _files(folder))
