"""`konsil-study resume` reads the checkpoint before anything is begun: real folders, and a SuperLink that says yes."""

import contextlib
from importlib.metadata import version

import pytest
import torch
from flwr.app import Context, RecordDict
from small import SMALL_TASK

from conf.study import Study
from fl_server import app as coordinator
from fl_server import control, keeper
from fl_server.__main__ import main
from fl_server.checkpoint import FILE, PREVIOUS, NoCheckpoint, Progress
from fl_server.house import House
from fl_server.record import Record, Round, SiteRound
from fl_server.runs import Standing
from simulation.grid import InProcessGrid

STUDY = Study(konsil_version=version("konsil"), name="pilot", task=SMALL_TASK, rounds=3, sites=("a", "b"))


class SuperLink:
    def __init__(self):
        self.started = []

    def start(self, study, *, resume=False, **patience):
        self.started.append((study.name, resume))
        return 101

    def run_status(self, run):
        return "finished", ""


@pytest.fixture
def superlink(monkeypatch):
    talk = SuperLink()
    monkeypatch.setattr(control, "control", lambda house: contextlib.nullcontext(talk))
    return talk


@pytest.fixture
def left(tmp_path):
    """A coordinator with a study that was killed after its second round."""
    house = House.create(tmp_path / "coordinator", hosts=["localhost"])
    folder = house.runs / "pilot"
    folder.mkdir(parents=True)
    (folder / keeper.STUDY).write_text(STUDY.to_json())
    record = Record.begin(STUDY)
    used = dict.fromkeys(STUDY.sites, SiteRound(answer="used"))
    for number in (1, 2):
        record.rounds.append(Round(round=number, sites=used, seconds=1.0, arrays_sha256="0" * 64))
        state = {"w": torch.full((2,), float(number))}
        Progress(record, state, state).save(folder)
    record.write(folder / "record.json")
    Standing(study_hash=STUDY.hash, run=7).write(folder)
    return folder


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:200])


def resume(folder):
    return main(["resume", "pilot", "--folder", str(folder.parents[1])])


def test_whose_checkpoint_is_whole_goes_on_after_it(left, superlink, capsys):
    assert resume(left) == 0
    assert capsys.readouterr().out == "pilot goes on as run 101, after round 2 of 3\n"
    assert superlink.started == [("pilot", True)]


def test_with_the_last_checkpoint_damaged_it_goes_on_from_the_one_before_and_says_so(left, superlink, capsys):
    damage(left / FILE)
    assert resume(left) == 0
    said = capsys.readouterr().out
    assert f"{left / FILE} was torn or changed" in said
    assert "the checkpoint before it is used\npilot goes on as run 101, after round 1 of 3\n" in said


def test_with_both_damaged_nothing_is_begun_and_both_are_named(left, superlink, capsys):
    damage(left / FILE)
    cut_short(left / PREVIOUS)
    assert resume(left) == 1
    said = capsys.readouterr().err
    assert f"{left / FILE} was torn or changed" in said
    assert f"{left / PREVIOUS} was torn or changed" in said
    assert superlink.started == []
    assert Standing.read(left).run == 7


def test_without_a_round_there_is_nothing_to_lose_and_it_begins_anew(left, superlink, capsys):
    record = Record.read(left / "record.json")
    record.rounds.clear()
    record.write(left / "record.json")
    damage(left / FILE)
    damage(left / PREVIOUS)
    assert resume(left) == 0
    assert "after round 0 of 3" in capsys.readouterr().out


def test_a_run_that_finds_no_checkpoint_says_why_in_the_studys_log_and_is_not_started_again(
    left, superlink, monkeypatch, capsys
):
    damage(left / FILE)
    cut_short(left / PREVIOUS)
    monkeypatch.setenv("KONSIL_RUNS", str(left.parent))
    grid = InProcessGrid("fl_client.app:app", [], {})
    context = Context(7, 1, {}, RecordDict(), {"study": STUDY.to_json(), "resume": True})
    with pytest.raises(NoCheckpoint):
        coordinator.app(grid, context)
    assert main(["log", "pilot", "--folder", str(left.parents[1])]) != 0
    assert f"stopped: {left / FILE} was torn or changed" in capsys.readouterr().out
    main(["status", "pilot", "--folder", str(left.parents[1])])
    assert f"stopped after round 2 of 3: {left / FILE} was torn or changed" in capsys.readouterr().out
    assert keeper.look(House.load(left.parents[1])) == []
    assert superlink.started == []
