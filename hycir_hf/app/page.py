"""The app's page: its parts are connected with Gradio and served."""

import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..hosts import HostGuard, is_loopback, listen
from ..reports.render import STYLE
from ..retrieval.queries import MAPPER
from ..retriever import ImageRetriever
from .answering import METHODS, GallerySearcher
from .rendering import (
    CLICK_SCRIPT,
    SHOW_FIELDS_SCRIPT,
    SHOW_RESULTS_SCRIPT,
    render_gallery,
    render_header,
    render_history,
    render_message,
    render_reference,
    render_results,
)
from .session import Browsing, Session, go_back, pick, pick_id, search, search_again, upload

try:
    import gradio as gr
    from starlette.middleware import Middleware

    from .guard import UploadGuard
except ImportError as error:
    raise ImportError(
        "hycir_hf.app needs gradio 6 or later, which cannot be imported. Install it with pip install 'hycir_hf[app]'."
    ) from error

logger = logging.getLogger(__name__)

MAX_UPLOAD_MB = 20
_MAX_K = 100
_METHOD_LABELS = [("pseudo tokens (mapper)" if name == MAPPER else name, name) for name in METHODS]
_UPLOAD_SECONDS = 3600  # uploads are deleted when older
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build_app(retriever: ImageRetriever) -> gr.Blocks:
    """Build the search page of a gallery.

    Args:
        retriever (`ImageRetriever`): With a gallery: `ImageRetriever.load("gallery")`.

    Returns:
        `gradio.Blocks`: Pass it to `launch_app`. Its one API endpoint is `/search` (text, reference_id, method, k).

    Raises:
        ValueError: If the gallery is empty.
    """
    searcher = GallerySearcher(retriever)
    start, opening = Session(k=min(Session.k, len(searcher.ids))), Browsing(seed=0)
    with _Page(
        title="Composed image search", analytics_enabled=False, delete_cache=(_UPLOAD_SECONDS, _UPLOAD_SECONDS)
    ) as page:
        session, browsing = gr.State(start), gr.State(opening)
        gr.HTML(render_header(searcher))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=1, min_width=290):
                reference = gr.HTML(render_reference(start), elem_id="reference")
                file = gr.File(
                    label="Upload a reference image", show_label=False, file_types=["image"], type="binary", height=140
                )
                text = gr.Textbox(label="What should change?", placeholder="make it night", max_lines=4, elem_id="text")
                button = gr.Button("Search", variant="primary")
                method = gr.Radio(_METHOD_LABELS, value=start.method, label="Method")
                k = gr.Slider(1, min(_MAX_K, len(searcher.ids)), value=start.k, step=1, label="Images shown (k)")
            with gr.Column(scale=3, min_width=290):
                message = gr.HTML(render_message(start), elem_id="message")
                history = gr.HTML(render_history(start), elem_id="history", js_on_load=CLICK_SCRIPT)
                with gr.Tabs(selected="gallery") as tabs:
                    with gr.Tab("Gallery", id="gallery"):
                        with gr.Row(equal_height=True):
                            part = gr.Textbox(
                                show_label=False,
                                label="Find an id",
                                placeholder="Find an id; Enter selects it",
                                container=False,
                                scale=3,
                                min_width=200,
                            )
                            before, after, shuffle, in_order = (
                                gr.Button(name, size="sm", min_width=70)
                                for name in ("‹ Back", "Next ›", "Shuffle", "In order")
                            )
                        line, cards, _ = render_gallery(opening, searcher)
                        shown = gr.Markdown(line, elem_id="shown")
                        grid = gr.HTML(cards, elem_id="grid", js_on_load=CLICK_SCRIPT)
                    with gr.Tab("Results", id="results"):
                        results = gr.HTML(render_results(start, searcher), elem_id="results", js_on_load=CLICK_SCRIPT)

        views = [session, reference, message, history, results, text, method, k, tabs]

        def show(new: Session, tab: str | None = None) -> list[Any]:
            return [
                new,
                render_reference(new),
                render_message(new),
                render_history(new),
                render_results(new, searcher),
                new.query_text,
                new.method,
                new.k,
                gr.Tabs(selected=tab) if tab else gr.skip(),
            ]

        def handler(action: Callable[..., Session], tab: str | None = None) -> Callable[..., list[Any]]:
            """Run an action on the session with the fields' values, then open a tab (after a new answer: results)."""

            def run(old: Session, query_text: str, method: str, k: float, *args: Any) -> list[Any]:
                new = action(replace(old, query_text=query_text, method=method, k=int(k)), searcher, *args)
                return show(new, tab if new.answer is old.answer else "results")

            return run

        def on_click(action: Callable[..., Session], tab: str | None = None) -> Callable[..., list[Any]]:
            """Do the same with the number of the clicked button."""

            def run(old: Session, query_text: str, method: str, k: float, event: gr.EventData) -> list[Any]:
                return handler(action, tab)(old, query_text, method, k, event.number)

            return run

        def on_upload(*args: Any) -> list[Any]:
            return [*handler(upload)(*args), None]  # empties the file's field

        def browse(new: Browsing) -> list[Any]:
            line, cards, new = render_gallery(new, searcher)
            return [new, line, cards]

        fields, browsed = [session, text, method, k], [browsing, shown, grid]
        searches = [
            gr.on([button.click, text.submit], handler(search), fields, views, **_PRIVATE),
            history.click(on_click(go_back, "results"), fields, views, **_PRIVATE),
        ]
        picks = [
            gr.on([grid.click, results.click], on_click(pick), fields, views, **_PRIVATE),
            part.submit(handler(pick_id), [*fields, part], views, **_PRIVATE),
            file.upload(on_upload, [*fields, file], [*views, file], **_PRIVATE),
        ]
        for event, script in [(one, SHOW_RESULTS_SCRIPT) for one in searches] + [
            (one, SHOW_FIELDS_SCRIPT) for one in picks
        ]:
            event.then(None, js=script)
        gr.on([method.input, k.release], handler(search_again), fields, views, **_PRIVATE)
        part.change(
            lambda old, text: browse(Browsing(text, 0, old.seed)),
            [browsing, part],
            browsed,
            trigger_mode="always_last",
            **_PRIVATE,
        )
        before.click(lambda old: browse(replace(old, page=old.page - 1)), browsing, browsed, **_PRIVATE)
        after.click(lambda old: browse(replace(old, page=old.page + 1)), browsing, browsed, **_PRIVATE)
        shuffle.click(
            lambda old: browse(replace(old, page=0, seed=secrets.randbits(32))), browsing, browsed, **_PRIVATE
        )
        in_order.click(lambda old: browse(replace(old, page=0, seed=None)), browsing, browsed, **_PRIVATE)
        gr.api(_search_endpoint(searcher), api_name="search")
    return page


