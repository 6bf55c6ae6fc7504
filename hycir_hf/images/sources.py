"""Where a gallery's images lie: a folder of pictures, or a `datasets` path with an image column."""

import contextlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
)


class ImageSource(Protocol):
    """Images with an id and a stamp each; the stamp changes when the picture may have changed."""

    ids: list[str]

    def stamp(self, row: int) -> str:
        """What a stored feature of this image must have been made from."""

    def load(self, row: int) -> Any:
        """The picture, PIL in RGB; ValueError naming it if it is broken."""

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """A JSON record from which `source_from_record` opens the source again."""


class FileSource(ImageSource, Protocol):
    """A source whose pictures are whole files, so that they can be copied as they are."""

    def read_bytes(self, row: int) -> bytes:
        """The picture's file as it is."""


class FolderSource:
    """All pictures under a folder, hidden files and folders left out; ids are relative POSIX paths, sorted.

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
                f"Expected pictures under {self.root}, but found no file with an image suffix such as .jpg or .png. "
                "Give another folder, or a data set's path."
            )

    def stamp(self, row: int) -> str:
        """Size and time of change of the file."""
        try:
            status = (self.root / self.ids[row]).stat()
        except OSError:
            return "unreadable"
        return f"{status.st_size}-{status.st_mtime_ns}"

    def load(self, row: int) -> Any:
        """The picture, PIL in RGB; ValueError or OSError naming the file if it is broken."""
        from ..images_hycir import load_image  # here, since it loads torch

        return load_image(self.root / self.ids[row])

    def read_bytes(self, row: int) -> bytes:
        """The file as it is."""
        return (self.root / self.ids[row]).read_bytes()

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """The folder's place, absolute and relative to the gallery."""
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
        from datasets import Image

        self.path, self.config = split_config(path)
        dataset, self.split = load_split(self.path, self.config, split)
        self.image_column = _find_image_column(dataset, image_column)
        self.id_column = _find_id_column(dataset, id_column)
        self.ids = _dataset_ids(dataset, self.id_column)
        self._columns = dataset
        self._dataset = dataset.select_columns([self.image_column]).cast_column(self.image_column, Image(decode=False))
        self._fingerprint = dataset._fingerprint

    def stamp(self, row: int) -> str:
        """The data set's fingerprint and the row."""
        return f"{self._fingerprint}-{row}"

    def load(self, row: int) -> Any:
        """The picture, PIL in RGB; ValueError naming data set, row and id if it is broken."""
        from ..images_hycir import load_image

        entry = self._dataset[row][self.image_column]
        try:
            if entry is None:
                raise ValueError("the row holds no image")
            return load_image(entry["bytes"] if entry["bytes"] is not None else entry["path"])
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path} row {row} (id {self.ids[row]!r}): {error}") from error

    def read_bytes(self, row: int) -> bytes:
        """The picture's file as it is."""
        entry = self._dataset[row][self.image_column]
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()

    def column(self, name: str) -> list[Any]:
        """Another column's values, row by row; ValueError if there is none of that name."""
        if name not in self._columns.features:
            raise ValueError(
                f"Expected the column {name!r} in {self.path}, but it has {list(self._columns.features)}. Name one of "
                "those."
            )
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


