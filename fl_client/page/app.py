"""The page's addresses: what is read, what is drawn, and the few forms that change something.

Everything is made anew for each request, in a thread of its own; what takes longer is a job (`jobs.py`), and the page asks
again until it is there. `guard.py` stands in front and lets only a person with a session come here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException

from conf.quality import METRICS
from fl_client import halt
from fl_client.accounting import by_reason
from fl_client.approval import Approvals
from fl_client.audit import AuditLog
from fl_client.chain import ChainBroken
from fl_client.cohort import CaseUnreadable, Cohort, is_test
from fl_client.decision import DAYS, LONGEST, approve, decline
from fl_client.ending import end_now
from fl_client.failures import new_number, write_failure
from fl_client.page import people, pictures, views
from fl_client.page.guard import Guard, Session, Sessions, metrics_allowed
from fl_client.page.jobs import Jobs
from fl_client.page.pictures import LARGE, THUMB, TILE
from fl_client.site import Page, Site

LARGEST_FORM = 16 * 1024  # bytes
LONGEST_NAME, LONGEST_WHY = 80, 400
VIEWS = (
    ("/", "Status"),
    ("/studies", "Studies"),
    ("/cohort", "Cohort"),
    ("/quality", "Quality"),
    ("/left", "What left"),
    ("/log", "Log"),
)
PLACES = {"inside": "inside", "refused": "refused", "quarantine": "in quarantine", "damaged": "damaged"}
MOMENT_S = 0.3
"""After an answer, before the house's processes are ended and perhaps this one with them."""


class House:
    """What the handlers share."""

    def __init__(self, site: Site, page: Page) -> None:
        self.site, self.page = site, page
        self.sessions = Sessions(site)
        self.jobs = Jobs()
        self.templates = views.environment()

    def show(self, request: Request, template: str, *, status: int = 200, refresh_s: int = 0, **contents: Any) -> HTMLResponse:
        """One view as HTML; `refresh_s` asks the browser to come again."""
        session: Session | None = request.scope.get("session")
        inside = session is not None and session.inside
        text = self.templates.get_template(template).render(
            site=self.site,
            inside=inside,
            csrf=self.sessions.csrf(session) if session else "",
            views=VIEWS,
            here=request.url.path,
            waiting=views.look(lambda: _waiting(self.site)).value if inside else 0,
            halted=halt.halted(self.site.folder) if inside else "",
            refresh_s=refresh_s,
            quote=lambda text: quote(str(text), safe=""),
            by_reason=by_reason,
            series_words=people.WORDS,
            **contents,
        )
        return HTMLResponse(text, status)


def _waiting(site: Site) -> int:
    approvals = Approvals(site.folder)
    decided = approvals.decisions
    return sum(path.stem not in decided for path in approvals.studies_folder.glob("*.json"))


def _house(request: Request) -> House:
    house: House = request.app.state.house
    return house


async def _form(request: Request) -> dict[str, str]:
    """What a form of ours brings. 413 for more than any of ours holds, 403 without the value that only our pages know."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, f"a form of this page has at most {LARGEST_FORM} bytes")
    try:
        sent = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise HTTPException(400, "this is no form of this page") from None
    session: Session | None = request.scope.get("session")
    if session is None or not _house(request).sessions.is_ours(session, sent.get("csrf", "")):
        raise HTTPException(403, "this form is too old; go back, load the page again and repeat it")
    return sent


Sent = Annotated[dict[str, str], Depends(_form)]
InHouse = Annotated[House, Depends(_house)]


def _text(sent: dict[str, str], name: str, *, longest: int, wanted: str = "") -> str:
    """A line that a person typed. 422 in words if it is missing, too long or holds characters that can't be seen."""
    text = " ".join(sent.get(name, "").split())
    if wanted and not text:
        raise HTTPException(422, wanted)
    if len(text) > longest or views.visible(text) != text:
        raise HTTPException(422, f"{name} must be at most {longest} characters that can be seen")
    return text


