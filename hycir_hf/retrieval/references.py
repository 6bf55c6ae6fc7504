"""The reference images of composed queries, named by path or by gallery id."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images.sources import GalleryImages, folders_of
from ..images_hycir import load_image
from ..settings import ParameterError, did_you_mean
from .gallery import Gallery


@dataclass(frozen=True)
class References:
    """Reference images as the user named them.

    Args:
        images (`list[PIL.Image.Image]`): In the order given.
        names (`list[str]`): Path or gallery id of each.
        gallery_ids (`list[str]`): Ids of those that are themselves in the gallery.
    """

    images: list[Any]
    names: list[str]
    gallery_ids: list[str]


def open_gallery_images(gallery: Gallery, directory: str | os.PathLike) -> GalleryImages:
    """Open the images of a gallery that `hycir index` made.

    Raises:
        ValueError: If the gallery does not record where they lie, or they are gone.
    """
    if gallery.source is None:
        raise ValueError(f"The gallery {directory} does not say where its images lie. Make it with `hycir index`.")
    return GalleryImages(gallery.source, Path(directory))


def moved_source(source: dict[str, Any] | None, images: str | os.PathLike) -> dict[str, Any]:
    """Return a gallery's source record for images that lie in another place now.

    Args:
        source (`dict`, *optional*): The gallery's record. Of several folders, the first is replaced.
        images (`str` or `Path`): Where the images lie, with the same names below it.

    Raises:
        ValueError: If there is nothing there, or the images came from tar shards or a .tsv.
    """
    record = source or {"type": "folder"}
    if record["type"] == "parts":
        return {**record, "parts": [moved_source(record["parts"][0], images), *record["parts"][1:]]}
    if record["type"] not in ("folder", "dataset") or not Path(images).exists():
        reason = "is not there" if not Path(images).exists() else f"cannot replace images of a {record['type']}"
        raise ParameterError(f"{images} {reason}. Give the folder of the gallery's images.", "images")
    return {**{key: value for key, value in record.items() if key != "relative"}, "path": str(Path(images).resolve())}


def read_references(gallery: Gallery, directory: str | os.PathLike | None, references: Sequence[Any]) -> References:
    """Read reference images, and see which of them the gallery holds.

    Args:
        gallery (`Gallery`): The gallery to be searched.
        directory (`str` or `Path`, *optional*): Its folder.
        references (`Sequence`): Paths of image files, gallery ids, or images in memory.

    Raises:
        ValueError: If a text is neither a file nor an id, or an image is broken.
    """
    images, names, gallery_ids = [], [], []
    stored: GalleryImages | None = None
    for reference in references:
        is_name = isinstance(reference, str | os.PathLike)
        path = Path(reference) if is_name else Path(getattr(reference, "filename", None) or "")
        is_file = os.path.isfile(path)  # noqa: PTH113 - it takes names that are too long for a file
        if is_file:
            gallery_ids.append(_id_of_path(gallery, directory, path))
            images.append(load_image(path if is_name else reference))
        elif not is_name:
            images.append(load_image(reference))
        elif str(reference) in gallery:
            stored = stored or open_gallery_images(gallery, directory or ".")
            images.append(stored.load(str(reference)))
            gallery_ids.append(str(reference))
        else:
            hint = did_you_mean(str(reference), gallery.ids) or f" (an id is for example {gallery.ids[0]!r})"
            raise ValueError(f"{str(reference)!r} is no file, and no id of the gallery's {len(gallery)} images{hint}.")
        names.append(str(path) if is_file else str(reference) if is_name else "image")
    return References(images, names, [id_ for id_ in gallery_ids if id_ is not None])


def _id_of_path(gallery: Gallery, directory: str | os.PathLike | None, path: Path) -> str | None:
    """The gallery id of an image file, if the gallery was made from folders and one of them holds it."""
    for root, prefix in folders_of(gallery.source, Path(directory or ".")) if gallery.source else ():
        with contextlib.suppress(ValueError):  # it lies elsewhere
            id_ = prefix + path.resolve().relative_to(root.resolve()).as_posix()
            if id_ in gallery:
                return id_
    return None
