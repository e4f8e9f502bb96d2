"""Studies that should run and don't are taken up again: real folders, records, locks; a SuperLink that says what it is told."""

import contextlib
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from small import SMALL_TASK

from conf.study import Study
from fl_server import keeper
from fl_server.control import Refused
from fl_server.house import House
from fl_server.keeper import GIVE_UP, begin, look
from fl_server.live import Now
from fl_server.record import Record, Round, SiteRound, moment
from fl_server.run_lock import alone_in
from fl_server.runs import Standing, in_hand

LONG_AGO = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"


class SuperLink:
    """Starts and stops, and remembers what it was asked for."""

    def __init__(self):
        self.status, self.started, self.stopped, self.number, self.no = {}, [], [], 100, ""
        self.patience = []

    def start(self, study, *, enrol_timeout_s, quorum_timeout_s, wait_for, resume=False):
        self.patience.append((quorum_timeout_s, wait_for))
        if self.no:
            raise Refused(self.no)
        self.number += 1
        self.started.append((study.name, resume))
        self.status[self.number] = "running"
        return self.number

    def stop(self, run):
        self.stopped.append(run)
        self.status[run] = "finished"

    def run_status(self, run):
        return self.status.get(run, "finished"), ""


@pytest.fixture
def superlink(monkeypatch):
    talk = SuperLink()

    @contextlib.contextmanager
    def control(house):
        yield talk

    monkeypatch.setattr(keeper, "control", control)
    return talk


@pytest.fixture
def house(tmp_path):
    made = House.create(tmp_path / "coordinator", hosts=["localhost"])
    made.runs.mkdir()
    return made


def study(name="pilot"):
    return Study(konsil_version="0", name=name, task=SMALL_TASK, rounds=3, sites=("a", "b"))


def left_behind(house, *, name="pilot", rounds=1, run=7, ended="", **standing):
    """A study's folder, as its process left it."""
    folder = house.runs / name
    folder.mkdir(parents=True)
    text = study(name)
    (folder / keeper.STUDY).write_text(text.to_json())
    record = Record.begin(text, ended=ended)
    used = SiteRound(answer="used")
    record.rounds = [
        Round(round=number, sites={"a": used, "b": used}, seconds=1.0, arrays_sha256="0" * 64)
        for number in range(1, rounds + 1)
    ]
    record.write(folder / "record.json")
    Standing(study_hash=text.hash, run=run, started=LONG_AGO, **standing).write(folder)
    now = Now(study=name, study_hash=text.hash, run=run, pid=1, rounds=3, began=0.0, updated=0.0)
    now.write(folder)
    return folder


def test_what_was_interrupted_goes_on(house, superlink):
    folder = left_behind(house)
    assert look(house) == ["study pilot was interrupted after round 1 and goes on as run 101"]
    assert superlink.started == [("pilot", True)]
    standing = Standing.read(folder)
    assert (standing.run, standing.wanted, standing.interruptions, standing.rounds_then) == (101, "running", 1, 1)
    (folder / "now.json").unlink()  # the new process has not begun yet
    assert look(house) == []


def test_what_runs_is_left_alone_whatever_flower_says_of_it(house, superlink):
    folder = left_behind(house)
    for status in ("running", "finished"):
        superlink.status[7] = status
        with alone_in(folder):
            assert look(house) == []
    assert superlink.started == superlink.stopped == []


def test_whose_process_is_gone_is_stopped_before_flower_notices_and_goes_on(house, superlink):
    left_behind(house)
    superlink.status[7] = "running"
    look(house)
    assert (superlink.stopped, superlink.started) == ([7], [("pilot", True)])


def test_what_is_just_starting_is_waited_for(house, superlink):
    folder = left_behind(house)
    (folder / "now.json").unlink()
    superlink.status[7] = "pending"
    assert look(house) == []


def test_what_is_over_is_noted_as_over(house, superlink):
    folder = left_behind(house, rounds=3, ended=moment())
    assert look(house) == []
    assert Standing.read(folder).wanted == "ended"


@pytest.mark.parametrize("wanted", ["stopped", "ended"])
def test_what_nobody_wants_to_run_does_not(house, superlink, wanted):
    left_behind(house, wanted=wanted)
    assert look(house) == []
    assert superlink.started == []


def test_without_one_more_round_it_is_left_to_a_person_in_the_end(house, superlink):
    folder = left_behind(house)
    for tries in range(1, GIVE_UP + 1):
        assert "goes on" in look(house)[0]
        assert Standing.read(folder).interruptions == tries
        superlink.status[Standing.read(folder).run] = "finished"
        Standing.read(folder).model_copy(update={"started": LONG_AGO}).write(folder)
    assert "is left alone: it ended 6 times without one more round" in look(house)[0]
    standing = Standing.read(folder)
    assert standing.wanted == "stopped"
    assert "konsil-study resume pilot" in standing.why
    assert look(house) == []


