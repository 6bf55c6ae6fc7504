"""One self-contained HTML page of composed searches: reference image, query text, ranked pictures with scores.

Everything is embedded: no script, no font, no file beside it. Light and dark follow the reader's system.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

_MAX_SIDE = 320  # pixels of an embedded picture's longer side
_LOSSLESS_SIDE = 128  # up to here PNG: small drawings suffer from JPEG


@dataclass(frozen=True)
class PageResult:
    """One ranked picture.

    Args:
        id (`str`): Gallery id, shown below the picture.
        score (`float`): Cosine similarity in [-1, 1].
        image (`PIL.Image.Image`, *optional*): None shows an empty frame.
        is_target (`bool`, *optional*): Marks correct and wrong answers where they are known.
        label (`str`, *optional*): A name to show in place of the id.
    """

    id: str
    score: float
    image: Any = None
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
        other_title (`str`): A line above the other ranking.
        other_results (`Sequence[PageResult]`): Another ranking to set below it, best first.
    """

    reference_images: Sequence[Any]
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


def render_search_page(
    queries: Sequence[PageQuery],
    title: str = "Composed image search",
    intro: str = "",
    tables: Sequence[PageTable] = (),
    closing_tables: Sequence[PageTable] = (),
) -> str:
    """Render queries, and tables of figures, as one HTML document.

    Args:
        queries (`Sequence[PageQuery]`): In the order shown.
        title (`str`): Heading and window title.
        intro (`str`): A paragraph below the heading.
        tables (`Sequence[PageTable]`): Shown before the queries.
        closing_tables (`Sequence[PageTable]`): Shown after them.

    Returns:
        `str`: A whole HTML 5 document, UTF-8, with the pictures embedded.
    """
    body = [render_table(table) for table in tables] + [
        _query(number, query) for number, query in enumerate(queries, 1)
    ]
    body += [render_table(table) for table in closing_tables]
    footer = "Scores are cosine similarities of the composed query with each picture. Made with HyCIR."
    return render_page(title, intro, body, footer)


def render_page(title: str, intro: str, sections: Sequence[str], footer: str, style: str = "") -> str:
    """Render sections of HTML as one self-contained document in this page's style.

    Args:
        title (`str`): Heading and window title.
        intro (`str`): A paragraph below the heading; none if empty.
        sections (`Sequence[str]`): HTML, escaped where needed.
        footer (`str`): Last line.
        style (`str`): CSS added to the page's own.
    """
    paragraph = f'<p class="intro">{escape(intro)}</p>' if intro else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>{paragraph}</header>\n<main>\n" + "\n".join(sections) + "\n</main>\n"
        f"<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def _query(number: int, query: PageQuery) -> str:
    images = "".join(
        f'<img src="{picture_uri(image)}" alt="Reference image {escape(query.reference_label, quote=True)}">'
        for image in query.reference_images
    )
    text = escape(query.query_text) if query.query_text else "<em>no text: the image alone</em>"
    label = f'<p class="id">{escape(query.reference_label)}</p>' if query.reference_label else ""
    ranking = _ranking(query.title, query.results) if query.results else '<p class="note">Nothing was found.</p>'
    if query.other_results:
        ranking += _ranking(query.other_title, query.other_results)
    note = f'<p class="note">{escape(query.note)}</p>' if query.note else ""
    return (
        f'<section aria-labelledby="query-{number}">\n<div class="query"><div class="reference">{images}</div>'
        '<span class="plus" aria-hidden="true">+</span>'
        f'<div><p class="kicker">Reference image and text</p><h2 id="query-{number}">{text}</h2>{label}</div></div>\n'
        f"{ranking}{note}\n</section>"
    )


def _ranking(title: str, results: Sequence[PageResult]) -> str:
    heading = f'<h3 class="kicker">{escape(title)}</h3>' if title else ""
    items = "\n".join(_result(rank, result) for rank, result in enumerate(results, 1))
    return f'{heading}<ol class="results">{items}</ol>'


def _result(rank: int, result: PageResult) -> str:
    name = result.label or result.id
    if result.image is None:
        picture = '<div class="missing">picture not at hand</div>'
    else:
        picture = f'<img src="{picture_uri(result.image)}" alt="{escape(name, quote=True)}" loading="lazy">'
    mark = {None: "", True: '<span class="mark">✓ target</span>', False: ""}[result.is_target]
    css = ' class="target"' if result.is_target else ""
    width = max(0.0, min(1.0, result.score)) * 100
    return (
        f"<li{css}><figure>{picture}{mark}<figcaption><span class='row'><span class='rank'>{rank}</span>"
        f"<span class='score'>{result.score:.3f}</span></span>"
        f"<span class='meter' aria-hidden='true'><span style='width:{width:.1f}%'></span></span>"
        f'<span class="id" title="{escape(result.id, quote=True)}">{escape(name)}</span></figcaption></figure></li>'
    )


