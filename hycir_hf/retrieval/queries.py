"""Composed search: reference images and a query text against a gallery."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images.sources import GalleryPictures, source_from_record
from .gallery import Gallery
from .results import RetrievalResults


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


def open_gallery_pictures(gallery: Gallery, directory: str | os.PathLike) -> GalleryPictures:
    """The pictures of a gallery that `hycir index` made.

    Raises:
        ValueError: If the gallery does not record where they lie, or they are gone.
    """
    if gallery.source is None:
        raise ValueError(
            f"Expected the gallery {directory} to record where its pictures lie, but it does not. Make it with "
            "`hycir index`."
        )
    return GalleryPictures(source_from_record(gallery.source, Path(directory)))


def read_references(gallery: Gallery, directory: str | os.PathLike, names: Sequence[str]) -> References:
    """Read reference images named by path or by gallery id, and see which of them the gallery holds.

    Args:
        gallery (`Gallery`): The gallery to be searched.
        directory (`str` or `Path`): Its folder.
        names (`Sequence[str]`): A path that exists is read as one; anything else must be a gallery id.

    Raises:
        ValueError: If a name is neither, or a picture is broken.
    """
    from ..images_hycir import load_image

    images, gallery_ids = [], []
    pictures: GalleryPictures | None = None
    for name in names:
        if Path(name).is_file():
            images.append(load_image(Path(name)))
            gallery_ids.append(_id_of_path(gallery, directory, Path(name)))
        elif name in gallery:
            pictures = pictures or open_gallery_pictures(gallery, directory)
            images.append(pictures.load(name))
            gallery_ids.append(name)
        else:
            raise ValueError(
                f"Expected an image file or an id of the gallery's {len(gallery)}, but found {name!r}. Check the path, "
                f"or take an id such as {gallery.ids[:1]}."
            )
    return References(images, list(names), [id_ for id_ in gallery_ids if id_ is not None])


def search_composed(
    model: Any,
    processor: Any,
    gallery: Gallery,
    reference_images: Sequence[Any],
    query_text: str,
    k: int = 10,
    exclude_ids: Sequence[str] = (),
) -> RetrievalResults:
    """Answer one composed query.

    Args:
        model (`HyCIRModel`): With the encoder that made the gallery.
        processor (`HyCIRProcessor`): The model's.
        gallery (`Gallery`): To be searched.
        reference_images (`Sequence`): One or more images.
        query_text (`str`): What to change; empty for the image alone.
        k (`int`): Number of results.
        exclude_ids (`Sequence[str]`): Gallery ids left out, such as the reference's own.

    Raises:
        ValueError: If the encoder is another than the gallery's.
    """
    import torch

    gallery.check_encoder(model)
    images = list(reference_images)
    inputs = processor(images=images if len(images) == 1 else [images], text=[query_text], return_tensors="pt")
    with torch.inference_mode():
        features = model.get_composed_features(**inputs.to(model.device))  # (1, D)
    return gallery.search(features, k=k, exclude_ids=list(exclude_ids))


def _id_of_path(gallery: Gallery, directory: str | os.PathLike, path: Path) -> str | None:
    """The gallery id of a picture file, if the gallery was made from a folder that holds it."""
    if gallery.source is None or gallery.source["type"] != "folder":
        return None
    roots = [Path(gallery.source["path"])]
    if "relative" in gallery.source:
        roots.append(Path(directory) / gallery.source["relative"])
    for root in roots:
        try:
            id_ = path.resolve().relative_to(root.resolve()).as_posix()
        except ValueError:
            continue
        if id_ in gallery:
            return id_
    return None
