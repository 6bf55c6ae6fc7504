"""The parts of the app's page that are HTML, made from `reports/templates/app`.

Images are data URIs: no file is served.
"""

from dataclasses import replace

from ..reports.render import render
from .answering import GallerySearcher
from .session import PAGE_SIZE, Browsing, Session

CLICK_SCRIPT = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-number]');
  if (button) trigger('click', {number: Number(button.dataset.number)});
});
"""
"""Tells the server which numbered button was clicked."""

SHOW_RESULTS_SCRIPT = "() => { if (innerWidth < 700) document.getElementById('message').scrollIntoView() }"
"""On a phone the results are below the fields."""

SHOW_FIELDS_SCRIPT = """() => {
  document.getElementById('reference').scrollIntoView({block: 'nearest'});
  if (innerWidth >= 700) document.querySelector('#text textarea, #text input').focus({preventScroll: true});
}"""
"""After a new reference image comes its text. On a phone the keyboard would hide the page, so it is not opened."""


def render_header(searcher: GallerySearcher) -> str:
    """Render the title and what the gallery holds."""
    return render("app/header.html", searcher=searcher)


def render_reference(session: Session) -> str:
    """Render the chosen reference image."""
    return render("app/reference.html", reference=session.reference)


def render_message(session: Session) -> str:
    """Render the line above the results; screen readers read it out."""
    return render("app/message.html", message=session.message, is_error=session.is_error)


def render_history(session: Session) -> str:
    """Render one button for each earlier query, newest first."""
    return render("app/history.html", history=session.history, shown=session.answer)


def render_results(session: Session, searcher: GallerySearcher) -> str:
    """Render the ranking; each image is a button."""
    return render("app/results.html", answer=session.answer, searcher=searcher)


def render_gallery(browsing: Browsing, searcher: GallerySearcher) -> tuple[str, str, Browsing]:
    """Render one page of the gallery.

    Returns:
        `tuple[str, str, Browsing]`: A line about what is shown, the images as buttons, and `browsing` with its page
        moved into the valid range.
    """
    rows = browsing.rows(searcher)
    if not rows:
        return "No id contains this.", "", browsing
    page = browsing.page % -(-len(rows) // PAGE_SIZE)
    shown = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    line = f"{page * PAGE_SIZE + 1:,}–{page * PAGE_SIZE + len(shown):,} of {len(rows):,}"
    return line, render("app/gallery.html", rows=shown, searcher=searcher), replace(browsing, page=page)
