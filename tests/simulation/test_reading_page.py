"""The reading in a browser: what leaves the server tells nothing, a kill loses nothing, and keys, wheel and buttons work."""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import chromium
import httpx
import pytest
from drawn_reading import EACH, cohorts

from simulation.reading.answers import read
from simulation.reading.deck import kept

TOTAL = 2 * EACH
CSRF = re.compile(r'name="csrf" value="(\w+)"')
SAYS_WHERE = re.compile(r"Scan (\d+) of")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return cohorts(tmp_path_factory.mktemp("reading"))


class Served:
    """The command as a process, and browsers without a window."""

    def __init__(self, folders, answers):
        command = [sys.executable, "-m", "simulation.reading", *map(str, folders), "--answers", str(answers), "--port", "0"]
        self.answers, self.browsers = answers, []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said = self.process.stdout.readline()
        self.address = self.said.rpartition(" ")[2].strip().rstrip("/")
        self.process.stdout.readline()
        for _ in range(400):
            try:
                assert httpx.get(f"{self.address}/health").text == "up\n"
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the page does not answer")

    @property
    def token(self):
        return (self.answers / "page.token").read_text().strip()

    def reader(self, name):
        """A browser that has logged in."""
        browser = httpx.Client(base_url=self.address, timeout=30)
        self.browsers.append(browser)
        csrf = CSRF.search(browser.get("/login").text)[1]
        inside = browser.post("/login", data={"csrf": csrf, "reader": name, "token": self.token})
        assert (inside.status_code, inside.headers["location"]) == (303, "/")
        return browser

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _close(self):
        for browser in self.browsers:
            browser.close()

    def end(self):
        self._close()
        self.process.terminate()
        assert self.process.wait(20) in (0, -signal.SIGTERM)
        said = self.process.stdout.read()
        self.process.stdout.close()
        assert said == ""


@pytest.fixture(scope="module")
def served(folders, tmp_path_factory):
    """One server for readers of different names."""
    one = Served(folders, tmp_path_factory.mktemp("served") / "answers")
    yield one
    one.end()


def say(browser, answer, certainty, position=None):
    """Answer the current scan, or that of another position."""
    page = browser.get("/").text
    csrf = CSRF.search(page)[1]
    position = position or SAYS_WHERE.search(page)[1]
    return browser.post(f"/scans/{position}", data={"csrf": csrf, "answer": answer, "certainty": certainty})


def told(answer, position):
    """Headers and text of an answer, without what hangs on the clock, the session and the scan's number."""
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in ("date", "content-length"))
    text = re.sub(r'<p class="note.*?</p>', "", CSRF.sub("", answer.text), flags=re.S)
    for of_this in (f"Scan {position}", f"/scans/{position}", f'value="{position - 1}" aria-label="answered"'):
        assert of_this in text
        text = text.replace(of_this, "?")
    return headers, text


def test_nothing_that_leaves_before_the_end_tells_real_from_synthetic(served):
    browser = served.reader("carla")
    pages, pictures, lengths, seen = {}, {}, set(), []
    for position in range(1, TOTAL + 1):
        page = browser.get("/")
        names = re.findall(r'<img src="([^"]+)"', page.text)
        assert names == [f"/scans/{position}/{number}.png" for number in range(1, 7)]
        pages[position] = told(page, position)
        lengths.add(len(page.content))
        for name in names:
            found = browser.get(name)
            assert found.headers["content-type"] == "image/png"
            pictures[name] = (sorted(one for one in found.headers.items() if one[0] != "date"), len(found.content))
        seen.append((browser.get(names[0]).content, page.text))
        given = say(browser, "real", "3")
        assert (given.status_code, given.headers["location"], given.content) == (303, "/", b"")
    reading = kept(served.answers)
    order = [reading.kinds[name] for name in reading.order("carla")]
    assert sorted(order) == ["real"] * EACH + ["synthetic"] * EACH
    assert len({json.dumps(one) for one in pages.values()}) == 1
    assert len({json.dumps(one) for one in pictures.values()}) == 1
    assert len(lengths) == 2  # the first page has a note, whichever kind it shows
    hidden = [*reading.scans, *(entry.patient for entry in reading.scans.values()), str(served.answers), reading.real, "G00000"]
    for picture, text in seen:
        assert not [word for word in hidden if word in text or word.encode() in picture]
    assert "You were right on 3 of 6 scans" in browser.get("/").text
    assert "sensitivity" not in "".join(text for _, text in seen).lower()


