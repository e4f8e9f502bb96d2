"""The gate that drawn scans must pass: each question has a set that must fail it, one that passes, one too small to tell."""

import dataclasses
import re

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from tasks.case import UNKNOWN, Case, Volume
from tasks.synthesis import Settings, distances, gate, measures
from tasks.synthesis.seen import POOLED, Seen, pooled, scaled, seen, seen_as_drawn

SMALL = Settings(
    structures={"ring": 5, "hole": 2},
    series=("rest", "stress"),
    locate=(),
    voxels=32,
    field_mm=64,
    channels=(8, 16),
    attention=(False, True),
    head_channels=8,
)
WIDTH = 64


def people(count, seed, *, images=2):
    """Patients whose looks are sums of the same 12 patterns, and who have 4 features."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).normal(size=(12, WIDTH))
    own = rng.normal(size=(count, 1, 12)) + 0.4 * rng.normal(size=(count, images, 12))
    looks = own @ patterns + rng.normal(size=(count, images, WIDTH))
    return [Seen(f"P{seed}-{number}", one, rng.normal(size=4)) for number, one in enumerate(looks)]


def copies(of, count, seed, *, noise=0.05):
    rng = np.random.default_rng(seed)
    picked = [of[number % len(of)] for number in range(count)]
    return [dataclasses.replace(p, looks=p.looks + noise * p.looks.std() * rng.normal(size=p.looks.shape)) for p in picked]


@pytest.fixture(scope="module")
def real():
    return people(100, 1), people(100, 2)


# -- realism ----------------------------------------------------------------------------------------------------------------


def test_the_distance_of_two_normal_distributions_is_the_one_in_closed_form():
    mean, other = np.array([1.0, 2.0, -1.0]), np.array([0.0, 2.0, 1.0])
    deviation, others = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    found = distances.between(mean, np.diag(deviation**2), other, np.diag(others**2))
    assert found == pytest.approx((1 + 0 + 4) + (1 + 0 + 6.25))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]  # the axes don't matter
    a, b = (turn @ np.diag(one**2) @ turn.T for one in (deviation, others))
    assert distances.between(turn @ mean, a, turn @ other, b) == pytest.approx(5 + 7.25)


def test_fewer_patients_than_features_have_a_distance():
    rows = np.random.default_rng(0).normal(size=(6, 10))
    assert distances.frechet(rows, rows) == pytest.approx(0, abs=1e-9)
    assert distances.frechet(rows, rows + 2) == pytest.approx(40)
    wider = distances.frechet(rows, 3 * rows)  # (3 - 1)^2 times the trace, and what the mean moves
    assert wider == pytest.approx(4 * np.trace(ledoit_wolf(rows)[0]) + 4 * (rows.mean(axis=0) ** 2).sum())


def test_drawn_patients_like_real_ones_are_no_further_than_halves_of_these():
    found = gate.realism(people(60, 3), people(40, 4))
    assert found.passed is True
    assert found.figures.patients == 30
    assert found.figures.distance < found.figures.null_95
    assert "no difference was found" in found.words


@pytest.mark.parametrize("change", [lambda rows: rows + 1, lambda rows: 2.5 * rows, lambda rows: 0.2 * rows])
def test_drawn_patients_who_are_shifted_or_spread_otherwise_fail(change):
    drawn = [dataclasses.replace(one, features=change(one.features)) for one in people(40, 4)]
    found = gate.realism(people(60, 3), drawn)
    assert found.passed is False
    assert found.figures.distance > found.figures.null_95
    assert found.figures.p < 0.02


def test_the_unit_of_a_feature_plays_no_part_and_one_that_nobody_has_is_left_out():
    rng = np.random.default_rng(0)
    real, drawn = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    before = distances.frechet_with_null(real, drawn, splits=10)
    units = np.array([1, 1000, 0.01])
    assert distances.frechet_with_null(real * units + 7, drawn * units + 7, splits=10).distance == pytest.approx(
        before.distance
    )
    without = [np.column_stack([rows, np.full(20, np.nan)]) for rows in (real, drawn)]
    assert distances.frechet_with_null(*without, splits=10) == before


# -- neighbours -------------------------------------------------------------------------------------------------------------


def test_the_exact_interval_is_clopper_and_pearsons():
    assert distances.exact_interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    assert distances.exact_interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert distances.exact_interval(81, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)  # Newcombe 1998, table I


def test_copies_of_training_patients_fail(real):
    found = gate.neighbours(*real, copies(real[0], 60, 5))
    assert found.passed is False
    assert found.figures.nearer == 60
    assert found.figures.low == pytest.approx(0.025 ** (1 / 60))
    assert found.figures.control_low < 0.5 < found.figures.control_high
    assert "more than chance" in found.words


def test_a_half_that_are_copies_fails(real):
    assert gate.neighbours(*real, people(100, 6) + copies(real[0], 100, 5)).passed is False


def test_new_patients_pass(real):
    found = gate.neighbours(*real, people(400, 7))
    assert found.passed is True, found.words
    assert found.figures.low < 0.5 < found.figures.high


def test_patients_are_counted_and_not_their_images(real):
    one = distances.nearest(*real, people(30, 8, images=20), splits=10)
    assert one.drawn == 30
    assert (one.low, one.high) == distances.exact_interval(one.nearer, 30)


def test_as_many_training_patients_are_compared_as_were_held_back(real):
    training, held_out = real
    found = gate.neighbours(training, held_out[:25], copies(training, 60, 5))
    assert (found.figures.patients, found.figures.of_training) == (25, 100)
    assert found.passed is not True  # three of four copies are of patients who weren't compared
    new = gate.neighbours(training, held_out[:25], people(400, 7))
    assert new.passed is None
    assert "it takes about 6147 drawn patients" in new.words  # (1.96 / 0.025)^2


def test_what_is_lacking_is_said_drawn_patients_or_real_ones(real):
    training, held_out = real
    drawn = gate.neighbours(training, held_out, people(40, 9))
    assert drawn.passed is None
    assert drawn.words.endswith("can't tell; it takes about 385 drawn patients.")  # (1.96 / 0.1)^2
    both = gate.neighbours(training[:20], held_out[:20], people(400, 11))
    assert both.passed is None
    lacking = re.search(r"about 385 drawn patients and (\d+) held back\.$", both.words)
    assert lacking is not None, both.words
    assert 20 < int(lacking[1]) < 200


def test_copies_of_patients_held_back_say_that_the_sides_differ(real):
    found = gate.neighbours(*real, copies(real[1], 60, 5))
    assert found.passed is None
    assert "hold patients back at random" in found.words


# -- membership -------------------------------------------------------------------------------------------------------------


def scores(rise, seed, count=150):
    rng = np.random.default_rng(seed)
    return rng.normal(rise, 1, count), rng.normal(0, 1, count)


def test_a_generator_that_explains_its_members_better_fails():
    found = gate.attacked(scores(1.0, 0), scores(0.0, 1))
    assert found.passed is False
    assert found.figures.auc.value == pytest.approx(0.76, abs=0.06)  # Phi(1 / sqrt 2)
    assert found.figures.excess.low > 0
    assert found.figures.excess.value == found.figures.auc.value - found.figures.start.value


def test_a_generator_that_tells_nothing_passes():
    found = gate.attacked(scores(0.0, 5), scores(0.0, 3))
    assert found.passed is True, found.words
    assert found.figures.auc.low < 0.5 < found.figures.auc.high < 0.6


def test_what_the_start_model_tells_as_well_is_no_sign_of_training():
    told = scores(1.0, 0)
    found = gate.attacked(told, told)
    assert found.passed is None
    assert found.figures.excess == measures.Estimate(0, 0, 0)
    assert "hold patients back at random" in found.words


def test_without_a_control_it_cannot_be_told():
    assert gate.attacked(scores(0.0, 5), None).passed is None
    assert gate.attacked(scores(1.0, 0), None).passed is None


def test_too_few_to_bound_the_attack_says_how_many_it_takes():
    found = gate.attacked(scores(0.0, 2, 25), scores(0.0, 3, 25))
    assert found.passed is None
    assert "it takes about 257 patients on each side" in found.words


def test_scores_of_other_patients_are_refused():
    with pytest.raises(ValueError, match="of 40 patients, the trained one's of 300"):
        measures.membership(*scores(0, 0), start=scores(0, 1, 20))
    with pytest.raises(ValueError, match="1 of 4 scores are not finite"):
        measures.membership([0.1, np.nan], [0.2, 0.3])


# -- subgroups --------------------------------------------------------------------------------------------------------------


def case(sex, maker):
    return Case("P", (), {"sex": sex}, {"manufacturer": maker, "sex": "of the scanner"})


def test_a_subgroup_that_is_half_missing_is_named():
    wanted = [case("F", "A")] * 20 + [case("M", "B")] * 20
    made = [case("F", "A")] * 9 + [case("M", "B")] * 20
    found = gate.complete(*(measures.counts(cases, ["sex", "manufacturer"]) for cases in (wanted, made)))
    assert found.passed is False
    assert "manufacturer A (9 of 20), sex F (9 of 20)." in found.words
    assert "sex M" not in found.words
    assert found.figures[2] == measures.Subgroup("sex", "F", 20, 9)


def test_half_of_what_was_wanted_is_enough_and_a_value_that_was_not_made_at_all_is_missing():
    assert gate.complete({"sex": {"F": 20, "M": 20}}, {"sex": {"F": 10, "M": 30}}).passed is True
    assert gate.complete({"sex": {"F": 20, "M": 1}}, {"sex": {"F": 30}}).passed is False
    assert gate.complete({"sex": {"F": 2, "M": 1}}, {"sex": {"F": 2, "M": 1}}).passed is None
    assert gate.complete({}, {"sex": {"F": 30}}).passed is None  # nobody said what was wanted


def test_a_fact_that_is_not_known_is_counted():
    assert measures.counts([case("F", "A"), Case("Q", ())], ["sex"]) == {"sex": {"F": 1, "unknown": 1}}


# -- utility ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "passed"), [(0.0, True), (0.15, False), (0.05, None)])
def test_who_learned_from_drawn_scans_may_lose_little_on_real_patients(loss, passed):
    rng = np.random.default_rng(0)
    real = rng.uniform(0.7, 0.9, 40)
    found = gate.useful((real - loss + rng.normal(0, 0.04, 40), real))
    assert found.passed is passed, found.words
    assert found.figures.difference.value == pytest.approx(-loss, abs=0.02)
    if passed is None:
        assert "patients to test on" in found.words


def test_the_interval_of_the_difference_is_that_of_a_mean_over_patients():
    gap = np.random.default_rng(0).normal(0, 0.04, 400)
    found = measures.utility(0.5 + gap, np.full(400, 0.5))
    expected = 1.96 * gap.std(ddof=1) / 20
    assert found.difference.high - found.difference.value == pytest.approx(expected, rel=0.1)
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        measures.utility([0.5, np.nan], [0.5, 0.5])


# -- the verdict ------------------------------------------------------------------------------------------------------------


def test_three_patients_pass_nothing():
    few = [people(3, seed) for seed in range(3)]
    count = {"sex": {"F": 3}}
    verdict = gate.gate(*few, scores=scores(0, 0, 3), start_scores=scores(0, 1, 3), wanted=count, made=count)
    assert [one.passed for one in verdict.findings] == [None] * 5
    assert not verdict.passed
    assert verdict.neighbours.words == (
        "Can't tell: 3 patients were trained on, and it takes 20; 3 patients were held back, and it takes 20; "
        "3 patients were drawn, and it takes 20."
    )


def test_all_questions_are_asked_and_the_privacy_of_patients_cannot_be_left_open(real):
    count = {"sex": {"F": 300, "M": 100}}
    open_ = {"scores": scores(0.0, 5), "start_scores": scores(0.0, 3), "wanted": count, "made": count}
    verdict = gate.gate(*real, people(400, 7), **open_)
    assert [one.passed for one in verdict.findings] == [True, True, True, True, None]
    assert verdict.passed
    unsure = dataclasses.replace(verdict.membership, passed=None)
    assert not dataclasses.replace(verdict, membership=unsure).passed
    for name in ("realism", "neighbours", "membership", "subgroups", "utility"):
        failed = dataclasses.replace(getattr(verdict, name), passed=False)
        assert not dataclasses.replace(verdict, **{name: failed}).passed


# -- what the gate sees of a patient ----------------------------------------------------------------------------------------


def patient(blur=False, **changes):
    """A ring around a hole, on the generator's own grid of 2 mm."""
    rows, columns = np.indices((32, 32))
    radius = np.hypot(rows - 15.5, columns - 15.5) * 2
    mask = np.repeat(np.where(radius < 12, 2, np.where(radius < 22, 5, 0))[None], 3, axis=0).astype(np.uint8)
    image = (0.4 * (mask == 2) + 0.8 * (mask == 5) + np.random.default_rng(1).uniform(0, 0.2, mask.shape)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 2.0], [0, 2.0, 0], [-8.0, 0, 0]])
    both = tuple(Volume(series, image, affine, mask) for series in ("rest", "stress"))
    return dataclasses.replace(Case("P1", both), **changes)


