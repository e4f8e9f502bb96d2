"""The coordinator's page: who may see it, that it says what the record says, and that what hospitals say stays a text."""

import asyncio
import base64
import copy
import json
import os
import re
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import chromium
import httpx
import numpy as np
import pytest

from fl_server.__main__ import main
from fl_server.gate import Gate
from fl_server.house import House
from fl_server.house import Page as PageSettings
from fl_server.live import Heard, Now
from fl_server.page import curves, matrix, views
from fl_server.page.app import ROUTES, page_app
from fl_server.page.beside import page_beside
from fl_server.page.course import Shelf, read
from fl_server.page.guard import OPEN, SESSION_S, TRIES, Door, Sessions, ensure_token, new_token, token, token_path
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.runs import Standing
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid

HERE = "http://127.0.0.1:8790"
HOSTILE = "</td><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202eevil\u2066 {{ 7*7 }}"
SHOWN = "⟨U+202E⟩evil⟨U+2066⟩ {{ 7*7 }}"


class Read(HTMLParser):
    """A page's words, tags with attributes, and whether every element is closed in order."""

    VOID = ("meta", "br", "img", "link", "hr", "input", "rect", "line", "circle", "polyline", "polygon")

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tags, self.cells = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.words.append(data)
        tag, attrs = self.open[-1] if self.open else ("", {})
        if tag == "td" and (attrs.get("class") or "").startswith("c "):
            self.cells.append((data.strip(), attrs["class"].split()[1:], attrs["title"]))

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class Browser:
    """A person's browser that hands its requests to the application itself, from `address`."""

    def __init__(self, door, base=HERE, address="127.0.0.1"):
        self.app, self.loop = page_app(door), asyncio.Runner()
        self.http = self.client(base, address)
        self.door = door
        OPENED.append(self)

    def client(self, base, address):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(address, 50000))
        return httpx.AsyncClient(transport=transport, base_url=base)

    def request(self, method, path, **more):
        return self.loop.run(self.http.request(method, path, **more))

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def csrf(self, path="/login"):
        return re.search(r'name="csrf" value="([0-9a-f]{64})"', self.get(path).text)[1]

    def log_in(self):
        answer = self.request("POST", "/login", data={"csrf": self.csrf(), "token": self.door.token()})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        return self

    def read(self, path, status=200):
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        return Read(answer.text)

    def settled(self, path):
        """The page once nothing is being read any more."""
        for _ in range(100):
            answer = self.get(path)
            if "is being read" not in answer.text:
                assert answer.status_code == 200, answer.text
                return Read(answer.text)
            time.sleep(0.1)
        raise AssertionError(f"{path} is still being read")

    def close(self):
        self.loop.run(self.http.aclose())
        self.loop.close()


OPENED = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "coordinator" / "runs"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def door(runs):
    registry = runs.parent / "registry"
    return Door(name="coordinator.example", runs=runs, token=lambda: "the token", where="Ask.", registry=registry)


@pytest.fixture
def browser(door):
    return Browser(door).log_in()


REAL = {}


@pytest.fixture
def real(new_hospitals, runs):
    """A study of three hospitals and two rounds that was really run, in `runs/pilot`; once for all tests."""
    folder = runs / "pilot"
    if not REAL:
        hospitals = new_hospitals("hospitals")
        for name in ("north", "south", "west"):
            hospitals.add(name, declared_size=5)
        study = hospitals.study(name="pilot")
        grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
        run(grid, study, initial_state(study), folder=folder)
        REAL["record"] = json.loads((folder / "record.json").read_text())
        REAL["now"] = json.loads((folder / "now.json").read_text())
    return write(runs, "pilot", REAL["record"])


def write(runs, name, record, now=None, standing=None):
    """A study's folder with these files."""
    folder = runs / name
    folder.mkdir(exist_ok=True)
    part = folder / "record.part"
    part.write_text(record if isinstance(record, str) else json.dumps(record))
    part.replace(folder / "record.json")
    if now is not None:
        now.write(folder)
    if standing is not None:
        standing.write(folder)
    return folder


def moment(record, **fields):
    """What `now.json` of this study says, by this process."""
    at = time.time()
    known = {
        "study": record["name"],
        "study_hash": record["study_hash"],
        "pid": os.getpid(),
        "rounds": record["study"]["rounds"],
    }
    return Now.model_validate({**known, "began": at, "updated": at, **fields})


def of(answers, *, sites=(), rounds=None, reasons=None, **fields):
    """A record like the real one, with other answers: a string of letters for each hospital, one for each round."""
    record = copy.deepcopy(REAL["record"])
    words = {letter: answer for answer, letter in matrix.LETTERS.items()}
    names = list(sites or [f"hospital-{number}" for number in range(len(answers))])
    done = len(answers[0])
    record["study"] |= {"sites": names, "rounds": rounds or done}
    model = record["sites"].popitem()[1]
    record["sites"] = dict.fromkeys(names, model)
    entry, example = record["rounds"][0], next(iter(record["rounds"][0]["sites"].values()))
    record["rounds"] = []
    for number in range(1, done + 1):
        told = {}
        for name, letters in zip(names, answers, strict=True):
            answer = words[letters[number - 1]]
            reason = "" if answer == "used" else (reasons or {}).get(name, f"{answer}, it says")
            told[name] = {**example, "answer": answer, "reason": reason}
            if answer == "absent":
                told[name] |= {"seconds": None, "epsilon": None, "bytes": None}
        record["rounds"].append({**entry, "round": number, "sites": told})
    shown = Record.model_validate({"schema_name": record["schema"], **{k: v for k, v in record.items() if k != "schema"}})
    shown.judge()
    return {**record, "verdict": shown.verdict, "reasons": shown.reasons, **fields}


# -- who may see it ---------------------------------------------------------------------------------------------------


