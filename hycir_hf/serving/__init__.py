"""A gallery as an HTTP service (extra `serve`): what `hycir serve` runs.

requests.py  what a request may hold, and how it is read
batching.py  concurrent requests answered in batches, by one model and one gallery that can be replaced
gate.py      what stands before every request: key, size, log line and figures
service.py   build_service and serve: the endpoints
"""

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"hycir_hf.serving needs the package {error.name}, which cannot be imported. Install what it needs with pip "
        "install 'hycir_hf[serve]'."
    ) from error

from .service import build_service, serve

__all__ = ["build_service", "serve"]
