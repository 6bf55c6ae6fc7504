"""Changing a gallery's folder: images added from elsewhere, or taken out. What is stored is not encoded again."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import single_writer
from ..images import FolderSource, ImageEncoder, ImageStore
from ..images.features import unit_rows
from ..images.sources import GalleryImages, folders_of, is_image_file
from .build import FEATURES_NAME, IndexReport, index_images, read_stamps
from .gallery import Gallery


def add_images(
    encoder: ImageEncoder,
    output: str | os.PathLike,
    images: Sequence[str],
    *,
    encoder_fingerprint: str | None = None,
    **options: Any,
) -> IndexReport:
    """Add folders and image files to a gallery that `hycir index` made; only new and changed images are encoded.

    An image inside a folder that the gallery was made from gets the id that indexing would give it. The ids of others
    begin with the name of their folder.

    Args:
        encoder (`ImageEncoder`): Of the model that made the gallery.
        output (`str` or `Path`): The gallery's folder.
        images (`Sequence[str]`): Folders and image files.
        encoder_fingerprint (`str`, *optional*): Checked against the gallery's.
        **options: `batch_size`, `num_workers`, `progress`, `on_skip` of `index_images`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If an image is not there, another encoder made the gallery, or it has no features of its own.
    """
    output = Path(output)
    gallery = Gallery.load(output, mmap=True)
    if encoder_fingerprint is not None:
        gallery.check_encoder(encoder_fingerprint)
    return index_images(
        encoder,
        lambda: _Extended(output, images),
        output,
        encoder_fingerprint=gallery.encoder_fingerprint,
        model_path=gallery.model_path,
        index_type=gallery.index_type,
        **options,
    )


def remove_images(output: str | os.PathLike, ids: Sequence[str]) -> Gallery:
    """Take images out of a gallery's folder, and their features; the files of the images stay.

    Args:
        output (`str` or `Path`): The gallery's folder.
        ids (`Sequence[str]`): Ids in the gallery.

    Returns:
        `Gallery`: As saved.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If an id is not in it. Nothing is removed then.
    """
    output = Path(output)
    Gallery.load(output, mmap=True)  # before a lock file is made in a folder that is no gallery
    with single_writer(output / ".lock", output):
        gallery, gone = Gallery.load(output), set(ids)
        gallery.remove(ids)
        store = _own_store(output)
        if store is not None:
            kept = [(id_, stamp) for id_, stamp in zip(store.ids, store.stamps(), strict=True) if id_ not in gone]
            writable = ImageStore.begin(store.directory, store.settings)
            writable.finish([id_ for id_, _ in kept], [stamp for _, stamp in kept], store.source)
        gallery.save(output)
    return gallery


def read_features(gallery: Gallery, directory: str | os.PathLike) -> np.ndarray:
    """Read a gallery's features in its order, `(N, D)` float32, unit L2 norm.

    Raises:
        ValueError: If its index type keeps them compressed, and its folder has no others.
    """
    store = _own_store(Path(directory))
    rows = {id_: row for row, id_ in enumerate(store.ids)} if store is not None else {}
    if store is None or not all(id_ in rows for id_ in gallery.ids):
        return np.ascontiguousarray(unit_rows(gallery.features()))
    return unit_rows(store.read([rows[id_] for id_ in gallery.ids]))


class _Extended:
    """The images that a gallery holds, known by their stored stamps, with others added to them or in their place."""

    def __init__(self, output: Path, images: Sequence[str]) -> None:
        gallery = Gallery.load(output, mmap=True)
        if gallery.source is None or _own_store(output) is None:
            raise ValueError(
                f"The gallery {output} has no features of its own, to which images could be added. Index the images."
            )
        self._record, self._output = gallery.source, output
        self._stamps = read_stamps(output)
        self._rows: dict[str, tuple[FolderSource, int]] = {}
        self.skipped: list[tuple[str, str]] = []
        self._parts: list[dict[str, Any]] = []
        for source in _open_all(images, folders_of(gallery.source, output), gallery):
            self._rows |= {id_: (source, row) for row, id_ in enumerate(source.ids)}
            self.skipped += source.skipped
            self._parts.append(source.describe(output))
        self.ids = [*self._stamps, *(id_ for id_ in self._rows if id_ not in self._stamps)]

    def stamp(self, row: int) -> str:
        """The stored stamp, or that of the added file."""
        id_ = self.ids[row]
        if id_ not in self._rows:
            return self._stamps[id_]
        source, place = self._rows[id_]
        return source.stamp(place)

    def load(self, row: int) -> Any:
        """Load an added image; one that the gallery holds only if its features are damaged."""
        id_ = self.ids[row]
        if id_ not in self._rows:
            return GalleryImages(self._record, self._output).load(id_)
        source, place = self._rows[id_]
        return source.load(place)

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        """The gallery's record, and a part for each further folder."""
        parts = self._record["parts"] if self._record["type"] == "parts" else [self._record]
        known = {(str(root.resolve()), prefix) for root, prefix in folders_of(self._record, self._output)}
        new = {(part["path"], part.get("prefix", "")): part for part in self._parts}
        parts = [*parts, *(part for key, part in new.items() if key not in known)]
        return self._record if len(parts) == 1 else {"type": "parts", "parts": parts}


def _own_store(output: Path) -> ImageStore | None:
    try:
        return ImageStore.open(output / FEATURES_NAME)
    except FileNotFoundError:
        return None


def _open_all(images: Sequence[str], known: list[tuple[Path, str]], gallery: Gallery) -> list[FolderSource]:
    """Open folders and files as sources whose ids are the gallery's; files of one folder together."""
    found: dict[Path, list[str] | None] = {}
    for image in images:
        path = Path(image)
        if path.is_dir():
            found[path.resolve()] = None
        elif path.is_file() and is_image_file(path):
            names = found.setdefault(path.resolve().parent, [])
            found[path.resolve().parent] = None if names is None else [*names, path.name]
        else:
            what = "no image that can be read" if path.exists() else "not there"
            raise ValueError(f"{image} is {what}. Give folders and image files.")
    sources = []
    for folder, names in found.items():
        root, prefix = _place_of(folder, known, gallery)
        below = [(folder / name).relative_to(root).as_posix() for name in names] if names is not None else None
        if below is None and root != folder:
            inner = FolderSource(folder)
            names = [*inner.ids, *(name for name, _ in inner.skipped)]
            below = [(folder / name).relative_to(root).as_posix() for name in names]
        sources.append(FolderSource(root, below, prefix))
        known = [*known, (root, prefix)]
    return sources


def _place_of(folder: Path, known: list[tuple[Path, str]], gallery: Gallery) -> tuple[Path, str]:
    """The root of a folder's images and what their ids begin with."""
    for root, prefix in sorted(known, key=lambda one: -len(one[0].resolve().parts)):  # the innermost first
        if folder.is_relative_to(root.resolve()):
            return root.resolve(), prefix
    prefix, above = f"{folder.name}/", folder.parent
    while any(id_.startswith(prefix) for id_ in gallery.ids) or prefix in [one for _, one in known]:
        if not above.name:
            raise ValueError(f"The gallery already holds ids that begin with {prefix!r}. Rename the folder {folder}.")
        prefix, above = f"{above.name}/{prefix}", above.parent
    return folder, prefix
