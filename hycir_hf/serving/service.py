"""build_service and serve: the endpoints of a gallery's HTTP service."""

import asyncio
import base64
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Collection, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..hosts import HostGuard, error_content, is_loopback, listen
from ..retriever import ImageRetriever
from .batching import Answering
from .gate import Gate, JsonLines
from .requests import (
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    RequestError,
    SearchForm,
    SearchRequest,
    SearchResponse,
    read_json,
    read_search,
)

logger = logging.getLogger(__name__)

_BODY_SECONDS = 60  # a request's body must have come by then
_STOP_SECONDS = 30  # requests may end when the service is stopped
_REF = "#/components/schemas/{model}"
_T = TypeVar("_T")


def build_service(
    retriever: ImageRetriever,
    *,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    max_request_mb: int = 20,
    max_queue: int = 64,
    max_batch: int = 16,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    watch_seconds: float = 1.0,
) -> FastAPI:
    """Build the service of a gallery, as an ASGI application for uvicorn or another server.

    Args:
        retriever (`ImageRetriever`): With a gallery. A gallery that replaces it in its folder is loaded by itself.
        host (`str`): The address that the server will listen on: a loopback one refuses foreign host names.
        api_key (`str`, *optional*): Asked of every request but `/health` and `/openapi.json`.
        max_request_mb (`int`): Largest request, in MB of 2^20 bytes.
        max_queue (`int`): Requests that may wait at once; more get status 503.
        max_batch (`int`): Requests that are answered together.
        allowed_hosts (`Collection[str]`): Further host names that the service answers for; see `HostGuard`.
        allowed_origins (`Collection[str]`): Further origins whose pages may ask.
        watch_seconds (`float`): How often the gallery's manifest is looked at.

    Raises:
        ValueError: If the retriever has no gallery, or the key is blank.
    """
    if api_key is not None and not api_key.strip():
        raise ValueError("api_key is blank. Give a key, or none.")
    registry = CollectorRegistry()
    batches = Histogram("hycir_batch_size", "Requests of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry)
    answering = Answering(retriever, max_queue, max_batch, batches.observe)
    _add_gauges(answering, registry)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(one) for one in (answering.answer_forever(), answering.watch_forever(watch_seconds))
        ]
        yield
        for task in tasks:
            task.cancel()

    # Swagger's pages would fetch scripts from another host.
    service = FastAPI(title="hycir_hf", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    service.add_middleware(Gate, api_key=api_key, max_bytes=max_request_mb * 2**20, registry=registry)
    service.add_middleware(HostGuard, host=host, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)
    for kind in (RequestError, HTTPException, Exception):
        service.add_exception_handler(kind, _error_response)
    _add_endpoints(service, answering, registry, retriever.encoder.name)
    service.openapi = lambda: _describe(service)  # type: ignore[method-assign]
    return service


def serve(retriever: ImageRetriever, host: str = "127.0.0.1", port: int | None = 8000, **options: Any) -> None:
    """Serve a gallery until Ctrl-C or SIGTERM; requests that were begun are answered. Logs are JSON lines on stderr.

    Args:
        retriever (`ImageRetriever`): With a gallery.
        host (`str`): Address to listen on; 127.0.0.1 can be reached from this machine only.
        port (`int`, *optional*): 0 or None take a free one.
        **options: See `build_service`.

    Raises:
        OSError: If the port is in use, or this machine has no such address.
        ValueError: If an option is wrong.
    """
    service = build_service(retriever, host=host, **options)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("hycir_hf.prompts_hycir").setLevel(logging.ERROR)  # its warning of a cut text quotes the text
    if not is_loopback(host) and options.get("api_key") is None:
        logger.warning("no API key is set: everybody who can reach %s can search the gallery", host)
    config = uvicorn.Config(service, log_config=None, access_log=False, timeout_graceful_shutdown=_STOP_SECONDS)
    with listen(host, port) as socket:
        logger.info("listening", extra={"fields": {"url": _url(host, socket.getsockname()[1])}})
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it after an orderly end
            uvicorn.Server(config).run(sockets=[socket])


def _add_endpoints(service: FastAPI, answering: Answering, registry: CollectorRegistry, model: str | None) -> None:
    name = Path(model).name if model else "hycir"

    @service.post("/search", openapi_extra=_takes(SearchRequest, SearchForm))
    async def search(request: Request) -> SearchResponse:
        """Find the gallery's images for reference images and a text, best first."""
        async with answering:
            return await answering.search(await _in_time(read_search(request)))

    @service.post("/v1/embeddings", openapi_extra=_takes(EmbeddingRequest))
    async def embed(request: Request) -> EmbeddingResponse:
        """Embed texts, images, and images with texts, in OpenAI's form."""
        async with answering:
            asked: EmbeddingRequest = await _in_time(read_json(request, EmbeddingRequest))
            if asked.dimensions not in (None, answering.snapshot.gallery.dim):
                raise RequestError(f"dimensions must be {answering.snapshot.gallery.dim}, the width of this model.")
            features = await answering.embed(asked)
        return EmbeddingResponse(data=_as_embeddings(features, asked.encoding_format), model=name)

    @service.get("/health")
    async def health() -> dict[str, Any]:
        """Say what is served; `reload_error` says that the gallery in the folder is newer than the one served."""
        gallery = answering.snapshot.gallery
        return {
            "status": "ok",
            "images": len(gallery),
            "dim": gallery.dim,
            "model": name,
            "encoder_fingerprint": answering.encoder.fingerprint,
            "version": __version__,
            "reloads": answering.num_reloads,
            "reload_error": answering.reload_error,
        }

    @service.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Give figures in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_gauges(answering: Answering, registry: CollectorRegistry) -> None:
    for name, text, value in (
        ("hycir_waiting_requests", "Requests that wait or are answered.", lambda: answering.num_waiting),
        ("hycir_gallery_images", "Images of the gallery.", lambda: len(answering.snapshot.gallery)),
        ("hycir_gallery_reloads", "Times the gallery was loaded again.", lambda: answering.num_reloads),
        (
            "hycir_gallery_is_stale",
            "1 if a newer gallery cannot be loaded.",
            lambda: answering.reload_error is not None,
        ),
    ):
        Gauge(name, text, registry=registry).set_function(value)


async def _in_time(reading: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await asyncio.wait_for(reading, _BODY_SECONDS)
    except ClientDisconnect as error:
        raise RequestError("The connection ended before the request was whole.") from error
    except asyncio.TimeoutError as error:
        raise RequestError(f"The request did not come within {_BODY_SECONDS} seconds.", 408) from error


def _as_embeddings(features: np.ndarray, encoding: str) -> list[Embedding]:
    rows: np.ndarray = features.astype("<f4")
    if encoding == "base64":
        return [Embedding(index=n, embedding=base64.b64encode(row.tobytes()).decode()) for n, row in enumerate(rows)]
    return [Embedding(index=n, embedding=row.tolist()) for n, row in enumerate(rows)]


async def _error_response(request: Request, error: Exception) -> JSONResponse:
    status = error.status if isinstance(error, RequestError) else getattr(error, "status_code", 500)
    message = str(error) if isinstance(error, RequestError) else str(getattr(error, "detail", "The service failed."))
    headers = {"Retry-After": "1"} if status == 503 else getattr(error, "headers", None)
    return JSONResponse(error_content(status, message), status, headers)


def _takes(model: type, form: type | None = None) -> dict[str, Any]:
    """A request body's place in the OpenAPI description."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    if form is not None:
        content["multipart/form-data"] = {"schema": {"$ref": _REF.format(model=form.__name__)}}
    return {"requestBody": {"required": True, "content": content}}


def _describe(service: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the bodies that the endpoints read themselves."""
    if service.openapi_schema is None:
        described = get_openapi(title=service.title, version=service.version, routes=service.routes)
        models = [(one, "validation") for one in (SearchRequest, SearchForm, EmbeddingRequest)]
        _, bodies = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
        described["components"]["schemas"].update(bodies["$defs"])
        service.openapi_schema = described
    return service.openapi_schema


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