class GalleryPictures:
    """The pictures of a gallery by id, read from where its source record says they lie.

    Args:
        source (`ImageSource`): The opened source.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id_: row for row, id_ in enumerate(self.source.ids)}

    def load(self, id_: str) -> Any:
        """The picture of a gallery id; ValueError if it is gone or broken."""
        if id_ not in self._rows:
            raise ValueError(f"Expected the picture {id_!r} in its source, but it is gone. Index the gallery again.")
        return self.source.load(self._rows[id_])


def open_source(
    path: str, split: str | None = None, image_column: str | None = None, id_column: str | None = None
) -> FolderSource | DatasetSource:
    """Open IMAGES: a folder of pictures, or PATH[:CONFIG] that `datasets` can load.

    Raises:
        ValueError: If there is nothing there, or an option for data sets is given with a folder of pictures.
    """
    folder = Path(path)
    if folder.is_file() and folder.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"Expected a folder of pictures, but {path} is one picture. Give the folder that holds it.")
    if not folder.is_dir() or _is_dataset(folder):
        return DatasetSource(path, split, image_column, id_column)
    given = {"--split": split, "--image-column": image_column, "--id-column": id_column}
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"Expected a data set for {', '.join(wrong)}, but {path} is a folder of pictures. Leave it out."
        )
    return FolderSource(folder)


def source_from_record(record: dict[str, Any], gallery_directory: Path) -> FolderSource | DatasetSource:
    """Open the source that a gallery's manifest names; a gallery moved together with its pictures finds them.

    Raises:
        ValueError: If the pictures are no longer there.
    """
    path = record["path"]
    if "relative" in record and not Path(path).exists():
        path = os.path.normpath(gallery_directory / record["relative"])
        if not Path(path).exists():
            raise ValueError(
                f"Expected the pictures in {record['path']}, but found nothing there. Put them back, or name "
                "where they lie now."
            )
    if record["type"] == "folder":
        return FolderSource(path)
    named = f"{path}:{record['config']}" if record["config"] else path
    return DatasetSource(named, record["split"], record["image_column"], record["id_column"])


def split_config(path: str) -> tuple[str, str | None]:
    """PATH[:CONFIG] into its two parts; a path that exists as it stands has no config."""
    head, colon, tail = path.rpartition(":")
    if not colon or Path(path).exists() or not head or os.sep in tail:
        return path, None
    return head, tail


def _image_files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(folder) / name


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
    import datasets

    place = Path(path)
    if not place.exists() and (place.is_absolute() or path.startswith(".") or path.count("/") > 1):
        raise ValueError(f"Expected a folder or a data set at {path}, but found nothing there. Check the path.")
    try:
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)
        elif place.is_file():
            loaded = datasets.load_dataset(place.suffix.lstrip(".").lower(), config, data_files=path)
        else:
            loaded = datasets.load_dataset(path, config)
    except Exception as error:
        raise ValueError(
            f"Expected a folder of pictures or a data set at {path!r} (config {config!r}), but loading it failed: "
            f"{error}. Check the path, or name one of its configs as PATH:CONFIG."
        ) from error
    if not isinstance(loaded, dict):
        return loaded, split
    names = list(loaded)
    if split is None and len(names) > 1:
        raise ValueError(f"Expected --split for {path}, since it has the splits {names}. Choose one of them.")
    chosen = names[0] if split is None else split
    if chosen not in loaded:
        raise ValueError(f"Expected a split of {names} in {path}, but found {chosen!r}. Choose one of them.")
    return loaded[chosen], chosen


def _find_image_column(dataset: Any, image_column: str | None) -> str:
    from datasets import Image

    columns = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if image_column is not None and image_column in columns:
        return image_column
    if image_column is None and "image" in columns:
        return "image"
    if image_column is None and len(columns) == 1:
        return columns[0]
    wanted = "one column of type Image" if image_column is None else f"the image column {image_column!r}"
    raise ValueError(
        f"Expected {wanted}, but the data set's image columns are {columns} of {list(dataset.features)}. Name one with "
        "--image-column."
    )


def _find_id_column(dataset: Any, id_column: str | None) -> str | None:
    if id_column is None:
        return "image_id" if "image_id" in dataset.features else None
    if id_column not in dataset.features:
        raise ValueError(
            f"Expected the id column {id_column!r}, but the data set has {list(dataset.features)}. Name one "
            "of those with --id-column."
        )
    return id_column


def _dataset_ids(dataset: Any, id_column: str | None) -> list[str]:
    if id_column is None:
        return [str(row) for row in range(len(dataset))]
    first_row: dict[str, int] = {}
    for row, value in enumerate(dataset.with_format(None)[id_column]):
        if value is None:
            raise ValueError(f"Expected an id in column {id_column!r}, but row {row} holds none. Fill it in.")
        if str(value) in first_row:
            raise ValueError(
                f"Expected each id of column {id_column!r} once, but {str(value)!r} stands in rows "
                f"{first_row[str(value)]} and {row}. Use another --id-column."
            )
        first_row[str(value)] = row
    return list(first_row)
