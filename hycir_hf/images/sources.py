"""Where images lie: a folder, a `datasets` path with an image column, or a list in memory."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import datasets

from ..files import passing_error
from ..images_hycir import load_image
from ..names import is_hub_id
from ..settings import ParameterError
from .store import content_stamp

IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
)


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

    Args:
        root (`str` or `Path`): The folder.

    Raises:
        ValueError: If it holds no file with an image suffix.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self.ids = sorted(path.relative_to(self.root).as_posix() for path in _image_files(self.root))
        if not self.ids:
            raise ValueError(
                f"No file under {self.root} has an image suffix such as .jpg. Give another folder, or a dataset."
            )

    def stamp(self, row: int) -> str:
        """Size and modification time of the file."""
        return file_stamp(self.root / self.ids[row])

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError or OSError naming the file if it is broken."""
        return load_image(self.root / self.ids[row])

    def read_bytes(self, row: int) -> bytes:
        """Read the image's file as it is."""
        return (self.root / self.ids[row]).read_bytes()

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """The folder's path, absolute and relative to the gallery."""
        return {"type": "folder", **_locations(self.root, gallery_directory)}


class DatasetSource:
    """The image column of a `datasets` path: a local folder or Parquet file, or a Hub id.

    Args:
        path (`str`): PATH or PATH:CONFIG.
        split (`str`, *optional*): Needed where there are several.
        image_column (`str`, *optional*): By default the column "image", or the only column of type Image.
        id_column (`str`, *optional*): By default "image_id", or else the row number.

    Raises:
        ValueError: If path, split or column cannot be found, or an id stands twice.
    """

    def __init__(
        self, path: str, split: str | None = None, image_column: str | None = None, id_column: str | None = None
    ) -> None:
        self.path, self.config = split_config(path)
        dataset, self.split = load_split(self.path, self.config, split)
        self.image_column = _find_image_column(dataset, image_column)
        self.id_column = _find_id_column(dataset, id_column)
        self.ids = _dataset_ids(dataset, self.id_column)
        self._columns = dataset
        self._dataset = dataset.select_columns([self.image_column]).cast_column(
            self.image_column, datasets.Image(decode=False)
        )

    def stamp(self, row: int) -> str:
        """Checksum of the image's bytes; size and modification time where it is a file of its own."""
        entry = self._entry(row)
        if entry is None:
            return "none"
        return file_stamp(Path(entry["path"])) if entry["bytes"] is None else content_stamp(entry["bytes"])

    def load(self, row: int) -> Any:
        """Load an image, PIL in RGB; ValueError naming dataset, row and id if it is broken."""
        entry = self._entry(row)
        try:
            if entry is None:
                raise ValueError("the row holds no image")
            return load_image(entry["bytes"] if entry["bytes"] is not None else entry["path"])
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path} row {row} (id {self.ids[row]!r}): {error}") from error

    def read_bytes(self, row: int) -> bytes:
        """Read the image's file as it is."""
        entry = self._entry(row) or {"bytes": b""}
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()

    def _entry(self, row: int) -> dict[str, Any] | None:
        """The undecoded image of a row."""
        entry = self._dataset[row][self.image_column]
        return None if entry is None or (entry["bytes"] is None and entry["path"] is None) else entry

    def column(self, name: str) -> list[Any]:
        """Read another column, row by row; ValueError if there is none of that name."""
        if name not in self._columns.features:
            raise ValueError(f"{self.path} has no column {name!r}. Its columns are {list(self._columns.features)}.")
        return self._columns.with_format(None)[name][:]

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """Path, config, split and columns."""
        is_local = Path(self.path).exists()
        places = _locations(Path(self.path), gallery_directory) if is_local else {"path": self.path}
        return {
            "type": "dataset",
            **places,
            "config": self.config,
            "split": self.split,
            "image_column": self.image_column,
            "id_column": self.id_column,
        }


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
        source (`ImageSource`): The opened source.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id_: row for row, id_ in enumerate(self.source.ids)}

    def load(self, image_id: str) -> Any:
        """Load the image of a gallery id; ValueError if it is gone or broken."""
        if image_id not in self._rows:
            raise ValueError(f"The image {image_id!r} is no longer there. Index the images again.")
        return self.source.load(self._rows[image_id])


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


