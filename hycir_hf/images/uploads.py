"""Images that strangers send or ask for: bounded in size, and named without the server's folders."""

import io
import logging
from typing import Any

from PIL import Image

from ..images_hycir import load_image
from .sources import GalleryImages

logger = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000  # decoded they are 150 MB and more
_MAX_RATIO = 100  # of the sides: the encoder enlarges the shorter one to hundreds of pixels


def read_upload(content: bytes) -> Any:
    """Decode an image file's bytes: PIL in RGB.

    Raises:
        ValueError: If they are no image, or one of too many pixels.
    """
    _check_size(content)
    try:
        return load_image(content)
    except ValueError as error:
        logger.info("upload refused: %s", error)
        raise ValueError(
            f"This file of {len(content):,} bytes cannot be read as an image. Upload a JPEG, PNG or WebP file."
        ) from error


def read_gallery_image(images: GalleryImages | None, image_id: str) -> Any:
    """Read the image of a gallery id; ValueError, without the server's folders, if it is gone or broken."""
    if images is None:
        raise ValueError(
            f"The image {image_id!r} cannot be shown: the gallery's images are no longer where they were. Upload the "
            "reference instead."
        )
    try:
        return images.load(image_id)
    except (ValueError, OSError) as error:
        logger.warning("no image: %s", error)  # a visitor need not learn the server's folders
        raise ValueError(
            f"The image {image_id!r} is gone or broken. Choose another, or index the images again."
        ) from error


def count_pixels(content: bytes) -> int:
    """Count an image's pixels by its header alone; 0 if it is no image.

    Raises:
        ValueError: If it is far too large.
    """
    width, height = _size(content)
    return width * height


def _size(content: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.size
    except Image.DecompressionBombError as error:  # PIL's own, later limit
        raise ValueError(f"The image has more than {MAX_PIXELS:,} pixels. Shrink it first.") from error
    except Exception:  # image decoders raise nearly everything; loading it says what is wrong
        return 0, 0


def _check_size(content: bytes) -> None:
    """Refuse a small file that decodes to a huge image."""
    width, height = _size(content)
    if width * height > MAX_PIXELS or max(width, height) > _MAX_RATIO * min(width, height):
        raise ValueError(
            f"The image has {width} x {height} pixels. At most {MAX_PIXELS:,} are allowed, and no side may be "
            f"{_MAX_RATIO} times the other. Shrink or crop it first."
        )