WHO = "say who decides: a name is written down with every decision"


def page_app(site: Site, page: Page | None = None) -> Guard:
    """The page of one hospital as an ASGI application."""
    page = page or site.page or Page()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    house = app.state.house = House(site, page)
    for method, path, handler in ROUTES:
        app.add_api_route(path, handler, methods=[method], response_model=None)
    app.add_exception_handler(StarletteHTTPException, _told)  # FastAPI's own are of this kind, too
    app.add_exception_handler(Exception, _failed)
    return Guard(app, site=site, page=page, sessions=house.sessions)


def _told(request: Request, error: Exception) -> Response:
    """A refusal in words, as a page."""
    status, said = getattr(error, "status_code", 500), str(getattr(error, "detail", ""))
    text = {"Not Found": "there is nothing at this address", "Method Not Allowed": "this can't be done here"}.get(said, said)
    return _house(request).show(request, "wrong.html", status=status, title="That did not work", text=text)


def _failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw: a number for the person, the rest for the log."""
    house, number = _house(request), new_number()
    try:
        write_failure(house.site.folder / "log", error, run=0, number=number)
        text = f"This went wrong here. Failure {number} in log/failures.log says why."
    except OSError as full:
        text = f"This went wrong here ({type(error).__name__}), and the log can't be written: {full.strerror}."
    request.scope["told"] = True
    return house.show(request, "wrong.html", status=500, title="That did not work", text=text)


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
        return house.show(request, "login.html", status=403, trouble="that is not this hospital's token")
    _, cookie = house.sessions.new(inside=True)
    answer = RedirectResponse("/", 303)
    _remember(answer, request, cookie)
    return answer


def logout(request: Request, house: InHouse, sent: Sent) -> Response:
    """Out; the cookie is good no more."""
    house.sessions.end(request.scope["session"])
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(_cookie_name(house), httponly=True, samesite="strict")
    return answer


def _cookie_name(house: House) -> str:
    return f"konsil-{house.page.port}"


def _remember(answer: Response, request: Request, cookie: str) -> None:
    house = _house(request)
    secure = bool(request.scope.get("secure"))
    answer.set_cookie(_cookie_name(house), cookie, httponly=True, samesite="strict", secure=secure, path="/")


# -- views ------------------------------------------------------------------------------------------------------------


def status(request: Request, house: InHouse) -> Response:
    """How the house stands."""
    return house.show(request, "status.html", **views.status(house.site))


def studies(request: Request, house: InHouse) -> Response:
    """What was asked."""
    asked, troubles = views.asked(house.site)
    return house.show(request, "studies.html", asked=asked, troubles=troubles)


def study(request: Request, house: InHouse, key: str) -> Response:
    """One study's contract, and what a person can say to it."""
    found = views.look(lambda: views.one_study(house.site, key))
    if found.trouble:
        raise HTTPException(500, f"this study can't be read: {found.trouble}")
    one = found.value
    if one is None:
        raise HTTPException(404, "no study was put down under this hash")
    contract = house.jobs.ask(
        ("contract", key), lambda: views.clauses(house.site, one.study), wait_s=2.0, strictly_of=_books(house.site)
    )
    counted = house.jobs.find(("usable", key))
    decided = house.jobs.find(("decide", key))
    running = any(job is not None and job.running for job in (contract, counted, decided))
    return house.show(
        request,
        "study.html",
        refresh_s=2 if running else 0,
        one=one,
        contract=contract,
        counted=counted,
        decided=decided,
        days=DAYS,
        longest=LONGEST,
        json=one.study.model_dump_json(indent=1),
    )


def _books(site: Site) -> tuple[int, str]:
    """What the contract's price depends on: the ledger; and the day, for how long a yes would be good."""
    try:
        return site.ledger_path.stat().st_mtime_ns, time.strftime("%Y-%m-%d")
    except OSError:
        return 0, time.strftime("%Y-%m-%d")