def render_table(table: PageTable) -> str:
    """Render a table as a section of the page."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    return (
        f'<section class="figures"><table><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def picture_uri(image: Any) -> str:
    """A PIL image as a data URI, shrunk to what the page shows."""
    image = image.convert("RGB")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    is_small = max(image.size) <= _LOSSLESS_SIDE
    buffer = io.BytesIO()
    if is_small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=88)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{encoded}"


_STYLE = """
:root{--page:#f6f6f3;--card:#fff;--ink:#1c1d21;--soft:#5c5f68;--line:#dfdfda;--accent:#2f5bd3;--good:#1b7a43;--on-good:#fff;--frame:#fff}
@media (prefers-color-scheme:dark){:root{--page:#131417;--card:#1d1f24;--ink:#ececea;--soft:#a5a8b1;--line:#33363d;
--accent:#8fb0ff;--good:#6fd39a;--on-good:#10241a;--frame:#fff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:72rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.5rem;padding-bottom:.5rem}
h1{font-size:1.75rem;line-height:1.2;letter-spacing:-.01em;margin:0 0 .5rem}
.intro,.note,footer{color:var(--soft)}.intro{max-width:46rem;margin:0}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1.25rem;margin:1.25rem 0}
.query{display:flex;gap:1.25rem;align-items:center;margin-bottom:1.25rem}
.reference{display:flex;gap:.5rem;flex:none}
.reference img{width:8.5rem;height:8.5rem;object-fit:contain;background:var(--frame);border:2px solid var(--accent);
border-radius:12px;padding:4px}
.plus{font-size:1.75rem;line-height:1;color:var(--soft)}
.kicker{margin:0;font-size:.8rem;color:var(--soft)}h3.kicker{margin:1rem 0 .5rem;font-size:.9rem}
h2{font-size:1.35rem;line-height:1.3;margin:.15rem 0;overflow-wrap:anywhere}h2 em{color:var(--soft);font-weight:400}
.results{list-style:none;margin:0;padding:0;display:grid;gap:.9rem;
grid-template-columns:repeat(auto-fill,minmax(10rem,1fr))}
figure{position:relative;margin:0;border:1px solid var(--line);border-radius:12px;overflow:hidden;height:100%}
.target figure{border-color:var(--good);box-shadow:0 0 0 2px var(--good)}
figure img,.missing{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:var(--frame);padding:6px}
.missing{display:grid;place-items:center;color:#5c5f68;font-size:.8rem;text-align:center}
figcaption{padding:.5rem .65rem .6rem;border-top:1px solid var(--line)}
.row{display:flex;align-items:baseline;gap:.5rem}
.rank{font-weight:700}.score{margin-left:auto;font-variant-numeric:tabular-nums}
.mark{position:absolute;top:.5rem;left:.5rem;padding:.05rem .5rem;border-radius:99px;background:var(--good);
color:var(--on-good);font-size:.75rem;font-weight:600}
.meter{display:block;height:4px;border-radius:2px;background:var(--line);margin:.25rem 0 .35rem}
.meter span{display:block;height:100%;border-radius:2px;background:var(--accent)}
.id{margin:0;font-size:.8rem;color:var(--soft);overflow-wrap:anywhere;display:-webkit-box;-webkit-box-orient:vertical;
-webkit-line-clamp:2;overflow:hidden}
.note{margin:1rem 0 0;font-size:.9rem}
.figures{overflow-x:auto}table{border-collapse:collapse;width:100%}
caption{text-align:left;font-weight:600;padding-bottom:.5rem}
th,td{padding:.4rem .45rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}
th:first-child{text-align:left;font-weight:500;padding-left:0}thead th{color:var(--soft);font-weight:600}
tbody tr:last-child>*{border-bottom:0}
footer{padding-top:.5rem;padding-bottom:2.5rem;font-size:.85rem}
@media (max-width:34rem){.query{flex-direction:column;align-items:flex-start;gap:.6rem}.reference{flex-wrap:wrap}
.plus{display:none}.figures{padding:1rem}th,td{padding:.35rem .4rem;font-size:.85rem}
.results{grid-template-columns:repeat(auto-fill,minmax(8rem,1fr))}}
@media print{body{background:#fff}section{break-inside:avoid-page}}
"""