def test_without_a_session_every_address_but_the_door_is_closed(door, real):
    browser = Browser(door)
    for method, path, _ in ROUTES:
        path = path.format(name="pilot", site="north", file="record.json", model="m", version="1")
        if path in OPEN:
            continue
        answer = browser.request(method, path)
        assert (answer.status_code, answer.headers.get("location")) in ((303, "/login"), (403, None)), path
        assert "pilot" not in answer.text
    assert browser.get("/health").text == "up\n"
    assert browser.get("/nowhere").status_code == 303
    assert browser.request("DELETE", "/").status_code == 405


def test_every_answer_forbids_scripts_framing_and_keeping(browser, real):
    for path in ("/", "/study/pilot", "/study/pilot/site/north", "/study/nobody", "/page.css", "/study/pilot/file/record.json"):
        headers = browser.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    for path in ("/", "/study/pilot", "/study/pilot/site/north"):
        page = browser.read(path)
        assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "style")]
        assert not [name for _, attributes in page.tags for name in attributes if name == "style" or name.startswith("on")]


def test_the_doors_forms_need_their_own_value_and_come_from_here(door):
    browser = Browser(door)
    csrf = browser.csrf()
    for sent in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "ä"}):
        assert browser.request("POST", "/login", data={"token": "the token", **sent}).status_code == 403
    right = {"csrf": csrf, "token": "the token"}
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert browser.request("POST", "/login", data=right, headers=headers).status_code == 403
    assert browser.request("POST", "/login", data={**right, "more": "x" * 5000}).status_code == 413
    assert browser.request("POST", "/login", data=right).status_code == 303
    assert browser.request("POST", "/logout", data={}).status_code == 403
    kept = dict(browser.http.cookies)
    assert browser.request("POST", "/logout", data={"csrf": browser.csrf("/")}).headers["location"] == "/login"
    browser.http.cookies.update(kept)
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8790", "", "[::2]:8790"])
def test_a_name_that_somebody_pointed_here_is_not_answered(door, host):
    browser = Browser(door)
    for path in ("/login", "/health", "/page.css"):
        assert browser.get(path, headers={"host": host}).status_code == 421
    for known in ("localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:8790"):
        assert browser.get("/health", headers={"host": known}).status_code == 200


def test_the_cookie_is_secure_under_the_name_of_a_proxy(runs):
    door = Door(name="c", runs=runs, token=lambda: "t", where="", names=("studies.example",))
    browser = Browser(door, base="https://studies.example")
    cookie = browser.get("/login").headers["set-cookie"]
    assert ("HttpOnly" in cookie, "SameSite=strict" in cookie, "Secure" in cookie) == (True, True, True)
    assert "Secure" not in Browser(door).get("/login").headers["set-cookie"]


def test_a_wrong_token_stays_outside_and_many_wrong_ones_have_to_wait(door, monkeypatch):
    monkeypatch.setattr("fl_server.page.app.time.sleep", lambda seconds: None)
    browser = Browser(door)
    csrf = browser.csrf()
    for said in ["", "wrong", "ä"] + ["x"] * (TRIES - 3):
        assert browser.request("POST", "/login", data={"csrf": csrf, "token": said}).status_code == 403
    answer = browser.request("POST", "/login", data={"csrf": csrf, "token": "the token"})
    assert answer.status_code == 429
    assert re.search(r"try again in \d+ s", answer.text)


def test_without_a_token_nobody_comes_in():
    sessions = Sessions(lambda: "")
    assert not sessions.try_token("here", "")
    assert sessions.of(sessions.new(inside=True)[1]) is None


def test_sessions_end_with_the_day_and_with_a_new_token():
    now, known = [1000.0], ["one"]
    sessions = Sessions(lambda: known[0], clock=lambda: now[0])
    session, cookie = sessions.new(inside=True)
    assert sessions.of(cookie) == session
    door_cookie = sessions.new(inside=False)[1]
    for forged in ("", "a.b.c.d", cookie[:-1], door_cookie.replace(".door.", ".in.")):
        assert sessions.of(forged) is None
    known[0] = "two"
    assert sessions.of(cookie) is None
    known[0] = "one"
    now[0] += SESSION_S + 1
    assert sessions.of(cookie) is None


def test_the_tokens_file_is_for_one_user(tmp_path):
    path = token_path(tmp_path)
    assert token(path) == ""
    ensure_token(path)
    first = token(path)
    assert (len(first) > 40, path.stat().st_mode & 0o777) == (True, 0o600)
    ensure_token(path)
    assert token(path) == first
    assert new_token(path) == token(path) != first
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="page-token makes a new one"):
        ensure_token(path)


