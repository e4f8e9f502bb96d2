"""The addresses of the reading: one scan after the other, the form for the answer, and at the end the reader's figures.

`fl_server.page.guard` stands in front. Only the reader's current scan can be had, and until the last answer nothing that is
sent depends on what a scan is but its grey values: addresses count from 1, pictures have one size in pixels and in bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from fl_server.page.guard import Door, Guard, Session
from simulation.reading.answers import Answered, Answers, reader_name
from simulation.reading.deck import KINDS, Deck
from simulation.reading.figures import figures
from simulation.reading.house import HERE, House, InHouse, Sent, house_of
from simulation.reading.scans import PICTURE_PX
from simulation.reading.summary import anchor


def page_app(door: Door, deck: Deck, book: Answers) -> Guard:
    """The reading as an ASGI application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    house = app.state.house = House(door, deck, book)
    for method, path, handler in ROUTES:
        app.add_api_route(path, handler, methods=[method], response_model=None)
    app.add_exception_handler(StarletteHTTPException, _told)
    app.add_exception_handler(RequestValidationError, _nowhere)
    return Guard(app, door=door, sessions=house.sessions)


def _told(request: Request, error: Exception) -> Response:
    """A refusal in words, as a page."""
    status, said = getattr(error, "status_code", 500), str(getattr(error, "detail", ""))
    text = {"Not Found": "there is nothing at this address", "Method Not Allowed": "this can't be done here"}.get(said, said)
    return house_of(request).show(request, "wrong.html", status=status, text=text)


def _nowhere(request: Request, error: Exception) -> Response:
    """An address with something else than numbers in it."""
    return _told(request, HTTPException(404))


def login_form(request: Request, house: InHouse) -> Response:
    """The door."""
    session: Session | None = request.scope["session"]
    if session is not None and session.inside:
        return RedirectResponse("/", 303)
    if session is not None:  # another cookie would make the form in another tab worthless
        return house.show(request, "login.html", trouble="", name="")
    request.scope["session"], cookie = house.sessions.new(inside=False)
    answer = house.show(request, "login.html", trouble="", name="")
    _remember(answer, house, cookie)
    return answer


def login(request: Request, house: InHouse, sent: Sent) -> Response:
    """In, with a name and the token."""
    typed = sent.get("reader", "")
    address = request.client.host if request.client else ""

    def again(status: int, trouble: str) -> Response:
        return house.show(request, "login.html", status=status, trouble=trouble, name=typed[:40])

    if wait_s := house.sessions.wait_s(address):
        return again(429, f"too many wrong tokens; try again in {wait_s:.0f} s")
    if not house.sessions.try_token(address, sent.get("token", "")):
        time.sleep(0.5)
        return again(403, "that is not this reading's token")
    try:
        reader = reader_name(typed)
    except ValueError as wrong:
        return again(422, str(wrong))
    answer = RedirectResponse("/", 303)
    _remember(answer, house, house.enter(reader))
    return answer


def logout(request: Request, house: InHouse, sent: Sent) -> Response:
    """Out; whoever comes back goes on where they were."""
    house.sessions.end(request.scope["session"])
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(house.door.cookie, httponly=True, samesite="strict")
    return answer


def _remember(answer: Response, house: House, cookie: str) -> None:
    answer.set_cookie(house.door.cookie, cookie, httponly=True, samesite="strict", path="/")


def here(request: Request, house: InHouse) -> Response:
    """The reader's next scan, or their figures after the last."""
    reader = house.reader(request)
    given, total = house.book.of(reader), len(house.deck.scans)
    if len(given) < total:
        position, slices = len(given) + 1, house.deck.reading.look.slices
        return house.show(request, "scan.html", position=position, total=total, slices=slices, px=PICTURE_PX)
    found = figures(given, house.deck.reading.kinds)
    return house.show(request, "result.html", found=found, total=total, anchor=anchor())


def picture(request: Request, house: InHouse, position: int, number: int) -> Response:
    """A slice of the reader's current scan; of no other."""
    reader = house.reader(request)
    order = house.deck.reading.order(reader)
    if position != len(house.book.of(reader)) + 1 or position > len(order) or not 1 <= number <= house.deck.reading.look.slices:
        raise HTTPException(404)
    return Response(house.deck.scans[order[position - 1]].picture(number - 1), media_type="image/png")


def answer(request: Request, house: InHouse, sent: Sent, position: int) -> Response:
    """Keep what the reader says; only then the next scan."""
    reader = house.reader(request)
    said, certainty = sent.get("answer", ""), sent.get("certainty", "")
    if said not in KINDS or certainty not in ("1", "2", "3", "4", "5"):
        raise HTTPException(422, "an answer is real or synthetic, with a certainty of 1 to 5; nothing was kept")
    try:
        house.book.add(reader, position, said, int(certainty))
    except Answered as stays:
        raise HTTPException(409, str(stays)) from None
    except ValueError as wrong:
        raise HTTPException(404, str(wrong)) from None
    except OSError as full:
        text = f"the answer could not be stored ({full.strerror or full}); nothing was kept, give it again later"
        raise HTTPException(507, text) from None
    return RedirectResponse("/", 303)


def health() -> Response:
    """Whether the page answers."""
    return PlainTextResponse("up\n")


def style() -> Response:
    """The style sheet of the hospital's page, and what only this one has."""
    shared = files("fl_client.page").joinpath("page.css").read_text()
    return Response(shared + (HERE / "reading.css").read_text(), media_type="text/css")


def keys() -> Response:
    """Wheel and keyboard."""
    return Response((HERE / "reading.js").read_text(), media_type="text/javascript")


def no_icon() -> Response:
    """There is none."""
    return Response(status_code=204)


ROUTES: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("GET", "/login", login_form),
    ("POST", "/login", login),
    ("POST", "/logout", logout),
    ("GET", "/", here),
    ("GET", "/scans/{position}/{number}.png", picture),
    ("POST", "/scans/{position}", answer),
    ("GET", "/health", health),
    ("GET", "/page.css", style),
    ("GET", "/reading.js", keys),
    ("GET", "/favicon.ico", no_icon),
)
