import fcntl
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_client.privacy import BudgetSpent, Event, Ledger, LedgerBroken, epsilon

SCRIPT = Path(__file__).with_name("ledger_crash.py")


def event(round=1, sigma=6.0, **fields):
    return Event(noise_multiplier=sigma, study="ab" * 32, study_name="rehearsal", round=round, **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site" / "ledger.jsonl"


def ledger(path, **changes):
    return Ledger(path, **{"epsilon": 3.0, "delta": 1e-5, **changes})


@pytest.fixture
def written(path):
    """A ledger with four events."""
    book = ledger(path)
    for round in range(1, 5):
        book.spend(event(round))
    return book


# -- what it counts ---------------------------------------------------------------------------------------------------


def test_spending_returns_what_all_events_cost_together(path):
    book = ledger(path)
    for count in range(1, 6):
        assert book.spend(event(count)) == epsilon([event()] * count, delta=1e-5)
    assert book.epsilon == epsilon([event()] * 5, delta=1e-5)
    assert [e.round for e in book.events] == [1, 2, 3, 4, 5]


def test_an_unwritten_ledger_has_cost_nothing_and_makes_no_file(path):
    book = ledger(path)
    assert (book.epsilon, book.events) == (0.0, ())
    book.verify()
    assert not path.exists()


def test_it_composes_over_studies_kinds_and_restarts(path):
    ledger(path).spend(event(1))
    ledger(path).spend(event(1, sample_rate=0.25, steps=3, kind="scores"))
    after_restart = ledger(path)
    other = Event(noise_multiplier=5.0, study="cd" * 32, study_name="other", round=1)
    expected = epsilon([event(), event(sample_rate=0.25, steps=3), other], delta=1e-5)
    assert after_restart.spend(other) == ledger(path).epsilon == expected


def test_the_price_of_a_study_is_known_before_anything_is_spent(written, path):
    before = path.read_bytes()
    rounds = [event(r) for r in range(5, 9)]
    assert written.planned(rounds) == epsilon([event()] * 8, delta=1e-5)
    written.affords(rounds)
    with pytest.raises(BudgetSpent, match="study rehearsal round 34 would bring epsilon to"):
        written.affords([event(r) for r in range(5, 35)])
    assert path.read_bytes() == before


def test_the_same_round_twice_is_paid_twice(path):
    book = ledger(path)
    assert book.spend(event(1)) < book.spend(event(1))


def test_another_delta_prices_the_same_events_anew(written, path):
    assert ledger(path, delta=1e-3).epsilon == epsilon(written.events, delta=1e-3) < written.epsilon


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_the_budget_is_refused_in_words_before_anything_is_written(path):
    book = ledger(path)
    affordable = next(n for n in range(1, 100) if epsilon([event()] * (n + 1), delta=1e-5) > 3)
    for round in range(1, affordable + 1):
        book.spend(event(round))
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    too_much = epsilon([event()] * (affordable + 1), delta=1e-5)
    with pytest.raises(BudgetSpent) as refusal:
        book.spend(event(affordable + 1))
    assert str(refusal.value) == (
        f"study rehearsal round {affordable + 1} would bring epsilon to {too_much:.3g}, over this hospital's 3 (delta 1e-05)"
    )
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert book.epsilon <= 3


def test_a_refused_first_event_leaves_no_entry(path):
    with pytest.raises(BudgetSpent):
        ledger(path).spend(event(sigma=0.1))
    assert ledger(path).events == ()
    assert ledger(path).spend(event()) > 0


def test_an_excess_too_small_for_three_digits_is_shown_with_enough(path):
    exactly = epsilon([event()], delta=1e-5)
    budget = math.nextafter(exactly, 0)
    with pytest.raises(BudgetSpent) as refusal:
        ledger(path, epsilon=budget).spend(event())
    assert float(str(refusal.value).split("epsilon to ")[1].split(",")[0]) > budget
    assert ledger(path, epsilon=exactly).spend(event()) == exactly


def test_a_smaller_release_is_still_welcome_after_a_refusal(path):
    book = ledger(path)
    with pytest.raises(BudgetSpent):
        book.spend(event(sigma=0.5))
    assert book.spend(event(sigma=50.0)) < 3


def test_a_release_without_noise_is_refused_unless_the_hospital_accepts_it(path):
    with pytest.raises(
        BudgetSpent, match=r"round 2 would leave without noise and bring epsilon to infinity, over this hospital's 3"
    ):
        ledger(path).spend(event(2, sigma=0.0))
    assert ledger(path).events == ()
    accepting = ledger(path, accept_no_privacy=True)
    assert accepting.spend(event(2, sigma=0.0)) == math.inf
    assert accepting.epsilon == math.inf


def test_after_a_release_without_noise_the_budget_still_binds_what_has_noise(path):
    accepting = ledger(path, accept_no_privacy=True)
    accepting.spend(event(1, sigma=0.0))
    assert accepting.spend(event(2)) == math.inf
    with pytest.raises(BudgetSpent, match="would bring epsilon to"):
        accepting.spend(event(3, sigma=0.1))
    with pytest.raises(BudgetSpent, match="would bring epsilon to infinity"):
        ledger(path).spend(event(4))  # the hospital changed its mind: what is gone is gone


def test_a_check_sees_what_was_spent_while_nobody_else_can_spend_and_its_refusal_writes_nothing(written, path):
    seen = []

    def check(past):
        seen.append([e.round for e in past])
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if len(past) > 4:
            raise LookupError("four are enough")

    written.spend(event(5), check=check)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(LookupError, match="four are enough"):
        written.spend(event(6), check=check)
    assert seen == [[1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert written.spend(event(6)) == written.epsilon  # the lock was given back


@pytest.mark.parametrize(("setting", "value"), [("epsilon", 0.0), ("epsilon", math.nan), ("delta", 0.0), ("delta", 1.0)])
def test_a_budget_that_is_none_is_refused(path, setting, value):
    with pytest.raises(ValueError, match=f"a hospital's {setting} must"):
        ledger(path, **{setting: value})


# -- what it notices --------------------------------------------------------------------------------------------------


def lines(path):
    return path.read_text().splitlines(keepends=True)


def cheaper(line):
    entry = json.loads(line)
    entry["event"]["noise_multiplier"] = 600.0
    return json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n"


TAMPERING = {
    "a cheaper event": (lambda ls: [ls[0], cheaper(ls[1]), *ls[2:]], "line 2 was changed after it was written"),
    "another date": (lambda ls: [ls[0].replace('"time":"2', '"time":"1'), *ls[1:]], "line 1 was changed"),
    "a missing line": (lambda ls: [ls[0], *ls[2:]], "line 2 doesn't follow the line before it"),
    "a missing first line": (lambda ls: ls[1:], "line 1 doesn't follow"),
    "two lines swapped": (lambda ls: [ls[1], ls[0], *ls[2:]], "line 1 doesn't follow"),
    "a line twice": (lambda ls: [*ls, ls[-1]], "line 5 doesn't follow"),
    "the last line missing": (lambda ls: ls[:-1], "has 3 whole lines, but 4 were written: the end is missing"),
    "the last line cut": (lambda ls: [*ls[:-1], ls[-1][:-2]], "has 3 whole lines, but 4 were written"),
    "everything missing": (lambda ls: [], "has 0 whole lines, but 4 were written"),
    "something else": (lambda ls: [*ls[:2], "hello\n", *ls[2:]], "line 3 is not a ledger entry"),
    "a line that is a number": (lambda ls: ["1\n", *ls[1:]], "line 1 is not a ledger entry"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_found_in_words_and_nothing_more_is_spent(written, path, how):
    change, words = TAMPERING[how]
    path.write_text("".join(change(lines(path))))
    before = path.read_bytes()
    for question in (written.verify, lambda: written.epsilon, lambda: written.planned([]), lambda: written.spend(event(5))):
        with pytest.raises(LedgerBroken, match=words):
            question()
    assert path.read_bytes() == before


def test_a_whole_history_rewritten_with_a_sound_chain_is_found_by_the_head(written, path, tmp_path):
    forged = ledger(tmp_path / "forged.jsonl")
    for round in range(1, 5):
        forged.spend(event(round, sigma=600.0))
    path.write_bytes(forged.path.read_bytes())
    with pytest.raises(LedgerBroken, match="line 4 is not the line that was written there"):
        written.verify()


def test_a_missing_or_unreadable_head_is_found(written, path):
    head = path.with_name("ledger.jsonl.head")
    head.write_text("{")
    with pytest.raises(LedgerBroken, match="not readable as the ledger's head"):
        written.verify()
    head.unlink()
    with pytest.raises(LedgerBroken, match=r"ledger.jsonl.head is missing"):
        written.verify()


def test_a_missing_ledger_is_found_by_its_head(written, path):
    path.unlink()
    with pytest.raises(LedgerBroken, match=r"ledger\.jsonl is missing"):
        written.verify()
    with pytest.raises(LedgerBroken, match="has 0 whole lines, but 4 were written"):
        written.spend(event(5))


def test_ledger_files_are_the_owner_s_alone(written, path):
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_the_line_is_on_the_disk_before_spend_returns(path, monkeypatch):
    """fsync of the ledger comes after its write and before the head's; the folder's follows both."""
    calls = []
    real = {name: getattr(os, name) for name in ("write", "fsync")}

    def spy(name):
        def call(fd, *rest):
            calls.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))  # noqa: PTH119, PTH115
            return real[name](fd, *rest)

        return call

    ledger(path).spend(event(1))
    for name in real:
        monkeypatch.setattr(os, name, spy(name))
    ledger(path).spend(event(2))
    part = "ledger.jsonl.head.part"
    assert calls == [
        ("write", "ledger.jsonl"),
        ("fsync", "ledger.jsonl"),
        ("fsync", "site"),
        ("write", part),
        ("fsync", part),
        ("fsync", "site"),
    ]


# -- crashes and company ----------------------------------------------------------------------------------------------


def run(*arguments, timeout=120):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], check=True, timeout=timeout, env=environment)


def released(folder):
    file = folder / "released"
    return len(file.read_bytes()) if file.exists() else 0


def test_killed_at_any_point_it_counts_at_least_what_was_released_and_goes_on(tmp_path):
    run("points", tmp_path)
    places = sorted(tmp_path.iterdir(), key=lambda place: int(place.name))
    assert len(places) > 10  # opens, truncation, writes and fsyncs of ledger, head and folder
    over = []
    for place in places:
        book = Ledger(place / "ledger.jsonl", epsilon=100, delta=1e-5)
        counted = len(book.events)
        assert counted - released(place) in (0, 1), place.name
        over.append(counted - released(place))
        book.spend(event(99))
        book.verify()
        assert len(book.events) == counted + 1
    assert sum(over) > 0  # killed after the line and before the release: one too many, as promised
    assert over[-1] == 0  # the last child ran through


@pytest.mark.parametrize("keep", [1, 40, -2, -1])
def test_a_line_torn_by_a_crash_is_cut_off_and_the_next_one_follows(written, path, keep):
    """The state a power cut leaves: part of line 5 is there, the head still says 4, and `spend` never returned."""
    whole = path.read_bytes()
    head = path.with_name("ledger.jsonl.head").read_bytes()
    written.spend(event(5))
    fifth = path.read_bytes()[len(whole) :]
    path.with_name("ledger.jsonl.head").write_bytes(head)
    path.write_bytes(whole + fifth[:keep])
    assert [e.round for e in written.events] == [1, 2, 3, 4]
    written.spend(event(6))
    assert [e.round for e in ledger(path).events] == [1, 2, 3, 4, 6]
    assert path.read_bytes().startswith(whole)


def test_a_torn_line_longer_than_the_next_one_leaves_nothing_behind(written, path):
    with open(path, "a") as file:
        file.write('{"event":{"kind":"' + "x" * 5000)
    written.spend(event(5))
    assert [e.round for e in ledger(path).events] == [1, 2, 3, 4, 5]
    assert "xxx" not in path.read_text()


def test_a_whole_line_that_the_head_does_not_know_yet_is_counted(written, path):
    head = path.with_name("ledger.jsonl.head").read_bytes()
    written.spend(event(5))
    path.with_name("ledger.jsonl.head").write_bytes(head)
    assert len(written.events) == 5
    written.spend(event(6))
    assert len(written.events) == 6


def test_killed_from_outside_at_random_moments_it_never_counts_too_few(tmp_path):
    rng = random.Random(3)
    process = None
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "endless", str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        with process:
            process.stdout.readline()
            time.sleep(rng.uniform(0.02, 0.2))
            process.send_signal(signal.SIGKILL)
        book = Ledger(tmp_path / "ledger.jsonl", epsilon=1e9, delta=1e-5)
        assert released(tmp_path) <= len(book.events) <= released(tmp_path) + 3
    assert released(tmp_path) > 0


def test_processes_that_spend_at_once_lose_nothing_and_stay_within_the_budget(tmp_path):
    run("race", tmp_path, 3)
    book = Ledger(tmp_path / "ledger.jsonl", epsilon=3, delta=1e-5)
    book.verify()
    count = len(book.events)
    assert count == released(tmp_path)
    one = Event(noise_multiplier=10.0)
    assert epsilon([one] * count, delta=1e-5) <= 3 < epsilon([one] * (count + 1), delta=1e-5)
