"""Pictures of benchmarks that ask about a part of a photograph: it is cut out when it is needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class PictureRegion:
    """A region of a picture, made square.

    Args:
        path (`Path`): The whole picture's file.
        box (`tuple[float, float, float, float]`): Left, top, width and height in pixels.
        dilation (`float`): Share of width and height that is added at the left and at the top; what the picture's edge
            leaves no room for is added at the other side, as in GeneCIS's code.
        pads (`bool`): Whether black bars make it square; otherwise it is stretched to its longer side.
    """

    path: Path
    box: tuple[float, float, float, float]
    dilation: float = 0.0
    pads: bool = True

    def load(self) -> Image.Image:
        """Cut the region out.

        Raises:
            OSError: If the file is not there or no picture.
        """
        with Image.open(self.path) as picture:
            whole = picture.convert("RGB")
        x, y, width, height = self.box
        left, top = max(0, x - self.dilation * width), max(0, y - self.dilation * height)
        right = min(whole.width, left + (1 + self.dilation) * width)
        bottom = min(whole.height, top + (1 + self.dilation) * height)
        region = whole.crop((round(left), round(top), round(right), round(bottom)))
        side = max(region.size)
        if not self.pads:
            return region.resize((side, side), Image.Resampling.BICUBIC)
        square = Image.new("RGB", (side, side))
        square.paste(region, ((side - region.width) // 2, (side - region.height) // 2))
        return square


def open_picture(picture: Any) -> Any:
    """A region as a picture; a path or a record as it is, since the processor takes it."""
    return picture.load() if isinstance(picture, PictureRegion) else picture


def path_of(picture: Any) -> Path | None:
    """The file that a picture lies in; None for a record."""
    if isinstance(picture, PictureRegion):
        return picture.path
    return picture if isinstance(picture, Path) else None


def name_of(picture: Any, id_: str) -> str:
    """What a reader calls a picture: its record's name, or the end of its id."""
    name = picture.get("name") if isinstance(picture, dict) else None
    return name or id_.rpartition("/")[2]
