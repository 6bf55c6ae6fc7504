"""`hycir search`: a reference image and a text against a gallery."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from ..files import write_text
from .models import load_model, model_of
from .options import Common, Device, Report, Switch, shown

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
    image: list[str],
    text: str,
    k: Annotated[PositiveInt, Parameter(name="-k")] = 10,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    exclude_reference: list[str] | None = None,
    keep_reference: Switch = False,
    html: str | None = None,
    device: Device = None,
    common: Common | None = None,
) -> Report:
    """Search a gallery with a reference image and a text.

    Args:
        gallery: Folder that `hycir index` made.
        image: Reference image: a file, or the id of an image in the gallery. Repeat it for several references.
        text: What to change in the reference image. An empty text ("") searches with the image alone.
        k: Number of results.
        model: HyCIR model: folder or Hub id. By default the one that made the gallery.
        exclude_reference: Gallery id to exclude; detected if the reference is in the indexed folder. Repeatable.
        keep_reference: Keep the reference image in the results.
        html: Write a page with the images to this file.
    """
    opened = hycir_hf.Gallery.load(gallery)
    name = model_of(opened, gallery, model)
    references = hycir_hf.retrieval.read_references(opened, gallery, image)
    excluded = sorted({*(exclude_reference or ()), *(() if keep_reference else references.gallery_ids)})
    loaded = load_model(name, device)
    found = hycir_hf.retrieval.search_composed(*loaded, opened, references.images, text, k, excluded)
    ranking = [(id_, float(score)) for id_, score in found[0]]
    lines = ["rank  score   image"]
    lines += [f"{rank:4d}  {score:+.4f}  {shown(id_)}" for rank, (id_, score) in enumerate(ranking, 1)]
    if excluded:
        lines.append(f"Left out, because it is the reference image: {', '.join(map(shown, excluded))}")
    if html:
        _write_page(html, opened, gallery, references, text, excluded, ranking)
        lines.append(f"Page: {html}")
    results = [{"rank": rank, "image_id": id_, "score": score} for rank, (id_, score) in enumerate(ranking, 1)]
    return Report({"images": image, "text": text, "excluded": excluded, "results": results, "html": html}, lines)


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

    images = hycir_hf.retrieval.open_gallery_pictures(gallery, place)
    results = [PageResult(id_, score, _image_or_none(images, id_)) for id_, score in ranking]
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
