"""Composed queries against a gallery, one at a time and by any method."""

import logging
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional as F

from ..images.sources import GalleryImages
from ..images.uploads import read_gallery_image, read_upload
from ..reports.render import image_uri
from ..retrieval import open_gallery_images
from ..retrieval.queries import IMAGE_ONLY, MAPPER, TEXT_ONLY, TRAINING_FREE
from ..retriever import HyCIREncoder, ImageRetriever

logger = logging.getLogger(__name__)

METHODS = (MAPPER, *TRAINING_FREE)
"""The methods on offer, the first by default."""

_CACHED_IMAGES = 2048  # as shown: some 10 kB each


@dataclass(frozen=True)
class Reference:
    """A reference image, encoded.

    Args:
        name (`str`): Gallery id, or what an upload is called.
        features (`torch.Tensor` of shape `(1, D)`): Not normalised, as the mapper takes them.
        uri (`str`): The image as a data URI.
        row (`int`, *optional*): Its row in the gallery; None for an upload.
    """

    name: str
    features: torch.Tensor = field(compare=False)
    uri: str
    row: int | None = None


@dataclass(frozen=True)
class Answer:
    """One query and its ranking.

    Args:
        reference (`Reference`, *optional*): None for a text alone.
        query_text (`str`): What to change.
        method (`str`): One of `METHODS`.
        k (`int`): Number of images asked for.
        ranking (`tuple[tuple[int, float], ...]`): Gallery row and score (cosine, in [-1, 1]), best first.
        notes (`tuple[str, ...]`): What was left out or not used.
    """

    reference: Reference | None
    query_text: str
    method: str
    k: int
    ranking: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]


class GallerySearcher:
    """A gallery that `hycir index` made, with the model that answers queries against it.

    Args:
        retriever (`ImageRetriever`): With a gallery. Where its images are gone, ids are shown instead.

    Raises:
        ValueError: If the gallery is empty.
    """

    def __init__(self, retriever: ImageRetriever) -> None:
        self.gallery, self.encoder = retriever.gallery, cast(HyCIREncoder, retriever.encoder)
        directory = retriever.directory or Path()
        if not len(self.gallery):
            raise ValueError(f"The gallery {directory} is empty. Index a folder of images into it.")
        self.ids = self.gallery.ids
        self.thumbnail = lru_cache(_CACHED_IMAGES)(self._thumbnail)
        self._images: GalleryImages | None = None
        try:
            self._images = open_gallery_images(self.gallery, directory)
        except (ValueError, OSError) as error:
            logger.warning("The page shows ids without images: %s", error)

    @property
    def has_images(self) -> bool:
        """Whether the gallery's images are still where it says."""
        return self._images is not None

    @cached_property
    def row_of_id(self) -> dict[str, int]:
        """Gallery id -> row."""
        return {id_: row for row, id_ in enumerate(self.ids)}

    def describe(self) -> str:
        """Describe in one line: how many images, of what, index type and model. Names folders, not their paths."""
        source = self.gallery.source or {}
        parts = [Path(source["path"]).name] if "path" in source else []
        parts += [source[key] for key in ("config", "split") if source.get(key)]
        of = f" of {' / '.join(parts)}" if parts else ""
        noun = "image" if len(self.ids) == 1 else "images"
        model = f" · model {Path(self.gallery.model_path).name}" if self.gallery.model_path else ""
        return f"{len(self.ids):,} {noun}{of} · index {self.gallery.index_type}{model}"

    def reference_of_row(self, row: int) -> Reference:
        """Make a gallery image the reference; ValueError if it is gone or broken."""
        image = self._image(row)
        return Reference(self.ids[row], self._encode(image), image_uri(image), row)

    def reference_of_upload(self, content: bytes) -> Reference:
        """Make an image file's bytes the reference; ValueError if they are no image, or one of too many pixels."""
        image = read_upload(content)
        return Reference("uploaded image", self._encode(image), image_uri(image))

    def answer(self, reference: Reference | None, query_text: str, method: str, k: int) -> Answer:
        """Answer one query.

        Args:
            reference (`Reference`, *optional*): Excluded from the results if it is in the gallery, except by the
                method "text only", which does not use it.
            query_text (`str`): What to change; empty for the image alone.
            method (`str`): One of `METHODS`.
            k (`int`): Number of results, at least 1.

        Raises:
            ValueError: If the method is unknown, or what it needs is missing.
        """
        query_text = query_text.strip()
        features, notes = self._compose(reference, query_text, method)
        excluded = [] if reference is None or reference.row is None or method == TEXT_ONLY else [reference.name]
        if excluded:
            notes = [*notes, "The reference itself is left out."]
        [ranking] = self.gallery.search(features, k=k, exclude_ids=excluded)
        rows = tuple((self.row_of_id[id_], score) for id_, score in ranking)
        return Answer(reference, query_text, method, k, rows, tuple(notes))

    def _compose(self, reference: Reference | None, query_text: str, method: str) -> tuple[torch.Tensor, list[str]]:
        """Compute the query features (1, D), and note what was not used."""
        if method not in METHODS:
            raise ValueError(f"There is no method {method!r}. Choose one of {list(METHODS)}.")
        if method == TEXT_ONLY:
            if not query_text:
                raise ValueError("The method “text only” needs a text. Type one.")
            notes = ["The method “text only” does not use the reference."] if reference else []
            return self._encode_text(query_text), notes
        if reference is None:
            raise ValueError(
                "There is no reference image. Click one in the gallery, upload one, or use the method “text only”."
            )
        if method == MAPPER:
            features = self.encoder.compose(reference.features, [query_text])  # (1, D)
            return features, [] if query_text else ["No text: searched by the pseudo tokens of the image alone."]
        unit = F.normalize(reference.features, dim=-1)  # (1, D)
        if method == IMAGE_ONLY:
            return unit, ["The method “image only” does not read the text."] if query_text else []
        if not query_text:
            return unit, ["No text: searched by the image alone."]
        return TRAINING_FREE[method](unit, self._encode_text(query_text)), []

    def _thumbnail(self, row: int) -> str | None:
        """Give a gallery image as a data URI, or None if it is gone or broken."""
        try:
            return image_uri(self._image(row))
        except ValueError:
            return None

    def _image(self, row: int) -> Any:
        return read_gallery_image(self._images, self.ids[row])

    def _encode(self, image: Any) -> torch.Tensor:
        """Encode one image, not normalised: `(1, D)`."""
        encoder = self.encoder.image_encoder()
        return encoder.encode_inputs(encoder.prepare("", image))

    def _encode_text(self, query_text: str) -> torch.Tensor:
        return torch.from_numpy(self.encoder.encode_texts([query_text]))  # (1, D)
