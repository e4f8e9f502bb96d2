"""Whether one more release may follow when somebody chooses it after having seen the others."""

import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from fl_client.privacy import BudgetSpent, Event, Ledger, epsilon, shared_noise
from fl_client.privacy.filters import ALLOWANCE, reached
from tasks.accounting import gaussian
from tasks.accounting.events import Law
from tasks.accounting.loss_distributions import mu_like

OLD = Path(__file__).with_name("ledger_of_0_3_0.jsonl")
DELTA = 1e-3


def sampled(sigma=3.0, rate=0.25, steps=1, *, study="ab", planned=None, **more):
    return Event(noise_multiplier=sigma, sample_rate=rate, steps=steps, study=study, planned=planned, **more)


def far(events, *, budget=8.0, delta=DELTA):
    return reached(events, budget=budget, delta=delta)


# -- why there is a filter ----------------------------------------------------------------------------------------------


def hockey_stick(e, sigma, rate):
    """Of one sampled Gaussian sum, removing a patient: sup of P(S) - exp(e) Q(S), for any real e."""
    ratio = np.maximum((np.expm1(e) + rate) / rate, 1e-300)
    x = sigma**2 * np.log(ratio) + 0.5  # the loss is over e above this
    return (1 - rate) * ndtr(-x / sigma) + rate * ndtr(-(x - 1) / sigma) - np.exp(e) * ndtr(-x / sigma)


def after_a_gaussian(mu, budget, seconds):
    """Delta of a Gaussian release of ratio `mu`, after which the worst of some second ones follows, whatever its outcome."""
    losses = np.linspace(mu**2 / 2 - 12 * mu, mu**2 / 2 + 12 * mu, 8001)
    weights = np.exp(-((losses - mu**2 / 2) ** 2) / (2 * mu**2))
    curves = [hockey_stick(budget - losses, sigma, rate) for sigma, rate in seconds]
    return float((weights / weights.sum() * np.max(curves, axis=0)).sum())


def least_sigma(enough, low, high, *, to=1e-9):
    while high - low > to * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def test_a_sum_of_what_fixed_releases_cost_promises_too_much_to_who_chooses_and_the_filter_does_not():
    """After a first release somebody takes the one of two second releases whose curve is worse at what was seen.

    Each alone composes with the first to exactly the budget. One is over all patients, one over a twentieth with little noise.
    """
    mu, budget, rate = 0.6, 2.0, 0.05
    whole = least_sigma(lambda s: after_a_gaussian(mu, budget, [(s, 1.0)]) <= DELTA, 0.3, 50)
    few = least_sigma(lambda s: after_a_gaussian(mu, budget, [(s, rate)]) <= DELTA, 0.1, 50)
    assert after_a_gaussian(mu, budget, [(whole, 1.0)]) == pytest.approx(DELTA, rel=1e-5)
    assert after_a_gaussian(mu, budget, [(few, rate)]) == pytest.approx(DELTA, rel=1e-5)
    assert after_a_gaussian(mu, budget, [(whole, 1.0), (few, rate)]) > 1.02 * DELTA  # each was fine, the choice is not

    first = Event(noise_multiplier=1 / mu)
    assert far([first, Event(noise_multiplier=whole * (1 + 1e-6))], budget=budget).epsilon <= budget
    assert far([first, sampled(few, rate, study="later")], budget=budget).epsilon > budget
    allowed = least_sigma(
        lambda s: far([first, sampled(s, rate, study="later")], budget=budget).epsilon <= budget, few, 3, to=0.02
    )
    together = after_a_gaussian(mu, budget, [(whole, 1.0), (allowed, rate)])
    assert together <= (1 + ALLOWANCE) * DELTA


# -- what it asks ---------------------------------------------------------------------------------------------------------


def test_gaussian_releases_cost_what_they_cost_whoever_chose_them():
    rng = random.Random(1)
    events = [Event(noise_multiplier=rng.uniform(3, 30), steps=rng.randint(1, 5), study=str(n)) for n in range(20)]
    for n in range(len(events) + 1):
        assert far(events[:n]) == (epsilon(events[:n], delta=DELTA), 0.0)


def test_the_first_study_costs_what_its_plan_costs_from_its_first_round_on():
    plan = [sampled(planned=100, steps=5, round=n) for n in range(1, 21)]
    whole = epsilon(plan, delta=DELTA)
    assert [far(plan[:n]).epsilon for n in (1, 7, 20)] == [whole] * 3
    scores = Event(noise_multiplier=20.0, study="ab", kind="scores")
    assert far([*plan, scores]).epsilon == pytest.approx(epsilon([*plan, scores], delta=DELTA), rel=1e-9)


def test_rounds_beyond_the_plan_are_paid_in_lots_that_double():
    plan = [sampled(planned=20) for _ in range(20)]
    costs = [far([*plan, *[sampled(planned=20)] * more]).epsilon for more in range(8)]
    assert costs[1] < costs[2] < costs[3] == costs[4] < costs[5] == costs[7]  # 1, 1, 2, 4
    assert costs[0] < costs[1]


def test_a_study_chosen_later_is_counted_as_the_gaussian_that_covers_it():
    first = Event(noise_multiplier=8.0, study="first")
    later = [sampled(study="later", planned=60, round=n) for n in range(1, 61)]
    mu = mu_like(Law("gaussian", 3.0, 0.25), 60, apart=1e-4 * DELTA)
    expected = gaussian.epsilon_at(DELTA, mu=math.sqrt(1 / 64 + mu**2))
    assert far([first, *later]).epsilon == pytest.approx(expected, rel=1e-9)
    fixed = epsilon([first, *later], delta=DELTA)
    assert fixed < expected < 1.1 * fixed
    assert expected < 0.5 * epsilon([first, *[event.model_copy(update={"sample_rate": 1.0}) for event in later]], delta=DELTA)


