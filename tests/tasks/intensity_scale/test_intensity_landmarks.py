"""Where an image's percentiles lie, bringing it to others, and that no patient moves the sum by more than 1."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tasks.case import Case, Volume
from tasks.intensity_scale.released import intensity_scale
from tasks.intensity_scale.scale import case_in_scale, in_scale, landmarks
from tasks.provenance import Provenance
from tasks.task import load

PRESET = yaml.safe_load((Path(__file__).parents[3] / "conf" / "task" / "intensity_scale.yaml").read_text())
FACTS = Provenance(study="grey", study_hash="ab" * 32, hospitals=("a", "b"), epsilon=1.0, delta=1e-3)


@pytest.fixture
def task():
    return load(PRESET)


def volume(seed=0, *, power=1.0, series="cine_ed", side=64, spacing=3.0, mask=False):
    """Grey values of 200 to 1200, evenly spread before the power."""
    grey = np.random.default_rng(seed).uniform(0, 1, (4, side, side)) ** power
    drawn = np.ones(grey.shape, np.uint8) if mask else None
    return Volume(series, (200 + 1000 * grey).astype(np.float32), np.diag([8.0, spacing, spacing, 1.0]), drawn)


def case(*volumes):
    return Case("p1", volumes)


def state(total, sd=0.0):
    return {"total": torch.from_numpy(np.asarray(total)), "noise_variance": torch.tensor([sd**2], dtype=torch.float64)}


def test_landmarks_are_where_the_percentiles_lie_between_the_first_and_the_last(task):
    found = landmarks(volume(), task.settings)
    expected = (np.array(PRESET["percentiles"]) - 1) / 98
    assert found == pytest.approx(expected, abs=0.01)
    assert landmarks(volume(power=2.0), task.settings) == pytest.approx(expected**2, abs=0.025)


def test_units_of_grey_do_not_matter(task):
    one = volume(3)
    other = Volume("cine_ed", one.image * 7 - 3000, one.affine)
    assert landmarks(other, task.settings) == pytest.approx(landmarks(one, task.settings), abs=1e-6)


def test_what_lies_outside_the_field_does_not_count(task):
    one = volume(side=64, spacing=6.0)  # 384 mm wide, of which 192 count
    image = one.image.copy()
    image[:, :16], image[:, -16:], image[..., :16], image[..., -16:] = 1e6, 1e6, 1e6, 1e6
    assert np.array_equal(landmarks(Volume("cine_ed", image, one.affine), task.settings), landmarks(one, task.settings))
    whole = load({**PRESET, "field_mm": None})
    assert landmarks(Volume("cine_ed", image, one.affine), whole.settings)[0] < 0.001


def test_an_image_in_a_scale_has_its_landmarks_and_keeps_its_order(task):
    wanted = (np.array(PRESET["percentiles"]) / 100) ** 3
    one = volume(5, mask=True)
    worn = in_scale(one, wanted, task.settings)
    assert landmarks(worn, task.settings) == pytest.approx(wanted, abs=2e-3)
    order = np.argsort(one.image, axis=None, kind="stable")
    assert (np.diff(worn.image.reshape(-1)[order]) >= 0).all()
    assert worn.image.dtype == np.float32
    assert (worn.image.min(), worn.image.max() <= 1.5) == (0.0, True)
    assert worn.mask is one.mask


def test_a_case_of_other_series_cannot_wear_a_scale_and_other_volumes_stay(task):
    wanted = np.linspace(0.1, 0.9, 11)
    with pytest.raises(ValueError, match="the intensity scale is of cine_ed, cine_es; case p1 has lge"):
        case_in_scale(case(volume(series="lge")), wanted, task.settings)
    both = case(volume(), volume(1, series="lge"))
    worn = case_in_scale(both, wanted, task.settings)
    assert worn.volumes[1] is both.volumes[1]
    assert landmarks(worn.volumes[0], task.settings) == pytest.approx(wanted, abs=2e-3)


def test_an_image_of_few_grey_values_can_wear_a_scale(task):
    """Air of one value below most percentiles, as cut-out images have."""
    image = volume(6).image.copy()
    image[:, :40] = 0.0
    one = Volume("cine_ed", image, np.diag([8.0, 3.0, 3.0, 1.0]))
    worn = in_scale(one, np.linspace(0.1, 0.9, 11), task.settings)
    assert np.isfinite(worn.image).all()
    assert (worn.image[:, :40] == 0.0).all()


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0, 3.0, 30.0])
def test_a_patient_is_never_longer_than_one_however_bright(task, power):
    vector = task.contribution(task.prepare(case(volume(power=power), volume(1, power=power, series="cine_es"))))
    assert 0.4 < np.linalg.norm(vector) <= 1
    assert np.array_equal(vector * 2**30, np.round(vector * 2**30))  # sums are exact
    bright = task.contribution({"rows": np.ones((2, 11))})
    assert 1 - 1e-8 < np.linalg.norm(bright) <= 1


def test_hospitals_that_differ_in_a_patient_differ_in_that_vector(task):
    vectors = [task.contribution(task.prepare(case(volume(seed, power=1 + seed / 10)))) for seed in range(20)]
    everyone = np.sum(vectors, axis=0)
    for number, own in enumerate(vectors):
        without = np.sum(vectors[:number] + vectors[number + 1 :], axis=0)
        assert np.array_equal(everyone - without, own)


def test_the_scale_of_a_sum_without_noise_is_that_of_the_mean_patient(task):
    prepared = [task.prepare(case(volume(seed, power=1.5 + 0.1 * (seed % 3)))) for seed in range(12)]
    found = intensity_scale(task, state(np.sum([task.contribution(one) for one in prepared], axis=0)), FACTS)
    mean = np.mean([np.sqrt(one["rows"][0]) for one in prepared], axis=0) ** 2
    assert found.landmarks == pytest.approx(mean, abs=0.01)
    assert found.patients == pytest.approx(12, abs=2.5)  # who is bright is cut, and weighs less
    assert landmarks(found.worn_by(case(volume(99, power=4.0))).volumes[0], task.settings) == pytest.approx(mean, abs=0.012)


def test_bright_patients_weigh_less_and_do_not_darken_the_scale(task):
    """All alike and cut: the quotient is still their own."""
    rows = task.prepare(case(volume(power=0.2)))
    found = intensity_scale(task, state(50 * task.contribution(rows)), FACTS)
    assert np.linalg.norm(task.contribution(rows)) > 0.99
    assert found.landmarks == pytest.approx(rows["rows"][0], abs=0.01)


@pytest.mark.parametrize(("power", "sd"), [(6.0, 1.0), (2.5, 4.0), (0.3, 2.0)], ids=["very dark", "dark", "bright"])
def test_noise_leaves_a_curve_that_rises_and_intervals_that_hold_the_truth(task, power, sd):
    truth = task.prepare(case(volume(power=power)))
    own = task.contribution(truth)
    gained, inside = [], []
    for seed in range(200):  # of 100 patients
        total = 100 * own + sd * np.random.default_rng(seed).standard_normal(12)
        found = intensity_scale(task, state(total, sd), FACTS)
        steps = np.diff(np.sqrt([0.0, *found.landmarks, 1.0]))
        assert (steps > 0.9e-3 * np.diff([1, *task.settings.percentiles, 99])).all()  # no two grey values become one
        raw = np.clip(total[1:] / total[0], 0, 1) ** 2
        gained.append(np.abs(raw - truth["rows"][0]).mean() - np.abs(np.array(found.landmarks) - truth["rows"][0]).mean())
        low, high = np.array(found.interval)
        inside.append((low <= truth["rows"][0]) & (truth["rows"][0] <= high))
    assert np.mean(gained) > 0
    assert np.mean(inside, axis=0).min() > 0.9  # at every percentile


def test_a_sum_that_the_noise_has_drowned_says_nothing(task):
    own = task.contribution(task.prepare(case(volume())))
    with pytest.raises(ValueError, match=r"the noise \(standard deviation 20.0\) is too much for the 8 patients"):
        intensity_scale(task, state(8 * own / (own[0] * 2), 10.0), FACTS)
    with pytest.raises(ValueError, match="is too much for the 0 patients"):
        intensity_scale(task, state(-3 * own / (own[0] * 2), 0.1), FACTS)


def test_a_sum_of_another_study_and_one_that_is_no_sum_are_refused(task):
    with pytest.raises(ValueError, match=r"the sum has the shape \(5,\); these settings count 12"):
        intensity_scale(task, state(np.ones(5)), FACTS)
    for total, sd in ((np.full(12, math.nan), 0.0), (np.ones(12), math.inf)):
        with pytest.raises(ValueError, match="not finite"):
            intensity_scale(task, state(total, sd), FACTS)


def test_where_it_comes_from_is_told_in_words(task):
    own = task.contribution(task.prepare(case(volume(power=3.0))))
    words = intensity_scale(task, state(40 * own), FACTS.model_copy(update={"one_noise": True})).words
    assert "of 2 hospitals made under epsilon 1 at delta 0.001, one noise for all" in words
    bare = FACTS.model_copy(update={"epsilon": None, "delta": None})
    assert "without a promise of privacy" in intensity_scale(task, state(40 * own), bare).words


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((4, 64, 64), 7.0, np.float32), "no usable contrast"),
        (np.where(np.arange(64) == 5, np.nan, volume().image), "values that are not finite"),
    ],
    ids=["flat", "nan"],
)
def test_an_image_that_has_no_scale_is_refused_and_names_the_case(task, image, reason):
    spoiled = Volume("cine_ed", image.astype(np.float32), np.diag([8.0, 3.0, 3.0, 1.0]))
    with pytest.raises(ValueError, match=f"case p1: cine_ed has {reason}"):
        task.prepare(case(spoiled))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"percentiles": [50, 20]}, "percentiles must rise"),
        ({"percentiles": [0.5]}, "percentiles.0"),
        ({"series": ["cine_ed", "cine_ed"]}, "stand twice: cine_ed"),
        ({"field_mm": 0}, "field_mm"),
        ({"bins": 3}, "no such setting"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(change, reason):
    with pytest.raises(ValueError, match=reason):
        load({**PRESET, **change})
