"""A question that was answered gets the same bytes and costs nothing; whatever a crash leaves, the ledger never undercounts."""

import os
import re
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl_client import app as hospital
from fl_client import patients as of_hospital
from fl_client import release, sent
from fl_client.approval import Approvals
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.decision import decline
from fl_client.halt import halt
from fl_client.release import DECLINED
from fl_client.site import Budget
from fl_client.withdrawal import withdraw
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid


@pytest.fixture
def house(new_hospitals):
    """One hospital with noise from the operating system, where a person has approved the study."""
    houses = new_hospitals("one")
    houses.add("a", noise_seed=None, approve_all=False, budget=Budget(epsilon=30.0))
    Approvals(houses.site("a").folder).decide(houses.study(), "approved", who="Dr. Alpha", epsilon=8.0)
    return houses


def question(houses, study, *, kind="train", number=1, scale=1.0, **config):
    grid = InProcessGrid("fl_client.app:app", houses.nodes, {"study": study.to_json()})
    arrays = ArrayRecord(
        {name: Array(tensor.numpy() * tensor.numpy().dtype.type(scale)) for name, tensor in initial_state(study).items()}
    )
    told = ConfigRecord({"study-hash": study.hash, "server-round": number, **config})
    message = Message(RecordDict({"arrays": arrays, "config": told}), grid.get_node_ids()[0], kind, ttl=10**6)
    return grid, message


def ask(houses, study, *, age_s=0.0, **how):
    """The answer to one message, which is so many seconds old by the hospital's clock."""
    grid, message = question(houses, study, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hospital, "time", SimpleNamespace(time=lambda: time.time() + age_s))
        (reply,) = grid.send_and_receive([message])
    return reply


def enrol(houses, study, **config):
    return ask(houses, study, kind="query.enroll", **config).content["enrolment"]


def bytes_of(reply):
    return {name: array.data for name, array in reply.content["arrays"].items()}, dict(reply.content["metrics"])


def paid(houses):
    return [event.round for event in hospital.ledger_of(houses.site("a")).events]


def left(houses):
    return [line for line in AuditLog(houses.site("a").folder / "audit.jsonl").lines if line["happening"] == "egress"]


def the_file(houses, study, kind="train"):
    return houses.site("a").folder / "sent" / f"{study.hash}.{kind}"


def test_the_same_question_gets_the_same_bytes_and_is_paid_once(house):
    study = house.study()
    first, again = ask(house, study), ask(house, study)
    assert bytes_of(first) == bytes_of(again)
    assert paid(house) == [1]
    before, after = left(house)
    assert before["sha256"] == after["sha256"]
    assert "again" not in before
    assert after["again"] is True


def test_weights_that_differ_in_one_number_or_another_round_are_another_question(house):
    study = house.study(rounds=5)
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    answers = [ask(house, study), ask(house, study, scale=1 + 1e-6), ask(house, study, number=2)]
    assert len({str(bytes_of(answer)) for answer in answers}) == 3
    assert paid(house) == [1, 1, 2]


def test_only_the_last_answer_of_a_study_is_kept_and_only_its_owner_can_read_it(house):
    study = house.study()
    ask(house, study, number=1)
    ask(house, study, number=2)
    (kept,) = (house.site("a").folder / "sent").iterdir()
    assert kept == the_file(house, study)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_kept_holds_what_left_and_nothing_else(house):
    study = house.study()
    arrays, metrics = bytes_of(ask(house, study))
    whole = the_file(house, study).read_bytes()
    assert whole.endswith(b"".join(arrays.values()))
    header = whole[40 : -sum(map(len, arrays.values()))].decode()
    assert not any(patient in header for patient in Cohort(house.site("a").cohort_folder).patients)
    assert set(metrics) == {"num-examples", "epsilon", "steps"}


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-1], lambda b: b"", lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:], lambda b: b + b"0"]
)
def test_a_kept_answer_that_is_torn_or_changed_counts_as_absent_and_is_paid_anew(house, spoil):
    study = house.study()
    first = ask(house, study)
    the_file(house, study).write_bytes(spoil(the_file(house, study).read_bytes()))
    again = ask(house, study)
    assert bytes_of(first) != bytes_of(again)
    assert paid(house) == [1, 1]
    assert bytes_of(ask(house, study)) == bytes_of(again)  # which is kept in its place