def test_hospitals_find_nothing_of_it_behind_the_gate():
    async def ask():
        asked = []
        superlink = httpx.MockTransport(lambda request: asked.append(request) or httpx.Response(200))
        gate = Gate(
            httpx.AsyncClient(transport=superlink, base_url="http://superlink"),
            about={},
            join=lambda body: (403, {}),
            max_body_bytes=1000,
            request_timeout_s=5,
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:
            for method, path, _ in ROUTES:
                if path != "/health":  # the gate has one of its own
                    assert (await client.request(method, path)).status_code == 404, path
        await gate.upstream.aclose()
        return asked

    assert asyncio.run(ask()) == []


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_study_that_was_really_run_is_complete_and_every_field_says_used(browser, real):
    (real / "now.json").write_text(json.dumps(REAL["now"]))
    listed = browser.settled("/")
    assert "pilot ended ✓ complete 2 of 2 3" in listed.text
    page = browser.settled("/study/pilot")
    assert "✓ Complete: every planned hospital was used in every round" in page.text
    assert [(text, kinds[0]) for text, kinds, _ in page.cells] == [("U", "used")] * 6
    assert "Answers used 6 of 6 planned" in page.text
    assert "epsilon 8, delta 0.001 for every patient" in page.text
    assert REAL["record"]["study_hash"] in page.text
    assert "Epsilon in the hospitals' ledgers" in page.text
    assert not [1 for _, attributes in page.tags if attributes.get("http-equiv")]
    site = browser.settled("/study/pilot/site/north")
    assert "Used 2 of 2" in site.text
    spent = REAL["record"]["rounds"][1]["sites"]["north"]["epsilon"]
    assert views.number(spent) in site.text
    assert "5 that the hospital declares in public" in site.text


def test_every_kind_of_answer_has_a_letter_and_a_reason(browser, real, runs):
    write(runs, "mixed", of(["UUUUUU", "UDFQLA"]))
    page = browser.settled("/study/mixed")
    assert [text for text, _, _ in page.cells] == list("UUUUUU" + "UDFQLA")
    titles = [title for _, _, title in page.cells[6:]]
    assert titles == [
        "round 1: used",
        *(f"round {at}: {a} ({a}, it says)" for at, a in enumerate(("declined", "failed", "quarantined", "late", "absent"), 2)),
    ]
    assert "! Degraded" in page.text
    assert "round 3: hospital-1 failed (failed, it says)" in page.text
    for answer in ("declined", "failed", "quarantined", "late", "absent"):
        assert f"{matrix.LETTERS[answer]} {answer} hospital-1 1" in page.text, answer
    assert "Answers used 7 of 12" in page.text
    site = browser.settled("/study/mixed/site/hospital-1")
    assert "late: the answer came after the round's end (1)" in site.text
    assert "quarantined, it says" in site.text


def test_the_same_reason_in_many_rounds_is_one_line(browser, real, runs):
    write(runs, "gone", of(["UAAAUAUU", "UUUUUUUU"]))
    page = browser.settled("/study/gone")
    assert "rounds 2–4, 6: hospital-0 absent (absent, it says)" in page.text
    assert page.text.count("absent, it says") == 2  # in the reasons, and in the list below the matrix
    assert "A absent hospital-0 4 2–4, 6 absent, it says" in page.text


def test_what_a_hospital_says_stays_a_text(browser, real, runs):
    record = of(["UF", "QU"], sites=["north", "<b>south</b>"], reasons={"north": HOSTILE, "<b>south</b>": HOSTILE})
    record["stopped_early"] = HOSTILE
    record["faults"] = [{"fault": HOSTILE, "site": HOSTILE, "rounds": [1, HOSTILE]}]
    record["resumed"] = [{"after_round": 1, "when": HOSTILE, "engine": HOSTILE}]
    record["study"]["task"] = {"name": HOSTILE}
    heard = {"north": Heard(answer="failed", at=time.time(), reason=HOSTILE)}
    asked = {"north": time.time(), HOSTILE: time.time()}
    write(runs, "bad", record, moment(record, phase="round", round=3, asked=asked, heard=heard))
    for path in ("/study/bad", "/study/bad/site/north", "/study/bad/site/%3Cb%3Esouth%3C%2Fb%3E", "/"):
        if "2F" in path:  # a name with a slash is no study's; see conf.study.Name
            assert browser.get(path).status_code == 404
            continue
        page = browser.settled(path)
        assert not [tag for tag, _ in page.tags if tag in ("script", "img", "b")], path
        raw = browser.get(path).text
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f]", raw), path
    page = browser.read("/study/bad")
    assert SHOWN in page.text
    assert any(SHOWN in (attributes.get("title") or "") for _, attributes in page.tags)
    assert "49" not in page.text.replace(record["study_hash"], "")


def test_a_study_that_runs_tells_who_is_awaited(browser, real, runs):
    record = of(["UU", "UU", "UU"], sites=["north", "south", "west"], rounds=8, ended="")
    at = time.time()
    now = moment(
        record,
        phase="round",
        round=3,
        began=at - 200,
        deadline=at + 400,
        asked=dict.fromkeys(("north", "south", "west"), at - 200),
        heard={"south": Heard(answer="declined", at=at, reason="paused")},
    )
    write(runs, "under-way", record, now, Standing(study_hash=record["study_hash"], started="2026-11-22T08:15:00Z"))
    page = browser.settled("/study/under-way")
    assert ("meta", {"http-equiv": "refresh", "content": "10"}) in page.tags
    assert "Round 3 of 8: no verdict yet" in page.text
    assert "Failed" not in page.text
    assert "rounds were run" not in page.text
    assert "2 of 3 hospitals are awaited, the longest first: north for 3 min west for 3 min" in page.text
    assert "in 7 min" in page.text
    assert [text for text, _, _ in page.cells] == ["U", "U", "?", "U", "U", "D", "U", "U", "?"]
    assert page.cells[5][2] == "round 3, under way: declined (paused)"
    assert "Awaited for 3 min" in browser.read("/study/under-way/site/west").text
    assert "Awaited" not in browser.read("/study/under-way/site/south").text
    assert "under-way runs not yet 3 of 8 3 2026-11-22" in browser.settled("/").text


def test_who_was_not_asked_is_told_beside_who_is_awaited(browser, real, runs):
    record = of(["UU", "UU", "AA"], sites=["north", "south", "west"], rounds=8, ended="")
    at = time.time()
    asked = dict.fromkeys(("north", "south"), at - 200)
    write(runs, "two-of-three", record, moment(record, phase="round", round=3, began=at - 200, asked=asked))
    text = browser.settled("/study/two-of-three").text
    assert "2 of 3 hospitals are awaited, the longest first: north for 3 min south for 3 min" in text
    assert "Not asked, because nothing says that they take part: west." in text


def test_a_hospitals_price_is_told_as_of_when_it_told(browser, real, runs):
    record = of(["UU", "UU"], sites=["north", "south"])
    record["rounds"][1]["sites"]["south"] |= {"answer": "failed", "reason": "lost", "epsilon": None, "attempts": 2}
    write(runs, "lossy", record)
    assert "when it last told (round 1); delta" in browser.settled("/study/lossy/site/south").text
    assert "in its ledger, as it says; delta" in browser.settled("/study/lossy/site/north").text


def test_the_quorum_of_a_secure_study_is_what_its_sums_need(browser, real, runs):
    keys = dict.fromkeys(("a", "b", "c"), "ecdsa-sha2-nistp384 AAAA")
    record = of(["UU", "UU", "UU"], sites=list(keys))
    record["study"]["strategy"]["quorum"] = 2
    write(runs, "alone", record)
    assert "a round counts with 2 usable answers or more" in browser.settled("/study/alone").text
    record["study"]["privacy"]["secure"] = {"keys": keys, "patients": 30, "threshold": None, "colluding": 1}
    write(runs, "masked", record)
    assert "a round counts with 3 usable answers or more" in browser.settled("/study/masked").text


