"""Six hospitals sum under masks, and one of them seals or shows something false: it costs one round, and no other hospital."""

import os

import pytest

from conf.study import LocalTraining, Privacy, SecureAggregation, Strategy
from fl_client import secure
from fl_client.approval import Declined
from fl_client.keys import make_key, public_key
from fl_client.site import Budget
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.secure import site as protocol
from tasks.secure.blame import complaint

SIX = ("a", "b", "c", "d", "e", "f")
BAD = "e"
HONEST = tuple(name for name in SIX if name != BAD)


@pytest.fixture
def six(new_hospitals):
    found = new_hospitals("sites")
    for name in SIX:
        found.add(name, declared_size=4, patients=2, budget=Budget(epsilon=10.0, delta=1e-3))
        make_key(found.site(name).folder / "node.key", comment=name)
    return found


def study_of(house, names=SIX, **settings):
    keys = {name: public_key(house.site(name).folder / "node.key") for name in names}
    fields = {
        "sites": names,
        "rounds": 3,
        "privacy": Privacy(epsilon=8.0, delta=1e-3, secure=SecureAggregation(keys=keys, patients=30)),
        "training": LocalTraining(views=1),
        "strategy": Strategy(name="fedavg", quorum=3),
    }
    return house.study(**{**fields, **settings})


def ran(house, study, folder, **how):
    nodes = [{"site": str(house.sites[name])} for name in study.sites]
    grid = InProcessGrid("fl_client.app:app", nodes, {"study": study.to_json()})
    return run(grid, study, initial_state(study), folder=folder, **how)[1]


def paid(house):
    paths = {name: house.site(name).ledger_path for name in SIX}
    return {name: len(path.read_text().splitlines()) if path.exists() else 0 for name, path in paths.items()}


def answers(record):
    return ["".join(f"{name}:{entry.sites[name].answer[0]} " for name in entry.sites).strip() for entry in record.rounds]


def of(bad, function, instead):
    """`function` of fl_client.secure as it is for all hospitals but `bad`, where `instead` gets its answer."""
    return lambda site, *given, **named: (
        instead(function, site, *given, **named) if site.name == bad else function(site, *given, **named)
    )


def other_secrets(function, *given, **named):
    """Shares of a secret that it has not committed to, well sealed."""
    with pytest.MonkeyPatch.context() as patch:
        true = protocol._split
        patch.setattr(protocol, "_split", lambda seed, threshold, holders: true(os.urandom(16), threshold, holders))
        return function(*given, **named)


def no_shares(function, *given, **named):
    """What nobody can open."""
    return {name: os.urandom(len(sealed)) for name, sealed in function(*given, **named).items()}


def shows_nothing(function, *given, **named):
    return {name: os.urandom(len(shown)) for name, shown in function(*given, **named).items()}


def test_who_seals_shares_of_another_secret_ends_one_round_and_is_left_out(six, tmp_path, monkeypatch):
    monkeypatch.setattr(secure, "shared_out", of(BAD, secure.shared_out, other_secrets))
    record = ran(six, study_of(six), tmp_path / "run")
    assert answers(record) == ["a:q b:q c:q d:q e:q f:q", *["a:u b:u c:u d:u e:q f:u"] * 2]
    assert [entry.moved for entry in record.rounds] == [False, True, True]
    why = "left out since round 1: gave shares of its own mask that don't give back the secret which it had committed to"
    assert [entry.sites[BAD].reason for entry in record.rounds] == [why] * 3
    assert [entry.sites[BAD].attempts for entry in record.rounds] == [1, 0, 0]
    assert {name: told.left_out for name, told in record.sites.items() if told.left_out} == {BAD: why}
    assert record.verdict == "degraded"
    assert any(why in reason for reason in record.reasons)
    assert paid(six) == {**dict.fromkeys(HONEST, 3), BAD: 1}
    assert Record.read(tmp_path / "run" / "record.json").sites[BAD].left_out == why