def open_source(
    path: str, split: str | None = None, image_column: str | None = None, id_column: str | None = None
) -> FolderSource | DatasetSource:
    """Open a folder of images, or PATH[:CONFIG] that `datasets` can load.

    Raises:
        ValueError: If there is nothing there, or an option for datasets is given with a folder of images.
    """
    folder = Path(path)
    if folder.is_file() and folder.suffix.lower() in IMAGE_SUFFIXES:
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
    path = record["path"]
    if "relative" in record and not Path(path).exists():
        path = os.path.normpath(gallery_directory.resolve() / record["relative"])
        if not Path(path).exists():
            raise ValueError(f"The images are no longer in {record['path']}. Put them back, or index them again.")
    if record["type"] == "folder":
        return FolderSource(path)
    named = f"{path}:{record['config']}" if record["config"] else path
    return DatasetSource(named, record["split"], record["image_column"], record["id_column"])


def split_config(path: str) -> tuple[str, str | None]:
    """Split PATH[:CONFIG] into its two parts; a path that exists as it stands has no config."""
    head, colon, tail = path.rpartition(":")
    if not colon or Path(path).exists() or not head or os.sep in tail:
        return path, None
    return head, tail


def _image_files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, onerror=_raise_passing):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(folder) / name


def _raise_passing(error: OSError) -> None:
    """Stop where a folder cannot be listed for a moment: its images would seem to be gone."""
    if passing_error(error) is not None:
        raise OSError(f"Listing the images failed: {error}. Run the same command again.") from error


def _is_dataset(folder: Path) -> bool:
    """Whether a folder was written by `datasets`, holds Parquet or Arrow files, or a card that names configs."""
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return True
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        if text.startswith("---") and "\nconfigs:" in text.split("\n---", 1)[0]:
            return True
    return any(True for pattern in ("*.parquet", "*/*.parquet", "*.arrow") for _ in folder.glob(pattern))


def _locations(path: Path, gallery_directory: Path | None) -> dict[str, str]:
    places = {"path": str(path.resolve())}
    if gallery_directory is not None:
        with contextlib.suppress(ValueError):  # another drive on Windows
            places["relative"] = os.path.relpath(path.resolve(), gallery_directory.resolve())
    return places


def load_split(path: str, config: str | None, split: str | None) -> tuple[Any, str | None]:
    """Load one split of PATH and CONFIG; returns it and its name.

    Raises:
        ValueError: If there is nothing there, or the split is missing or must be chosen.
    """
    place = Path(path)
    is_local = place.parent.is_dir() and place.parent != Path()  # the folder above is here, so the name is a typo
    if not place.exists() and "/" in path and (is_local or not is_hub_id(path)):
        raise ValueError(f"There is no folder and no dataset at {path}. Check the path.")
    try:
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)
        elif place.is_file():
            loaded = datasets.load_dataset(place.suffix.lstrip(".").lower(), config, data_files=path)
        else:
            loaded = datasets.load_dataset(path, config)
    except Exception as error:
        raise ValueError(
            f"{path!r} (config {config!r}) cannot be loaded as a folder of images or a dataset: {error}. Check the "
            "path, or name one of its configs as PATH:CONFIG."
        ) from error
    if not isinstance(loaded, dict):
        return loaded, split
    names = list(loaded)
    if split is None and len(names) > 1:
        raise ParameterError(f"{path} has the splits {names}. Choose one of them as split.", "split")
    chosen = names[0] if split is None else split
    if chosen not in loaded:
        raise ParameterError(f"{path} has no split {chosen!r}. Its splits are {names}.", "split")
    return loaded[chosen], chosen


def _find_image_column(dataset: Any, image_column: str | None) -> str:
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if image_column is not None and image_column in columns:
        return image_column
    if image_column is None and "image" in columns:
        return "image"
    if image_column is None and len(columns) == 1:
        return columns[0]
    wanted = "has no single column of type Image" if image_column is None else f"has no image column {image_column!r}"
    raise ParameterError(
        f"The dataset {wanted}: its image columns are {columns}, all its columns {list(dataset.features)}. Name one as "
        "image_column.",
        "image_column",
    )


def _find_id_column(dataset: Any, id_column: str | None) -> str | None:
    if id_column is None:
        return "image_id" if "image_id" in dataset.features else None
    if id_column not in dataset.features:
        raise ParameterError(
            f"The dataset has no id column {id_column!r}. Name one of {list(dataset.features)} as id_column.",
            "id_column",
        )
    return id_column


def _dataset_ids(dataset: Any, id_column: str | None) -> list[str]:
    if id_column is None:
        return [str(row) for row in range(len(dataset))]
    first_row: dict[str, int] = {}
    for row, value in enumerate(dataset.with_format(None)[id_column]):
        if value is None:
            raise ValueError(f"Row {row} of the dataset holds no id in the column {id_column!r}. Fill it in.")
        if str(value) in first_row:
            raise ValueError(
                f"The id {str(value)!r} stands in rows {first_row[str(value)]} and {row} of the column {id_column!r}. "
                "Name another as id_column."
            )
        first_row[str(value)] = row
    return list(first_row)
