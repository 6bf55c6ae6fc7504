"""`hycir app`: the search page of a gallery."""

from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

import hycir_hf

from .models import quiet
from .options import Debug, Device

app = App(
    name="app",
    help_epilogue="""\
Ctrl-C stops the page.

Examples:
  hycir app gallery
  hycir app gallery --port 8000 --max-upload 5""",
)


@app.default
def serve(
    gallery: str,
    /,
    *,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    images: str | None = None,
    host: str = "127.0.0.1",
    port: PositiveInt | None = None,
    max_upload: PositiveInt = 20,
    device: Device = None,
    common: Debug | None = None,
) -> None:
    """Search a gallery in the browser.

    Args:
        gallery: Folder that `hycir index` made.
        model: HyCIR model: folder or Hub id. By default the one that made the gallery.
        images: Folder of the gallery's images, if they have moved.
        host: Address to listen on. 127.0.0.1 can be reached from this machine only.
        port: Port to listen on. By default the first free one from 7860.
        max_upload: Largest image that can be uploaded, in MB.
    """
    quiet()
    retriever = hycir_hf.ImageRetriever.load(gallery, model, device, images)
    page = hycir_hf.app.build_app(retriever)
    url = hycir_hf.app.launch_app(page, host, port, max_upload, block=False)
    print(f"{url} shows {len(retriever.gallery)} images. Ctrl-C stops it.", flush=True)
    hycir_hf.app.wait_for_interrupt(page)
