"""Percentile curves from noisy counts: right where there are many patients, never crossing, silent where nothing can be
said."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import norm

from tasks.provenance import Provenance
from tasks.reference_values.lms import Scale, fit, lms, quantile, shares, z_score
from tasks.reference_values.measures import Ventricle
from tasks.reference_values.place import ordinal, place, places, source
from tasks.reference_values.values import ReferenceValues, Z, reference_values
from tasks.task import load

SETTINGS = yaml.safe_load((Path(__file__).parents[3] / "conf" / "task" / "reference_values.yaml").read_text())
EF_ALONE = {**SETTINGS, "measures": [measure for measure in SETTINGS["measures"] if measure["name"] == "ef"]}
RANGE = Scale(40, 120)
AGES = np.array([27.5, 40, 50, 60, 72.5])
EDGES = np.linspace(40, 120, 9)[1:-1]


def normal_counts(patients):
    """Expected counts, exactly: median 80 - 0.4 (age - 50), standard deviation 12, by the normal distribution itself."""
    medians = 80 - 0.4 * (AGES - 50)
    below = norm.cdf(EDGES[None], medians[:, None], 12)
    return patients * np.diff(np.concatenate([np.zeros((5, 1)), below, np.ones((5, 1))], 1), axis=1), medians


def test_percentiles_of_a_normal_measure_are_found():
    counts, medians = normal_counts(1e6)
    theta, patients = fit(counts[None], ages=AGES, edges=EDGES, scale=RANGE, noise_sd=1.0)
    found = quantile(theta, AGES, Z, RANGE)[0]
    assert found == pytest.approx(medians[:, None] + 12 * norm.ppf([0.05, 0.25, 0.5, 0.75, 0.95]), abs=0.25)
    assert patients[0] == pytest.approx(np.full(5, 1e6), rel=1e-3)


def test_a_skewed_measure_keeps_its_skewness():
    """Logarithms that are normal: L is 0 and S their standard deviation."""
    below = norm.cdf(np.log(EDGES / 70) / 0.2)
    counts = 1e6 * np.diff([0, *below, 1])
    theta, _ = fit(np.broadcast_to(counts, (1, 5, 8)), ages=AGES, edges=EDGES, scale=RANGE, noise_sd=1.0)
    skew, median, spread = lms(theta, AGES, RANGE)
    assert skew[0, 0] == pytest.approx(0, abs=0.05)
    assert median[0] == pytest.approx(np.full(5, 70), abs=0.2)
    assert spread[0] == pytest.approx(np.full(5, 0.2), abs=0.005)


def test_percentiles_never_cross_whatever_the_parameters():
    theta = np.random.default_rng(0).normal(size=(500, 6)) * 3
    found = quantile(theta, np.arange(15.0, 96), Z, RANGE)
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=-1) >= 0).all()
    assert (found > 0).all()


def test_shares_are_parts_of_one_and_z_undoes_the_quantile():
    theta = np.random.default_rng(1).normal(size=(50, 6)) * 0.4
    found = shares(theta, AGES, EDGES, RANGE)
    assert found.sum(-1) == pytest.approx(np.ones((50, 5)))
    assert (found >= 0).all()
    values = quantile(theta[:1], AGES[:1], Z, RANGE)[0, 0]
    assert z_score(theta[:1], AGES[:1], values, RANGE)[0, 0] == pytest.approx(Z, abs=1e-6)


def people(count, seed=0):
    """Drawn by hand: fraction 62 and 60 % give or take 5, whatever the age."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        sex = "FM"[n % 2]
        fraction = rng.normal(62 if sex == "F" else 60, 5) / 100
        found.append(Ventricle(140, 140 * (1 - fraction), 110, float(rng.uniform(20, 80)), sex, 1.8))
    return found


def values(of, *, settings=EF_ALONE, noise=0.0, seed=0, **more):
    """Reference values of these patients, with Gaussian noise of that many patients on each number."""
    task = load(settings)
    total = np.zeros(task.length)
    for one in of:
        total += task.contribution({"rows": np.array(task.rows(one), np.int64)})
    sd = noise * task.weight
    total += sd * np.random.default_rng(seed).standard_normal(task.length)
    state = {"total": torch.from_numpy(total), "noise_variance": torch.tensor([sd**2], dtype=torch.float64)}
    about = {"study": "hearts", "study_hash": "ab" * 32, "hospitals": ["north", "south"], "epsilon": 3.0, "delta": 1e-3}
    return reference_values(task, state, Provenance(**{**about, **more}))


@pytest.fixture(scope="module")
def many():
    return values(people(2000), noise=3.0)


@pytest.fixture(scope="module")
def few():
    return values(people(250), noise=3.0)


