"""Reading one image of any kind as an upright 8-bit RGB image. The processor and every image source use it.

This file travels with the model files as remote code, so it imports nothing of the package.
"""

import contextlib
import errno
import io
import os
import stat
import struct
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

try:
    from pillow_heif import register_heif_opener

    register_heif_opener()
except (ImportError, OSError):  # the extra `heif` is not installed, or its library does not load here
    pass

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"),
)
"""Pillow's names of the formats that are decoded. PostScript, for one, is a program that would be run."""


def _read_max_pixels() -> int:
    value = os.environ.get("HYCIR_MAX_MEGAPIXELS", "250")
    with contextlib.suppress(ValueError, OverflowError):
        if (pixels := int(float(value) * 1e6)) > 0:
            return pixels
    raise ValueError(f"HYCIR_MAX_MEGAPIXELS must be a number above 0, but it is {value!r}.")


MAX_PIXELS = _read_max_pixels()
"""The most pixels of an image file that is decoded: 250 million (cameras make 102, phones 200 megapixels).

The environment variable HYCIR_MAX_MEGAPIXELS sets another limit.
"""

before_decoding: ContextVar[Callable[[int], None] | None] = ContextVar("before_decoding", default=None)
"""Called with an image file's number of pixels before they are decoded, so that a reader can wait for memory."""

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
NEEDS_HEIF = "HEIC images need the package pillow-heif; run pip install 'hycir_hf[heif]'"


def has_heif() -> bool:
    """Whether HEIC images can be decoded here."""
    return "HEIF" in Image.OPEN


_FOREIGN = (
    (b"%!PS", "it is PostScript, which is not decoded; export it as PNG"),
    (b"\xc5\xd0\xd3\xc6", "it is PostScript, which is not decoded; export it as PNG"),
    (b"%PDF", "it is a PDF file; export it as PNG"),
    (b"<svg", "it is an SVG drawing; export it as PNG"),
    (b"<?xml", "it is an XML file, such as an SVG drawing; export it as PNG"),
)
"""How files that are no images begin, and what to do with them."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""

_ABOUT_THE_FILE = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "ENAMETOOLONG", "ELOOP", "EINVAL")
)
"""I/O errors that tell something about the file itself. Trying again does not help."""


def as_rows(images: Any) -> list[list[Any]]:
    """Bring images to a list of rows, each a list of images.

    Raises:
        ValueError: If there is no row.
    """
    rows = [row if isinstance(row, list) else [row] for row in _as_list(images)]
    if not rows:
        raise ValueError("images is an empty list. Leave out empty batches.")
    return rows


def _as_list(images: Any) -> list[Any]:
    """Bring a batch of images, or a single image, to a list."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim == 4 else [images]
    is_single = isinstance(images, (str, Path, bytes, bytearray, memoryview, dict, Image.Image))
    if not is_single and hasattr(images, "__iter__"):
        return [list(row) if isinstance(row, tuple) else row for row in images]
    return [images]


def load_image(image: Any, position: int | None = None) -> Image.Image:
    """Load an image of any kind as an upright 8-bit RGB image. Transparent parts become white.

    Args:
        image: A PIL image of any mode (the first frame of an animation), a path, the bytes of an image file, a
            `datasets` record with "bytes" or "path", or an array or tensor of shape (height, width), (height, width,
            channels) or (channels, height, width) with 1 to 4 channels, in uint8, uint16, bool or float (in [0, 1], or
            else in [0, 255]).
        position (`int`, *optional*): The image's number in its batch, for the error message.

    Returns:
        `PIL.Image.Image`: Mode "RGB".

    Raises:
        ValueError: If the image is missing or broken. The message names it.
        OSError: If the system failed to read it (a lost file server, a full disk, too many open files). The error keeps
            its number and says nothing about the image, which may be readable in a minute.
    """
    try:
        return _load(image)
    except Exception as error:  # image decoders raise nearly everything
        if _is_passing(error):
            raise
        name = "the image" if position is None else f"image {position}"
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Cannot read {name} ({_describe(image)}): {reason}. Repair it, or leave it out.") from error


