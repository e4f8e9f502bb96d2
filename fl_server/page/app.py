"""The page's addresses. All of them only read; `guard.py` stands in front and lets only a person with a session come here."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from fl_server.page import curves, files, matrix, views
from fl_server.page.course import Course, Shelf
from fl_server.page.forms import form_of
from fl_server.page.guard import POLICY, Door, Guard, Session, Sessions

LARGEST_SETTINGS = 256 * 1024  # letters, as many as a study may have bytes
AGAIN_S, SOON_S = 10, 2
"""After so many seconds the browser asks again: while a study runs, and while a record is being read."""

log = logging.getLogger("konsil.page")


class House:
    """What the handlers share."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.sessions = Sessions(door.token)
        self.shelf = Shelf()
        self.templates = views.environment()

    def show(self, request: Request, template: str, *, status: int = 200, refresh_s: int = 0, **contents: Any) -> HTMLResponse:
        """One view as HTML; `refresh_s` asks the browser to come again."""
        session: Session | None = request.scope.get("session")
        text = self.templates.get_template(template).render(
            door=self.door,
            inside=session is not None and session.inside,
            csrf=self.sessions.csrf(session) if session else "",
            here=request.url.path,
            refresh_s=refresh_s,
            quote=lambda text: quote(str(text), safe=""),
            states=views.STATES,
            letters=matrix.LETTERS,
            **contents,
        )
        return HTMLResponse(text, status)


def _house(request: Request) -> House:
    house: House = request.app.state.house
    return house


async def _form(request: Request) -> dict[str, str]:
    return await form_of(request, _house(request).sessions)


Sent = Annotated[dict[str, str], Depends(_form)]
InHouse = Annotated[House, Depends(_house)]


def page_app(door: Door) -> Guard:
    """The page of a coordinator's studies, or of a researcher's rehearsals, as an ASGI application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    house = app.state.house = House(door)
    for method, path, handler in ROUTES:
        app.add_api_route(path, handler, methods=[method], response_model=None)
    app.add_exception_handler(StarletteHTTPException, _told)  # FastAPI's own are of this kind, too
    app.add_exception_handler(Exception, _failed)
    return Guard(app, door=door, sessions=house.sessions)


def _told(request: Request, error: Exception) -> Response:
    """A refusal in words, as a page."""
    status, said = getattr(error, "status_code", 500), str(getattr(error, "detail", ""))
    text = {"Not Found": "there is nothing at this address", "Method Not Allowed": "this can't be done here"}.get(said, said)
    return _house(request).show(request, "wrong.html", status=status, title="That did not work", text=text)


def _failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw: a number for the person, the rest for the log."""
    number = secrets.token_hex(4)
    log.error("failure %s", number, exc_info=error)
    request.scope["told"] = True
    text = f"This went wrong here. Failure {number} in the page's log says why."
    return _house(request).show(request, "wrong.html", status=500, title="That did not work", text=text)


# -- coming and going -------------------------------------------------------------------------------------------------


def login_form(request: Request, house: InHouse) -> Response:
    """The door."""
    session: Session | None = request.scope["session"]
    if session is not None and session.inside:
        return RedirectResponse("/", 303)
    if session is not None:  # the same door in another tab: a new cookie would make the first one's form worthless
        return house.show(request, "login.html", trouble="")
    request.scope["session"], cookie = house.sessions.new(inside=False)
    answer = house.show(request, "login.html", trouble="")
    _remember(answer, request, cookie)
    return answer


def login(request: Request, house: InHouse, sent: Sent) -> Response:
    """In, with the token."""
    address = request.client.host if request.client else ""
    if wait_s := house.sessions.wait_s(address):
        text = f"too many wrong tokens came from {address}; try again in {wait_s:.0f} s"
        return house.show(request, "login.html", status=429, trouble=text)
    if not house.sessions.try_token(address, sent.get("token", "")):
        time.sleep(0.5)
        return house.show(request, "login.html", status=403, trouble="that is not this page's token")
    _, cookie = house.sessions.new(inside=True)
    answer = RedirectResponse("/", 303)
    _remember(answer, request, cookie)
    return answer


def logout(request: Request, house: InHouse, sent: Sent) -> Response:
    """Out; the cookie is good no more."""
    house.sessions.end(request.scope["session"])
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(house.door.cookie, httponly=True, samesite="strict")
    return answer


def _remember(answer: Response, request: Request, cookie: str) -> None:
    door, secure = _house(request).door, bool(request.scope.get("secure"))
    answer.set_cookie(door.cookie, cookie, httponly=True, samesite="strict", secure=secure, path="/")


# -- views ------------------------------------------------------------------------------------------------------------


def studies(request: Request, house: InHouse) -> Response:
    """All studies, the latest first."""
    found = views.every(house.door.runs, house.shelf, wait_s=0.7)
    reading, running = any(one.reading for one in found), any(one.running for one in found)
    return house.show(request, "studies.html", refresh_s=SOON_S if reading else AGAIN_S if running else 0, studies=found)


def _study(house: House, key: str) -> tuple[views.Study, Course | None]:
    try:
        one, book = views.study(key, house.door.runs, house.shelf, whole=True)
    except KeyError:
        raise HTTPException(404, "there is no study of this name") from None
    return one, book.course


def _refresh(one: views.Study) -> int:
    return SOON_S if one.reading else AGAIN_S if one.running else 0


