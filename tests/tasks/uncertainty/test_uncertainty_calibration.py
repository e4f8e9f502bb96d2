"""What agreement is worth: curves, temperature, the triage order, against answers from somewhere else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from tasks.uncertainty import triage
from tasks.uncertainty.calibration import (
    FEWEST,
    Calibration,
    Curve,
    calibrate,
    calibration_error,
    rank_correlation,
    reliability,
)
from tasks.uncertainty.examine import Judged, tempered


def seen(patient: int, agreement: float, dice: float, rng: np.random.Generator, *, heat: float = 1.0) -> Judged:
    """A volume whose labels are drawn from one distribution, and whose model is `heat` times as sure of it."""
    logits = rng.normal(0, 1.5, (3, 500))
    p = softmax(logits, axis=0)
    truth = (rng.random(500) > np.cumsum(p, axis=0)).sum(0).clip(0, 2).astype(np.uint8)
    log_p = log_softmax(heat * logits, axis=0).astype(np.float32)
    return Judged(f"p{patient:02d}", "cine_ed", {"heart": agreement}, {"heart": dice}, log_p, truth)


def cohort(count: int = 40, *, heat: float = 1.0, noise: float = 0.0) -> list[Judged]:
    rng = np.random.default_rng(5)
    agreements = rng.uniform(0.5, 1.0, count)
    return [
        seen(number, float(a), float(np.clip(a**2 + noise * rng.normal(), 0, 1)), rng, heat=heat)
        for number, a in enumerate(agreements)
    ]


def learned(judged, **settings) -> Calibration:
    return calibrate(judged, **{"models": ["f" * 64], "members": 8, "of": "a test", **settings})


def test_expected_dice_follows_what_readers_found():
    found = learned(cohort(200, noise=0.02))
    curve = found.curves["heart"]
    for agreement in (0.6, 0.75, 0.9):
        assert curve.expected(agreement) == pytest.approx(agreement**2, abs=0.03)
    assert curve.low(0.75) == pytest.approx(0.75**2 - 1.2816 * 0.02, abs=0.035)  # the tenth percentile of that noise
    assert found.miss == pytest.approx(0.02 * np.sqrt(2 / np.pi), abs=0.01)
    assert found.rank > 0.95
    assert found.expected({"heart": 0.75, "liver": 0.9}).keys() == {"heart"}


def test_nine_of_ten_reach_the_low_end():
    curve = learned(cohort(300, noise=0.05)).curves["heart"]
    others = cohort(400, noise=0.05)[300:]
    reached = np.mean([one.dice["heart"] >= curve.low(one.agreement["heart"]) for one in others])
    assert 0.82 <= reached <= 0.98


def test_beyond_what_was_seen_the_curve_is_level():
    curve = Curve(agreement=(0.5, 0.8), dice=(0.2, 0.7), below=0.3, patients=9)
    assert [curve.expected(a) for a in (0.1, 0.65, 1.0)] == pytest.approx([0.2, 0.45, 0.7])
    assert curve.low(0.5) == 0.0


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.0])
def test_the_temperature_is_what_the_model_was_heated_by(heat):
    found = learned(cohort(heat=heat))
    assert found.temperature == pytest.approx(heat, rel=0.06)
    if heat == 1:
        assert found.error_after == pytest.approx(found.error_before, abs=0.004)
    else:
        assert found.error_after < 0.4 * found.error_before


def test_the_calibration_error_by_hand():
    log_p = np.log(np.array([[0.9] * 10, [0.1] * 10])).astype(np.float32)
    truth = np.array([0] * 6 + [1] * 4, np.uint8)
    judged = [Judged("p", "s", {}, {}, log_p, truth)]
    assert calibration_error(judged, 1.0) == pytest.approx(0.3, abs=1e-6)  # 0.9 was said, 0.6 was right; and the other way
    ((row,), (other,)) = reliability(judged, 1.0)
    assert row == (pytest.approx(0.9), pytest.approx(0.6), 10)
    assert other == (pytest.approx(0.1), pytest.approx(0.4), 10)
    assert calibration_error([], 1.0) == 0


def test_tempered_probabilities_sum_to_one_and_keep_their_order():
    log_p = np.log(np.array([[0.7], [0.2], [0.1]])).astype(np.float32)
    for temperature in (0.3, 1.0, 3.0):
        p = tempered(log_p, temperature)
        assert p.sum() == pytest.approx(1)
        assert p[0] > p[1] > p[2]
    np.testing.assert_allclose(tempered(log_p, 1.0)[:, 0], [0.7, 0.2, 0.1], rtol=1e-5)


def test_too_few_patients_are_refused_in_words():
    few = cohort(FEWEST - 1)
    with pytest.raises(ValueError, match=f"7 patients can be learned from, and a calibration needs {FEWEST}"):
        learned(few)
    twice = [*few, *(replace(one, series="cine_es") for one in few)]
    with pytest.raises(ValueError, match="7 patients"):  # two series of a patient are one patient
        learned(twice)


def test_one_member_is_refused_in_words():
    with pytest.raises(ValueError, match="one member can't disagree with itself"):
        learned(cohort(), members=1)


def test_a_structure_that_nobody_drew_has_no_curve():
    judged = [
        replace(one, agreement={**one.agreement, "rare": 0.5}, dice={**one.dice, "rare": 0.4} if n < 3 else one.dice)
        for n, one in enumerate(cohort())
    ]
    assert learned(judged).curves.keys() == {"heart"}
    nothing = [replace(one, dice={}) for one in cohort()]
    with pytest.raises(ValueError, match="no structure was drawn by a reader in 8 patients"):
        learned(nothing)


def test_a_structure_of_every_fifth_patient_is_learned_as_if_there_were_no_others():
    judged = [
        replace(
            one, **{what: {**told, "rare": told["heart"]} for what, told in (("agreement", one.agreement), ("dice", one.dice))}
        )
        if number % 5 == 0
        else one
        for number, one in enumerate(cohort(noise=0.02))
    ]
    some = judged[::5]
    assert learned(judged).curves["rare"] == learned(some).curves["rare"]


def test_patients_who_are_all_alike_leave_nothing_below():
    found = learned([replace(one, agreement={"heart": 1.0}, dice={"heart": 1.0}) for one in cohort()])
    assert (str(found.curves["heart"].below), found.rank) == ("0.0", None)


def test_a_calibration_survives_the_disk_and_another_file_is_refused(tmp_path):
    found = learned(cohort())
    place = tmp_path / "calibration.json"
    place.write_text(found.model_dump_json())
    assert Calibration.load(place) == found
    data = json.loads(place.read_text())
    data["curves"]["heart"]["dice"][0] = 0.99
    place.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="holds no calibration that this konsil can read"):
        Calibration.load(place)
    place.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="it is no text"):
        Calibration.load(place)


def test_rank_correlation_is_none_where_it_cannot_be_told():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1.0)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


# -- whom to look at first ----------------------------------------------------------------------------------------------


def sure(value: float, agreement: float = 0.5) -> triage.Sure:
    return triage.Sure(value, agreement)


def test_patients_stand_where_their_worst_series_stands():
    order = triage.order({"a": [sure(0.9), sure(0.4)], "b": [sure(0.6)], "c": [None], "d": [sure(0.5), None]})
    assert order == [("a", 0.4), ("d", 0.5), ("b", 0.6)]


def test_a_volume_counts_by_expected_dice_where_there_is_a_calibration():
    found = learned(cohort(100))
    assert triage.sureness({"heart": 0.8, "liver": 0.2}, None) == pytest.approx((0.5, 0.5))
    assert triage.sureness({"heart": 0.8, "liver": 0.2}, found) == pytest.approx((0.64, 0.5), abs=0.02)
    assert triage.sureness({}, found) is None


def test_where_the_curve_is_level_the_lower_agreement_comes_first_and_an_empty_mask_before_all():
    level = Curve(agreement=(0.7, 0.9, 1.0), dice=(0.6, 0.6, 0.9), below=0.1, patients=20)
    found = learned(cohort()).model_copy(update={"curves": {"heart": level}})
    agreements = {"a": 0.88, "b": 0.72, "c": 0.95, "d": 0.0, "e": 0.3}
    order = triage.order({name: [triage.sureness({"heart": value}, found)] for name, value in agreements.items()})
    assert [patient for patient, _ in order] == ["d", "e", "b", "a", "c"]
    assert [value for _, value in order] == pytest.approx([0.0, 0.6, 0.6, 0.6, 0.75])
    assert found.low({"heart": 0.0}) == {"heart": 0.0}


def test_who_is_caught_by_hand():
    sure = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    error = [0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.8]
    assert triage.caught(sure, error) == (1, 2)  # 8 and 9 are looked at; 7 and 9 are the worst
    assert triage.first_of(0) == 0
    assert triage.first_of(2) == 1


def test_risk_by_coverage_by_hand():
    curve = triage.risk_coverage([0.9, 0.1, 0.5], [0.0, 0.6, 0.3])
    assert curve == [(pytest.approx(1 / 3), 0.0), (pytest.approx(2 / 3), pytest.approx(0.15)), (1.0, pytest.approx(0.3))]
    assert triage.area_under(curve) == pytest.approx(0.15)


def test_the_surest_part_of_equals_is_the_one_that_is_looked_at_last():
    looked_at_first, last = 0.6, 0.0  # in the triage order
    assert triage.risk_coverage([0.5, 0.5], [looked_at_first, last]) == [(0.5, 0.0), (1.0, pytest.approx(0.3))]