def test_a_site_that_is_paused_or_has_declined_or_whose_yes_is_over_sends_nothing_again(house):
    study = house.study()
    ask(house, study)
    site = house.site("a")
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    Approvals(site.folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0, until=yesterday)
    assert "was good until" in ask(house, study).error.reason
    Approvals(site.folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    halt(site.folder, "paused", who="Dr. Alpha")
    assert ask(house, study).error.code == DECLINED
    (site.folder / "halt.json").unlink()
    assert ask(house, study).has_content()
    decline(site, study, who="Dr. Alpha")
    assert "declined study" in ask(house, study).error.reason
    assert not the_file(house, study).exists()


def test_a_question_whose_round_is_over_is_declined_before_the_ledger_and_also_where_an_answer_is_kept(house):
    study = house.study(strategy={"round_timeout_s": 60.0})
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    reply = ask(house, study, age_s=66.0)
    assert re.match(r"the round is over: it was asked for \d+ s ago", reply.error.reason)
    assert paid(house) == []
    assert ask(house, study, age_s=60.1).has_content()  # two clocks never quite agree
    assert ask(house, study, age_s=66.0).error.code == DECLINED
    assert paid(house) == [1]


def test_a_question_that_is_asked_again_is_over_when_its_round_is(house):
    study = house.study(strategy={"round_timeout_s": 3600.0})
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    told = ask(house, study, age_s=70.0, **{"left-s": 60.0}).error.reason
    assert re.fullmatch(
        r"the round is over: it was asked for \d+ s ago by this site's clock, and then had 60 s left of its 3600 s", told
    )
    assert "then had -1 s left" in ask(house, study, age_s=5.0, **{"left-s": -1.0}).error.reason
    assert paid(house) == []
    first = ask(house, study, age_s=70.0)  # without it the round began with the question
    assert bytes_of(ask(house, study, age_s=50.0, **{"left-s": 60.0})) == bytes_of(first)  # the same question
    assert "the round is over" in ask(house, study, age_s=70.0, **{"left-s": 60.0}).error.reason


def test_no_question_gives_a_round_more_time_than_the_study_does(house):
    study = house.study(strategy={"round_timeout_s": 60.0})
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    for left in (1e9, float("nan"), float("inf"), "60"):
        assert ask(house, study, age_s=70.0, **{"left-s": left}).error.code == DECLINED
    assert "how many seconds its round has left, not nan" in ask(house, study, **{"left-s": float("nan")}).error.reason
    assert paid(house) == []


def test_a_site_with_a_deadline_of_its_own_works_until_that_is_over(house):
    longer = house.study(strategy={"round_timeout_s": 60.0, "site_timeouts_s": {"a": 600.0}})
    Approvals(house.site("a").folder).decide(longer, "approved", who="Dr. Alpha", epsilon=8.0)
    told = ask(house, longer, age_s=700.0).error.reason
    assert "a round of study rehearsal lasts 600 s" in told
    assert paid(house) == []
    assert ask(house, longer, age_s=300.0).has_content()


def test_a_site_that_declares_another_size_than_it_enrolled_with_says_so_before_the_ledger(house):
    study = house.study()
    told = ask(house, study, **{"declared-size": 7}).error
    assert told.code == DECLINED
    assert told.reason == (
        "this site declares 5 now and 7 when it enrolled; its answers count if it declares 7 again (declared_size in "
        f"site.yaml), or once study {study.name} was interrupted and goes on"
    )
    assert "declares 5 now and 'five' when" in ask(house, study, **{"declared-size": "five"}).error.reason
    assert paid(house) == []
    assert ask(house, study, **{"declared-size": 5}).has_content()


def test_scores_of_a_site_that_declares_another_size_are_not_paid_either(house):
    study = house.study(privacy={"evaluation_share": 0.1})
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    assert "declares 5 now and 7" in ask(house, study, kind="evaluate", **{"declared-size": 7}).error.reason
    assert paid(house) == []


def test_the_size_that_a_question_brings_does_not_make_it_another_question(house):
    study = house.study()
    first = ask(house, study)
    assert bytes_of(ask(house, study, **{"declared-size": 5})) == bytes_of(first)
    assert paid(house) == [1]


def test_a_kept_answer_with_another_size_than_the_site_enrolled_with_is_not_sent_and_not_paid_again(house):
    study = house.study()
    ask(house, study, **{"declared-size": 5})
    house.save(house.site("a").model_copy(update={"declared_size": 7}))  # and the study was interrupted: it enrols with 7
    told = ask(house, study, **{"declared-size": 7}).error.reason
    assert told.startswith("this site declared 5 when it answered this question and 7 when it enrolled")
    assert paid(house) == [1]
    assert dict(ask(house, study, number=2, **{"declared-size": 7}).content["metrics"])["num-examples"] == 7


def test_a_withdrawal_takes_away_what_is_kept_and_an_answer_kept_beside_it_is_no_good(house):
    study, site = house.study(), house.site("a")
    (site.folder / "pseudonym.key").write_bytes(bytes(16))
    (site.folder / "pseudonym.key").chmod(0o600)
    first = ask(house, study)
    whole = the_file(house, study).read_bytes()
    withdraw(site.model_copy(update={"key_file": site.folder / "pseudonym.key"}), "P" + "0" * 16, who="Dr. Alpha")
    assert not the_file(house, study).exists()
    the_file(house, study).write_bytes(whole)  # as if the work on it had been under way
    assert bytes_of(ask(house, study)) != bytes_of(first)
    assert paid(house) == [1, 1]


def test_what_is_old_or_of_a_study_that_is_over_goes_when_anything_is_kept(house):
    study, other, site = house.study(), house.study(seed=1), house.site("a")
    ask(house, study)
    old = site.folder / "sent" / f"{'0' * 64}.train"
    young = site.folder / "sent" / f"{'1' * 64}.train"
    torn = site.folder / "sent" / ".left-by-a-kill.part"
    for path, days in ((old, 31), (young, 29), (torn, 1)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - days * 86400,) * 2)
    Approvals(site.folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0, until="2020-01-01")
    Approvals(site.folder).decide(other, "approved", who="Dr. Alpha", epsilon=8.0)
    assert ask(house, other).has_content()
    assert set((site.folder / "sent").iterdir()) == {young, the_file(house, other)}