def count_usable(request: Request, house: InHouse, sent: Sent, key: str) -> Response:
    """Count whom the study can use here, in the background."""
    asked = _asked(house, key)

    def work() -> Any:
        from fl_client.suitability import count_usable  # here: tasks import torch

        return count_usable(house.site, asked.study)

    house.jobs.start(("usable", key), work).over.wait(1.0)
    return _back(f"/studies/{key}")


def approve_study(request: Request, house: InHouse, sent: Sent, key: str) -> Response:
    """Yes, with a name; decided as the command line decides, in the background."""
    who = _text(sent, "who", longest=LONGEST_NAME, wanted=WHO)
    said = sent.get("days", str(DAYS)).strip()
    if not (said.isascii() and said.isdecimal() and 1 <= int(said[:6]) <= LONGEST):
        raise HTTPException(422, f"a yes is good for 1 to {LONGEST} days, not {said[:20]!r}")
    asked = _asked(house, key)

    def work() -> str:
        line, cost = approve(house.site, asked.study, who=who, days=int(said))
        return f"approved by {line.who}, good until {line.until}; {cost}"

    house.jobs.start(("decide", key), work).over.wait(1.5)
    return _back(f"/studies/{key}")


def decline_study(request: Request, house: InHouse, sent: Sent, key: str) -> Response:
    """No, with a name."""
    who = _text(sent, "who", longest=LONGEST_NAME, wanted=WHO)
    asked = _asked(house, key)
    house.jobs.start(("decide", key), lambda: f"declined by {decline(house.site, asked.study, who=who).who}").over.wait(1.5)
    return _back(f"/studies/{key}")


def _asked(house: House, key: str) -> views.Asked:
    found = views.look(lambda: views.one_study(house.site, key))
    if found.value is None:
        raise HTTPException(404, found.trouble or "no study was put down under this hash")
    return found.value


def cohort(request: Request, house: InHouse, place: str = "inside", start: str = "", page: str = "1") -> Response:
    """Who is inside, and what became of all others."""
    place = place if place in PLACES else "inside"
    counted = people.counted(house.site, house.jobs)
    quality = people.measured(house.site, house.jobs, wait_s=0.0)
    everybody = counted.value.everybody if counted.value else None
    chosen = list(views.people(house.site, everybody, place=place, start=start))
    shown = views.Shown.of(chosen, _number(page), each=people.PER_PAGE, newest_first=False)
    rows = people.rows(house.site, [patient for patient, _ in shown.items], quality.value) if place == "inside" else []
    return house.show(
        request,
        "cohort.html",
        refresh_s=3 if counted.running else 0,
        counted=counted,
        quality=quality,
        place=place,
        places=PLACES,
        start=start[:40],
        shown=shown,
        rows=rows,
        thumb=THUMB,
    )


def _number(said: str) -> int:
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 7 else 1


def patient(request: Request, house: InHouse, name: str, every: str = "", whole: str = "") -> Response:
    """All that is known of one patient, or why they are outside."""
    inside = Cohort(house.site.cohort_folder)
    reason, case = "", None
    if name in inside.patients:
        try:
            case = inside.case(name)
        except CaseUnreadable as damaged:
            reason = f"the patient's folder can't be read: {damaged.reason}"
        except KeyError:
            raise HTTPException(404, "no such patient here") from None
    else:
        counted = people.counted(house.site, house.jobs, wait_s=5.0)
        found = counted.value.everybody if counted.value else None
        reason = {**found.quarantined, **found.refused}.get(name, "") if found else ""
        if not reason:
            raise HTTPException(404, "no such patient here")
    quality = people.measured(house.site, house.jobs, wait_s=3.0)
    return house.show(
        request,
        "patient.html",
        refresh_s=3 if quality.running and case is not None else 0,
        name=name,
        reason=reason,
        case=case,
        side="held back from training, for scores" if is_test(name, house.site.test_fraction) else "training",
        scanner=people.scanner_of(case) if case else "",
        quality=quality,
        series=people.series_of(inside, case, quality.value, every=bool(every)) if case else [],
        compared=people.compared(house.site, case) if case else None,
        left_out=views.look(lambda: people.left_out(house.site, name)),
        counted=_counted_on_the_page(house, name),
        every=bool(every),
        whole=bool(whole),
        tile=TILE,
        large=LARGE,
        cap=people.SHOWN_SLICES,
    )


