"""What a server on this machine answers: no other site may reach it through a visitor's browser (DNS rebinding)."""

import ipaddress
import json
import socket
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_PORT = 65535


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int | None = None) -> socket.socket:
    """Open a socket that listens.

    Args:
        host (`str`): Name or address of this machine.
        port (`int`, *optional*): From 0 to 65535. By default, or with 0, a free one.

    Raises:
        OSError: If the port is in use, or this machine has no such address.
        ValueError: If the port is out of range.
    """
    if not 0 <= (port or 0) <= _MAX_PORT:
        raise ValueError(f"Expected a port from 1 to {_MAX_PORT}, but found {port}. The usual ones are 7860 and 8000.")
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        where = f"{host}, port {port}" if port else host
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"Cannot listen on {where}: {reason}. Choose another host or port.") from error


class HostGuard:
    """An ASGI middleware that refuses foreign host names and origins with status 403.

    - A server on a loopback address answers requests for a loopback name only, or for one of `allowed_hosts`.
    - A request that changes or computes something (any but GET, HEAD and OPTIONS) must not come from a page of another
      site: its header Origin, if there is one, must name the host that is asked, or be one of `allowed_origins`.
      Without it, Sec-Fetch-Site must not name another site.

    Args:
        app (ASGI application): What is guarded.
        host (`str`): The address that the server listens on.
        allowed_hosts (`Collection[str]`): Further host names, without ports.
        allowed_origins (`Collection[str]`): Such as "https://example.org".
    """

    def __init__(
        self, app: Any, host: str, allowed_hosts: Collection[str] = (), allowed_origins: Collection[str] = ()
    ) -> None:
        self.app, self.has_any_host = app, not is_loopback(host) and not allowed_hosts
        self.allowed_hosts = {one.lower() for one in allowed_hosts}
        self.allowed_origins = {one.lower().rstrip("/") for one in allowed_origins}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        problem = self._problem(scope) if scope["type"] in ("http", "websocket") else None
        if problem is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send_error(send, 403, problem)

    def _problem(self, scope: Any) -> str | None:
        host = header(scope, "host").lower()
        name = _host_name(host)
        if not (self.has_any_host or is_loopback(name) or name in self.allowed_hosts):
            return f"This server does not answer for the host {host[:100]!r}. Ask for 127.0.0.1, or allow the host."
        if scope.get("method") not in SAFE_METHODS and not self._is_own_page(scope, host):
            return (
                f"Pages of {header(scope, 'origin')[:100]!r} may not ask this server. Allow the origin if it is yours."
            )
        return None

    def _is_own_page(self, scope: Any, host: str) -> bool:
        """Tell whether a request comes from the server's own page, an allowed one, or no page at all."""
        origin = header(scope, "origin", "none").lower()
        if origin == "none":
            return header(scope, "sec-fetch-site", "none") in ("none", "same-origin")
        own = [host, header(scope, "x-forwarded-host").lower() if self.has_any_host else ""]  # a proxy may rename it
        return (_place(origin) or "null") in own or origin in self.allowed_origins


def header(scope: Any, name: str, default: str = "") -> str:
    """Return the first header of that name in an ASGI scope, or the default."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()), default)


async def send_error(send: Any, status: int, message: str, **more: str) -> None:
    """Send an error as JSON, in OpenAI's form; `more` are further headers."""
    content = json.dumps(error_content(status, message)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **more}
    pairs = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


def error_content(status: int, message: str) -> dict[str, Any]:
    """Put an error into OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """Give host and port of an origin; None if it names none, as "null" does."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
