"""The page: who may see it, that it says what the commands say, and that nothing from outside becomes part of it."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import chromium
import httpx
import numpy as np
import pytest
from PIL import Image

from fl_client import halt
from fl_client.__main__ import main
from fl_client.approval import Approvals
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.failures import write_failure
from fl_client.page import people, pictures
from fl_client.page.app import ROUTES, page_app
from fl_client.page.guard import OPEN, SESSION_S, TRIES, Sessions, ensure_tokens, new_token, token, token_path
from fl_client.page.jobs import Jobs
from fl_client.privacy import Event, Ledger
from fl_client.site import Page, Site
from tasks.case import Case, Volume

HERE = "http://127.0.0.1:8787"


class Read(HTMLParser):
    """A page's words, tags with attributes, and whether every element is closed in order."""

    VOID = ("meta", "br", "img", "link", "hr", "input", "rect", "line")

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class Client:
    """An HTTP client that hands its requests to the application itself, from `address`."""

    def __init__(self, app, base=HERE, address="127.0.0.1"):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 50000))
        self.app, self.loop = app, asyncio.Runner()
        self.http = httpx.AsyncClient(transport=transport, base_url=base)
        self.cookies = self.http.cookies

    def request(self, method, path, **more):
        return self.loop.run(self.http.request(method, path, **more))

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, **more):
        return self.request("POST", path, **more)

    def close(self):
        self.loop.run(self.http.aclose())
        self.loop.close()


class Browser:
    """A person's browser: keeps cookies, fills in forms."""

    def __init__(self, site, page=None, base=HERE):
        self.site = site
        self.client = Client(page_app(site, page), base)
        OPENED.append(self.client)

    def csrf(self, path="/login"):
        return re.search(r'name="csrf" value="([0-9a-f]{64})"', self.client.get(path).text)[1]

    def log_in(self):
        answer = self.client.post("/login", data={"csrf": self.csrf(), "token": token(self.site, "page")})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        return self

    def read(self, path, status=200):
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return Read(answer.text)

    def send(self, path, **fields):
        return self.client.post(path, data={"csrf": self.csrf("/"), **fields})

    def settled(self, path):
        """The page once nothing on it is being worked out."""
        for _ in range(100):
            answer = self.client.get(path)
            assert answer.status_code == 200, answer.text
            if "http-equiv" not in answer.text:
                return Read(answer.text)
            time.sleep(0.1)
        raise AssertionError(f"{path} is still being worked out")


OPENED = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture
def site(hospitals):
    chosen = hospitals.site("a").model_copy(update={"approve_all": False, "noise_seed": None})
    hospitals.save(chosen)
    ensure_tokens(chosen)
    return chosen


@pytest.fixture
def browser(site):
    return Browser(site).log_in()


@pytest.fixture
def study(hospitals, site):
    asked = hospitals.study(name="pilot")
    Approvals(site.folder).put_down(asked)
    return asked


# -- who may see it ---------------------------------------------------------------------------------------------------


def test_without_a_session_every_address_but_the_door_is_closed(site):
    client = Browser(site).client
    for method, path, _ in ROUTES:
        path = path.format(key="0" * 64, name="p0-1", series="cine_ed", number="1")
        answer = client.request(method, path)
        if path in OPEN:
            continue
        assert (answer.status_code, answer.headers.get("location")) in ((303, "/login"), (403, None)), path
        assert "p0-" not in answer.text
    assert client.get("/health").text == "up\n"
    assert client.get("/metrics").status_code == 401
    assert client.get("/nowhere").status_code == 303
    assert client.request("DELETE", "/").status_code == 405
    assert client.post("/health").status_code == 405


def test_every_form_is_refused_without_its_own_value(site, browser, study):
    for method, path, _ in ROUTES:
        if method != "POST":
            continue
        for csrf in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "ä"}):
            answer = browser.client.post(path.format(key=study.hash), data={"who": "Dr. Alpha", "sure": "yes", **csrf})
            assert answer.status_code == 403, path
    assert halt.halted(site.folder) == ""
    assert Approvals(site.folder).decisions == {}


