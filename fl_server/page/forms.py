"""Reading a form of one of our pages: small, and sent by a page that we made for this very session."""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import HTTPException, Request

from fl_server.page.guard import Session, Sessions

LARGEST_FORM = 4 * 1024  # bytes


async def form_of(request: Request, sessions: Sessions) -> dict[str, str]:
    """What a form of ours brings. 413 for more than any of ours holds, 403 without the value that only our pages know."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, f"a form of this page has at most {LARGEST_FORM} bytes")
    try:
        sent = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=10))
    except ValueError:
        raise HTTPException(400, "this is no form of this page") from None
    session: Session | None = request.scope.get("session")
    if session is None or not sessions.is_ours(session, sent.get("csrf", "")):
        raise HTTPException(403, "this form is too old; go back, load the page again and repeat it")
    return sent