def study(
    request: Request, house: InHouse, name: str, page: str = "", order: str = "", first: str = "", last: str = ""
) -> Response:
    """One study: the verdict first, then who did what."""
    one, course = _study(house, name)
    now = one.now if one.running else None
    contents: dict[str, Any] = {"one": one, "course": course, "now": now, "files": files.there(one.folder)}
    contents |= {"awaited": views.awaited(now), "most_awaited": views.SHOWN_AWAITED, "phases": views.PHASES, "at": time.time()}
    if course is not None:
        plain, grouped = views.reasons(course, over=one.decided)
        counted = matrix.tally(course.told)
        told, left = matrix.why(course, course.told, most=views.MORE_REASONS)
        scored, scores_left = matrix.why(course, course.validated, most=views.MORE_REASONS)
        worst_first = {"worst": True, "study": False}.get(order)
        span = {"first": _number(first, 1), "last": _number(last, None)}
        contents |= {
            "cards": files.cards(house.door.registry, course.record.study_hash),
            "unasked": views.unasked(course, now),
            "plain": plain,
            "grouped": grouped,
            "most_reasons": views.SHOWN_REASONS,
            "counted": counted,
            "accounted": sum(counted.values()),
            "legend": matrix.legend(counted),
            "matrix": matrix.matrix(course, now, page=_number(page, 1) or 1, worst_first=worst_first, **span),
            "shares": matrix.shares(course.told) if len(course.sites) > 12 or course.done > matrix.COLUMNS else [],
            "why": told,
            "why_left": left,
            "validated_why": scored,
            "validated_left": scores_left,
            "validated": matrix.tally(course.validated),
            "charts": curves.of_study(course),
            "facts": views.facts(course),
            "scores": views.final_scores(course),
            "questions": views.questions(course),
            "crossed": views.crossed(course),
            "faults": views.faults(course),
            "settings": json.dumps(course.record.study, indent=1, ensure_ascii=False)[:LARGEST_SETTINGS],
        }
    return house.show(request, "study.html", refresh_s=_refresh(one), **contents)


def _number(said: str, otherwise: int | None) -> Any:
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 7 else otherwise


def site(request: Request, house: InHouse, name: str, site: str, page: str = "1") -> Response:
    """One hospital's rounds."""
    one, course = _study(house, name)
    if course is None:
        if one.reading:
            return house.show(request, "site.html", refresh_s=SOON_S, one=one, course=None, site=site)
        raise HTTPException(404, one.trouble or "this study has no record yet")
    if site not in course.sites:
        raise HTTPException(404, "no hospital of this name is asked in this study")
    rows, number, pages = views.site_rows(course, site, _number(page, 1))
    now = one.now if one.running else None
    counted = views.site_tally(course, site)
    return house.show(
        request,
        "site.html",
        refresh_s=_refresh(one),
        one=one,
        course=course,
        site=site,
        known=course.record.sites.get(site),
        told_in=views.told_in(course, site),
        rows=rows,
        page=number,
        pages=pages,
        counted=counted,
        legend=matrix.legend(counted),
        matrix=matrix.matrix(course, now, rows=[site]),
        waits=dict(views.awaited(now)).get(site),
        charts=curves.of_site(course, site),
        scores=views.site_scores(course, site),
    )


def file(house: InHouse, name: str, file: str) -> Response:
    """A report, a model card or the record itself."""
    try:
        kind = files.FILES[file]
        opened, size = files.opened(views.folders(house.door.runs)[name][1] / file)
    except (KeyError, OSError):
        raise HTTPException(404, "this study has no such file") from None
    return _sent(opened, size, kind, f"{name}-{file}")


def card(house: InHouse, name: str, model: str, version: str) -> Response:
    """The card of a model that was registered from a study."""
    one, course = _study(house, name)
    known = files.cards(house.door.registry, course.record.study_hash) if course else []
    found = next((other for other in known if (other.model, other.version) == (model, version)), None)
    try:
        if found is None:
            raise FileNotFoundError
        opened, size = files.opened(found.path)
    except OSError:
        raise HTTPException(404, "no such model was made of this study") from None
    return _sent(opened, size, files.CARD, f"{one.key}-{model}-{version}.md")


def _sent(opened: int, size: int, kind: files.Kind, called: str) -> Response:
    headers = {"content-length": str(size)}
    if kind.media.startswith("text/html"):
        headers[POLICY] = files.ALONE
    if not kind.shown:
        headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(called, safe='')}"
    return StreamingResponse(files.pieces(opened, size), media_type=kind.media, headers=headers)


def health() -> Response:
    """Whether the page answers; nothing about any study."""
    return PlainTextResponse("up\n")


def style() -> Response:
    """The style sheet."""
    return Response((views.HERE / "page.css").read_text(), media_type="text/css")


def no_icon() -> Response:
    """There is none. Sent to the door instead, a browser would get another cookie than the form that it shows was made for."""
    return Response(status_code=204)


ROUTES: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("GET", "/login", login_form),
    ("POST", "/login", login),
    ("POST", "/logout", logout),
    ("GET", "/", studies),
    ("GET", "/study/{name}", study),
    ("GET", "/study/{name}/site/{site}", site),
    ("GET", "/study/{name}/file/{file}", file),
    ("GET", "/study/{name}/card/{model}/{version}", card),
    ("GET", "/health", health),
    ("GET", "/page.css", style),
    ("GET", "/favicon.ico", no_icon),
)
