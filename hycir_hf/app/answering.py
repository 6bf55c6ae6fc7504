"""Composed queries against a gallery, one at a time and by any method."""

import io
import logging
import os
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from ..evaluation.methods import MAPPER, TRAINING_FREE, compose, encode_texts
from ..images.sources import GalleryPictures
from ..images_hycir import load_image
from ..reports.render import image_uri as picture_uri
from ..retrieval import Gallery, open_gallery_pictures
from ..retrieval.gallery import prepare_image

logger = logging.getLogger(__name__)

METHODS = (MAPPER, *TRAINING_FREE)
"""The methods on offer, the first by default."""
IMAGE_ONLY, TEXT_ONLY = "image only", "text only"

MAX_PIXELS = 50_000_000  # decoded they are 150 MB and more
_MAX_RATIO = 100  # of the sides: the encoder enlarges the shorter one to hundreds of pixels
_CACHED_PICTURES = 2048  # as shown: some 10 kB each


@dataclass(frozen=True)
class Reference:
    """A reference image, encoded.

    Args:
        name (`str`): Gallery id, or what an upload is called.
        features (`torch.Tensor` of shape `(1, D)`): Not normalised, as the mapper takes them.
        uri (`str`): The picture as a data URI.
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
        k (`int`): Pictures asked for.
        ranking (`tuple[tuple[int, float], ...]`): Gallery row and score (cosine, in [-1, 1]), best first.
        notes (`tuple[str, ...]`): What was left out or not looked at.
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
        model (`HyCIRModel`): In eval mode; its encoder made the gallery.
        processor (`HyCIRProcessor`): The model's.
        gallery (`Gallery`): To be searched.
        directory (`str` or `Path`): The gallery's folder. Where its pictures are gone, ids are shown instead.

    Raises:
        ValueError: If another encoder made the gallery, or it is empty.
    """

    def __init__(self, model: Any, processor: Any, gallery: Gallery, directory: str | os.PathLike) -> None:
        gallery.check_encoder(model)
        if not len(gallery):
            raise ValueError(f"Expected pictures in the gallery {directory}, but it is empty. Index a folder into it.")
        self.model, self.processor, self.gallery = model, processor, gallery
        self.ids = gallery.ids
        self.thumbnail = lru_cache(_CACHED_PICTURES)(self._thumbnail)
        self._pictures: GalleryPictures | None = None
        try:
            self._pictures = open_gallery_pictures(gallery, directory)
        except (ValueError, OSError) as error:
            logger.warning("The page shows ids without pictures: %s", error)

    @property
    def has_pictures(self) -> bool:
        """Whether the place that the gallery names still holds pictures."""
        return self._pictures is not None

    @cached_property
    def row_of_id(self) -> dict[str, int]:
        """Gallery id -> row."""
        return {id_: row for row, id_ in enumerate(self.ids)}

    def describe(self) -> str:
        """One line: how many pictures, of what, in which index, by which model. Names folders, not their paths."""
        source = self.gallery.source or {}
        parts = [Path(source["path"]).name] if "path" in source else []
        parts += [source[key] for key in ("config", "split") if source.get(key)]
        of = f" of {' / '.join(parts)}" if parts else ""
        noun = "picture" if len(self.ids) == 1 else "pictures"
        model = f" · model {Path(self.gallery.model_path).name}" if self.gallery.model_path else ""
        return f"{len(self.ids):,} {noun}{of} · index {self.gallery.kind}{model}"

    def reference_of_row(self, row: int) -> Reference:
        """A picture of the gallery as a reference; ValueError if it is gone or broken."""
        image = self._picture(row)
        return Reference(self.ids[row], self._encode(image), picture_uri(image), row)

    def reference_of_upload(self, content: bytes) -> Reference:
        """A picture file's bytes as a reference; ValueError if they are no picture, or one of too many pixels."""
        _check_size(content)
        try:
            image = load_image(content)
        except ValueError as error:
            logger.info("upload refused: %s", error)
            raise ValueError(
                f"Expected a picture such as a JPEG, PNG or WebP, but this file of {len(content):,} bytes cannot be "
                "read as one. Upload another."
            ) from error
        return Reference("uploaded picture", self._encode(image), picture_uri(image))

    def answer(self, reference: Reference | None, query_text: str, method: str, k: int) -> Answer:
        """Answer one query.

        Args:
            reference (`Reference`, *optional*): Left out of the ranking where it is in the gallery, except by the
                method "text only", which does not look at it.
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
        """Query features (1, D), and what was not looked at."""
        if method not in METHODS:
            raise ValueError(f"Expected one of the methods {list(METHODS)}, but found {method!r}. Choose one of those.")
        if method == TEXT_ONLY:
            if not query_text:
                raise ValueError("Expected a text for the method “text only”, but found none. Type one.")
            notes = ["The method “text only” does not look at the reference."] if reference else []
            return encode_texts(self.model, self.processor, [query_text]), notes
        if reference is None:
            raise ValueError(
                "Expected a reference picture, but found none. Click one in the gallery or upload one; only the method "
                "“text only” goes without."
            )
        if method == MAPPER:
            features = compose(self.model, self.processor, reference.features, [query_text])  # (1, D)
            return features, [] if query_text else ["No text: searched by the pseudo tokens of the picture alone."]
        unit = F.normalize(reference.features, dim=-1)  # (1, D)
        if method == IMAGE_ONLY:
            return unit, ["The method “image only” does not read the text."] if query_text else []
        if not query_text:
            return unit, ["No text: searched by the picture alone."]
        return TRAINING_FREE[method](unit, encode_texts(self.model, self.processor, [query_text])), []

    def _thumbnail(self, row: int) -> str | None:
        """A gallery picture as a data URI; None where it cannot be had."""
        try:
            return picture_uri(self._picture(row))
        except ValueError:
            return None

    def _picture(self, row: int) -> Any:
        if self._pictures is None:
            raise ValueError(
                f"Expected the picture {self.ids[row]!r}, but the gallery's pictures are no longer where it was made "
                "from. Upload the reference instead."
            )
        try:
            return self._pictures.load(self.ids[row])
        except (ValueError, OSError) as error:
            logger.warning("no picture: %s", error)  # the page's reader need not learn the server's folders
            raise ValueError(
                f"Expected the picture {self.ids[row]!r}, but it is gone or broken. Take another, or index the gallery "
                "again."
            ) from error

    @torch.inference_mode()
    def _encode(self, image: Any) -> torch.Tensor:
        inputs = {name: value.to(self.model.device) for name, value in prepare_image(self.processor, image).items()}
        return self.model.get_image_features(**inputs, normalize=False)  # (1, D)


def _check_size(content: bytes) -> None:
    """Refuse by its header alone a small file that is a huge picture."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
    except Image.DecompressionBombError as error:  # PIL's own, later limit
        raise ValueError(
            f"Expected a picture of at most {MAX_PIXELS:,} pixels, but found many more. Shrink it first."
        ) from error
    except Exception:  # image decoders raise nearly everything; loading it says what is wrong
        return
    if width * height > MAX_PIXELS or max(width, height) > _MAX_RATIO * min(width, height):
        raise ValueError(
            f"Expected a picture of at most {MAX_PIXELS:,} pixels, and no side {_MAX_RATIO} times the other, but found "
            f"{width} x {height}. Shrink or crop it first."
        )
