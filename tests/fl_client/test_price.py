"""The price of all that a study releases, against the accountant; what counts as what in a ledger; who is on which side."""

import math
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from small import SMALL_TASK

from conf.study import Study
from fl_client.cohort import is_test, side_of
from fl_client.contract import contract
from fl_client.price import Paid, matrix_events, paid_of, planned, rounds_paid, validated_rounds, validation_event
from fl_client.privacy import Event, epsilon
from fl_client.site import Site
from tasks.task import load

SITE = Site(name="a", folder=Path("/nowhere"), declared_size=100)
SHARES = {"evaluation_share": 0.1, "validation_share": 0.25, "matrix_share": 0.15}


def study(*, rounds=10, every=2, privacy=SHARES, training=None, sites=("a", "b", "c"), **more):
    validation = {"every": every} if privacy.get("validation_share") else None
    fields = {"task": SMALL_TASK, "rounds": rounds, "sites": sites, "konsil_version": version("konsil")}
    return Study.model_validate({**fields, "privacy": privacy, "training": training or {}, "validation": validation, **more})


def planned_of(asked):
    return planned(SITE, asked, load(asked.task))


def exact_epsilon(events, delta):
    """Of sums over everybody, without the code under test: the privacy curve of one Gaussian, solved by bisection."""
    mu = math.sqrt(sum(event.steps / event.noise_multiplier**2 for event in events))
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        found = norm.cdf(mu / 2 - middle / mu) - math.exp(middle) * norm.cdf(-mu / 2 - middle / mu)
        low, high = (middle, high) if found > delta else (low, middle)
    return high


