"""A study that is interrupted goes on, and ends as one that was not."""

import shutil
import subprocess
import sys

import pytest
import torch

from fl_client import app as hospital
from fl_server.checkpoint import FILE, PREVIOUS, NoCheckpoint
from fl_server.live import Now
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.run_lock import RunFolderInUse, alone_in, in_use, place_of
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.fingerprint import fingerprint

TIMES = {"identity", "started", "ended", "seconds", "resumed", "versions", "engine"}


class Crash(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def facts(folder):
    return timeless(Record.read(folder / "record.json").model_dump(mode="json"))


@pytest.fixture
def twins(new_hospitals):
    """Makes three hospitals, the same ones each time, with folders and noise seeds of their own."""

    def settle(folder):
        made = new_hospitals(folder)
        for index, name in enumerate("abc"):
            made.add(name, patients=3 + index, declared_size=3 + index, noise_seed=index)
        return made

    return settle


class Crashing(InProcessGrid):
    """Its process dies when the answers have been pulled so many times."""

    pulls = 0
    last = None

    def pull_messages(self, message_ids):
        found = super().pull_messages(message_ids)
        self.pulls += 1
        if self.pulls == self.last:
            raise Crash
        return found


def over(hospitals, study, folder, *, last=None, **settings):
    grid = Crashing("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    grid.last = last
    state, record = run(grid, study, initial_state(study), folder=folder, **settings)
    return state, record, grid.pulls


STRATEGIES = [
    {"name": "fedavg"},
    {"name": "fedadam", "server_learning_rate": 0.1, "server_warmup": 0.5, "ema_decay": 0.7},
    {"name": "fedavgm", "server_momentum": 0.8},
    {"name": "fedmedian", "quorum": 3},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy["name"])
def test_killed_after_any_round_it_ends_as_if_nothing_had_been(twins, strategy):
    undisturbed, interrupted = twins("one"), twins("other")
    study = undisturbed.study(rounds=3, strategy=strategy)
    state, record, _ = over(undisturbed, study, undisturbed.folder / "run")
    assert record.verdict == "complete"

    def crash(entry, model):
        raise Crash

    folder = interrupted.folder / "run"
    with pytest.raises(Crash):
        over(interrupted, study, folder, observer=crash)
    for _ in (2, 3):
        with pytest.raises(Crash):
            over(interrupted, study, folder, observer=crash, resume=True)
    again, record, _ = over(interrupted, study, folder, resume=True)
    assert [entry.after_round for entry in record.resumed] == [1, 2, 3]
    assert fingerprint(again) == fingerprint(state)
    assert facts(folder) == facts(undisturbed.folder / "run")
    events = [len(hospital.ledger_of(interrupted.site(name)).events) for name in interrupted.sites]
    assert events == [3] * len(events)  # nothing was paid twice


def test_killed_at_any_look_for_answers_it_ends_as_if_nothing_had_been(twins):
    undisturbed = twins("undisturbed")
    study = undisturbed.study(rounds=2)
    state, _, pulls = over(undisturbed, study, undisturbed.folder / "run")
    for last in range(1, pulls + 1):
        interrupted = twins(f"killed{last}")
        folder = interrupted.folder / "run"
        with pytest.raises(Crash):
            over(interrupted, study, folder, last=last)
        again, record, _ = over(interrupted, study, folder, resume=True)
        assert record.verdict == "complete", record.reasons
        assert fingerprint(again) == fingerprint(state), last
        for name in interrupted.sites:
            assert len(hospital.ledger_of(interrupted.site(name)).events) == study.rounds  # asked twice, paid once


def test_killed_before_its_first_round_it_begins_anew(hospitals):
    study = hospitals.study(rounds=1)
    with pytest.raises(Crash):
        over(hospitals, study, hospitals.folder / "run", last=1)
    _, record, _ = over(hospitals, study, hospitals.folder / "run", resume=True)
    assert (record.verdict, record.resumed) == ("complete", [])


def test_resuming_what_was_never_begun_begins_it(hospitals):
    _, record, _ = over(hospitals, hospitals.study(rounds=1), hospitals.folder / "run", resume=True)
    assert record.verdict == "complete"


def test_what_is_over_is_not_run_again(hospitals):
    study = hospitals.study(rounds=1)
    over(hospitals, study, hospitals.folder / "run")
    before = (hospitals.folder / "run" / "record.json").read_bytes()
    with pytest.raises(ValueError, match="is over \\(complete\\); there is nothing to go on with"):
        over(hospitals, study, hospitals.folder / "run", resume=True)
    assert (hospitals.folder / "run" / "record.json").read_bytes() == before


def test_another_study_does_not_go_on_from_this_ones_rounds(hospitals):
    over(hospitals, hospitals.study(rounds=1), hospitals.folder / "run")
    other = hospitals.study(rounds=2)
    with pytest.raises(ValueError, match=f"holds the study [0-9a-f]{{12}}, not {other.name}"):
        over(hospitals, other, hospitals.folder / "run", resume=True)


def interrupted_after_two(hospitals):
    study = hospitals.study(rounds=3)

    def crash(entry, model):
        if entry.round == 2:
            raise Crash

    with pytest.raises(Crash):
        over(hospitals, study, hospitals.folder / "run", observer=crash)
    return study, hospitals.folder / "run"


def test_a_torn_checkpoint_costs_one_round(hospitals):
    study, folder = interrupted_after_two(hospitals)
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[: len(whole) // 2])
    _, record, _ = over(hospitals, study, folder, resume=True)
    assert [entry.after_round for entry in record.resumed] == [1]
    assert f"{FILE} was torn or changed" in record.resumed[0].note
    assert len(record.rounds) == 3


def test_without_any_checkpoint_finished_rounds_are_not_thrown_away(hospitals):
    study, folder = interrupted_after_two(hospitals)
    for name in (FILE, PREVIOUS):
        (folder / name).write_bytes(b"torn")
    with pytest.raises(NoCheckpoint, match="torn or changed"):
        over(hospitals, study, folder, resume=True)
    assert len(Record.read(folder / "record.json").rounds) == 2
    assert (folder / "model.pt").exists()


def test_a_kill_between_the_checkpoint_and_the_record_is_made_good(hospitals):
    study, folder = interrupted_after_two(hospitals)
    shutil.copy(folder / "record.json", folder.parent / "after_two.json")
    record = Record.read(folder / "record.json")
    record.rounds.pop()  # as it stood before the second round was written
    record.write(folder / "record.json")
    (folder / "model.pt").unlink()

    def stop(entry, model):
        raise Crash

    with pytest.raises(Crash):
        over(hospitals, study, folder, resume=True, observer=stop)
    record = Record.read(folder / "record.json")
    assert [entry.round for entry in record.rounds] == [1, 2, 3]
    assert record.rounds[:2] == Record.read(folder.parent / "after_two.json").rounds
    saved = torch.load(folder / "model.pt", weights_only=True)
    assert fingerprint(saved) == record.rounds[-1].arrays_sha256


def test_two_processes_do_not_run_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    held = f"""
import fcntl, sys
file = open({str(place_of(folder))!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    assert not in_use(folder)
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert in_use(folder)
        with pytest.raises(RunFolderInUse, match="another process runs a study"), alone_in(folder):
            pass
        other.kill()
    with alone_in(folder, patience_s=5):  # the lock went with the process
        assert in_use(folder)
    assert not in_use(folder)


def test_who_begins_anew_does_not_wait_to_throw_away_what_another_process_finishes(hospitals):
    study = hospitals.study(rounds=1)
    folder = hospitals.folder / "run"
    with alone_in(folder), pytest.raises(RunFolderInUse):
        over(hospitals, study, folder)
    assert not (folder / "record.json").exists()


def test_killed_between_its_last_checkpoint_and_its_record_it_is_over_all_the_same(hospitals, monkeypatch):
    study, folder = hospitals.study(rounds=1), hospitals.folder / "run"
    write = Record.write

    def killed(record, path):
        if record.ended:
            raise Crash
        write(record, path)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", killed)
        with pytest.raises(Crash):
            over(hospitals, study, folder)
    assert not Record.read(folder / "record.json").finished
    _, record, pulls = over(hospitals, study, folder, resume=True)
    assert (record.verdict, pulls) == ("complete", 0)  # nobody was asked anything
    assert Record.read(folder / "record.json").finished


def test_a_checkpoint_of_an_earlier_run_of_the_same_study_is_not_gone_on_from(hospitals):
    study, folder = interrupted_after_two(hospitals)
    Record.begin(study).write(folder / "record.json")  # a new run, killed before it could remove the old one's checkpoint
    _, record, _ = over(hospitals, study, folder, resume=True)
    assert (len(record.rounds), record.resumed) == (3, [])


def test_the_moment_is_written_while_it_lasts(hospitals):
    study, seen = hospitals.study(rounds=2), []

    class Looking(InProcessGrid):
        def pull_messages(self, message_ids):
            if (now := Now.read(hospitals.folder / "run")) is not None and now.phase == "round":
                seen.append((now.round, sorted(now.asked), now.alive))
            return super().pull_messages(message_ids)

    grid = Looking("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    run(grid, study, initial_state(study), folder=hospitals.folder / "run", run_id=11)
    assert {number for number, _, _ in seen} == {1, 2}
    assert all(asked == sorted(study.sites) and alive for _, asked, alive in seen)
    now = Now.read(hospitals.folder / "run")
    assert (now.phase, now.round, now.run, now.alive) == ("ended", 2, 11, False)