def test_a_patient_is_seen_by_looks_and_by_features_of_each_region():
    found = seen_as_drawn(patient(), SMALL)
    assert found.looks.shape == (6, POOLED**2)
    ring, hole, everything = found.features.reshape(3, 5)  # 10th, median and 90th percentile, contrast and correlation
    assert ring[1] == pytest.approx(0.9, abs=0.05)  # of 0.8 to 1, where 1 is the brightest
    assert hole[1] == pytest.approx(0.5, abs=0.05)
    for region in (ring, hole):
        assert region[0] < region[1] < region[2]
    assert everything[4] > 0.5 > abs(ring[4])  # the picture has neighbours that are alike; noise within the ring has not
    assert np.isfinite(found.features).all()


def test_a_real_patient_and_one_who_was_drawn_are_seen_alike():
    real, drawn = seen(patient(), SMALL), seen_as_drawn(patient(), SMALL)
    assert np.corrcoef(real.looks.ravel(), drawn.looks.ravel())[0, 1] > 0.999
    assert real.features.reshape(3, 5)[:, :3] == pytest.approx(drawn.features.reshape(3, 5)[:, :3], abs=0.05)


def test_brightness_and_scale_of_an_image_play_no_part():
    other = tuple(dataclasses.replace(volume, image=300 * volume.image + 50) for volume in patient().volumes)
    assert seen_as_drawn(patient(volumes=other), SMALL).features == pytest.approx(
        seen_as_drawn(patient(), SMALL).features, rel=1e-3
    )