@pytest.mark.parametrize("promised", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("shares", [{}, {"validation_share": 0.3}, {"matrix_share": 0.3}, SHARES, dict.fromkeys(SHARES, 0.32)])
def test_everything_together_costs_what_the_study_promises_and_no_more(promised, shares):
    events = planned_of(study(privacy={"epsilon": promised, "delta": 1e-3, **shares}))
    cost = exact_epsilon(events, 1e-3)
    assert 0.995 * promised < cost <= promised
    assert epsilon(events, delta=1e-3) == pytest.approx(cost, rel=1e-6)


def test_rounds_over_some_patients_and_scores_over_all_of_them_keep_the_promise_too():
    asked = study(privacy={"epsilon": 4.0, **SHARES}, training={"sample_rate": 0.3, "steps": 4})
    events = planned_of(asked)
    assert {event.sample_rate for event in events if event.kind == "gradient"} == {0.3}
    assert {event.sample_rate for event in events if event.kind != "gradient"} == {1.0}
    assert {event.planned for event in events if event.kind == "gradient"} == {10 * 4}  # paid as a whole (filters.py)
    assert {event.planned for event in events if event.kind != "gradient"} == {None}
    assert 0.98 * 4 < epsilon(events, delta=1e-3) <= 4
    dearer = planned_of(study(privacy={"epsilon": 4.0}, training={"sample_rate": 0.3, "steps": 4}))
    assert events[0].noise_multiplier > dearer[0].noise_multiplier  # the scores are taken from the rounds


def test_each_kind_has_its_share_however_often_it_is_asked_for():
    asked = study(privacy={"epsilon": 3.0, **SHARES})
    events = planned_of(asked)
    assert Counter(event.kind for event in events) == {"gradient": 10, "validation": 5, "scores": 1, "matrix": 4}
    squares = Counter()
    for event in events:
        squares[event.kind] += event.steps / event.noise_multiplier**2
    for kind, share in (("scores", 0.1), ("validation", 0.25), ("matrix", 0.15), ("gradient", 0.5)):
        assert squares[kind] / squares.total() == pytest.approx(share, rel=0.01)
    assert [event.round for event in events if event.kind == "validation"] == [2, 4, 6, 8, 10]


def test_fewer_validations_are_less_noisy_each():
    many, few = (
        validation_event(SITE, study(rounds=16, every=every, privacy={"epsilon": 3.0, "validation_share": 0.2}), number=every)
        for every in (1, 4)
    )
    assert many.noise_multiplier == pytest.approx(2 * few.noise_multiplier)


def test_a_larger_federation_pays_for_more_models_of_the_matrix():
    sites = tuple("abcdefgh")
    assert len(matrix_events(SITE, study(sites=sites))) == 9
    assert matrix_events(SITE, study(sites=sites))[0].noise_multiplier == pytest.approx(
        1.5 * matrix_events(SITE, study())[0].noise_multiplier  # sqrt(9 / 4)
    )


def test_the_last_rounds_come_with_the_validations_that_are_due_after_them():
    asked = study()
    left = planned(SITE, asked, load(asked.task), rounds=3, scores=False)
    assert [(event.kind, event.round) for event in left[:5]] == [
        ("gradient", 8),
        ("gradient", 9),
        ("gradient", 10),
        ("validation", 8),
        ("validation", 10),
    ]
    assert {event.kind for event in planned(SITE, asked, load(asked.task), rounds=0)} == {"scores"}
    assert list(validated_rounds(study(rounds=5))) == [2, 4]


def test_ten_thousand_rounds_with_as_many_validations_are_priced_in_seconds():
    asked = study(rounds=10_000, every=1, privacy={"epsilon": 3.0, **SHARES})
    events = planned_of(asked)
    assert len(events) == 20_000 + 1 + 4
    assert exact_epsilon(events, 1e-3) <= 3


def test_a_study_without_privacy_has_the_same_releases_without_noise():
    events = planned_of(study(privacy={"kind": "none", **SHARES}))
    assert {event.noise_multiplier for event in events} == {0.0}
    assert len(events) == 20


def test_kinds_are_counted_apart_and_other_studies_not_at_all():
    asked, other = study(), study(name="other")
    events = [
        Event(noise_multiplier=1, kind=kind, study=asked.hash) for kind in ("gradient", "leaf counts", "matrix", "scores")
    ]
    events += [Event(noise_multiplier=1, kind="validation", study=asked.hash)] * 3
    events += [Event(noise_multiplier=1, study=other.hash)]
    assert paid_of(asked, events) == Paid(rounds=2, scores=1, validations=3, matrix=1)
    assert rounds_paid(other, events) == 1


def test_the_contract_says_when_scores_leave_whose_they_are_and_how_the_promise_is_divided(hospitals):
    site = hospitals.site("a").model_copy(update={"test_fraction": 0.2})
    asked = hospitals.study(rounds=6, validation={"every": 2}, privacy={"epsilon": 3.0, **SHARES})
    said = dict(contract(site, asked, days=30))
    assert [line.split(":")[0] for line in said["What leaves"][1:4]] == [
        "3 times between rounds, one sum over validation patients",
        "once after the last round, one sum over test patients",
        "for each of 4 models after the last round, one sum over validation patients",
    ]
    assert "7 numbers in 2 arrays, 56 bytes (total 6 float64, noise_variance 1 float64)" in said["What leaves"][1]
    assert said["On whom"][1].startswith("validation patients, about 12% of your cohort, choose among its models")
    assert said["Price"][1] == (
        "this price is for everything that leaves: of it 25% for the 3 scores between rounds, 10% for the scores of the "
        "finished model, 15% for the 4 models of the matrix, and 50% for the rounds"
    )
    plain = dict(contract(site, hospitals.study(), days=30))
    assert (len(plain["On whom"]), len(plain["Price"])) == (1, 1)


# -- sides ------------------------------------------------------------------------------------------------------------------

PEOPLE = [f"P{number:016X}" for number in range(20_000)]


def test_sides_have_the_shares_that_the_settings_say():
    sides = Counter(side_of(name, 0.2, 0.15) for name in PEOPLE)
    assert sides["test"] / len(PEOPLE) == pytest.approx(0.2, abs=0.01)
    assert sides["validation"] / len(PEOPLE) == pytest.approx(0.15 * 0.8, abs=0.01)
    assert Counter(side_of(name, 0.9, 0.9) for name in PEOPLE).keys() == {"train", "validation", "test"}


def test_nobody_is_a_test_patient_in_one_study_and_a_validation_patient_in_another():
    tested = {name for name in PEOPLE if is_test(name, 0.2)}
    asked = {
        fraction: {name for name in PEOPLE if side_of(name, 0.2, fraction) == "validation"} for fraction in (0.1, 0.5, 0.99)
    }
    for found in asked.values():
        assert not tested & found
    assert asked[0.1] < asked[0.5] < asked[0.99]
    assert {side_of(name, 0.2) for name in PEOPLE} == {"train", "test"}


def test_a_patients_side_does_not_depend_on_who_else_is_there(tmp_path):
    from fl_client.cohort import Cohort
    from tasks.case import Case

    cohort = Cohort(tmp_path)
    rng = np.random.default_rng(0)
    before: dict[str, str] = {}
    for name in rng.permutation(PEOPLE[:40]):
        cohort.admit(Case(str(name), (), {"age": 50}))
        now = {
            patient: side
            for side in ("train", "validation", "test")
            for patient in cohort.split(side, test_fraction=0.2, validation_fraction=0.3)
        }
        assert now.keys() == set(cohort.patients)
        assert before.items() <= now.items()
        before = now
    assert set(before.values()) == {"train", "validation", "test"}
