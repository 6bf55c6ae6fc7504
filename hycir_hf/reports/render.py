"""Fill in a template: HTML is escaped, every page embeds its style and images, and cards are Markdown."""

import base64
import html
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
"""The one style sheet, of the pages and of the app."""
_MAX_SIDE = 320  # pixels of an embedded image's longer side
_LOSSLESS_SIDE = 128  # up to here PNG: JPEG blurs small drawings


def render(template: str, **facts: Any) -> str:
    """Fill in a template of this package.

    Args:
        template (`str`): Its name without ".jinja". In "*.html" every fact is escaped.
        facts: What the template names; a missing one is an error.

    Returns:
        `str`: The text, which can always be written as UTF-8 (file names may hold half surrogates: they are escaped).
    """
    text = _ENVIRONMENT.get_template(f"{template}.jinja").render(facts)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def image_uri(image: Image.Image) -> str:
    """Encode an image as a data URI, shrunk to the size that a page shows."""
    image = image.convert("RGB")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    is_small = max(image.size) <= _LOSSLESS_SIDE
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", "optimize": True} if is_small else {"format": "JPEG", "quality": 88})
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{encoded}"


def _breakable(id_: str) -> Markup:
    """An id that may break after a slash rather than within a word."""
    return Markup("/<wbr>").join(escape(part) for part in id_.split("/"))


def _cell(text: Any) -> str:
    """Text within a Markdown table."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {"uri": image_uri, "breakable": _breakable, "cell": _cell}
_ENVIRONMENT.globals["style"] = Markup(STYLE)  # our own file