def _counted_on_the_page(house: House, name: str) -> list[tuple[str, str, str]]:
    """Studies whose count, asked for on this page, left the patient out: name, reason, when."""
    found = []
    for asked in views.asked(house.site)[0]:
        job = house.jobs.find(("usable", asked.study.hash))
        if job is not None and job.value is not None and name in job.value.left_out:
            found.append((f"{asked.study.name} ({asked.study.hash[:12]})", job.value.left_out[name], job.ended))
    return found


def slice_picture(
    house: InHouse, name: str, series: str, number: str = "middle", size: str = "tile", whole: str = ""
) -> Response:
    """One slice with its outlines. `number` is a slice, or `middle`: of those that something is drawn on."""
    try:
        volume, view = people.picture_of(house.site, name, series)
    except KeyError:
        raise HTTPException(404, "no such image here") from None
    index = view.middle if number == "middle" else int(number) if number.isdecimal() and len(number) < 6 else -1
    if not 0 <= index < len(volume.image):
        raise HTTPException(404, "no such slice here")
    pixels = {"thumb": THUMB, "large": LARGE}.get(size, TILE)
    data = pictures.slice_png(volume, view, index, pixels=pixels, whole=bool(whole), sides=size != "thumb")
    return Response(data, media_type="image/png")


def reference_picture(house: InHouse, name: str) -> Response:
    """One patient among the hospital's reference values."""
    try:
        return Response(people.compared_picture(house.site, name), media_type="image/png")
    except KeyError:
        raise HTTPException(404, "there is nothing to compare this patient with") from None


def quality(request: Request, house: InHouse, patient: str = "") -> Response:
    """The cohort's quality beside the reference range, perhaps with one patient circled."""
    job = people.measured(house.site, house.jobs)
    return house.show(
        request,
        "quality.html",
        refresh_s=3 if job.running else 0,
        job=job,
        seconds=job.seconds,
        metrics=METRICS,
        patient=patient[:80],
    )


def quality_picture(house: InHouse, series: str, patient: str = "") -> Response:
    """The plot of one series."""
    job = people.measured(house.site, house.jobs, wait_s=20.0)
    if job.value is None or series not in job.value.series:
        raise HTTPException(404, "nothing of this series was measured")
    return Response(people.plot(job.value, series, highlight=patient), media_type="image/png")


def left(request: Request, house: InHouse, page: str = "1") -> Response:
    """What left the house."""
    return house.show(request, "left.html", **views.left(house.site, _number(page)))


def ledger_picture(house: InHouse) -> Response:
    """Where the budget went."""
    job = house.jobs.ask(("ledger",), lambda: views.ledger_png(house.site), wait_s=20.0, strictly_of=_books(house.site))
    if job.value is None:
        raise HTTPException(404, "the ledger can't be drawn")
    return Response(job.value, media_type="image/png")


def log(request: Request, house: InHouse, page: str = "1") -> Response:
    """What failed, and what people did."""
    return house.show(request, "log.html", **views.log(house.site, _number(page)))


# -- the hospital's switch --------------------------------------------------------------------------------------------


def pause(house: InHouse, sent: Sent) -> Response:
    """Decline whatever is asked."""
    return _switch(house, sent, "paused")


