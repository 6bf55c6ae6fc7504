"""What stands before every request of the service: its key, its size, one log line, and figures for Prometheus."""

import hmac
import json
import logging
import time
import traceback
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from ..hosts import header, send_error

logger = logging.getLogger(__name__)

PATHS = frozenset({"/search", "/v1/embeddings", "/health", "/metrics", "/openapi.json"})
_OPEN_PATHS = frozenset({"/health", "/openapi.json"})


class JsonLines(logging.Formatter):
    """Log records as JSON lines: time (Unix), level, logger, message, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record as one line."""
        values = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(values)


class TooLarge(Exception):
    """More of a request's body came than is allowed."""


class Gate:
    """An ASGI middleware: refuses a wrong key (401) and large bodies (413), counts and logs every request.

    Args:
        app (ASGI application): What is guarded.
        api_key (`str`, *optional*): Asked of all paths but `/health` and `/openapi.json`.
        max_bytes (`int`): Largest body.
        registry (`CollectorRegistry`): Takes the figures.
    """

    def __init__(self, app: Any, api_key: str | None, max_bytes: int, registry: CollectorRegistry) -> None:
        self.app, self.api_key, self.max_bytes = app, api_key, max_bytes
        self.requests = Counter("hycir_requests", "Requests.", ["path", "status"], registry=registry)
        self.seconds = Histogram("hycir_request_seconds", "Time to answer.", ["path"], registry=registry)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_and_note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._handle(scope, receive, send_and_note)
        finally:
            seconds = time.perf_counter() - start
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.requests.labels(path, status).inc()
            self.seconds.labels(path).observe(seconds)
            facts = {"method": scope["method"], "path": scope["path"][:200], "status": status}
            client = (scope.get("client") or [None])[0]
            logger.info("request", extra={"fields": {**facts, "seconds": round(seconds, 4), "client": client}})

    async def _handle(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._has_key(scope):
            message = "The API key is missing or wrong. Send the header Authorization: Bearer KEY."
            await send_error(send, 401, message, www_authenticate="Bearer")
            return
        declared, is_started, received = header(scope, "content-length"), False, 0

        async def receive_within() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise TooLarge
            return message

        async def send_noting(message: Any) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            if declared.isdecimal() and int(declared[:20]) > self.max_bytes:
                raise TooLarge
            await self.app(scope, receive_within, send_noting)
        except TooLarge:
            if not is_started:
                message = f"A request may have {self.max_bytes:,} bytes at most."
                await send_error(send, 413, message, connection="close")

    def _has_key(self, scope: Any) -> bool:
        if self.api_key is None or scope["path"] in _OPEN_PATHS:
            return True
        kind, _, key = header(scope, "authorization").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self.api_key.encode())