def test_a_form_of_one_session_is_no_form_of_another(site, browser):
    other = Browser(site).log_in()
    assert other.client.post("/pause", data={"csrf": browser.csrf("/"), "who": "Dr. Alpha"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)
def test_a_form_that_another_site_sends_is_refused(site, browser, headers):
    answer = browser.client.post("/pause", data={"csrf": browser.csrf("/"), "who": "Dr. Alpha"}, headers=headers)
    assert answer.status_code == 403
    assert halt.halted(site.folder) == ""


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8787", "", "[::2]:8787"])
def test_a_name_that_somebody_pointed_here_is_not_answered(site, host):
    client = Browser(site).client
    for path in ("/login", "/health", "/page.css"):
        assert client.get(path, headers={"host": host}).status_code == 421
    for known in ("localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:8787"):
        assert client.get("/health", headers={"host": known}).status_code == 200


def test_a_wrong_token_stays_outside_and_many_wrong_ones_have_to_wait(site, monkeypatch):
    monkeypatch.setattr("fl_client.page.app.time.sleep", lambda seconds: None)
    browser = Browser(site)
    csrf = browser.csrf()
    for said in ["", "wrong", "ä", token(site, "metrics")] + ["x"] * (TRIES - 4):
        answer = browser.client.post("/login", data={"csrf": csrf, "token": said})
        assert answer.status_code == 403
        assert "not this hospital&#39;s token" in answer.text
    right = {"csrf": csrf, "token": token(site, "page")}
    answer = browser.client.post("/login", data=right)
    assert answer.status_code == 429
    assert re.search(r"try again in \d+ s", answer.text)
    elsewhere = Client(browser.client.app, address="127.0.0.2")
    OPENED.append(elsewhere)
    elsewhere.cookies.update(browser.client.cookies)
    assert elsewhere.post("/login", data=right).status_code == 303


def test_wrong_tokens_are_forgotten_after_a_while(site):
    now = [1000.0]
    sessions = Sessions(site, clock=lambda: now[0])
    for _ in range(TRIES):
        assert sessions.wait_s("here") == 0
        assert not sessions.try_token("here", "wrong")
    assert sessions.wait_s("here") == 300
    now[0] += 299
    assert sessions.wait_s("here") == 1
    now[0] += 1
    assert sessions.wait_s("here") == 0
    assert sessions.try_token("here", f" {token(site, 'page')}\n")


def test_sessions_end_with_the_day_with_logging_out_with_a_new_token_and_with_the_process(site, browser):
    now = [1000.0]
    sessions = Sessions(site, clock=lambda: now[0])
    session, cookie = sessions.new(inside=True)
    assert sessions.of(cookie) == session
    assert Sessions(site).of(cookie) is None  # another process
    for forged in ("", "a.b", "a.b.c.d", cookie[:-1], cookie.replace(".in.", ".door.", 1), "x" + cookie, cookie + "."):
        assert sessions.of(forged) is None
    door = sessions.new(inside=False)[1]
    assert not sessions.of(door).inside
    assert sessions.of(door.replace(".door.", ".in.")) is None
    now[0] += SESSION_S + 1
    assert sessions.of(cookie) is None

    kept = dict(browser.client.cookies)
    assert browser.send("/logout").headers["location"] == "/login"
    browser.client.cookies.update(kept)
    assert browser.client.get("/").status_code == 303
    browser.client.cookies.clear()
    browser.log_in()
    assert browser.client.get("/").status_code == 200
    new_token(site, "page")
    assert browser.client.get("/").status_code == 303
    token_path(site, "page").unlink()
    assert Browser(site).client.get("/").status_code == 303


def test_the_cookie_is_for_this_page_alone(site):
    assert page_cookie(site, HERE, Page()) == {"HttpOnly", "Path=/", "SameSite=strict"}
    proxied = Page(names=("Konsil.clinic.example",))
    assert page_cookie(site, "http://konsil.clinic.example", proxied) == {"HttpOnly", "Path=/", "SameSite=strict", "Secure"}


def page_cookie(site, base, page):
    name, *flags = Browser(site, page, base).client.get("/login").headers["set-cookie"].split("; ")
    assert name.startswith("konsil-8787=")
    return set(flags)


def test_tokens_are_random_private_and_never_written_over_at_a_start(site):
    for name in ("page", "metrics"):
        path = token_path(site, name)
        assert path.stat().st_mode & 0o777 == 0o600
        assert len(path.read_text().strip()) == 43  # 32 random bytes
    before = token(site, "page")
    assert before != token(site, "metrics")
    ensure_tokens(site)
    assert token(site, "page") == before
    token_path(site, "page").chmod(0o644)
    with pytest.raises(PermissionError, match=r"page\.token has mode 0644, so others may read it"):
        ensure_tokens(site)


def test_two_tabs_at_the_door_and_the_icon_that_a_browser_asks_for_spoil_no_form(site):
    browser = Browser(site)
    csrf = browser.csrf()
    icon = browser.client.get("/favicon.ico")
    assert (icon.status_code, icon.content, "set-cookie" in icon.headers) == (204, b"", False)
    assert browser.csrf() == csrf
    answer = browser.client.post("/login", data={"csrf": csrf, "token": token(site, "page")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_page_token_makes_new_ones_and_says_where_they_lie(hospitals, site, capsys):
    before = token(site, "page"), token(site, "metrics")
    assert main(["--site", str(hospitals.sites["a"]), "page-token"]) == 0
    said = capsys.readouterr().out
    assert before != (token(site, "page"), token(site, "metrics"))
    assert f"{token(site, 'page')}  to log in; in {token_path(site, 'page')}" in said


def test_every_answer_forbids_scripts_frames_caches_and_other_origins(browser, study):
    for path in ("/", "/login", "/nowhere", "/health", "/metrics", "/page.css", "/cohort/p0-1/cine_ed/1.png", "/studies"):
        headers = browser.client.get(path).headers
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; style-src 'self'; img-src 'self'; form-action"
        )
        assert (headers["x-frame-options"], headers["cache-control"]) == ("DENY", "no-store")
        assert headers["x-content-type-options"] == "nosniff"


def test_no_view_needs_a_script_an_inline_style_or_anything_from_elsewhere(browser, study, site):
    views = ("/", "/studies", f"/studies/{study.hash}", "/cohort", "/cohort/p0-1", "/quality", "/left", "/log")
    for path in views:
        page = browser.settled(path)
        for tag, attributes in page.tags:
            assert tag not in ("script", "style", "iframe", "object", "embed", "base"), path
            assert not [name for name in attributes if name.startswith("on") or name == "style"], path
            for name in ("src", "href", "action"):
                assert attributes.get(name, "/").startswith(("/", "?", "#")), path
                assert not attributes.get(name, "/").startswith("//")


def test_a_form_that_is_too_large_or_no_form_is_refused(browser):
    assert browser.client.post("/pause", content=b"a=" + b"x" * 20000).status_code == 413
    assert browser.client.post("/pause", content=b"&".join(b"a%d=1" % i for i in range(50))).status_code == 400
    assert browser.client.post("/pause", content=b"\xff\xfe").status_code == 400


# -- machines ---------------------------------------------------------------------------------------------------------


def test_metrics_are_for_who_brings_their_own_token(site, browser):
    client = Browser(site).client
    for wrong in (None, "", "Bearer", "Bearer ", f"Bearer {token(site, 'page')}", f"Basic {token(site, 'metrics')}"):
        assert client.get("/metrics", headers={"authorization": wrong} if wrong is not None else {}).status_code == 401
    assert browser.client.get("/metrics").status_code == 401  # a person's session is none
    answer = client.get("/metrics", headers={"authorization": f"Bearer {token(site, 'metrics')}"})
    assert answer.status_code == 200
    assert "konsil_patients 4.0\n" in answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_tells_patients_and_what_they_have_cost(site, browser):
    Ledger(site.ledger_path, epsilon=10, delta=1e-3).spend(Event(noise_multiplier=4.0, steps=2, study_name="pilot", round=1))
    page = browser.read("/")
    assert "Works" in page.text
    assert "Patients inside 4" in page.text
    # the Gaussian mechanism of sensitivity over noise sqrt(2)/4 (Balle and Wang 2018, Theorem 8, by bisection elsewhere)
    assert re.search(r"epsilon 0\.894\d? of 10 at delta 0\.001", page.text)
    assert "1 release in the ledger" in page.text


def test_where_the_budget_went_is_drawn_as_soon_as_something_was_released(site, browser):
    assert "/ledger.png" not in str(browser.read("/left").tags)
    book = Ledger(site.ledger_path, epsilon=10, delta=1e-3)
    book.spend(Event(noise_multiplier=4.0, study_name="pilot", round=1))
    assert "/ledger.png" in str(browser.read("/left").tags)
    before = browser.client.get("/ledger.png")
    assert (before.status_code, before.headers["content-type"]) == (200, "image/png")
    book.spend(Event(noise_multiplier=4.0, study_name="pilot", round=2))
    assert browser.client.get("/ledger.png").content != before.content
    book.path.write_text(book.path.read_text().replace('"round":1', '"round":7'))
    assert browser.client.get("/ledger.png").status_code == 404


def test_the_switch_says_who_and_why_and_resume_takes_it_away(site, browser):
    assert browser.send("/pause", who="", why="moving").status_code == 422
    assert halt.halted(site.folder) == ""
    assert browser.send("/pause", who="Dr. Alpha", why="the scanner is moved").headers["location"] == "/"
    assert halt.halted(site.folder) == "paused"
    text = browser.read("/").text
    assert "Paused: whatever is asked is declined" in text
    assert re.search(r"By Dr\. Alpha on 20\d\d-\d\d-\d\d \d\d:\d\d UTC: the scanner is moved", text)
    assert browser.send("/resume", who="Dr. Beta").status_code == 303
    assert halt.halted(site.folder) == ""
    lines = AuditLog(site.folder / "audit.jsonl").lines
    assert [(line["happening"], line["who"], line["why"]) for line in lines] == [
        ("paused", "Dr. Alpha", "the scanner is moved"),
        ("resumed", "Dr. Beta", ""),
    ]


def test_nobody_resumes_without_a_line_in_the_log(site, browser):
    browser.send("/pause", who="Dr. Alpha")
    (site.folder / "audit.jsonl").write_text("")
    answer = browser.send("/resume", who="Dr. Beta")
    assert answer.status_code == 500
    assert "not resumed, because the audit log can&#39;t be written" in answer.text
    assert halt.halted(site.folder) == "paused"


def test_stop_now_is_on_the_disk_before_the_processes_are_ended(site, browser, monkeypatch):
    ended = []
    monkeypatch.setattr("fl_client.page.app.end_now", lambda house: ended.append(halt.halted(house.folder)))
    assert browser.send("/stop", who="Dr. Alpha").status_code == 422  # the box isn't ticked
    answer = browser.send("/stop", who="Dr. Alpha", sure="yes", why="smoke")
    assert answer.status_code == 200
    assert "konsil-site resume, then konsil-site start" in answer.text
    assert ended == ["stopped"]
    assert "Stopped: nothing runs or leaves" in browser.read("/").text


def test_broken_books_are_told_and_the_rest_stands(site, browser, study):
    AuditLog(site.folder / "audit.jsonl").append(
        "egress", study=None, round=1, asked="train", kind="arrays", tensors=1, bytes=8
    )
    site.ledger_path.write_text("nonsense\n")
    (site.folder / "audit.jsonl").write_text("{}\n")
    (Approvals(site.folder).studies_folder / f"{'0' * 64}.json").write_text("{}")
    (site.folder / "approvals.jsonl").write_text("hello\n")
    (site.cohort_folder / "refused.jsonl").mkdir()
    status = browser.read("/").text
    assert "ledger.jsonl line 1 is not a ledger entry" in status
    assert "audit.jsonl line 1 is not a audit log entry" in status
    assert "approvals.jsonl line 1 is not a decision" in status
    listed = browser.read("/studies").text
    assert "pilot" in listed
    assert f"{'0' * 64}.json" in listed
    assert "can't be trusted" in browser.read("/left").text
    assert "Nothing can leave until a person has looked" in browser.read("/left").text
    assert "The cohort can't be counted" in browser.settled("/cohort").text
    assert "p0-1" in browser.settled("/cohort").text
    assert "Nothing has failed" in browser.read("/log").text


def test_what_goes_wrong_in_the_page_is_a_number_here_and_a_traceback_in_the_log(site, browser, monkeypatch):
    monkeypatch.setattr("fl_client.page.views.left", lambda *given: 1 / 0)
    answer = browser.client.get("/left")
    assert answer.status_code == 500
    number = re.search(r"Failure ([0-9a-f]{8}) in log", answer.text)[1]
    assert "ZeroDivisionError" not in answer.text
    assert number in browser.read("/log").text


# -- studies ----------------------------------------------------------------------------------------------------------


def test_the_contract_is_word_for_word_that_of_the_command(hospitals, site, browser, study, capsys):
    assert main(["--site", str(hospitals.sites["a"]), "show", study.hash]) == 0
    shown = [line[16:] for line in capsys.readouterr().out.splitlines()]
    text = browser.settled(f"/studies/{study.hash}").text
    assert len(shown) > 8
    for line in shown:
        assert " ".join(line.split()) in text
    assert browser.read("/studies").text.index("waits for you") > 0
    assert browser.read("/studies/" + "0" * 64, 404).text
    assert browser.client.get("/studies/..%2f..%2fsite.yaml").status_code == 404


def test_the_page_counts_and_approves_as_the_command_does(site, browser, study):
    assert browser.send(f"/studies/{study.hash}/count").headers["location"] == f"/studies/{study.hash}"
    assert "4 of 4 training patients at a can be used for study pilot" in browser.settled(f"/studies/{study.hash}").text
    for fields in (
        {"who": " "},
        {"who": "x" * 81},
        {"who": "a\u202eb"},
        {"who": "A", "days": "0"},
        {"who": "A", "days": "9e9"},
    ):
        assert browser.send(f"/studies/{study.hash}/approve", **fields).status_code == 422
    assert Approvals(site.folder).decisions == {}
    assert browser.send(f"/studies/{study.hash}/approve", who="Dr. Alpha", days="30").status_code == 303
    text = browser.settled(f"/studies/{study.hash}").text
    assert "approved by Dr. Alpha, good until" in text
    assert "price epsilon 8 (delta 0.001); the ledger stands at 0 and would stand at" in text
    line = Approvals(site.folder).decisions[study.hash]
    assert (line.decision, line.who, line.epsilon) == ("approved", "Dr. Alpha", 8.0)
    assert browser.send(f"/studies/{study.hash}/decline", who="Dr. Beta").status_code == 303
    assert Approvals(site.folder).decisions[study.hash].decision == "declined"
    assert [line["who"] for line in AuditLog(site.folder / "audit.jsonl").lines] == ["Dr. Alpha", "Dr. Beta"]


def test_the_page_approves_nothing_that_the_command_would_refuse(hospitals, site, study):
    strict = site.model_copy(update={"minimum_cohort": 5})
    bare = hospitals.study(name="bare", privacy={"kind": "none"})
    Approvals(site.folder).put_down(bare)
    browser = Browser(strict).log_in()
    browser.send(f"/studies/{study.hash}/approve", who="Dr. Alpha")
    words = "4 training patients are fewer than the 5 that this site's minimum_cohort asks for"
    assert words in browser.settled(f"/studies/{study.hash}").text
    browser.send(f"/studies/{bare.hash}/approve", who="Dr. Alpha")
    assert "accept releases without noise" in browser.settled(f"/studies/{bare.hash}").text
    assert Approvals(site.folder).decisions == {}


def test_what_a_study_says_is_shown_and_never_obeyed(hospitals, site, browser):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'></dd>{{7*7}}"
    asked = hospitals.study(
        task={"name": "<i>no such task</i>", "title": evil, evil: 1},
        selection={"where": {"field": "endpoint.sex", "op": "=", "value": "<u>F</u>"}},
    )
    Approvals(site.folder).put_down(asked)
    for path in ("/studies", f"/studies/{asked.hash}"):
        page = browser.settled(path)
        assert len(page.tags) > 20
        assert not [tag for tag, _ in page.tags if tag in ("script", "u", "i", "img")]
        assert "<i>no such task</i>" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text
    assert "<u>F</u>" in page.text
    assert "it can't be run here" in page.text


def test_characters_that_hide_or_turn_text_around_are_shown_by_their_numbers(site, browser):
    who = "Dr. \u202eahplA\u0007"
    AuditLog(site.folder / "audit.jsonl").append("paused", who=who, why="")
    assert "Dr. ⟨U+202E⟩ahplA⟨U+0007⟩" in browser.read("/log").text


# -- cohort -----------------------------------------------------------------------------------------------------------


def test_the_cohort_counts_everybody_and_shows_pseudonyms_page_by_page(hospitals, site, browser):
    cohort = Cohort(site.cohort_folder)
    cohort.refuse("P0123456789ABCDEF", "cine_ed: no slices")
    table = {"age": 61.0}
    for number in range(people.PER_PAGE):
        cohort.admit(Case(f"q{number:03d}", (), table))
    text = browser.settled("/cohort").text
    assert "Expected 30" in text
    assert "Inside 29" in text
    assert "1 refused: cine_ed: no slices" in text
    assert "cine_ed cine, end-diastole (heart filled) 4 4" in text
    assert "page 1 of 2" in text
    assert "q003" in browser.settled("/cohort?start=q&page=1").text
    assert "q003" not in browser.settled("/cohort?start=p0-").text
    assert "P0123456789ABCDEF : cine_ed: no slices" in browser.settled("/cohort?place=refused").text
    assert "Outside: cine_ed: no slices" in browser.settled("/cohort/P0123456789ABCDEF").text
    assert browser.read("/cohort/nobody", 404)
    cohort.withdraw("p0-1")
    assert "p0-1" not in browser.settled("/cohort").text
    assert browser.client.get("/cohort/p0-1/cine_ed/1.png").status_code == 404
    assert browser.client.get("/cohort/p0-1").status_code == 404


def test_a_damaged_patient_is_named_and_the_others_are_shown(site, browser):
    (site.cohort_folder / "cases" / "p0-1" / "cine_ed.image.npy").write_bytes(b"short")
    assert "Damaged 1" in browser.settled("/cohort").text
    assert "p0-1 : cine_ed.image.npy is cut short" in browser.settled("/cohort?place=damaged").text
    assert "can't be read: cine_ed.image.npy is cut short" in browser.settled("/cohort/p0-1").text
    assert browser.client.get("/cohort/p0-1/cine_ed/1.png").status_code == 404
    quality = browser.settled("/quality").text
    assert "p0-1 can't be read: cine_ed.image.npy is cut short" in quality
    for measured in ("(heart filled) Numbers", "(heart contracted) Numbers"):  # of the other three
        assert " slices slices 3 " in quality.partition(measured)[2][:150]


def test_a_patient_shows_every_slice_values_and_why_a_study_left_them_out(site, browser, study):
    log = site.folder / "log" / "training.jsonl"
    log.parent.mkdir()
    lines = [
        {"patient": "p0-1", "left_out": "no mask <i>"},
        {"study": study.hash, "round": 1, "patients": 3},
        {"patient": "p0-2", "left_out": "of another"},
        {"study": "f" * 64, "round": 1, "patients": 3},
    ]
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"cut')
    page = browser.settled("/cohort/p0-1")
    shown = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert shown == [f"/cohort/p0-1/{series}/{number}.png" for series in ("cine_ed", "cine_es") for number in range(3)]
    assert all(browser.client.get(source).headers["content-type"] == "image/png" for source in shown)
    assert f"pilot ({study.hash[:12]}) , last round here: no mask <i>" in page.text
    assert "of another" not in page.text
    assert "3 slices of 32 × 32, 3 × 3 mm, 8 mm from slice to slice" in page.text
    assert "pixel_mm" in page.text
    assert "left ventricle, cavity" in page.text


@pytest.mark.parametrize("path", ["p0-1/cine_ed/3", "p0-1/cine_ed/-1", "p0-1/lge/1", "..%2f/cine_ed/1", "p0-1/cine_ed/x"])
def test_pictures_of_what_is_not_there_are_not_found(browser, path):
    assert browser.client.get("/cohort/p0-1/cine_ed/2.png").status_code == 200
    assert browser.client.get(f"/cohort/{path}.png").status_code == 404


def test_quality_is_a_picture_for_each_series_beside_the_reference(browser):
    page = browser.settled("/quality")
    assert "36 generated patients" in page.text
    for series in ("cine_ed", "cine_es"):
        answer = browser.client.get(f"/quality/{series}.png?patient=p0-1")
        assert Image.open(BytesIO(answer.content)).size[0] > 800
    assert browser.client.get("/quality/lge.png").status_code == 404


# -- pictures ---------------------------------------------------------------------------------------------------------


def disc(rows_mm=1.0, columns_mm=1.0):
    rows, columns = np.mgrid[:100, :80]
    radius = np.hypot(rows - 60, columns - 30)
    mask = np.where(radius < 10, 1, 0).astype(np.uint8)
    image = np.full((3, 100, 80), 50, np.float32) + 10 * np.random.default_rng(0).normal(size=(3, 100, 80)).astype(np.float32)
    affine = np.diag([8.0, 0, 0, 1.0])
    affine[1, 1], affine[0, 2], affine[2, 0], affine[0, 0] = rows_mm, columns_mm, 8.0, 0.0
    masks = np.stack([np.zeros_like(mask), mask, mask])
    return Volume("cine_ed", image, affine, masks)


def drawn(tmp_path, volume):
    cohort = Cohort(tmp_path / "cohort")
    cohort.admit(Case("p", (volume,)))
    return pictures.view_of(cohort, cohort.case("p"), cohort.case("p").volume("cine_ed"))


def test_the_outline_lies_where_the_mask_ends(tmp_path):
    volume = disc()
    view = drawn(tmp_path, volume)
    assert view.middle == 2
    assert view.labels == (1,)
    png = pictures.slice_png(volume, view, 1, pixels=400, whole=True, sides=False)
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    assert pixels.shape == (400, 320, 3)  # 100 x 80 mm
    rows, columns = np.nonzero((pixels == [0xFF, 0xB0, 0x00]).all(axis=-1))
    radius = np.hypot((rows + 0.5) / 4 - 60.5, (columns + 0.5) / 4 - 30.5)
    assert len(radius) > 200
    assert radius.min() > 8.8
    assert radius.max() < 10.3
    empty = pictures.slice_png(volume, view, 0, pixels=400, whole=True, sides=False)
    pixels = np.asarray(Image.open(BytesIO(empty)).convert("RGB")).astype(int)
    assert (pixels.max(axis=-1) == pixels.min(axis=-1)).all()  # grey alone


def test_pictures_have_the_patients_proportions(tmp_path):
    volume = disc(rows_mm=2.0)
    size = Image.open(BytesIO(pictures.slice_png(volume, drawn(tmp_path, volume), 1, pixels=200, whole=True))).size
    assert size == (80, 200)  # 80 x 200 mm


def test_sides_are_told_by_the_affine():
    assert people.sides_of(disc()) == "Left rim R, right rim L, upper rim A, lower rim P"
    assert pictures.direction(np.array([0.0, -0.7, 0.71])) == "HA"
    assert pictures.opposite("HA") == "FP"


def test_of_many_slices_some_are_shown_with_both_ends():
    assert people.spread(5, 18) == (0, 1, 2, 3, 4)
    shown = people.spread(300, 18)
    assert (len(shown), shown[0], shown[-1]) == (18, 0, 299)
    assert set(np.diff(shown)) <= {17, 18}


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_work_runs_once_beside_the_page_and_tells_its_trouble():
    jobs, calls = Jobs(), []

    def slow():
        calls.append(1)
        time.sleep(0.2)
        return 7

    first, second = jobs.start("slow", slow), jobs.start("slow", slow)
    assert first is second
    assert first.running
    assert first.over.wait(5)
    assert (first.value, len(calls)) == (7, 1)
    assert jobs.ask("slow", slow) is first
    failed = jobs.ask("bad", lambda: int("x"), wait_s=5)
    assert failed.trouble == "invalid literal for int() with base 10: 'x'"
    assert jobs.ask("bad", slow) is failed
    failed.over_at -= 60
    assert jobs.ask("bad", slow, wait_s=5).value == 7


def test_numbers_of_a_cohort_that_changes_are_made_anew_soon_and_after_a_withdrawal_at_once():
    jobs = Jobs()
    first = jobs.ask("n", lambda: 1, wait_s=5, of="ten patients", strictly_of="nobody")
    assert jobs.ask("n", lambda: 2, wait_s=5, of="eleven", strictly_of="nobody") is first
    assert jobs.ask("n", lambda: 3, wait_s=5, of="eleven", strictly_of="one").value == 3
    jobs.find("n").over_at -= 60
    assert jobs.ask("n", lambda: 4, wait_s=5, of="eleven", strictly_of="one").value == 3
    assert jobs.ask("n", lambda: 5, wait_s=5, of="twelve", strictly_of="one").value == 5


# -- as a process, in a browser ---------------------------------------------------------------------------------------


@pytest.fixture
def served(site, hospitals):
    """The page as `konsil-site page` serves it; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = Path(hospitals.sites["a"])
    Site.load(path).model_copy(update={"page": Page(port=port)}).save(path)
    command = [sys.executable, "-m", "fl_client", "--site", str(path), "page"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout.readline() == f"a's page: http://127.0.0.1:{port}/\n"
        assert str(token_path(site, "page")) in process.stdout.readline()
        for _ in range(100):
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/health").text == "up\n"
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(10) in (0, -15)
        assert "Traceback" not in process.stdout.read()
        process.stdout.close()


def test_the_command_serves_the_page_and_a_taken_port_is_told(served, hospitals, capsys):
    assert httpx.get(f"{served}/").headers["location"] == "/login"
    assert "server" not in httpx.get(f"{served}/login").headers
    assert main(["--site", str(hospitals.sites["a"]), "page"]) == 1
    assert "Address already in use" in capsys.readouterr().err


VIEWS = {
    "/": ["a", "What the patients' data have cost", "What runs", "Last messages that left the house", "The switch"],
    "/studies": ["Studies"],
    "/studies/{key}": ["Study pilot waits for you", "The contract", "Whom it can use here", "Decide", "Say yes", "Say no"],
    "/cohort": ["Cohort", "What is there", "Why patients and files stayed outside", "Patients"],
    "/cohort/p0-1": ["p0-1", "cine_ed cine, end-diastole (heart filled)", "cine_es cine, end-systole (heart contracted)"],
    "/quality": ["Quality of the images", "cine_ed cine, end-diastole (heart filled)"],
    "/left": ["What left the house", "The privacy ledger", "Decisions in force"],
    "/log": ["Log", "What failed", "What people and the daemon did"],
}
"""Every view, and headings that a person finds on it."""


@pytest.fixture
def lived_in(site, study):
    """A house in which something has happened: messages left, one failed, one patient was refused."""
    Ledger(site.ledger_path, epsilon=10, delta=1e-3).spend(Event(noise_multiplier=4.0, steps=2, study_name="done", round=1))
    audit = AuditLog(site.folder / "audit.jsonl")
    facts = {"run": 1, "study": "5" * 64, "round": 1, "tensors": 18, "bytes": 214_032, "sha256": "8" * 64}
    audit.append("egress", asked="train", kind="arrays", code=None, **facts)
    audit.append("egress", asked="train", kind="words", code=101, **{**facts, "tensors": 0, "bytes": 80})
    audit.append("paused", who="Dr. Alpha", why="the scanner is moved, and nobody knows for how long: " + "soon, " * 40)
    try:
        json.loads("{")
    except ValueError as error:
        write_failure(site.folder / "log", error, run=1, number="0a1b2c3d")
    Cohort(site.cohort_folder).refuse("P0123456789ABCDEF", "cine_ed: no slices")
    return study


def test_a_browser_shows_every_view_within_its_margins_and_complains_of_nothing(lived_in, served, site, tmp_path):
    if chromium.program() is None:
        pytest.skip("no chromium on this machine")
    browser = chromium.Chromium(tmp_path / "profile")
    try:
        for width in (1280, 420):
            door = browser.look(f"{served}/login", width=width)
            assert (door["headings"], door["beyond"], door["hidden"], door["wide"]) == (["a: konsil"], [], [], width)
        browser.log_in(f"{served}/login", token(site, "page"))
        for path, headings in VIEWS.items():
            address = path.format(key=lived_in.hash)
            for width in (1280, 420):
                picture = tmp_path / "page.png" if path == "/cohort/p0-1" else None
                seen = browser.look(served + address, width=width, picture=picture)
                assert seen["address"] == address
                assert [one for one in headings if one not in [" ".join(head.split()) for head in seen["headings"]]] == []
                assert (seen["beyond"], seen["wide"]) == ([], width), path
                assert seen["hidden"] == [] or (path, width) == ("/quality", 420), path  # a plot must keep its size to be read
                assert seen["panel"] not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)")  # the style sheet was let in
                assert all(there for _, there in seen["images"]), seen["images"]
                assert len(seen["images"]) == {"/cohort": 8, "/cohort/p0-1": 6, "/quality": 2, "/left": 1}.get(path, 0)
                if picture:
                    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
                    assert pixels.shape[1] == width
                    outline = np.abs(pixels - [0xFF, 0xB0, 0x00]).sum(axis=-1) < 60
                    assert outline.sum() > 100  # what was drawn on the slices is there: pictures were let in, too
    finally:
        browser.close()
    assert browser.complaints == []