def test_it_never_says_less_than_what_the_releases_cost_and_only_grows():
    for seed in range(2):
        rng = random.Random(seed)
        events = []
        for n in range(4):
            kind = rng.choice(("gaussian", "sampled", "laplace", "geometric", "shared"))
            study, steps = rng.choice("ab"), rng.randint(1, 8)
            if kind == "gaussian":
                events.append(Event(noise_multiplier=rng.uniform(5, 20), study=study, steps=steps))
            elif kind == "sampled":
                events.append(sampled(2.0, 0.1, steps, study=study, planned=rng.choice((None, 10)), round=n))
            elif kind == "shared":
                noise = {"share_std": 1e6, "shares": 4, "sensitivity": 3e5, "dimension": 100, "sampling_error": 1e-12}
                events.append(shared_noise(**noise, study=study))
            else:
                more = {"sensitivity": 1.0} if kind == "geometric" else {}
                events.append(Event(mechanism=kind, noise_multiplier=rng.uniform(10, 30), dimension=1, study=study, **more))
        costs = [far(events[:n]).epsilon for n in range(len(events) + 1)]
        assert costs == sorted(costs)
        assert all(cost >= epsilon(events[:n], delta=DELTA) for n, cost in enumerate(costs))


def test_after_fifty_lots_sampling_earns_nothing_any_more():
    lots = [sampled(6.0, 0.1, study=f"{n:02}", planned=1) for n in range(52)]
    fifty, more = far([Event(noise_multiplier=50.0), *lots[:50]]), far([Event(noise_multiplier=50.0), *lots])
    assert fifty.beside == more.beside == pytest.approx(50 * 1e-4)
    mu2 = 1 / 2500 + 50 * mu_like(Law("gaussian", 6.0, 0.1), 1, apart=1e-7) ** 2
    assert fifty.epsilon == pytest.approx(gaussian.epsilon_at(DELTA, mu=math.sqrt(mu2)), rel=1e-9)
    assert more.epsilon == pytest.approx(gaussian.epsilon_at(DELTA, mu=math.sqrt(mu2 + 2 / 36)), rel=1e-9)


# -- in the ledger --------------------------------------------------------------------------------------------------------


def test_a_study_within_the_budget_is_never_refused_half_way(tmp_path):
    plan = [sampled(planned=40, round=n, study_name="pilot") for n in range(1, 41)]
    book = Ledger(tmp_path / "ledger.jsonl", epsilon=epsilon(plan, delta=DELTA) * (1 + 1e-9), delta=DELTA)
    book.affords(plan)
    for event in plan[:5]:
        book.spend(event)
    book.affords(plan[5:])
    with pytest.raises(BudgetSpent, match="study pilot round 41 would bring epsilon to"):
        book.affords([*plan[5:], sampled(planned=40, round=41, study_name="pilot")])


def test_a_study_is_refused_at_once_if_its_plan_is_over_although_its_first_round_is_not(tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl", epsilon=1.0, delta=DELTA)
    assert epsilon([sampled()], delta=DELTA) < 1.0
    with pytest.raises(BudgetSpent, match="study pilot round 1 would bring epsilon to"):
        book.spend(sampled(planned=100, round=1, study_name="pilot"))
    assert book.events == ()


def test_noise_that_is_drawn_too_coarsely_is_refused_in_words(tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl", epsilon=8.0, delta=DELTA)
    noise = {"share_std": 1e6, "shares": 4, "sensitivity": 3e5, "dimension": 100, "study_name": "sums", "round": 3}
    with pytest.raises(
        BudgetSpent, match=r"sums round 3 would add 3e\+02 % to this hospital's delta of 0.001, so coarsely is its"
    ):
        book.spend(shared_noise(**noise, sampling_error=1e-6))
    assert book.spend(shared_noise(**noise, sampling_error=1e-12)) > 0


def test_every_kind_of_noise_is_read_back_from_the_file_as_it_was(tmp_path):
    events = [
        sampled(planned=3, round=1),
        Event(noise_multiplier=4.0),
        Event(mechanism="laplace", noise_multiplier=9.0, dimension=2),
        Event(mechanism="geometric", noise_multiplier=9.0, dimension=2, sensitivity=1),
        shared_noise(share_std=1e6, shares=3, sensitivity=2e5, dimension=7, sampling_error=1e-25, study="cd", round=2),
    ]
    book = Ledger(tmp_path / "ledger.jsonl", epsilon=50.0, delta=DELTA)
    for event in events:
        book.spend(event)
    assert Ledger(book.path, epsilon=50.0, delta=DELTA).events == tuple(events)
    assert "null" not in book.path.read_text()


def test_a_ledger_that_konsil_0_3_0_wrote_is_read_priced_and_continued(tmp_path):
    for name in (OLD, OLD.with_name(OLD.name + ".head")):
        shutil.copy(name, tmp_path / name.name)
    book = Ledger(tmp_path / OLD.name, epsilon=20.0, delta=DELTA)
    assert [event.mechanism for event in book.events] == ["gaussian"] * 8
    assert book.epsilon == pytest.approx(1.000860766308688, rel=5e-3)  # what 0.3.0 said
    before = book.epsilon
    assert book.spend(Event(noise_multiplier=12.0, study="5c" * 32, study_name="pilot", round=4)) > before
    book.verify()
    assert (tmp_path / OLD.name).read_text().startswith(OLD.read_text())