def test_private_percentiles_lie_near_the_true_ones_and_within_their_intervals(many):
    for curve, middle in zip(many.curves, (62, 60), strict=True):
        true = middle + 5 * Z
        found, (low, high) = curve.percentiles([30, 50, 70]), curve.interval([30, 50, 70])
        assert np.abs(found - true).max() < 2
        assert ((low <= true) & (true <= high)).mean() > 0.8
        assert set(range(25, 75)) <= set(curve.ages)
        assert curve.misfit > 0.01


def test_fewer_patients_leave_wider_intervals_and_fewer_ages(many, few):
    for wide, narrow in zip(few.curves, many.curves, strict=True):
        spans = [float(np.subtract(*reversed(curve.interval([50])))[0, 2]) for curve in (wide, narrow)]
        assert spans[0] > 1.5 * spans[1]
        assert len(wide.ages) <= len(narrow.ages)


def test_noise_alone_says_nothing():
    for seed in range(3):
        assert not any(curve.ages for curve in values([], noise=8.0, seed=seed).curves)


def test_of_ages_with_fewer_patients_than_the_limit_nothing_is_said():
    young = [one for one in people(1500) if one.age < 45]
    found = values(young, noise=2.0)
    assert all(curve.ages and max(curve.ages) < 46 for curve in found.curves)
    exact = values([one for one in people(1500) if one.age < 45] + [one for one in people(1500) if one.age > 65][:9])
    assert all(not [age for age in curve.ages if age >= 65] for curve in exact.curves)


def test_counts_of_another_shape_than_the_model_has_are_doubted():
    """Two kinds of hearts, at 48 and at 72 %, and none between."""
    two = [
        Ventricle(100, 100 - middle, 100, 25 + n % 50, "F", 1.8)
        for n, middle in enumerate(itertools.islice(itertools.cycle((48.5, 72.5)), 2000))
    ]
    assert values(two, noise=2.0).curves[0].misfit < 1e-6


def test_the_same_sum_gives_the_same_values_and_they_can_be_kept(many):
    assert values(people(2000), noise=3.0) == many
    assert ReferenceValues.model_validate_json(many.model_dump_json()) == many


def test_a_sum_of_another_study_or_with_broken_numbers_is_refused():
    task = load(EF_ALONE)
    broken = {"total": torch.full((task.length,), torch.nan, dtype=torch.float64), "noise_variance": torch.zeros(1)}
    bare = Provenance(study="s", study_hash="", hospitals=(), epsilon=None, delta=None)
    with pytest.raises(ValueError, match="not finite"):
        reference_values(task, broken, bare)
    with pytest.raises(ValueError, match="these settings count"):
        reference_values(task, {**broken, "total": torch.zeros(3)}, bare)


def test_a_patient_is_placed_by_sex_and_age(many):
    woman = many.curves[0]
    for z, percentile in ((0, 50), (0.6745, 75), (-1.2816, 10)):
        found = place(woman, 50, 62 + 5 * z)
        assert found.percentile == pytest.approx(percentile, abs=8)
        assert found.low <= found.percentile <= found.high
        assert found.high - found.low < 30
    ordinary = place(woman, 50, 62)
    assert ordinary.figure == "62 %"
    assert ordinary.words.startswith(f"at the {ordinal(ordinary.percentile)} percentile of women of 50 (with 95 % certainty ")
    assert place(woman, 50, 20).words == "below the 5th percentile of women of 50 (with 95 % certainty below the 5th)"
    assert place(woman, 50, 85).words == "above the 95th percentile of women of 50 (with 95 % certainty above the 95th)"
    assert place(woman, 88, 62).words == "too little is known of women of 88 to compare it with"


def test_a_patient_has_a_place_for_every_measure_that_is_known():
    found = values(people(40), settings=SETTINGS)
    here = Ventricle(140, 60, None, 50, "M", None)
    assert [one.measure.key for one in places(here, found)] == ["ef"]
    here = Ventricle(140, 60, 110, 50, "M", 2.0)
    assert [one.measure.key for one in places(here, found)] == ["edv_index", "esv_index", "sv_index", "ef", "mass_index"]
    assert places(here, found)[0].value == 70


def test_it_is_told_where_the_values_come_from(many):
    said = source(many)
    assert said == (
        "Reference values of study hearts (abababababab), from masks that readers drew. Patients of 2 hospitals (north, "
        "south), counted together; epsilon 3 at delta 0.001, noise at each hospital."
    )
    assert "no privacy was promised" in source(many.model_copy(update={"epsilon": None}))
    assert "one noise for all" in source(many.model_copy(update={"one_noise": True}))