def test_only_the_current_scan_can_be_had_and_an_answer_stays(served):
    browser = served.reader("bruno")
    assert say(browser, "synthetic", "5").status_code == 303
    assert browser.get("/scans/2/1.png").status_code == 200
    for path in ("/scans/1/1.png", "/scans/3/1.png", "/scans/2/0.png", "/scans/2/7.png", "/scans/x/1.png", "/answers.jsonl"):
        assert browser.get(path).status_code == 404, path
    assert say(browser, "synthetic", "5", position=1).status_code == 303  # the same form, sent twice
    changed = say(browser, "real", "5", position=1)
    assert (changed.status_code, "was answered “synthetic, 5”, and that stays" in changed.text) == (409, True)
    assert say(browser, "real", "5", position=3).status_code == 404
    for answer, certainty in (("", "3"), ("real", ""), ("real", "6"), ("both", "3")):
        assert say(browser, answer, certainty).status_code == 422
    assert len(read(served.answers, kept(served.answers))["bruno"]) == 1


def test_nobody_comes_in_without_the_token_or_from_elsewhere(served):
    with httpx.Client(base_url=served.address) as stranger:
        assert stranger.get("/").headers["location"] == "/login"
        assert stranger.get("/scans/1/1.png").headers["location"] == "/login"
        csrf = CSRF.search(stranger.get("/login").text)[1]
        wrong = stranger.post("/login", data={"csrf": csrf, "reader": "anna", "token": "guessed"})
        assert (wrong.status_code, "not this reading" in wrong.text) == (403, True)
        nameless = stranger.post("/login", data={"csrf": csrf, "reader": "<b>", "token": served.token})
        assert (nameless.status_code, "<b>" in nameless.text.partition("<form")[2]) == (422, False)
        assert stranger.post("/scans/1", data={"answer": "real", "certainty": "1"}).status_code == 403
        assert stranger.get("/", headers={"host": "elsewhere.example"}).status_code == 421
    browser = served.reader("anna")
    assert browser.post("/scans/1", data={"answer": "real", "certainty": "1"}).status_code == 403
    assert served.address.startswith("http://127.0.0.1:")


def test_two_readers_see_the_same_scans_in_different_orders(served):
    seen = {}
    for name in ("dora", "emil"):
        browser = served.reader(name)
        for position in range(1, TOTAL + 1):
            picture = browser.get(f"/scans/{position}/3.png").content
            seen.setdefault(name, []).append(hashlib.sha256(picture).hexdigest())
            say(browser, "real" if position % 2 else "synthetic", str(1 + position % 5))
    assert seen["dora"] != seen["emil"]
    assert sorted(seen["dora"]) == sorted(seen["emil"])
    assert len(set(seen["dora"])) == TOTAL


def test_a_kill_in_the_middle_loses_no_answer_and_changes_no_order(folders, tmp_path):
    served = Served(folders, tmp_path / "answers")
    browser = served.reader("anna")
    confirmed = [("real", 5), ("synthetic", 1), ("real", 2)]
    for answer, certainty in confirmed:
        assert say(browser, answer, str(certainty)).status_code == 303
    next_picture = browser.get("/scans/4/3.png").content
    unsure = threading.Thread(target=lambda: quietly(lambda: say(browser, "synthetic", "4")))
    unsure.start()
    time.sleep(0.004)
    served.kill()
    unsure.join()
    browser.close()
    path = tmp_path / "answers" / "answers.jsonl"
    with open(path, "ab") as file:  # as a kill in the middle of a line leaves it
        file.write(b'{"reader":"anna","posi')
    again = Served(folders, tmp_path / "answers")
    try:
        theirs = read(tmp_path / "answers", kept(tmp_path / "answers"))["anna"]
        assert [(one.answer, one.certainty) for one in theirs[:3]] == confirmed
        assert [(one.answer, one.certainty) for one in theirs[3:]] in ([], [("synthetic", 4)])
        assert path.read_bytes().endswith(b"}\n")
        back = again.reader("Anna")
        assert f"Scan {len(theirs) + 1} of {TOTAL}" in back.get("/").text
        if len(theirs) == 3:
            assert back.get("/scans/4/3.png").content == next_picture
        assert say(back, "real", "1").status_code == 303
        assert len(path.read_text().splitlines()) == len(theirs) + 1
    finally:
        again.end()


def quietly(work):
    """Whatever becomes of a request whose server is killed."""
    with contextlib.suppress(httpx.TransportError, TypeError):
        work()


@pytest.fixture
def browser(tmp_path):
    if chromium.program() is None:
        pytest.skip("no chromium on this machine")
    opened = chromium.Chromium(tmp_path / "profile")
    yield opened
    opened.close()


def press(browser, key):
    text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
    browser.ask("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
    browser.ask("Input.dispatchKeyEvent", type="keyUp", key=key)


def shown(browser):
    """Which slice one sees, by its address and by what stands beside it."""
    now = browser.value(
        "[...document.querySelectorAll('.stack img')].filter(one => getComputedStyle(one).visibility === 'visible')"
        ".map(one => one.getAttribute('src')).join()"
    )
    assert browser.value("document.querySelector('.scroller output').textContent") == f"{now.rpartition('/')[2][0]} of 6"
    return now


def picture(browser, name):
    """A picture of the window, where KONSIL_PICTURES is a folder."""
    if folder := os.environ.get("KONSIL_PICTURES"):
        data = browser.ask("Page.captureScreenshot", format="png")["data"]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))