def test_a_process_that_is_gone_has_interrupted_its_study(browser, real, runs):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    record = of(["UU", "UA"], rounds=5, ended="")
    asked = dict.fromkeys(record["study"]["sites"], time.time())
    write(runs, "killed", record, moment(record, phase="round", round=3, pid=child.pid, asked=asked))
    page = browser.settled("/study/killed")
    assert "Interrupted after round 2 of 5" in page.text
    assert "konsil-study resume killed" in page.text
    assert "Failed" not in page.text
    assert "2 of 5 rounds were run" not in page.text
    assert "So far: round 2: hospital-1 absent" in page.text
    assert "awaited" not in page.text
    assert not [1 for _, attributes in page.tags if attributes.get("http-equiv")]
    assert "killed interrupted not yet 2 of 5" in browser.settled("/").text


def test_a_study_is_stopped_by_whoever_stopped_it(browser, real, runs):
    record = of(["UU", "UU"], rounds=5, ended="")
    standing = Standing(study_hash=record["study_hash"], wanted="stopped", why="it broke off three times")
    write(runs, "halted", record, standing=standing)
    page = browser.settled("/study/halted")
    assert "✗ Failed: there is no result to rely on It was stopped after round 2 of 5: it broke off three times" in page.text
    assert "2 of 5 rounds were run" in page.text
    assert "halted stopped ✗ failed" in browser.settled("/").text


def test_a_study_that_was_started_and_has_said_nothing_waits(browser, runs):
    (runs / "new").mkdir()
    Standing(study_hash="0" * 64, started="2026-11-22T08:15:00Z").write(runs / "new")
    assert "new has not begun – – – 2026-11-22 08:15" in browser.read("/").text
    assert "the study has not begun" in browser.read("/study/new").text
    assert browser.get("/study/new/site/north").status_code == 404


def test_no_studies_are_told_too(browser, runs):
    assert "No study has been started here yet" in browser.read("/").text
    runs.rmdir()
    assert "No study has been started here yet" in browser.read("/").text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is no JSON"),
        ('{"schema": "konsil-record/1", "name": "x", "study": {', "it is no JSON"),
        ("\x00\x01", "it is no JSON"),
        ("[]", "it has schema None; this konsil reads 'konsil-record/1'"),
        ('{"schema": "konsil-record/9"}', "it has schema 'konsil-record/9'"),
        ('{"schema": "konsil-record/1"}', "it is no record that this konsil knows"),
        ("[" * 100_000, "it is no JSON"),
    ],
)
def test_a_record_that_is_none_is_told_and_hides_no_other(browser, real, runs, text, told):
    write(runs, "broken", text)
    listed = browser.settled("/")
    assert told in listed.text
    assert "pilot ended ✓ complete" in listed.text
    assert told in browser.settled("/study/broken").text
    assert browser.get("/study/broken/site/north").status_code == 404
    write(runs, "broken", REAL["record"])  # and it is read again once it changes
    assert "✓ Complete" in browser.settled("/study/broken").text


def test_rounds_that_are_broken_are_told(browser, real, runs):
    for rounds in ("none", [{"round": 1}], [{**REAL["record"]["rounds"][0], "sites": {"north": {"answer": "perhaps"}}}]):
        write(runs, "broken", {**REAL["record"], "rounds": rounds})
        assert "its record can't be read" in browser.settled("/study/broken").text


def test_other_files_that_are_broken_are_told_or_left_out(browser, real, runs):
    (real / "now.json").write_text('{"phase": "rou')
    (real / "run.json").write_text("{")
    page = browser.settled("/study/pilot")
    assert "run.json can't be read; a person has to look" in page.text
    assert "✓ Complete" in page.text


def test_a_record_of_an_older_konsil_is_shown_without_what_it_does_not_say(browser, real, runs):
    record = copy.deepcopy(REAL["record"])
    for name in ("evaluation", "matrix", "selected_round", "stopped_early", "started", "ended", "resumed", "faults", "counts"):
        del record[name]
    record["study"] = {"name": "old", "rounds": 2, "sites": ["north", "south"], "privacy": {}}
    for entry in record["rounds"]:
        for name in ("moved", "validation", "ended"):
            entry.pop(name, None)
        entry["sites"] = {name: {"answer": "used"} for name in ("north", "south")}
    write(runs, "old", record)
    page = browser.settled("/study/old")
    assert "✓ Complete" in page.text
    assert [text for text, _, _ in page.cells] == ["U", "U", "U", "U", "", ""][: len(page.cells)]
    assert "old ended ✓ complete" in browser.settled("/").text
    assert "Used 2 of 2" in browser.settled("/study/old/site/south").text


def test_a_planned_answer_that_is_missing_is_called_missing(browser, real, runs):
    record = of(["UU", "UU"])
    del record["rounds"][1]["sites"]["hospital-1"]
    write(runs, "silent", record)
    page = browser.settled("/study/silent")
    assert "1 planned answers are not accounted for" in page.text
    assert page.cells == [] or "the record says nothing" in str(page.tags)


