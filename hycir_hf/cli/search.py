"""`hycir search`: a reference image and a text against a gallery."""

import sys
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
Example:
  hycir search gallery --image cat.jpg --text "make it black" --html found.html""",
)


@app.default
def search(
    gallery: str,
    /,
    *,
    image: list[str] | None = None,
    text: str = "",
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
        image: Reference image: a file, or an id of the gallery. Repeatable. Without it, the text alone is searched.
        text: What to change in the reference image. Leave it out to search with the image alone.
        k: Number of results.
        model: HyCIR model: folder or Hub id. By default the one that made the gallery.
        images: Folder of the gallery's images, if they have moved.
        exclude_ids: Gallery id to exclude; detected if the reference is in the indexed folder. Repeatable.
        keep_reference: Keep the reference image in the results.
        html: Write a page with the images to this file.
    """
    if not image and not text.strip():
        raise ParameterError("A search needs an image, a text, or both.", "image", "text")
    quiet()
    retriever = hycir_hf.ImageRetriever.load(gallery, model, device, images)
    references = hycir_hf.retrieval.read_references(retriever.gallery, gallery, image or [])
    excluded = sorted({*(exclude_ids or ()), *(() if keep_reference else references.gallery_ids)})
    found = retriever.search(references.images or None, text, k, exclude_ids=excluded)
    ranking = found[0]
    lines = ["rank  score   image"]
    lines += [f"{rank:4d}  {score:+.4f}  {shown(id_)}" for rank, (id_, score) in enumerate(ranking, 1)]
    if excluded:
        lines.append(f"Left out, because it is the reference image: {', '.join(map(shown, excluded))}")
    if html:
        _write_page(html, retriever.gallery, gallery, references, text, excluded, ranking)
        lines.append(f"Page: {html}")
    results = [{"rank": rank, "image_id": id_, "score": score} for rank, (id_, score) in enumerate(ranking, 1)]
    return Report({"images": image or [], "text": text, "excluded": excluded, "results": results, "html": html}, lines)


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