def go_on(browser, step):
    """Do what opens the next page, and wait for it."""
    browser.happened.clear()
    step()
    browser.wait_for("Page.loadEventFired")


def enter(browser, served, name):
    browser.go(f"{served.address}/login")
    for field, text in (("reader", name), ("token", served.token)):
        browser.value(f"document.querySelector('input[name={field}]').value = {json.dumps(text)}")
    go_on(browser, lambda: browser.value("document.querySelector('form.ask button').click()"))


def test_a_radiologist_reads_with_keys_wheel_and_buttons(served, browser):
    browser.size(1280, 800)
    enter(browser, served, "Dr. Adler")
    assert browser.value("document.title") == f"Scan 1 of {TOTAL} · konsil"
    assert shown(browser) == "/scans/1/4.png"
    for key, slice_ in (("ArrowDown", 5), ("ArrowRight", 6), ("ArrowRight", 6), ("ArrowUp", 5), ("ArrowLeft", 4)):
        press(browser, key)
        assert shown(browser) == f"/scans/1/{slice_}.png"
    where = browser.value("(box => [box.x + 50, box.y + 50])(document.querySelector('.stack').getBoundingClientRect())")
    for turn, slice_ in (
        (-120, 3),
        (-100, 2),
        (-30, 2),
        (-30, 1),
        (-120, 1),
        (120, 2),
    ):  # a notch, or small steps that make one
        browser.ask("Input.dispatchMouseEvent", type="mouseWheel", x=where[0], y=where[1], deltaX=0, deltaY=turn)
        for _ in range(100):
            if shown(browser) == f"/scans/1/{slice_}.png":
                break
            time.sleep(0.02)
        assert shown(browser) == f"/scans/1/{slice_}.png"
    browser.value("document.querySelector('[data-step=\"1\"]').click()")
    assert shown(browser) == "/scans/1/3.png"

    press(browser, "Enter")  # nothing is chosen yet
    assert "dr. adler" not in served.answers.joinpath("answers.jsonl").read_text()
    for key in "r5s4":
        press(browser, key)
    chosen = "[...document.querySelectorAll('input:checked')].map(one => one.value).join()"
    assert browser.value(chosen) == "synthetic,4"
    assert browser.value("document.activeElement.value") == "4"
    picture(browser, "reading_1280")
    go_on(browser, lambda: press(browser, "Enter"))
    assert browser.value("document.title") == f"Scan 2 of {TOTAL} · konsil"
    assert browser.value(chosen) == ""
    press(browser, "r")
    go_on(browser, lambda: browser.ask("Page.reload"))
    assert (browser.value("document.title"), browser.value(chosen)) == (f"Scan 2 of {TOTAL} · konsil", "")

    for position in range(2, TOTAL + 1):
        press(browser, "r")
        press(browser, "1")
        if position == 2:  # by the button
            go_on(browser, lambda: browser.value("document.querySelector('.give').click()"))
        else:
            go_on(browser, lambda: press(browser, "Enter"))
    reading = kept(served.answers)
    theirs = read(served.answers, reading)["dr. adler"]
    assert [(one.answer, one.certainty) for one in theirs] == [("synthetic", 4), *[("real", 1)] * (TOTAL - 1)]
    right = sum(one.answer == reading.kinds[one.scan] for one in theirs)
    text = browser.value("document.body.innerText")
    assert f"You were right on {right} of {TOTAL} scans" in text
    for word in ("Sensitivity", "Specificity", "Accuracy by certainty", "Haberl 2025, EJNMMI 52:2355"):
        assert word in text
    picture(browser, "reading_result_1280")
    assert browser.complaints == []


def test_it_fits_on_a_phone(served, browser):
    for width in (1280, 480, 375):
        door = browser.look(f"{served.address}/login", width=width)
        assert (door["beyond"], door["wide"]) == ([], width)
    enter(browser, served, "b")
    press(browser, "r")
    press(browser, "2")
    go_on(browser, lambda: press(browser, "Enter"))  # the first scan's page has a note above
    for width, height in ((1280, 800), (480, 850), (375, 667)):
        browser.size(width, height)
        seen = browser.value(chromium.LOOK)
        assert (seen["beyond"], seen["wide"], seen["headings"]) == ([], width, [f"Scan 2 of {TOTAL}"])
        assert all(there for _, there in seen["images"])
        box = browser.value("(box => [box.width, box.height])(document.querySelector('.stack').getBoundingClientRect())")
        assert box[0] == pytest.approx(box[1], abs=1)
        needed = "document.querySelector('.choice.five').getBoundingClientRect().bottom"
        assert browser.value(needed) <= height  # picture and choices are seen together
        picture(browser, f"reading_scan_{width}")
    assert browser.complaints == []