def test_a_structure_without_mask_and_voxels_that_are_unknown_are_left_out():
    masks = [np.where(volume.mask == 2, UNKNOWN, volume.mask) for volume in patient().volumes]
    changed = tuple(dataclasses.replace(v, mask=m.astype(np.uint8)) for v, m in zip(patient().volumes, masks, strict=True))
    ring, hole, everything = seen_as_drawn(patient(volumes=changed), SMALL).features.reshape(3, 5)
    assert np.isnan(hole).all()
    whole = seen_as_drawn(patient(), SMALL).features.reshape(3, 5)
    assert np.array_equal(ring, whole[0])
    assert np.array_equal(everything, whole[2])


def test_an_image_without_contrast_is_seen_and_one_on_another_grid_refused():
    flat = tuple(dataclasses.replace(volume, image=np.ones_like(volume.image)) for volume in patient().volumes)
    found = seen_as_drawn(patient(volumes=flat), SMALL)
    assert not found.looks.any()
    assert np.isfinite(found.features).all()
    with pytest.raises(ValueError, match="P1: rest is"):
        seen_as_drawn(patient(), SMALL.model_copy(update={"voxels": (64, 64)}))


def test_looks_are_pooled_by_means_over_boxes():
    image = np.arange(32 * 32, dtype=np.float32).reshape(1, 32, 32)
    assert pooled(image).reshape(16, 16)[0, 1] == pytest.approx(np.mean([2, 3, 34, 35]))
    assert pooled(np.zeros((2, 8, 32, 32), np.float32)).shape == (2, 8 * 16 * 16)
    assert scaled(np.full((1, 4, 4), 7, np.float32)).max() == 0
