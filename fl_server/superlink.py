"""Flower's SuperLink with a lock on its control API: the process that `konsil-study serve` starts and supervises.

Flower's open-source SuperLink lets whoever reaches its port start runs, which means running code as its user. The gate keeps
the network out; this lock keeps other users of the coordinator's own machine out. Everything but the hospitals' API, the
running studies' API and `/health` wants the secret of `control.key`; a study's own calls want its token, which
`superexec.py` keeps out of the list of processes. `extensions.get_middleware` is Flower's hook for middleware around the
whole application.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

SECRET = "KONSIL_CONTROL_KEY"
"""Environment variable with the path of the secret's file."""

HEADER = "konsil-control-key"
"""Header that carries the secret."""

PAGE_BYTES = 65536
"""Page of a database that is made anew. A model's parts are rows of megabytes, and whatever stands behind such a value in its
row, a counter among them, is found by following all of its pages: with SQLite's 4096 bytes that is half of a round's time."""

BUSY_MS = 60_000
"""How long a part of an answer waits for its turn to be written. After Flower's 5 s it is dropped with a line in a log, and the
hospital, which paid for its answer, is never told."""

_OPEN = ("/v1/fleet/", "/v1/runtime/")  # both have an authentication of Flower's own


class ControlLock:
    """Answers 403 to any request that is not for the hospitals' or a study's API and doesn't show the secret."""

    def __init__(self, app: ASGIApp, *, secret: bytes) -> None:
        self.app = app
        self.secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with 403."""
        if scope["type"] == "lifespan" or self._allows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await Response("wants the coordinator's control key\n", status_code=403)(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if path == "/health" or path.startswith(_OPEN):
            return True
        shown = [value for name, value in scope["headers"] if name == HEADER.encode()]
        return len(shown) == 1 and hmac.compare_digest(shown[0], self.secret)


def pragmas() -> tuple[tuple[str, str], ...]:
    """What is said to SQLite at every connection: Flower's own words, with our page (first, it has to be) and our patience."""
    from flwr.supercore.constant import SQLITE_PRAGMAS

    return tuple({"page_size": str(PAGE_BYTES), **dict(SQLITE_PRAGMAS), "busy_timeout": str(BUSY_MS)}.items())


def main() -> None:
    """`flower-superlink` with its own arguments, behind the lock. Raises `ValueError` without a secret."""
    secret = Path(os.environ.get(SECRET, os.devnull)).read_bytes().strip()
    if len(secret) < 32:
        raise ValueError(f"{SECRET} must name a file of at least 32 characters; `konsil-study init` makes it")
    from flwr.supercore import sql_mixin
    from flwr.supercore.app_utils import start_parent_process_monitor
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink

    start_parent_process_monitor(os.getppid())  # ends with who started it, however that ends
    sql_mixin.SQLITE_PRAGMAS = pragmas()  # type: ignore[assignment,attr-defined]
    extensions.get_middleware = lambda: (Middleware(ControlLock, secret=secret),)
    flower_superlink()


if __name__ == "__main__":
    main()