def _is_passing(error: Exception) -> bool:
    """Whether an error comes from the system and not from the image. The OSErrors of decoders have no number."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _ABOUT_THE_FILE


def _load(image: Any) -> Image.Image:
    """Open an image of any kind and convert it."""
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, Image.Image):
        if image.format == "EPS":
            raise ValueError("it is PostScript, which is not decoded; export it as PNG")
        return _to_rgb(image)
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _to_rgb(_from_array(image))
    if isinstance(image, (str, Path)):
        image = _read_file(image)
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise ValueError("it is no PIL image, path, bytes, array or tensor")
    with _open(bytes(image)) as opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"it has {width * height / 1e6:.0f} megapixels, and the limit is {MAX_PIXELS / 1e6:.0f}; set the "
                "environment variable HYCIR_MAX_MEGAPIXELS higher"
            )
        if (wait := before_decoding.get()) is not None:
            wait(width * height)
        return _to_rgb(opened)


def _open(content: bytes) -> Image.Image:
    """Open an image file of one of `FORMATS`. `Image.open` would apply Pillow's own limit of pixels."""
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # as `Image.open` does
            if factory is not None and (accept is None or accept(content[:16]) is True):
                return factory(io.BytesIO(content), "")
    raise ValueError(_why_unknown(content))


def _why_unknown(content: bytes) -> str:
    """Say why no decoder takes an image file."""
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in _HEIF_BRANDS and not has_heif():
        return NEEDS_HEIF
    if brand in (b"avif", b"avis"):
        return "AVIF images need Pillow 11.3 or newer; run pip install -U pillow"
    start = content[:100].lstrip(b"\xef\xbb\xbf \t\r\n")
    known = [reason for beginning, reason in _FOREIGN if start.startswith(beginning)]
    return known[0] if known else "it is no image, or it is damaged"


def _read_file(path: str | Path) -> bytes:
    """Read a file whole before it is decoded: a decoder would report a lost file server as a broken image."""
    if "://" in str(path) or str(path).startswith("data:"):
        raise ValueError("it is a URL, and nothing is downloaded here; download it first and give the file's path")
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is no file")
    return Path(path).read_bytes()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to upright RGB on white."""
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        values, clear = np.asarray(image), image.info.get("transparency")
        image = _to_8_bit(values)
        if isinstance(clear, int):  # PIL itself forgets the transparent grey of a 16-bit PNG
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if image.mode == "La":  # premultiplied: PIL knows only the way back
        image = image.convert("LA")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says."""
    image.load()  # a PNG's EXIF may follow its pixels
    try:  # ImageOps.exif_transpose would refuse a sound image for one damaged tag among the EXIF data
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # damaged EXIF raises nearly everything
        if _is_passing(error):
            raise
        return image
    return image if turn is None else image.transpose(turn)


def _to_8_bit(values: np.ndarray) -> Image.Image:
    """Bring a 16-bit, 32-bit or floating-point image of one to four channels to 8 bits."""
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ValueError("its values are negative or not finite; give it before normalization, in [0, 1] or [0, 255]")
    top = values.max(initial=0)
    if (values.dtype.kind, values.dtype.itemsize) == ("u", 2) or (values.dtype.kind in "iu" and top > 255):
        values = values / 257 if top <= 65535 else values / top * 255
    elif values.dtype.kind == "b" or (values.dtype.kind == "f" and top <= 1):
        values = values * 255.0
    elif values.dtype.kind == "f" and top > 255:
        values = values / top * 255
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Make a PIL image of an array or tensor, channels last or first."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4) and array.shape[0] in (1, 2, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4)) or not array.size:
        raise ValueError(f"its shape is {array.shape}; give (height, width) or 1 to 4 channels, last or first")
    return _to_8_bit(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _describe(image: Any) -> str:
    """Name an image in one short phrase."""
    if isinstance(image, (str, Path)):
        return str(image)[:300]
    if isinstance(image, dict):
        return _describe(image.get("path") or image.get("bytes"))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"{len(image)} bytes"
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    return getattr(image, "filename", "") or type(image).__name__
