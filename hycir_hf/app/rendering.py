"""The parts of the page that are HTML: texts are escaped, pictures are data URIs, no file is served."""

from html import escape

from .answering import Answer, GallerySearcher
from .session import PAGE_SIZE, Browsing, Session

CLICK_SCRIPT = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-number]');
  if (button) trigger('click', {number: Number(button.dataset.number)});
});
"""
"""Tells the server which numbered button was clicked."""

SHOW_RESULTS_SCRIPT = "() => { if (innerWidth < 700) document.getElementById('message').scrollIntoView() }"
"""On a phone the results stand below the fields."""

SHOW_FIELDS_SCRIPT = """() => {
  document.getElementById('reference').scrollIntoView({block: 'nearest'});
  if (innerWidth >= 700) document.querySelector('#text textarea, #text input').focus({preventScroll: true});
}"""
"""A new reference waits for its text; on a phone the keyboard stays down until it is asked for."""


def render_reference(session: Session) -> str:
    """The chosen reference."""
    if session.reference is None:
        return (
            '<div class="reference empty"><p>No reference yet: click a picture of the gallery, or upload one.</p></div>'
        )
    name = _text(session.reference.name)
    return (
        f'<figure class="reference"><img src="{session.reference.uri}" alt="Reference picture {name}">'
        f'<figcaption><span class="kicker">Reference</span><span class="id" title="{name}">{name}</span></figcaption>'
        "</figure>"
    )


def render_message(session: Session) -> str:
    """The line above the results; screen readers say it."""
    role, css = ("alert", "message error") if session.is_error else ("status", "message")
    return f'<p class="{css}" role="{role}">{_text(session.message)}</p>' if session.message else ""


def render_history(session: Session) -> str:
    """One button for each earlier query, newest first."""
    if not session.history:
        return ""
    chips = "".join(
        _chip(position, answer, answer is session.answer) for position, answer in enumerate(session.history)
    )
    return f'<nav class="history" aria-label="Earlier queries"><span class="kicker">History</span>{chips}</nav>'


def render_results(session: Session, searcher: GallerySearcher) -> str:
    """The ranking; each picture is a button."""
    if session.answer is None:
        return '<p class="empty">Nothing searched yet.</p>'
    if not session.answer.ranking:
        return '<p class="empty">Nothing was found: the gallery holds no other picture.</p>'
    cards = "".join(_result(rank, row, score, searcher) for rank, (row, score) in enumerate(session.answer.ranking, 1))
    hint = "Click a picture to make it the next reference. Scores are cosine similarities."
    return f'<ol class="cards">{cards}</ol><p class="hint">{hint}</p>'


def render_gallery(browsing: Browsing, searcher: GallerySearcher) -> tuple[str, str, Browsing]:
    """One page of the gallery.

    Returns:
        `tuple[str, str, Browsing]`: The line that says what is shown, the pictures, and the page turned back into
        range.
    """
    rows = browsing.rows(searcher)
    if not rows:
        return "No id contains this.", "", browsing
    page = browsing.page % -(-len(rows) // PAGE_SIZE)
    shown = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    line = f"{page * PAGE_SIZE + 1:,}–{page * PAGE_SIZE + len(shown):,} of {len(rows):,}"
    cards = "".join(
        f'<li><button type="button" data-number="{row}" aria-label="Take {_text(searcher.ids[row])} as the reference">'
        f'{_picture(row, searcher)}<span class="caption"><span class="id">{_name(searcher.ids[row])}</span></span>'
        "</button></li>"
        for row in shown
    )
    return line, f'<ul class="cards small">{cards}</ul>', Browsing(browsing.part, page, browsing.seed)


def render_header(searcher: GallerySearcher) -> str:
    """Title, and what the gallery holds."""
    warning = ""
    if not searcher.has_pictures:
        warning = (
            '<p class="message error" role="alert">The pictures are no longer where this gallery was made from, so '
            "results are shown as ids. Upload references, or search by text alone.</p>"
        )
    return f'<header><h1>Composed image search</h1><p class="kicker">{_text(searcher.describe())}</p></header>{warning}'


def _chip(position: int, answer: Answer, is_shown: bool) -> str:
    reference = answer.reference
    picture = f'<img src="{reference.uri}" alt="{_text(reference.name)}">' if reference else ""
    text = _text(answer.query_text) or "<em>no text</em>"
    current = ' aria-current="true"' if is_shown else ""
    return (
        f'<button type="button" data-number="{position}"{current}>{picture}<span><span class="chip-text">{text}</span>'
        f'<span class="kicker">{_text(answer.method)} · {answer.k}</span></span></button>'
    )


def _result(rank: int, row: int, score: float, searcher: GallerySearcher) -> str:
    name = _text(searcher.ids[row])
    width = 100 * max(0.0, min(1.0, score))
    return (
        f'<li><button type="button" data-number="{row}" aria-label="Rank {rank}, {name}, score {score:.3f}: take it as '
        f'the next reference">{_picture(row, searcher)}<span class="caption"><span class="line"><b>{rank}</b>'
        f'<span class="score">{score:.3f}</span></span><span class="meter"><span style="width:{width:.1f}%"></span>'
        f'</span><span class="id" title="{name}">{_name(searcher.ids[row])}</span></span></button></li>'
    )


def _picture(row: int, searcher: GallerySearcher) -> str:
    uri = searcher.thumbnail(row)
    return f'<img src="{uri}" alt="">' if uri else '<span class="missing">picture not at hand</span>'


def _name(id_: str) -> str:
    """An id as shown: broken after a slash rather than within a word."""
    return _text(id_).replace("/", "/<wbr>")


def _text(text: str) -> str:
    """Text for HTML; a file name need not be valid Unicode."""
    return escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))


STYLE = """
:root{--soft:#5c5f68}.dark{--soft:#a5a8b1}
.gradio-container .html-container{padding:0}
#columns{align-items:flex-start}#columns>*{min-width:0}
.gradio-container{max-width:80rem!important;margin:0 auto!important}
footer{display:none!important}
header h1{font-size:1.6rem;line-height:1.2;letter-spacing:-.01em;margin:.25rem 0;font-weight:650}
.kicker,.hint,.empty{color:var(--soft);font-size:.85rem;margin:0}
.message{margin:0;padding:.6rem .85rem;border-radius:10px;border:1px solid var(--border-color-primary);
background:var(--block-background-fill);overflow-wrap:anywhere}
.message.error{border-color:#c9372c;color:#a32218;background:#fff1ef}
.dark .message.error{color:#ffb4ab;background:#3a1714}
.reference{margin:0;display:flex;gap:.9rem;align-items:center}
.reference img{width:7.5rem;height:7.5rem;flex:none;object-fit:contain;background:#fff;
border:2px solid var(--color-accent);border-radius:12px;padding:4px}
.reference figcaption{display:flex;flex-direction:column;min-width:0}
.reference.empty{min-height:4.5rem;border:1px dashed var(--border-color-primary);border-radius:12px;padding:.75rem}
.reference.empty p{margin:0}
.id{font-size:.8rem;color:var(--soft);overflow-wrap:anywhere;display:-webkit-box;
-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden;line-height:1.35}
.reference .id{font-size:1rem;color:var(--body-text-color)}
.cards{list-style:none;margin:0;padding:0;display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr))}
.cards.small .id{font-size:.75rem}
.cards.small{grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr));gap:.6rem}
.cards li{margin:0}
.cards button{all:unset;box-sizing:border-box;display:flex;flex-direction:column;width:100%;height:100%;cursor:pointer;
border:1px solid var(--border-color-primary);border-radius:12px;overflow:hidden;background:var(--block-background-fill)}
.cards button:hover{border-color:var(--color-accent)}
.cards button:focus-visible,.history button:focus-visible{outline:3px solid var(--color-accent);outline-offset:2px}
.cards img,.missing{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#fff;padding:8px;margin:0}
.missing{display:grid;place-items:center;color:#5c5f68;font-size:.8rem;text-align:center}
.caption{display:block;padding:.45rem .6rem .55rem;border-top:1px solid var(--border-color-primary)}
.line{display:flex;align-items:baseline}
.score{margin-left:auto;font-variant-numeric:tabular-nums}
.meter{display:block;height:4px;border-radius:2px;background:var(--border-color-primary);margin:.25rem 0 .35rem}
.meter span{display:block;height:100%;border-radius:2px;background:var(--color-accent)}
.hint{margin:.8rem 0 0}
.history{contain:inline-size;display:flex;gap:.5rem;align-items:center;overflow-x:auto;padding:.2rem}
.history button{all:unset;box-sizing:border-box;flex:none;display:flex;gap:.5rem;align-items:center;cursor:pointer;
max-width:15rem;padding:.3rem .7rem .3rem .35rem;border:1px solid var(--border-color-primary);border-radius:10px;
background:var(--block-background-fill)}
.history button[aria-current]{border-color:var(--color-accent);box-shadow:0 0 0 1px var(--color-accent)}
.history img{width:2.4rem;height:2.4rem;flex:none;object-fit:contain;background:#fff;border-radius:6px;margin:0}
.history button>span{display:flex;flex-direction:column;min-width:0}
.chip-text{white-space:nowrap;overflow:hidden;text-overflow:ellipsis;font-size:.9rem}
.dark input[type=radio]:checked{background-color:var(--color-accent)}
@media (max-width:48rem){#columns{flex-direction:column;align-items:stretch}#columns>*{flex:none!important;width:100%}}
@media (max-width:34rem){.cards{grid-template-columns:repeat(auto-fill,minmax(8rem,1fr))}
.cards.small .id{font-size:.75rem}
.cards.small{grid-template-columns:repeat(auto-fill,minmax(5.5rem,1fr))}}
"""