def rich(runs):
    """A study with scores, a matrix, counts, faults and an interruption."""
    said = {name: {"answer": "used"} for name in ("north", "south", "west")}
    record = of(["UUUU"] * 3, sites=["north", "south", "west"])
    for number, dice in ((2, 0.61), (4, 0.58)):
        record["rounds"][number - 1]["validation"] = {
            "sites": {**said, "west": {"answer": "late", "reason": "4 s after the end"}},
            "total": [1.0],
            "noise_std": 0.5,
            "seconds": 3.0,
            "scores": {"dice": dice, "noise_sd/dice": 0.05, "loss": float("nan")},
        }
    record["study"]["validation"] = {"every": 2, "patience": None, "metric": "dice"}
    record["selected_round"] = 2
    record["evaluation"] = {
        "sites": {**said, "north": {"answer": "declined", "reason": "no"}},
        "total": [9.0],
        "noise_std": 0.25,
    }
    record["evaluation"] |= {"seconds": 2.0, "scores": {"dice": 0.777, "noise_sd/dice": 0.0621, "patients/dice": 9.0}}
    record["remarks"] = ["matrix: what so few patients say drowns in the noise"]
    scores = {"global": {"north": 0.7, "south": 0.8}, "north": {"north": 0.75, "south": 0.5}}
    record["matrix"] = {"metric": "dice", "scores": scores, "noise_std": {"north": 0.1}, "sites": said, "seconds": 1.0}
    record["matrix"]["noise_sd"] = {"global": {"north": 0.0123}}
    table = {"fields": ["sex"], "cells": [["F"], ["M"]], "counts": [1234, None], "fewer_than": 20, "noise_sd": 3.0}
    record["counts"] = [table, {"fields": [], "cells": [[]], "counts": [7], "fewer_than": 0, "noise_sd": 0.0}]
    record["faults"] = [{"fault": "slow", "site": "west", "rounds": [2, 3], "factor": 3.0}]
    record["resumed"] = [{"after_round": 3, "when": "2026-11-22T09:00:00Z", "engine": "flower"}]
    record["profile"] = "small"
    return write(runs, "rich", record)


def test_scores_matrix_counts_faults_and_interruptions_are_told(browser, real, runs):
    rich(runs)
    page = browser.settled("/study/rich")
    assert "The result is the model of round 2" in page.text
    assert "chosen by scores of validation patients: the latest that the noise doesn't tell from the best" in page.text
    assert "matrix: what so few patients say drowns in the noise" in page.text
    assert "dice, on validation patients" in page.text
    assert "loss, on" not in page.text  # no number of it is one
    assert "noise_sd" not in page.text.partition("Every setting")[0]  # stands beside its score, and is none
    assert "patients/dice" not in page.text
    assert "L late west 2 2, 4 4 s after the end" in page.text
    assert "dice 0.777 (noise alone: ± 0.0621)" in page.text
    assert "Final scores: 2 of 3 hospitals answered. D north declined: no" in page.text
    assert "Model of at north at south all together 0.7 0.8 north 0.75 0.5" in page.text
    assert "noise alone: ± 0.0123" in str(page.tags)
    assert "How many patients by sex sex Patients F 1 234 M fewer than 20" in page.text
    assert "Who Patients everybody 7" in page.text
    assert "slow rounds 2 to 3, site west, factor 3" in page.text
    assert "After round Went on (UTC) With 3 2026-11-22 09:00 flower" in page.text
    assert "A rehearsal in the size small" in page.text
    site = browser.settled("/study/rich/site/west")
    assert "L validation after rounds 2, 4: late (4 s after the end)" in site.text


def test_what_nobody_foresaw_is_a_number_on_the_page_and_the_rest_in_the_log(browser, real, monkeypatch, caplog):
    def fail(course):
        raise RuntimeError("the secret of north")

    monkeypatch.setattr("fl_server.page.app.views.facts", fail)
    page = browser.read("/study/pilot", status=500)
    number = re.search(r"Failure ([0-9a-f]{8}) in the page's log", page.text)[1]
    assert "secret" not in page.text
    assert (f"failure {number}" in caplog.text, "the secret of north" in caplog.text) == (True, True)


# -- files ------------------------------------------------------------------------------------------------------------


def test_listed_files_are_served_safely_and_no_others(browser, real, tmp_path):
    (real / "clinical_report.html").write_text("<p>for clinicians")
    (real / "report.html").write_text("<style>p{}</style><script>alert(1)</script><p>report")
    (real / "report.pdf").write_bytes(b"%PDF-1.7")
    (real / "model.pt").write_bytes(b"weights")
    page = browser.settled("/study/pilot")
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a" and "/file/" in attributes["href"]]
    assert links == [
        f"/study/pilot/file/{name}" for name in ("clinical_report.html", "report.html", "report.pdf", "record.json")
    ]
    report = browser.get("/study/pilot/file/report.html")
    assert report.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in report.headers["content-security-policy"]
    assert "script-src" not in report.headers["content-security-policy"]
    assert report.headers["content-length"] == str(len(report.content))
    pdf = browser.get("/study/pilot/file/report.pdf")
    assert (pdf.headers["content-type"], pdf.content) == ("application/pdf", b"%PDF-1.7")
    assert pdf.headers["content-disposition"] == "attachment; filename*=UTF-8''pilot-report.pdf"
    assert browser.get("/study/pilot/file/record.json").json()["name"] == "pilot"
    outside = tmp_path / "secret"
    outside.write_text("secret")
    (real / "report.html").unlink()
    (real / "report.html").symlink_to(outside)
    os.mkfifo(real / "fifo")
    (real / "report.pdf").unlink()
    (real / "fifo").rename(real / "report.pdf")
    tried = ["report.html", "report.pdf", "model.pt", "run.json", "..%2f..%2fsecret", "%2e%2e%2fsecret", "record.json%00", ""]
    for name in tried:
        answer = browser.get(f"/study/pilot/file/{name}")
        assert answer.status_code == 404, name
        assert "secret" not in answer.text.replace("secret", "", answer.text.count(f"file/{name}"))


@pytest.mark.parametrize("name", ["%2e%2e", "%2e", "..%2f..", "~", "..~..", "pilot%00", "%2fetc", "nobody", "PILOT"])
def test_addresses_of_what_is_no_study_are_not_found(browser, real, name):
    for path in (f"/study/{name}", f"/study/{name}/site/north", f"/study/{name}/file/record.json"):
        answer = browser.get(path)
        assert answer.status_code in (404, 303), path
        assert "north" not in answer.text


