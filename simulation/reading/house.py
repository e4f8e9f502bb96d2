"""What the reading's handlers share: scans and answers, who reads in which session, templates, and the forms' own value."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fl_server.page.forms import form_of
from fl_server.page.guard import HEADERS, POLICY, Door, Session, Sessions
from simulation.reading.answers import Answers
from simulation.reading.deck import Deck

HERE = Path(__file__).parent
OWN = f"{HEADERS[POLICY]}; script-src 'self'"
"""As the guard's, and the keys' script beside."""


class House:
    """What the handlers share."""

    def __init__(self, door: Door, deck: Deck, book: Answers) -> None:
        self.door, self.deck, self.book = door, deck, book
        self.sessions = Sessions(door.token)
        self._readers: dict[str, str] = {}  # by the numbers of sessions, which end with this process, too
        self._lock = threading.Lock()
        self._templates = Environment(
            loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    def enter(self, reader: str) -> str:
        """A session for this reader; its cookie."""
        session, cookie = self.sessions.new(inside=True)
        with self._lock:
            self._readers[session.number] = reader
        return cookie

    def reader(self, request: Request) -> str:
        """Who asks. Raises 403 where nobody knows."""
        session: Session | None = request.scope.get("session")
        with self._lock:
            name = self._readers.get(session.number, "") if session else ""
        if not name:
            raise HTTPException(403, "log in first")
        return name

    def show(self, request: Request, template: str, *, status: int = 200, **contents: Any) -> HTMLResponse:
        """One view as HTML."""
        session: Session | None = request.scope.get("session")
        inside = session is not None and session.inside
        text = self._templates.get_template(template).render(
            door=self.door,
            reader=self.reader(request) if inside else "",
            csrf=self.sessions.csrf(session) if session else "",
            **contents,
        )
        return HTMLResponse(text, status, headers={POLICY: OWN})


def house_of(request: Request) -> House:
    """The house that a request came to."""
    house: House = request.app.state.house
    return house


async def _form(request: Request) -> dict[str, str]:
    return await form_of(request, house_of(request).sessions)


Sent = Annotated[dict[str, str], Depends(_form)]
InHouse = Annotated[House, Depends(house_of)]