def test_on_a_full_disk_the_answer_leaves_and_its_repetition_costs_again(house, monkeypatch, caplog):
    def full(path, parts):
        raise OSError(28, "No space left on device")

    study = house.study()
    monkeypatch.setattr(sent, "_write", full)
    assert ask(house, study).has_content()
    assert "could not be kept (No space left on device): if it is asked for again, it is paid for again" in caplog.text
    monkeypatch.undo()
    assert ask(house, study).has_content()
    assert paid(house) == [1, 1]


# -- kills ----------------------------------------------------------------------------------------------------------------


def die(*args, **settings):
    os._exit(9)  # nothing is cleaned up, as after a kill


def written_then_dies(path, parts):
    _write(path, parts)
    die()


def half_written_then_dies(path, parts):
    _write(path.with_suffix(".half"), list(parts)[:2])  # some bytes are on the disk
    die()


_write = sent._write
INSTANTS = {
    "before the ledger": (hospital, "pay", die),
    "after the ledger": (of_hospital, "chosen", die),
    "after training": (release, "keep", die),
    "while keeping": (sent, "_write", half_written_then_dies),
    "after keeping": (sent, "_write", written_then_dies),
    "before leaving": (release.AuditLog, "append", die),
}


def asked_and_killed(houses, study, where):
    """A process of its own that dies at that instant of its work on round 1."""
    if (child := os.fork()) == 0:
        try:
            setattr(*INSTANTS[where])
            ask(houses, study, number=1)
        finally:
            os._exit(1)  # it should have been dead
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize(
    ("where", "paid_by_then", "is_kept"),
    [
        ("before the ledger", 0, False),
        ("after the ledger", 1, False),
        ("after training", 1, False),
        ("while keeping", 1, False),
        ("after keeping", 1, True),
        ("before leaving", 1, True),
    ],
)
def test_a_kill_at_any_instant_leaves_a_ledger_that_counts_enough_and_bytes_that_are_equal(house, where, paid_by_then, is_kept):
    study = house.study()
    asked_and_killed(house, study, where)
    assert paid(house) == [1] * paid_by_then
    assert left(house) == []
    asked = question(house, study)[1]
    known = sent.Asked.of(house.site("a"), study, kind="train", number=1, records=asked.content.array_records)
    kept = sent.look(house.site("a"), known)
    assert (kept is not None) == is_kept
    answer = ask(house, study)
    assert paid(house) == [1] * (paid_by_then + (not is_kept))
    if kept is not None:
        assert bytes_of(answer)[0] == {piece.name: piece.data for piece in kept.pieces}
    assert bytes_of(ask(house, study)) == bytes_of(answer)
    assert len(left(house)) == 2