def resume(house: InHouse, sent: Sent) -> Response:
    """Work again. The line first: nobody goes on working without anybody having said so."""
    who, why = _said(sent)
    if trouble := _note(house.site, "resumed", who, why):
        raise HTTPException(500, f"not resumed, because the audit log can't be written: {trouble}")
    halt.resume(house.site.folder)
    return _back("/")


def stop(request: Request, house: InHouse, sent: Sent) -> Response:
    """End everything at once. The switch is on the disk before the answer, the processes end right after it."""
    if not sent.get("sure"):
        raise HTTPException(422, "tick the box: stopping ends everything at once, and only the command line starts it again")
    who, why = _said(sent)
    halt.halt(house.site.folder, "stopped", who=who, why=why)  # before anything that could fail
    trouble = _note(house.site, "stopped", who, why)
    text = (
        "Nothing runs or leaves any more. If this page was started by the daemon, it has ended, too. To work again: "
        "konsil-site resume, then konsil-site start." + (f" {trouble}" if trouble else "")
    )
    answer = house.show(request, "wrong.html", title=f"{house.site.name} is stopped", text=text)
    answer.background = BackgroundTask(_end, house.site)
    return answer


def _end(site: Site) -> None:
    threading.Event().wait(MOMENT_S)  # the answer is on its way
    end_now(site)


def _switch(house: House, sent: dict[str, str], state: halt.State) -> Response:
    who, why = _said(sent)
    halt.halt(house.site.folder, state, who=who, why=why)
    if trouble := _note(house.site, state, who, why):
        raise HTTPException(500, f"{house.site.name} is {state}, but the audit log can't be written: {trouble}")
    return _back("/")


def _said(sent: dict[str, str]) -> tuple[str, str]:
    return _text(sent, "who", longest=LONGEST_NAME, wanted=WHO), _text(sent, "why", longest=LONGEST_WHY)


def _note(site: Site, happening: str, who: str, why: str) -> str:
    """A line in the audit log; in words why there is none."""
    try:
        AuditLog(site.folder / "audit.jsonl").append(happening, who=who, why=why)
    except (OSError, ChainBroken) as error:
        return str(error)
    return ""


def _back(to: str) -> Response:
    return RedirectResponse(to, 303)


# -- machines ---------------------------------------------------------------------------------------------------------


def health() -> Response:
    """Whether the page answers; nothing about the house."""
    return PlainTextResponse("up\n")


def metrics(request: Request, house: InHouse) -> Response:
    """Numbers for the hospital's monitoring, for whoever brings `run/metrics.token`."""
    if not metrics_allowed(house.site, request.headers.get("authorization", "")):
        headers = {"www-authenticate": 'Bearer realm="konsil metrics"'}
        return PlainTextResponse("the token in run/metrics.token is wanted\n", 401, headers)
    from fl_client.metrics import CONTENT_TYPE  # here: needed by monitoring alone
    from fl_client.metrics import metrics as numbers

    return Response(numbers(house.site), headers={"content-type": CONTENT_TYPE})


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
    ("GET", "/", status),
    ("POST", "/pause", pause),
    ("POST", "/resume", resume),
    ("POST", "/stop", stop),
    ("GET", "/studies", studies),
    ("GET", "/studies/{key}", study),
    ("POST", "/studies/{key}/count", count_usable),
    ("POST", "/studies/{key}/approve", approve_study),
    ("POST", "/studies/{key}/decline", decline_study),
    ("GET", "/cohort", cohort),
    ("GET", "/cohort/{name}", patient),
    ("GET", "/cohort/{name}/reference.png", reference_picture),
    ("GET", "/cohort/{name}/{series}/{number}.png", slice_picture),
    ("GET", "/quality", quality),
    ("GET", "/quality/{series}.png", quality_picture),
    ("GET", "/ledger.png", ledger_picture),
    ("GET", "/left", left),
    ("GET", "/log", log),
    ("GET", "/health", health),
    ("GET", "/metrics", metrics),
    ("GET", "/page.css", style),
    ("GET", "/favicon.ico", no_icon),
)