def launch_app(
    page: gr.Blocks,
    host: str | None = None,
    port: int | None = None,
    max_upload_mb: int = MAX_UPLOAD_MB,
    block: bool = True,
) -> str:
    """Serve a page that `build_app` made.

    Only the page's own files are served; its images are embedded. Nothing is fetched from other hosts. On a loopback
    address the page answers to local names only. It refuses changes that other sites' pages ask for.

    Args:
        page (`gradio.Blocks`): The page.
        host (`str`, *optional*): Address to listen on; by default GRADIO_SERVER_NAME, or else 127.0.0.1.
        port (`int`, *optional*): By default GRADIO_SERVER_PORT, or else the first free one from 7860.
        max_upload_mb (`int`): Largest upload, in MB of 2^20 bytes.
        block (`bool`): Return only when Ctrl-C has stopped the server.

    Returns:
        `str`: The page's address.

    Raises:
        OSError: If the port is in use, or this machine has no such address.
        ValueError: If `port` is out of range.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    if not is_loopback(host):
        logger.warning(
            "The page listens on %s: everybody who can reach this address can search and see the gallery.", host
        )
    listen(host, port).close()  # otherwise Gradio would wait for ever
    _, url, _ = page.queue().launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        app_kwargs={
            "middleware": [
                Middleware(HostGuard, host=host),
                Middleware(UploadGuard, max_upload_mb * 2**20, 2 * _UPLOAD_SECONDS),
            ]
        },
        max_file_size=max_upload_mb * 2**20,
        theme=gr.themes.Default(
            primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=STYLE,
        footer_links=[],
        enable_monitoring=False,
    )
    logger.info("The page is at %s", url)
    if block:
        wait_for_interrupt(page)
    return url


def wait_for_interrupt(page: gr.Blocks) -> None:
    """Serve until Ctrl-C; pages that are open in a browser do not delay the end."""
    try:
        while page.server.thread.is_alive():
            page.server.thread.join(1)
    except KeyboardInterrupt:
        page.server.config.timeout_graceful_shutdown = 1  # seconds
        logging.getLogger("uvicorn.error").disabled = True  # it logs each closed connection as an error
        page.close(verbose=False)


def _search_endpoint(searcher: GallerySearcher) -> Callable[..., list[dict]]:
    def search(text: str, reference_id: str = "", method: str = METHODS[0], k: int = 10) -> list[dict]:
        """Rank the gallery for one of its images and a text: `[{"id", "score"}, ...]`, best first."""
        try:
            if reference_id and reference_id not in searcher.row_of_id:
                raise ValueError(f"Expected a reference_id of the gallery, but found {reference_id!r}.")
            if not isinstance(text, str):
                raise ValueError(f"Expected a text, but found {text!r}. Pass '' to search by the image alone.")
            reference = searcher.reference_of_row(searcher.row_of_id[reference_id]) if reference_id else None
            answer = searcher.answer(reference, text, method, k)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [{"id": searcher.ids[row], "score": score} for row, score in answer.ranking]

    return search


class _Page(gr.Blocks):
    """A page that fetches nothing: Gradio itself would download any URL that a request gives as a file's path."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse URLs before the fields are read."""
        if _names_url(inputs):
            raise gr.Error("Expected an uploaded file, but found a URL. Upload the image.", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def _names_url(value: Any) -> bool:
    """Tell whether a file's path in a request's data is a URL."""
    if isinstance(value, dict):
        return "://" in str(value.get("path", "")) or any(map(_names_url, value.values()))
    return isinstance(value, list | tuple) and any(map(_names_url, value))