def test_who_seals_what_nobody_can_open_ends_one_round_that_the_others_do_not_pay(six, tmp_path, monkeypatch):
    monkeypatch.setattr(secure, "shared_out", of(BAD, secure.shared_out, no_shares))
    record = ran(six, study_of(six), tmp_path / "run")
    assert answers(record) == ["a:d b:d c:d d:d e:q f:d", *["a:u b:u c:u d:u e:q f:u"] * 2]
    assert record.sites[BAD].left_out == (
        "left out since round 1: what one sealed the other can't open, it and 5 of the others"
    )
    assert not any(record.sites[name].left_out for name in HONEST)
    assert paid(six) == {**dict.fromkeys(HONEST, 2), BAD: 1}


def test_who_shows_what_opens_no_share_ends_no_round_and_is_left_out(six, tmp_path, monkeypatch):
    monkeypatch.setattr(secure, "unmask", of(BAD, secure.unmask, shows_nothing))
    record = ran(six, study_of(six), tmp_path / "run")
    assert answers(record) == ["a:u b:u c:u d:u e:u f:u", *["a:u b:u c:u d:u e:q f:u"] * 2]
    assert record.sites[BAD].left_out == (
        "left out since round 1: accepted its share of a secret of 'a', and then showed something that opens none"
    )
    assert not any(record.sites[name].left_out for name in HONEST)
    assert paid(six) == {**dict.fromkeys(HONEST, 3), BAD: 1}


def test_who_says_that_it_can_open_nothing_of_anybody_frames_nobody(six, tmp_path, monkeypatch):
    def can_not(function, *given, **named):
        raise Declined(complaint(HONEST))

    monkeypatch.setattr(secure, "accept", of(BAD, secure.accept, can_not))
    record = ran(six, study_of(six), tmp_path / "run")
    assert answers(record) == ["a:u b:u c:u d:u e:d f:u", *["a:u b:u c:u d:u e:q f:u"] * 2]
    assert [name for name in SIX if record.sites[name].left_out] == [BAD]


def test_one_word_against_another_leaves_nobody_out_while_enough_are_left(six, tmp_path, monkeypatch):
    def can_not(function, *given, **named):
        raise Declined(complaint(["a"]))

    monkeypatch.setattr(secure, "accept", of(BAD, secure.accept, can_not))
    record = ran(six, study_of(six, rounds=2), tmp_path / "run")
    assert answers(record) == ["a:u b:u c:u d:u e:d f:u"] * 2
    assert not any(told.left_out for told in record.sites.values())


def test_where_nobody_can_be_spared_not_another_round_is_paid_after_a_dispute(six, tmp_path, monkeypatch):
    def can_not(function, *given, **named):
        raise Declined(complaint(["a"]))

    monkeypatch.setattr(secure, "accept", of("b", secure.accept, can_not))
    record = ran(six, study_of(six, ("a", "b", "c")), tmp_path / "run", quorum_timeout_s=3600.0)
    assert answers(record) == ["a:q b:q c:q", *["a:q b:q c:a"] * 2]
    assert record.verdict == "failed"
    assert paid(six) == {"a": 1, "b": 0, "c": 1, "d": 0, "e": 0, "f": 0}


def test_a_study_that_goes_on_still_leaves_out_who_was_shown_to_be_false(six, tmp_path, monkeypatch):
    class Gone(Exception):
        pass

    def stop(entry, state):
        raise Gone

    study = study_of(six, rounds=2)
    with monkeypatch.context() as patch:
        patch.setattr(secure, "unmask", of(BAD, secure.unmask, shows_nothing))
        with pytest.raises(Gone):
            ran(six, study, tmp_path / "run", observer=stop)
    record = ran(six, study, tmp_path / "run", resume=True)
    assert answers(record) == ["a:u b:u c:u d:u e:u f:u", "a:u b:u c:u d:u e:q f:u"]
