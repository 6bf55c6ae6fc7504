"""`hycir search`: a reference image and a text against a gallery."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from ..files import write_text
from ..settings import ParameterError
from .models import quiet
from .options import Common, Device, OutputFile, Report, Switch, shown

if TYPE_CHECKING:
    from ..retrieval import Gallery, References

app = App(
    name="search",
    help_epilogue="""\
Examples:
  hycir search gallery --image cat.jpg --text "make it black" --html found.html
  hycir search gallery --image cat.jpg:0.6 --text "red:1.0" --without people""",
)


@app.default
def search(
    gallery: str,
    /,
    *,
    image: list[str] | None = None,
    text: list[str] | None = None,
    without: list[str] | None = None,
    k: Annotated[PositiveInt, Parameter(name="-k")] = 10,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    images: str | None = None,
    exclude_ids: Annotated[list[str] | None, Parameter(name="--exclude-reference")] = None,
    keep_reference: Switch = False,
    html: OutputFile = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Search a gallery with a reference image and a text.

    Args:
        gallery: Folder that `hycir index` made.
        image: Reference image: a file, or an id of the gallery, with a weight if you like: A:0.6. Repeatable. Without
            it, the text alone is searched.
        text: What to change in the reference image. Leave it out to search with the image alone. A weight needs a
            decimal point: "red:1.0". Repeatable.
        without: Text that results should not show, with a weight if you like (default 0.5). Repeatable.
        k: Number of results.
        model: HyCIR model: folder or Hub id. By default the one that made the gallery.
        images: Folder of the gallery's images, if they have moved.
        exclude_ids: Gallery id to exclude; detected if the reference is in the indexed folder. Repeatable.
        keep_reference: Keep the reference image in the results.
        html: Write a page with the images to this file.
    """
    if not image and not any(one.strip() for one in text or ()):
        raise ParameterError("A search needs an image, a text, or both.", "image", "text")
    quiet()
    from ..retrieval.terms import WITHOUT_WEIGHT, describe_terms, parse_term

    retriever = hycir_hf.ImageRetriever.load(gallery, model, device, images)
    pictures = [parse_term(one, is_known=_is_image_of(retriever.gallery)) for one in image or ()]
    texts = [parse_term(one) for one in text or () if one.strip()]
    negative = [parse_term(one, WITHOUT_WEIGHT) for one in without or ()]
    references = hycir_hf.retrieval.read_references(retriever.gallery, gallery, [one for one, _ in pictures])
    excluded = sorted({*(exclude_ids or ()), *(() if keep_reference else references.gallery_ids)})
    weighted = [(one, weight) for one, (_, weight) in zip(references.images, pictures, strict=True)]
    found = retriever.search(weighted, texts, k, without=negative, exclude_ids=excluded)
    ranking = found[0]
    lines = ["rank  score   image"]
    lines += [f"{rank:4d}  {score:+.4f}  {shown(id_)}" for rank, (id_, score) in enumerate(ranking, 1)]
    if excluded:
        lines.append(f"Left out, because it is the reference image: {', '.join(map(shown, excluded))}")
    asked = describe_terms(texts, negative)
    if negative or any(weight != 1 for _, weight in (*pictures, *texts)):
        lines.append(f"Terms: {shown(', '.join(filter(None, (describe_terms(pictures), asked))))}")
    if html:
        _write_page(html, retriever.gallery, gallery, references, asked, excluded, ranking)
        lines.append(f"Page: {html}")
    results = [{"rank": rank, "image_id": id_, "score": score} for rank, (id_, score) in enumerate(ranking, 1)]
    terms = {"images": pictures, "texts": texts, "without": negative}
    names = [name for name, _ in pictures]
    values = {"images": names, "text": asked, "terms": terms, "excluded": excluded, "results": results, "html": html}
    return Report(values, lines)


def _is_image_of(gallery: "Gallery") -> Callable[[str], bool]:
    return lambda name: os.path.isfile(name) or name in gallery  # noqa: PTH113 - it takes names too long for a file


def _write_page(
    output: str,
    gallery: "Gallery",
    place: str,
    references: "References",
    text: str,
    excluded: list[str],
    ranking: list[tuple[str, float]],
) -> None:
    from ..reports.pages import PageQuery, PageResult, render_search_page

    opened = hycir_hf.retrieval.open_gallery_images(gallery, place)
    results = [PageResult(id_, score, _image_or_none(opened, id_)) for id_, score in ranking]
    note = f"Left out, because it is the reference image: {', '.join(excluded)}." if excluded else ""
    names = ", ".join(Path(name).name for name in references.names)
    query = PageQuery(references.images, text, results, note, names)
    write_text(output, render_search_page([query], intro=f"{len(gallery)} images in {Path(place).resolve().name}."))


def _image_or_none(images: Any, id_: str) -> Any:
    try:
        return images.load(id_)
    except (ValueError, OSError) as error:
        reason = shown(" ".join(str(error).split()))
        print(f"hycir search: the image {shown(id_)} is not on the page: {reason}", file=sys.stderr)
        return None