def test_cards_of_models_that_came_of_the_study_are_linked(door, real, runs):
    for name, number, study_hash in (("heart", 1, REAL["record"]["study_hash"]), ("other", 1, "0" * 64)):
        folder = door.registry / name / str(number)
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps({"study_hash": study_hash}))
        (folder / "card.md").write_text("# <script>")
    line = {"name": "heart", "version": 1, "standing": "withdrawn", "reason": "wrong masks <i>"}
    (door.registry / "log.jsonl").write_text(json.dumps(line) + "\n")
    browser = Browser(door).log_in()
    page = browser.settled("/study/pilot")
    assert "Card of the model heart, version 1 withdrawn: wrong masks <i>" in page.text
    assert "other" not in page.text
    card = browser.get("/study/pilot/card/heart/1")
    assert (card.text, card.headers["content-type"]) == ("# <script>", "text/plain; charset=utf-8")
    for path in ("other/1", "heart/2", "..%2f/1", "heart/.."):
        assert browser.get(f"/study/pilot/card/{path}").status_code in (303, 404)


def test_arms_of_a_rehearsal_have_addresses_too(door, real, runs):
    arm = real / "arms" / "federation_private" / "0"
    arm.mkdir(parents=True)
    (arm / "record.json").write_text(json.dumps(REAL["record"]))
    browser = Browser(Door(**{**door.__dict__, "runs": real})).log_in()
    listed = browser.settled("/")
    assert "arms/federation_private/0" in listed.text
    for path in ("/study/pilot", "/study/arms~federation_private~0"):
        assert ("a", {"href": path}) in listed.tags
        assert "✓ Complete" in browser.settled(path).text
    assert browser.get("/study/arms~federation_private~0/file/record.json").json()["name"] == "pilot"


# -- many hospitals and rounds ----------------------------------------------------------------------------------------


def crowd(sites, rounds):
    """A record of many hospitals and rounds: every seventh answer is missing, each hospital with reasons of its own."""
    record = of(["U", "A"])
    names = [f"hospital-{number:04}" for number in range(sites)]
    used, absent = ({**entry} for entry in record["rounds"][0]["sites"].values())
    record["study"] |= {"sites": names, "rounds": rounds}
    record["sites"] = {}
    record["rounds"] = [
        {
            **record["rounds"][0],
            "round": number,
            "sites": {
                name: used if (at + number) % 7 else {**absent, "reason": f"{name} did not answer in 60 s"}
                for at, name in enumerate(names)
            },
        }
        for number in range(1, rounds + 1)
    ]
    told = [(entry["round"], name, said) for entry in record["rounds"] for name, said in entry["sites"].items()]
    record["reasons"] = [f"round {at}: {name} absent (x)" for at, name, said in told if said["answer"] == "absent"]
    return record


def test_a_thousand_hospitals_are_paged_and_the_page_stays_small(browser, real, runs):
    write(runs, "crowd", crowd(1000, 60))
    page = browser.settled("/study/crowd")
    assert "hospitals, page 1 of 25" in page.text
    assert "A column is 2 rounds" in page.text
    assert len([1 for tag, attributes in page.tags if tag == "tr"]) < 200
    start = time.perf_counter()
    answer = browser.get("/study/crowd")
    assert time.perf_counter() - start < 3.0  # 0.2 s on a machine with nothing else to do
    assert len(answer.content) < 500_000
    assert [attributes["x"] for tag, attributes in page.tags if tag == "rect" and attributes["class"] == "used"]
    second = browser.read("/study/crowd?order=study&page=2")
    assert "hospital-0040" in second.text
    assert "Rounds 5 to 6." in browser.read("/study/crowd?first=5&last=6").text
    for odd in ("page=-1", "page=999999", "page=x", "first=9&last=2", "first=0&last=0", "order=%00", "first=999999", "last=é"):
        assert browser.get(f"/study/crowd?{odd}").status_code == 200, odd


