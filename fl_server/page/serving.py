"""How a page is served: by uvicorn, quietly, to few at a time, and gone soon after it is told to stop."""

from __future__ import annotations

from typing import Any

import uvicorn


def configured(app: Any) -> uvicorn.Config:
    """The settings under which a page's ASGI application runs; the port comes as a listening socket."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=100,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
        lifespan="off",
    )
