"""`hycir serve`: a gallery as an HTTP service."""

import os
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

import hycir_hf

from .models import quiet
from .options import Debug, Device

app = App(
    name="serve",
    help_epilogue="""\
The endpoints are POST /search, POST /v1/embeddings, GET /health, GET /metrics and GET /openapi.json. The environment
variable HYCIR_API_KEY sets a key that requests must send. A gallery that is indexed again is loaded by itself. Ctrl-C
stops the service.

Examples:
  hycir serve gallery
  hycir serve gallery --host 0.0.0.0 --port 80 --allow-host search.example.org""",
)


@app.default
def serve(
    gallery: str,
    /,
    *,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    images: str | None = None,
    host: str = "127.0.0.1",
    port: NonNegativeInt = 8000,
    max_request: PositiveInt = 20,
    max_queue: PositiveInt = 64,
    max_batch: PositiveInt = 16,
    allow_host: list[str] | None = None,
    allow_origin: list[str] | None = None,
    device: Device = None,
    common: Debug | None = None,
) -> None:
    """Serve a gallery over HTTP: searches and embeddings.

    Args:
        gallery: Folder that `hycir index` made.
        model: HyCIR model: folder or Hub id. By default the one that made the gallery.
        images: Folder of the gallery's images, if they have moved.
        host: Address to listen on. 127.0.0.1 can be reached from this machine only.
        port: Port to listen on; 0 takes a free one.
        max_request: Largest request, in MB.
        max_queue: Requests that may wait. Further ones are refused with status 503.
        max_batch: Requests that are answered together.
        allow_host: Host name that the service answers for. By default any, or on 127.0.0.1 the loopback ones.
        allow_origin: Other site whose pages may ask, such as https://example.org.
    """
    quiet()
    retriever = hycir_hf.ImageRetriever.load(gallery, model, device, images)
    hycir_hf.serving.serve(
        retriever,
        host,
        port,
        api_key=os.environ.get("HYCIR_API_KEY"),
        max_request_mb=max_request,
        max_queue=max_queue,
        max_batch=max_batch,
        allowed_hosts=allow_host or (),
        allowed_origins=allow_origin or (),
    )