def test_five_hundred_rounds_are_put_together_and_open_one_by_one(browser, real, runs):
    record = of(["U" * 250 + "L" + "U" * 249, "U" * 500])
    write(runs, "long", record)
    page = browser.settled("/study/long")
    cells = page.cells[: len(page.cells) // 2]
    assert len(cells) <= matrix.COLUMNS
    assert [text for text, _, _ in cells if text != "U"] == ["L1"]
    assert next(title for text, _, title in cells if text == "L1").endswith("12 used, 1 late")
    assert next(kinds for text, kinds, _ in cells if text == "L1") == ["late", "mixed"]
    opened = browser.read("/study/long?first=243&last=253")
    assert [text for text, _, _ in opened.cells[:11]] == ["U"] * 8 + ["L"] + ["U"] * 2
    assert "page 1 of 2, the newest first" in browser.settled("/study/long/site/hospital-0").text


def test_what_is_packed_is_what_stands_in_the_record(real, runs):
    folder = write(runs, "packed", of(["UDFQLA", "AAAAAA"]))
    course = read(folder / "record.json")
    record = Record.read(folder / "record.json")
    for row, entry in enumerate(record.rounds):
        for column, name in enumerate(course.sites):
            said = entry.sites[name]
            assert list(matrix.LETTERS)[course.told.answers[row, column]] == said.answer
            assert course.told.reasons.get((row, column), "") == said.reason
            for table, value in ((course.told.epsilon, said.epsilon), (course.told.seconds, said.seconds)):
                assert np.isnan(table[row, column]) if value is None else table[row, column] == pytest.approx(value)
    counted = matrix.tally(course.told)
    assert {name: counted[name] for name in counted} == {n: record.accounting[n] for n in counted}


def test_a_record_is_read_once_and_the_last_one_is_shown_meanwhile(real):
    shelf = Shelf(kept=1)
    first = shelf.book(real, wait_s=20).course
    assert shelf.book(real, wait_s=0).course is first
    changed = copy.deepcopy(REAL["record"])
    changed["rounds"].pop()
    write(real.parent, "pilot", changed)
    old = shelf.book(real, wait_s=0)
    assert (old.reading, old.course is first) in ((True, True), (False, False))
    assert shelf.book(real, wait_s=20).course.done == 1
    other = write(real.parent, "other", REAL["record"])
    shelf.book(other, wait_s=20)
    assert shelf.book(real, whole=False, wait_s=0).summary.done == 1  # kept, though the course is not
    assert shelf.book(real, wait_s=20).course.done == 1


# -- curves -----------------------------------------------------------------------------------------------------------


def test_curves_lie_where_their_values_do():
    drawn = curves.chart("t", [1, 2, 3], [("a", [0.0, 5.0, 10.0])], level=("promised", 20.0))
    (line,) = drawn.lines
    points = [tuple(map(float, pair.split(","))) for pair in line.pieces[0].split()]
    xs, ys = zip(*points, strict=True)
    assert xs == (curves.LEFT, (curves.LEFT + curves.WIDTH - curves.RIGHT) / 2, curves.WIDTH - curves.RIGHT)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert ys[0] - drawn.levels[0].at == pytest.approx(2 * (ys[0] - ys[2]), abs=0.4)
    assert [text for _, text in drawn.across] == ["1", "2", "3"]
    assert [text for _, text in drawn.up] == ["0", "10", "20"]


def test_ledgers_that_say_the_same_are_one_line_and_many_are_a_range(real, runs):
    def lines(record):
        (drawn,) = [one for one in curves.of_study(read(write(runs, "x", record) / "record.json")) if "Epsilon" in one.title]
        return [line.name for line in drawn.lines], bool(drawn.band)

    def apart(record):
        for entry in record["rounds"]:
            for place, said in enumerate(entry["sites"].values()):
                said["epsilon"] = 1.0 + place
        return record

    assert lines(of(["UU", "UU"])) == (["all 2 hospitals"], False)
    assert lines(apart(of(["UU", "UU"]))) == (["hospital-0", "hospital-1"], False)
    assert lines(apart(of(["UU"] * 7))) == (["median hospital"], True)


def test_curves_break_where_there_is_no_value_and_nothing_draws_nothing():
    nan, inf = float("nan"), float("inf")
    (line,) = curves.chart("t", range(1, 7), [("a", [1.0, 2.0, nan, 4.0, inf, 6.0])]).lines
    assert len(line.pieces) == 1
    assert len(line.dots) == 4
    assert curves.chart("t", [1, 2], [("a", [nan, inf])]) is None
    assert curves.chart("t", [5], [("a", [3.0])]).lines[0].dots
    long = curves.chart("t", range(5000), [("a", [float(at % 7) for at in range(5000)])])
    assert len(long.lines[0].pieces[0]) < 5000


# -- the command, as a process, in a browser --------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path):
    return House.create(tmp_path / "coordinator", hosts=["coordinator.example"])


def started(*arguments):
    """The page as a process: it, and its first lines."""
    command = [sys.executable, "-m", "fl_server", "page", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = process.stdout.readline().rpartition(" ")[2].strip().rstrip("/")
    said = process.stdout.readline()
    for _ in range(200):
        try:
            assert httpx.get(f"{address}/health").text == "up\n"
            return process, address, said
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the page does not answer")


def ended(process):
    process.terminate()
    assert process.wait(10) in (0, -15)
    assert "Traceback" not in process.stdout.read()
    process.stdout.close()


def test_the_settings_ask_for_the_page_by_a_word_or_a_port(house):
    path = house.folder / "coordinator.yaml"
    text = path.read_text().replace("page: null\n", "")
    for said, found in (("true", PageSettings()), ("false", None), ("{port: 9000}", PageSettings(port=9000))):
        path.write_text(f"{text}page: {said}\n")
        assert House.load(house.folder).page == found
    path.write_text(f"{text}page: {{port: {house.port}}}\n")
    with pytest.raises(ValueError, match="they must differ"):
        House.load(house.folder)


def test_the_command_serves_a_coordinators_studies_and_a_new_token_ends_sessions(house, real, capsys):
    process, address, said = started("--folder", house.folder)
    try:
        assert str(token_path(house.folder)) in said
        assert httpx.get(f"{address}/").headers["location"] == "/login"
        assert "server" not in httpx.get(f"{address}/login").headers
        with httpx.Client(base_url=address) as client:
            csrf = re.search(r'name="csrf" value="(.*?)"', client.get("/login").text)[1]
            client.post("/login", data={"csrf": csrf, "token": token(token_path(house.folder))})
            assert "pilot" in client.get("/").text
            assert main(["page-token", "--folder", str(house.folder)]) == 0
            assert token(token_path(house.folder)) in capsys.readouterr().out
            assert client.get("/").status_code == 303
        port = address.rpartition(":")[2]
        assert main(["page", "--folder", str(house.folder), "--port", port]) == 1
        assert "Address already in use" in capsys.readouterr().err
    finally:
        ended(process)
    assert main(["page", "--runs", str(house.folder / "nowhere")]) == 1


def test_beside_a_server_it_runs_if_it_is_asked_for_and_ends_with_it(house):
    with page_beside(house):
        assert not (house.folder / "log" / "page.log").exists()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = house.model_copy(update={"page": PageSettings(port=port)})
    path = house.folder / "coordinator.yaml"
    path.write_text(path.read_text().replace("page: null", f"page: {{port: {port}}}"))
    with page_beside(settings):
        for _ in range(200):
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/health").text == "up\n"
                break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            raise AssertionError((house.folder / "log" / "page.log").read_text())
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health")


WEEK = {
    "alster": "UUUUUUUU",
    "donau": "UUUUUUUU",
    "elbe": "UUULUUUU",
    "isar": "UUUUAAAU",
    "main": "UDDDDDDD",
    "rhein": "UUUUUUQU",
    "spree": "UUUUUFUU",
}
WHY = {
    "elbe": "answered 42 s after the round's end",
    "isar": "no answer within 1 h; asked 2 times",
    "main": "the hospital's budget is spent: round 2 would bring epsilon to 3.06, over its 3 (delta 1e-05)",
    "rhein": "the update's norm is 81.2, more than 10 times the median of the others, 0.94",
    "spree": "failure 5d0c1f3a: the hospital's log says more",
}


def week(runs):
    """A study that runs, with everything that a week brings; its page is in the documentation."""
    record = of(list(WEEK.values()), sites=list(WEEK), rounds=12, reasons=WHY, ended="", started="2026-11-16T07:30:00Z")
    record["name"] = "hospital-week"
    rng = np.random.default_rng(0)
    for entry in record["rounds"]:
        slow = 300 + 60 * rng.random()
        entry["seconds"] = 3600.0 if "A" in [WEEK[name][entry["round"] - 1] for name in WEEK] else 60 + slow
        for place, (name, said) in enumerate(entry["sites"].items()):
            if said["seconds"] is not None:
                said["seconds"] = (slow if name == "elbe" else 100 + 20 * place) + 20 * rng.random()
                said["epsilon"] = 8.0 * (entry["round"] / 12) ** 0.55 + 0.12 * place
                said["bytes"], said["steps"] = 1_658_065, 4
                record["sites"][name] = {**record["sites"][name], "epsilon": said["epsilon"]}
            elif said["answer"] == "absent":
                said["attempts"] = 2
        dice = 0.82 - 0.5 * 0.7 ** entry["round"] + 0.012 * rng.normal()
        entry["validation"] = {
            "sites": {name: {"answer": "used"} for name in WEEK},
            "total": [1.0],
            "noise_std": 0.8,
            "seconds": 20.0,
            "scores": {"dice": dice},
        }
    record["study"]["validation"] = {"every": 1, "patience": None, "metric": "dice"}
    record["resumed"] = [{"after_round": 5, "when": "2026-11-19T22:14:00Z", "engine": "flower"}]
    at = time.time()
    asked = dict.fromkeys(WEEK, at - 640)
    heard = {name: Heard(answer="used", at=at) for name in ("alster", "donau", "spree")}
    heard["main"] = Heard(answer="declined", at=at, reason=WHY["main"])
    now = moment(record, phase="round", round=9, began=at - 640, deadline=at + 2960, asked=asked, heard=heard)
    return write(runs, "hospital-week", record, now, Standing(study_hash=record["study_hash"], started=record["started"]))


HEADINGS = {
    "/": ["Studies", "What the words mean"],
    "/study/hospital-week": [
        *("Study hospital-week runs", "Now", "Who answered every planned hospital has a field in every round"),
        *("What was not used, and why", "Over the rounds", "Interruptions", "What was agreed"),
    ],
    "/study/hospital-week/site/isar": ["isar in the study hospital-week", "Round by round"],
    "/study/pilot": ["Study pilot ended", "Over the rounds"],
    "/study/rich": [
        *(
            "Scores",
            "Who gave no scores between rounds",
            "Every model at every hospital dice; the stronger the colour, the higher",
        ),
        *("How many patients by sex", "How many patients", "Faults that were made on purpose", "Interruptions"),
    ],
    "/study/crowd": ["Study crowd interrupted"],
}


def test_a_browser_shows_every_view_within_its_margins_and_complains_of_nothing(house, real, tmp_path):
    if chromium.program() is None:
        pytest.skip("no chromium on this machine")
    week(house.runs)
    rich(house.runs)
    record = crowd(120, 200)
    write(house.runs, "crowd", {**record, "study": {**record["study"], "rounds": 300}, "ended": ""})
    process, address, _ = started("--folder", house.folder)
    browser = None
    try:
        browser = chromium.Chromium(tmp_path / "profile")
        for width in (1280, 380):
            door = browser.look(f"{address}/login", width=width)
            assert (door["headings"], door["beyond"], door["wide"]) == (["coordinator.example: studies"], [], width)
        browser.log_in(f"{address}/login", token(token_path(house.folder)))
        panels = set()
        for scheme in ("light", "dark"):
            browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            for path, headings in HEADINGS.items():
                for width in (1280, 380):
                    if scheme == "dark" and path != "/study/hospital-week":  # colours change no margins
                        continue
                    seen = look(browser, address + path, width)
                    assert seen["address"] == path
                    assert [one for one in headings if one not in [" ".join(head.split()) for head in seen["headings"]]] == []
                    assert (seen["beyond"], seen["wide"]) == ([], width), path
                    # on a phone the matrix is moved with a finger; its hospitals stay
                    assert seen["hidden"] == [] or width == 380, (path, seen["hidden"])
                    panels.add((scheme, seen["panel"]))
        assert panels == {("light", "rgb(245, 247, 249)"), ("dark", "rgb(27, 34, 41)")}  # the style sheet was let in
    finally:
        if browser is not None:
            browser.close()
        ended(process)
    assert browser.complaints == []


def look(browser, address, width):
    """As `Chromium.look`, of a page that comes again as long as its study runs; a picture if KONSIL_PICTURES is a folder."""
    browser.size(width, 800)
    for _ in range(50):
        browser.go(address)
        if "is being read" not in browser.value("document.body.innerText"):
            break
        time.sleep(0.2)
    seen = browser.value(chromium.LOOK)
    if folder := os.environ.get("KONSIL_PICTURES"):
        browser.size(width, seen["tall"])
        name = f"{address.partition('/study/')[2].replace('/', '_') or 'list'}_{width}"
        shade = "dark" if browser.value("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
        picture = base64.b64decode(browser.ask("Page.captureScreenshot", format="png")["data"])
        (Path(folder) / f"{name}_{shade}.png").write_bytes(picture)
    return seen


def test_a_study_that_waits_for_approvals_says_for_whom_and_why(browser, real, runs):
    record = of(["UU", "UU", "UU"], sites=["north", "south", "west"], rounds=8, ended="") | {"rounds": [], "reasons": []}
    at = time.time()
    missing = {"north": "nobody at north has approved study pilot (1d4173cd0424) yet", "west": "no machine is connected"}
    now = moment(
        record,
        phase="enrolling",
        round=0,
        began=at - 7200,
        deadline=at + 86400,
        needed=2,
        asked=dict.fromkeys(missing, at - 7200),
        missing=missing,
    )
    write(runs, "undecided", record, now, Standing(study_hash=record["study_hash"], started="2026-11-22T08:15:00Z"))
    page = browser.settled("/study/undecided")
    assert "It waits until 2 take part" in page.text
    assert "north for 2 h: nobody at north has approved study pilot (1d4173cd0424) yet" in page.text
