"""What stands before the app's page: which requests are answered at all."""

import re
import time
from collections import deque

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..hosts import SAFE_METHODS

MAX_KEPT_UPLOADS = 1000
MAX_KEPT_MB = 2000
_OVERHEAD = 2**20  # bytes of a request beside the file; a request without a file is no larger


class UploadGuard:
    """Refuses what the page does not need, before Gradio sees it. `HostGuard` stands before it.

    - the routes by which Gradio serves files or other hosts' pages
    - more than one file in an upload, large requests, and more uploads than the disk should hold

    Args:
        app (`ASGIApp`): The page.
        max_upload (`int`): Largest file, in bytes.
        keep_seconds (`int`): How long an upload may stay on the disk.
    """

    def __init__(self, app: ASGIApp, max_upload: int, keep_seconds: int) -> None:
        self.app, self.max_upload, self.keep_seconds = app, max_upload, keep_seconds
        self.kept: deque[tuple[float, int]] = deque()  # time and size of each upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = None
        if re.search("/(file|proxy)[=/]", scope["path"]):
            refusal = PlainTextResponse("This page serves no files.", 403)
        elif scope["method"] not in SAFE_METHODS:
            body = await _read_body(receive, _OVERHEAD + (self.max_upload if _is_upload(scope) else 0))
            refusal = self._body_refusal(scope, body)
            receive = _replay(body or b"", receive)
        await (refusal or self.app)(scope, receive, send)

    def _body_refusal(self, scope: Scope, body: bytes | None) -> PlainTextResponse | None:
        if body is None:
            return PlainTextResponse(f"The maximum allowed size is {self.max_upload / 2**20:g} MB.", 413)
        if not _is_upload(scope):
            return None
        boundary = re.search('boundary="?([^";]+)', Headers(scope=scope).get("content-type", ""))
        if boundary is None or body.count(b"--" + boundary[1].encode()) > 2:  # before the file and at the end
            return PlainTextResponse("Upload one file at a time.", 413)
        now = time.monotonic()
        while self.kept and self.kept[0][0] < now - self.keep_seconds:
            self.kept.popleft()
        size = len(body) + sum(size for _, size in self.kept)
        if len(self.kept) >= MAX_KEPT_UPLOADS or size > MAX_KEPT_MB * 2**20:
            return PlainTextResponse("There are too many uploads. Try again in an hour.", 429)
        self.kept.append((now, len(body)))
        return None


def _is_upload(scope: Scope) -> bool:
    return scope["path"].rstrip("/").endswith("/upload")


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """Read a request's body, or return None if it is longer than the limit or breaks off."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit or message["type"] == "http.disconnect":
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