def test_in_a_rehearsal_a_question_worked_on_twice_because_of_a_crash_has_the_same_bytes(house):
    house.save(house.site("a").model_copy(update={"noise_seed": 3}))
    study = house.study()
    first = ask(house, study)
    the_file(house, study).unlink()
    again = ask(house, study)
    assert paid(house) == [1, 1]
    assert bytes_of(first)[0] == bytes_of(again)[0]
    assert bytes_of(first)[1]["epsilon"] < bytes_of(again)[1]["epsilon"]  # both are in the ledger


# -- a study that goes on -------------------------------------------------------------------------------------------------


def test_a_study_goes_on_with_whoever_has_said_yes_and_begins_anew_with_another_yes_only(house):
    study = house.study()
    ask(house, study, number=1)
    assert enrol(house, study)["takes-part"]  # killed in its first round
    assert enrol(house, study, **{"first-round": 2})["takes-part"]
    ask(house, study, number=2)
    assert enrol(house, study, **{"first-round": 2})["takes-part"]
    assert enrol(house, study, **{"first-round": 3})["takes-part"]
    assert "0 are left; 2 need another approval" in enrol(house, study)["reason"]
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0, until="2020-01-01")
    assert "was good until" in enrol(house, study, **{"first-round": 2})["reason"]
    decline(house.site("a"), study, who="Dr. Alpha")
    assert "declined study" in enrol(house, study, **{"first-round": 2})["reason"]


def test_the_last_round_was_answered_when_the_coordinator_died_and_its_bytes_come_again(house):
    study = house.study()
    ask(house, study, number=1)
    first = ask(house, study, number=2)
    assert enrol(house, study, **{"first-round": 2})["takes-part"]  # no round is left of those approved
    assert bytes_of(ask(house, study, number=2)) == bytes_of(first)
    assert paid(house) == [1, 2]


@pytest.mark.parametrize("twice", [1, 2])
def test_a_hospital_that_crashed_goes_on_with_the_rounds_that_it_can_still_pay(house, twice):
    study = house.study(rounds=3)
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr A", epsilon=8.0)
    for number in range(1, twice + 1):
        ask(house, study, number=number)
    the_file(house, study).unlink()  # killed between the ledger and the answer: this round is paid twice
    assert enrol(house, study, **{"first-round": twice})["takes-part"]  # and the coordinator was killed too
    for number in range(twice, 3):
        assert ask(house, study, number=number).has_content()
    assert "0 are left; 1 need another approval" in ask(house, study, number=3).error.reason
    assert enrol(house, study, **{"first-round": 3})["takes-part"]


def test_scores_that_were_given_when_the_coordinator_died_are_given_again_after_an_early_end_too(house):
    study = house.study(
        rounds=3, privacy={"evaluation_share": 0.1, "matrix_share": 0.1, "validation_share": 0.1}, validation={}
    )
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    ask(house, study, number=1)
    asked = [
        {"number": 1, "purpose": "validation"},
        {"number": 3, "purpose": "scores"},
        {"number": 3, "purpose": "matrix", "model": "global"},
        {"number": 3, "purpose": "matrix", "model": "a"},
    ]
    before = [bytes_of(ask(house, study, kind="evaluate", **one)) for one in asked]
    for first in (2, 3, 4):  # it ended after one round, after two, after all
        assert enrol(house, study, **{"first-round": first})["takes-part"]
    assert [bytes_of(ask(house, study, kind="evaluate", **one)) for one in asked] == before
    assert len(paid(house)) == 5