def test_after_one_more_round_the_count_begins_anew(house, superlink):
    folder = left_behind(house, rounds=2, interruptions=GIVE_UP - 1, rounds_then=1)
    look(house)
    assert Standing.read(folder).interruptions == 1


def test_a_study_that_falls_over_at_once_is_not_started_without_pause(house, superlink):
    folder = left_behind(house, interruptions=3, rounds_then=1)
    Standing.read(folder).model_copy(update={"started": moment()}).write(folder)
    assert look(house) == []
    Standing.read(folder).model_copy(update={"started": "2999-01-01T00:00:00Z"}).write(folder)  # the clock was set back
    assert "goes on" in look(house)[0]


def test_while_somebody_has_it_in_hand_nobody_else_starts_it(house, superlink):
    folder = left_behind(house)
    with in_hand(house.runs, "pilot"):
        assert look(house) == []
        Standing.read(folder).model_copy(update={"wanted": "stopped"}).write(folder)
    assert look(house) == []
    assert superlink.started == []


def test_a_start_that_takes_its_time_is_not_made_twice(house, superlink, monkeypatch):
    slow, begun = threading.Event(), threading.Event()
    start = superlink.start

    def slowly(*given, **named):
        begun.set()
        slow.wait(10)
        return start(*given, **named)

    monkeypatch.setattr(superlink, "start", slowly)

    def person():
        with in_hand(house.runs, "pilot"):
            begin(house, superlink, study())

    thread = threading.Thread(target=person)
    thread.start()
    assert begun.wait(10)
    assert look(house) == []
    slow.set()
    thread.join()
    time.sleep(1.1)
    assert look(house) == []
    assert superlink.started == [("pilot", False)]


def test_a_start_that_is_refused_is_not_tried_again_behind_the_persons_back(house, superlink):
    superlink.no = "the SuperLink refused"
    with pytest.raises(Refused), in_hand(house.runs, "pilot"):
        begin(house, superlink, study())
    superlink.no = ""
    assert look(house) == []
    assert Standing.read(house.runs / "pilot").why == "the SuperLink refused"


def test_one_that_can_not_be_taken_up_is_tried_again_and_does_not_count(house, superlink, caplog):
    folder = left_behind(house)
    superlink.no = "the SuperLink refused: no room"
    for _ in range(GIVE_UP + 2):
        assert look(house) == []
        Standing.read(folder).model_copy(update={"started": LONG_AGO}).write(folder)
    assert "no room" in caplog.text
    superlink.no = ""
    assert "goes on" in look(house)[0]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"study_hash": "x", "started": "yesterday"}'])
def test_one_that_can_not_be_read_keeps_nobody_from_the_others(house, superlink, text):
    left_behind(house, name="first")
    (house.runs / "first" / "run.json").write_text(text)
    left_behind(house, name="second")
    told = look(house)
    assert any(sentence.startswith("study first can't be looked after") for sentence in told)
    assert ("second", True) in superlink.started


def test_for_how_many_and_how_long_a_study_waits_outlives_its_process(house, superlink):
    text = study()
    begin(house, superlink, text, wait_for=2, quorum_timeout_s=3600.0)
    superlink.status.clear()
    folder = house.runs / "pilot"
    Record.begin(text).write(folder / "record.json")
    Standing.read(folder).model_copy(update={"started": LONG_AGO}).write(folder)
    assert "goes on as run 102" in look(house)[0]
    begin(house, superlink, study("other"))
    fortnight = 14 * 24 * 3600.0
    assert superlink.patience == [(3600.0, 2), (3600.0, 2), (fortnight, 0)]


@pytest.mark.parametrize(("lived_s", "tries"), [(5.0, GIVE_UP), (3600.0, 1)])
def test_restarts_while_it_waits_for_people_are_not_counted_against_a_study(house, superlink, lived_s, tries):
    folder = left_behind(house, rounds=0, interruptions=GIVE_UP - 1)
    born = datetime.fromisoformat(LONG_AGO).timestamp()
    now = Now.read(folder).model_copy(update={"phase": "enrolling", "needed": 2, "updated": born + lived_s})
    (folder / "now.json").write_text(now.model_dump_json())  # `write` would say that it is of this moment
    assert "goes on" in look(house)[0]
    assert Standing.read(folder).interruptions == tries
