"""One visitor's state, and how each action on the page changes it. Values in, values out: no page here."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec

from .answering import METHODS, Answer, GallerySearcher, Reference

PAGE_SIZE = 24  # gallery images shown at once
MAX_HISTORY = 30

P = ParamSpec("P")


@dataclass(frozen=True)
class Session:
    """What one visitor sees.

    Args:
        reference (`Reference`, *optional*): The one chosen.
        query_text (`str`): In the text field, as are method and k in theirs.
        method (`str`): One of `METHODS`.
        k (`int`): Number of images asked for.
        answer (`Answer`, *optional*): The one shown.
        history (`tuple[Answer, ...]`): Queries asked, newest first.
        message (`str`): A line above the results.
        is_error (`bool`): Whether it is about an error.
    """

    reference: Reference | None = None
    query_text: str = ""
    method: str = METHODS[0]
    k: int = 12
    answer: Answer | None = None
    history: tuple[Answer, ...] = ()
    message: str = "Click an image of the gallery or upload one, type what should change, and search."
    is_error: bool = False


@dataclass(frozen=True)
class Browsing:
    """Which part of the gallery is shown.

    Args:
        part (`str`): What the ids must contain; letter case is ignored.
        page (`int`): From 0.
        seed (`int`, *optional*): Random seed of the shuffled order; None is gallery order.
    """

    part: str = ""
    page: int = 0
    seed: int | None = None

    def rows(self, searcher: GallerySearcher) -> list[int]:
        """Gallery rows of all matching ids, in the order shown."""
        part = self.part.strip().lower()
        rows = [row for row, id_ in enumerate(searcher.ids) if part in id_.lower()]
        if self.seed is not None:
            random.Random(self.seed).shuffle(rows)
        return rows


def guarded(
    action: Callable[Concatenate[Session, GallerySearcher, P], Session],
) -> Callable[Concatenate[Session, GallerySearcher, P], Session]:
    """Turn a visitor's mistake into a line on the page."""

    def run(session: Session, searcher: GallerySearcher, *args: P.args, **kwargs: P.kwargs) -> Session:
        try:
            return action(session, searcher, *args, **kwargs)
        except (ValueError, OSError) as error:
            return replace(session, message=" ".join(str(error).split()), is_error=True)

    return run


@guarded
def pick(session: Session, searcher: GallerySearcher, row: int) -> Session:
    """Make a gallery image the next reference."""
    if not 0 <= row < len(searcher.ids):
        raise ValueError(f"The gallery has {len(searcher.ids)} images, and no row {row}. Reload the page.")
    return _with_reference(session, searcher.reference_of_row(row))


@guarded
def pick_id(session: Session, searcher: GallerySearcher, text: str) -> Session:
    """Make the gallery image of an id the next reference; a part of the id is enough if only one has it."""
    rows = [searcher.row_of_id[text]] if text in searcher.row_of_id else Browsing(text).rows(searcher)
    if len(rows) != 1:
        raise ValueError(
            f"{text!r} is part of {len(rows):,} ids of the gallery, not of one. "
            + ("Click one of them below." if rows else "Look one up below.")
        )
    return _with_reference(session, searcher.reference_of_row(rows[0]))


@guarded
def upload(session: Session, searcher: GallerySearcher, content: bytes) -> Session:
    """Make an uploaded image the next reference."""
    return _with_reference(session, searcher.reference_of_upload(content))


@guarded
def search(session: Session, searcher: GallerySearcher) -> Session:
    """Answer the query that the page's fields hold."""
    answer = searcher.answer(session.reference, session.query_text, session.method, session.k)
    others = [old for old in session.history if not _asks_the_same(old, answer)]
    history = (answer, *others)[:MAX_HISTORY]
    return replace(session, answer=answer, history=history, message=" ".join(answer.notes), is_error=False)


def search_again(session: Session, searcher: GallerySearcher) -> Session:
    """Answer anew with another method or k, where the query shown is the one in the fields."""
    shown = session.answer
    if shown is None or (shown.reference, shown.query_text) != (session.reference, session.query_text.strip()):
        return session
    return search(session, searcher)


def go_back(session: Session, searcher: GallerySearcher, position: int) -> Session:
    """Show an answer of the history again, with its reference, text, method and k."""
    if not 0 <= position < len(session.history):
        return session
    answer = session.history[position]
    return replace(
        session,
        reference=answer.reference,
        query_text=answer.query_text,
        method=answer.method,
        k=answer.k,
        answer=answer,
        message=" ".join(answer.notes),
        is_error=False,
    )


def _with_reference(session: Session, reference: Reference) -> Session:
    """Set a reference. A text that was answered is cleared; one typed ahead stays."""
    is_used = session.answer is not None and session.answer.query_text == session.query_text.strip()
    message = f"Reference: {reference.name}. Type what should change, or search by the image alone."
    query_text = "" if is_used else session.query_text
    return replace(session, reference=reference, query_text=query_text, message=message, is_error=False)


def _asks_the_same(one: Answer, other: Answer) -> bool:
    return replace(one, ranking=(), notes=()) == replace(other, ranking=(), notes=())