@pytest.mark.parametrize("approved", [True, False])
def test_enrolment_does_not_tell_whether_somebody_has_withdrawn_or_what_is_kept(house, approved):
    """The question is free and may be put any number of times: it must not look at patients or at what comes of them."""
    site = house.site("a")
    (site.folder / "pseudonym.key").write_bytes(bytes(16))
    (site.folder / "pseudonym.key").chmod(0o600)
    study = house.study(rounds=3, privacy={"evaluation_share": 0.1})
    if approved:
        Approvals(site.folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)
    else:
        house.save(site.model_copy(update={"approve_all": True}))

    def said():
        return [dict(enrol(house, study, **{"first-round": first})) for first in range(1, study.rounds + 2)]

    for number in (1, 2, 3, None):
        if number is None:
            assert ask(house, study, kind="evaluate", number=3).has_content()
        else:
            assert ask(house, study, number=number).has_content()
        before = said()
        withdraw(site.model_copy(update={"key_file": site.folder / "pseudonym.key"}), f"P{number or 9:016X}", who="Dr. Alpha")
        assert not the_file(house, study).exists()
        assert said() == before


def test_the_price_of_a_study_that_goes_on_is_what_the_yes_still_covers_of_it(house):
    study = house.study(
        rounds=3, privacy={"evaluation_share": 0.1, "validation_share": 0.2, "matrix_share": 0.1}, validation={}
    )
    Approvals(house.site("a").folder).decide(study, "approved", who="Dr. Alpha", epsilon=8.0)

    def price(first):
        return enrol(house, study, **{"first-round": first})["epsilon"]

    whole = price(1)
    ask(house, study, number=1)
    assert price(1) == price(2) == pytest.approx(whole)  # its validation is still to come
    assert price(3) < price(2)  # ended early
    ask(house, study, kind="evaluate", number=1, purpose="validation")
    assert price(2) == pytest.approx(whole)
    the_file(house, study).unlink()
    ask(house, study, number=1)  # twice: one of the others will be declined
    assert price(2) == pytest.approx(whole)
    ask(house, study, kind="evaluate", number=3, purpose="scores")
    ask(house, study, kind="evaluate", number=3, purpose="matrix", model="a")
    assert price(2) == pytest.approx(whole)
    assert price(4) < whole
    assert price(4) > hospital.ledger_of(house.site("a")).epsilon  # a model of the matrix is left


def test_a_budget_has_to_cover_all_of_a_study_that_begins_and_no_more_of_one_that_goes_on_than_it_asks_for(house):
    study = house.study(seed=1)  # about which nobody has said anything
    house.save(house.site("a").model_copy(update={"budget": Budget(epsilon=8.0), "approve_all": True}))
    ask(house, study, number=1)
    the_file(house, study).unlink()
    ask(house, study, number=2)
    the_file(house, study).unlink()
    assert enrol(house, study, **{"first-round": 2})["takes-part"]
    assert "over this hospital's 8" in ask(house, study, number=2).error.reason
    assert "over this hospital's 8" in enrol(house, study)["reason"]


@pytest.mark.parametrize("first", [0, 4, -1, "2", 2.0])
def test_a_beginning_that_the_study_does_not_have_is_refused(house, first):
    reason = enrol(house, house.study(), **{"first-round": first})["reason"]
    assert reason.endswith(f"has rounds 1 to 2 and can't go on with round {first!r}")


def test_a_coordinator_that_lies_about_the_first_round_gains_nothing(house):
    study = house.study()
    ask(house, study, number=1)
    ask(house, study, number=2)
    the_file(house, study).unlink()
    for first in (1, 2, 3):
        enrol(house, study, **{"first-round": first})
        for number in (1, 2):
            assert "0 are left; 1 need" in ask(house, study, number=number).error.reason
    assert paid(house) == [1, 2]
