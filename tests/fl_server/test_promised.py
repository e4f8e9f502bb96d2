"""The noise that a study promises, worked out by the coordinator: what hospitals add, and what they write in their ledgers."""

import math
from importlib.metadata import version
from itertools import product

import pytest
from scipy.stats import norm

from conf.study import Study
from fl_client.price import matrix_event, round_event, scores_event, validation_event
from fl_client.site import Site
from fl_server.promised import noise_variance
from tasks.task import load

COUNT = {"name": "count", "tables": [{"axes": []}]}


def study_of(task, **settings):
    fields = {"konsil_version": version("konsil"), "task": task, "rounds": 6, "sites": ("a", "b", "c")}
    return Study.model_validate({**fields, **settings})


@pytest.fixture
def site(tmp_path):
    return Site(name="a", folder=tmp_path, declared_size=10)


def delta_of(squares, epsilon):
    """Balle and Wang 2018, Theorem 8, for Gaussian sums whose squared ratios of sensitivity to noise add up to `squares`."""
    mu = math.sqrt(squares)
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize(("epsilon", "delta"), list(product((0.05, 0.5, 3.0, 8.0, 60.0), (1e-6, 1e-3, 0.05))))
def test_scores_cost_their_shares_of_the_promise_and_hospitals_add_that_noise(epsilon, delta, site):
    privacy = {"epsilon": epsilon, "delta": delta, "evaluation_share": 0.07, "validation_share": 0.2, "matrix_share": 0.3}
    study = study_of({"name": "segmentation"}, privacy=privacy, validation={"every": 2})
    events = {
        "scores": scores_event(site, study),
        "validation": validation_event(site, study, number=2),
        "matrix": matrix_event(site, study),
    }
    for kind, event in events.items():
        assert noise_variance(study, kind) == pytest.approx(event.noise_multiplier**2, rel=1e-9)
    spent = {kind: n / noise_variance(study, kind) for kind, n in (("scores", 1), ("validation", 3), ("matrix", 4))}
    assert spent["validation"] / spent["scores"] == pytest.approx(0.2 / 0.07)
    assert spent["matrix"] / spent["scores"] == pytest.approx(0.3 / 0.07)
    whole = sum(spent.values()) / 0.57
    assert delta_of(whole, epsilon) <= delta * (1 + 1e-9)
    assert delta_of(whole * 1.003, epsilon) > delta


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.99])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 1e-3), (3.0, 1e-3), (20.0, 0.01)])
def test_counts_and_scores_cost_the_promise_together_and_hospitals_add_that_noise(share, epsilon, delta, site):
    study = study_of(
        COUNT, rounds=1, strategy={"name": "sum"}, privacy={"epsilon": epsilon, "delta": delta, "evaluation_share": share}
    )
    event = round_event(site, study, load(study.task), number=1)
    assert noise_variance(study, "round") == pytest.approx(event.noise_multiplier**2, rel=1e-9)
    beside = 1 / noise_variance(study, "scores") if share else 0.0
    assert delta_of(1 / event.noise_multiplier**2 + beside, epsilon) <= delta * (1 + 1e-9)
    assert delta_of(1.003 / event.noise_multiplier**2 + beside, epsilon) > delta * (1 if share < 0.9 else 1 - 1e-3)


def test_without_privacy_there_is_none_and_what_a_study_has_not_is_said():
    assert noise_variance(study_of(COUNT, privacy={"kind": "none"}), "scores") == 0
    with pytest.raises(ValueError, match="has no sums of the kind matrix"):
        noise_variance(study_of(COUNT), "matrix")
    never = study_of(COUNT, privacy={"validation_share": 0.1}, validation={"every": 9})
    with pytest.raises(ValueError, match="has no sums of the kind validation"):
        noise_variance(never, "validation")
    with pytest.raises(ValueError, match=r"sample_rate is 0\.5"):
        noise_variance(study_of(COUNT, training={"sample_rate": 0.5}), "round")
    with pytest.raises(ValueError, match="no noise is enough"):
        noise_variance(study_of(COUNT, privacy={"epsilon": 1e-12, "delta": 1e-15}), "round")


def test_the_published_multiplier_of_epsilon_3_at_delta_a_thousandth():
    study = study_of(COUNT, rounds=1, strategy={"name": "sum"}, privacy={"epsilon": 3.0, "delta": 1e-3})
    assert noise_variance(study, "round") == pytest.approx(1.0386**2, rel=2e-3)  # as dp-accounting gives it, to four digits
