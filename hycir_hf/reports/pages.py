"""Self-contained HTML pages: style and images are embedded, and there is no script.

The HTML is in `templates/`, in light and dark colours. Here are the facts that it shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .render import render


@dataclass(frozen=True)
class PageResult:
    """One ranked image.

    Args:
        id (`str`): Gallery id, shown below the image.
        score (`float`, *optional*): Cosine similarity in [-1, 1]; None shows neither score nor rank.
        image (`PIL.Image.Image`, *optional*): None shows an empty frame.
        is_target (`bool`, *optional*): Marks a correct result; None where the targets are not known.
        label (`str`, *optional*): A name to show instead of the id.
    """

    id: str
    score: float | None
    image: Image.Image | None = None
    is_target: bool | None = None
    label: str | None = None


@dataclass(frozen=True)
class PageQuery:
    """One composed query and its ranking.

    Args:
        reference_images (`Sequence[PIL.Image.Image]`): Usually one.
        query_text (`str`): What to change.
        results (`Sequence[PageResult]`): Best first.
        note (`str`): A line below the ranking.
        reference_label (`str`): The reference's id or file name.
        title (`str`): A line above the ranking.
        other_title (`str`): A line above the second ranking.
        other_results (`Sequence[PageResult]`): A second ranking, shown below the first.
    """

    reference_images: Sequence[Image.Image]
    query_text: str
    results: Sequence[PageResult]
    note: str = ""
    reference_label: str = ""
    title: str = ""
    other_title: str = ""
    other_results: Sequence[PageResult] = ()


@dataclass(frozen=True)
class PageTable:
    """A table of figures; the first column holds the row names.

    Args:
        caption (`str`): What the figures are.
        header (`Sequence[str]`): Column names.
        rows (`Sequence[Sequence[str]]`): Cells as shown.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Histogram:
    """How often a score occurs.

    Args:
        score (`str`): The score's name.
        threshold (`float`): The lowest value that is kept.
        counts (`Sequence[int]`): B bins.
        edges (`Sequence[float]`): The B + 1 edges of the bins.
    """

    score: str
    threshold: float
    counts: Sequence[int]
    edges: Sequence[float]


@dataclass(frozen=True)
class PageTriplet:
    """One triplet.

    Args:
        reference_image (`PIL.Image.Image`, *optional*): None shows an empty frame.
        reference_caption (`str`): Its caption.
        query_text (`str`, *optional*): From reference to target.
        target_image (`PIL.Image.Image`, *optional*): None shows an empty frame.
        target_caption (`str`): Its caption.
        notes (`Sequence[str]`): Lines below the query text: the similarity, or why the triplet was dropped.
    """

    reference_image: Image.Image | None
    reference_caption: str
    query_text: str | None
    target_image: Image.Image | None
    target_caption: str
    notes: Sequence[str] = ()


def render_search_page(
    queries: Sequence[PageQuery],
    title: str = "Composed image search",
    intro: str = "",
    tables: Sequence[PageTable] = (),
    closing_tables: Sequence[PageTable] = (),
    footer: str = "Each score is the cosine similarity of the composed query and the image.",
) -> str:
    """Render queries and tables of figures as one HTML page.

    Args:
        queries (`Sequence[PageQuery]`): In the order shown.
        title (`str`): Heading and window title.
        intro (`str`): A paragraph below the heading.
        tables (`Sequence[PageTable]`): Shown before the queries.
        closing_tables (`Sequence[PageTable]`): Shown after them.
        footer (`str`): What the scores are.
    """
    facts = {"title": title, "intro": intro, "tables": tables, "closing_tables": closing_tables, "footer": footer}
    return render("search_page.html", queries=queries, **facts)


def render_triplets_page(
    recipe: Mapping[str, Any],
    share_kept: float,
    counts: PageTable,
    histograms: Sequence[Histogram],
    samples: Mapping[str, Sequence[PageTriplet]],
) -> str:
    """Render the report of a SynCir dataset as one HTML page.

    Args:
        recipe (`Mapping`): `recipe.json`: how the dataset was made.
        share_kept (`float`): In [0, 1], of the triplets that have a query text.
        counts (`PageTable`): Counts of each stage.
        histograms (`Sequence[Histogram]`): One for each score.
        samples (`Mapping[str, Sequence[PageTriplet]]`): "kept" and "dropped" -> some triplets.
    """
    facts = {"counts": counts, "histograms": histograms, "samples": samples}
    return render("triplets_page.html", recipe=recipe, share_kept=share_kept, **facts)


def render_table(table: PageTable) -> str:
    """Render a table as Markdown."""
    return render("table.md", table=table)
