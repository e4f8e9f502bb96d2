import math

import numpy as np
import pytest

from tasks.case import UNKNOWN, Case, Volume
from tasks.segmentation import build
from tasks.segmentation.metrics import case_scores, volume_scores

ONE = build({"structures": {"blood_pool": 1}, "locate": []}).settings


def boxed(series="cine_ed", *, rows=slice(10, 20), slices=slice(1, 4), spacing=(8.0, 2.0, 1.0), background=0):
    mask = np.full((5, 40, 40), background, np.uint8)
    mask[slices, rows, 10:20] = 1
    return Volume(series, np.zeros(mask.shape, np.float32), np.diag([*spacing, 1.0]), mask)


def test_a_box_moved_by_two_rows_has_the_scores_counted_by_hand():
    truth, moved = boxed(), boxed(rows=slice(12, 22))
    scores = volume_scores(truth, moved.mask, ONE, full=True)
    assert scores["dice/blood_pool"] == pytest.approx(0.8)  # 8 of 10 rows overlap
    assert scores["hd95_mm/blood_pool"] == pytest.approx(4.0)  # 2 rows of 2 mm
    assert scores["volume_error_ml/blood_pool"] == 0
    grown = volume_scores(truth, boxed(rows=slice(10, 22)).mask, ONE, full=True)
    assert grown["volume_error_ml/blood_pool"] == pytest.approx(2 * 10 * 3 * 16 / 1000)  # 60 voxels of 16 mm3
    assert grown["dice/blood_pool"] == pytest.approx(2 * 300 / (300 + 360))


def test_surface_dice_counts_border_points_within_the_tolerance():
    truth, moved = boxed(), boxed(rows=slice(11, 21))
    near, far = (
        volume_scores(truth, moved.mask, ONE.model_copy(update={"surface_tolerance_mm": mm}), full=True)[
            "surface_dice/blood_pool"
        ]
        for mm in (2.0, 1.9)
    )
    assert near == 1.0  # one row of 2 mm
    assert 0 < far < 0.9


def test_distances_follow_the_spacing_of_the_slices():
    truth, longer = boxed(), boxed(slices=slice(0, 5))
    assert volume_scores(truth, longer.mask, ONE, full=True)["hd95_mm/blood_pool"] == pytest.approx(8.0)


def test_a_structure_that_fills_the_image_has_a_border_too():
    volume = boxed(rows=slice(0, 40), slices=slice(0, 5))
    scores = volume_scores(volume, volume.mask, ONE, full=True)
    assert scores["surface_dice/blood_pool"] == 1
    assert scores["hd95_mm/blood_pool"] == 0


def test_a_missed_structure_scores_zero_and_has_no_distance():
    scores = volume_scores(boxed(), np.zeros((5, 40, 40), np.uint8), ONE, full=True)
    assert scores["dice/blood_pool"] == scores["surface_dice/blood_pool"] == 0
    assert math.isnan(scores["hd95_mm/blood_pool"])
    assert scores["volume_error_ml/blood_pool"] == pytest.approx(-4.8)


def test_a_structure_that_was_never_drawn_has_no_scores():
    settings = build({"structures": {"blood_pool": 1, "right_ventricle": 3}, "locate": []}).settings
    predicted = boxed().mask.copy()
    predicted[1:4, 25:30, 10:20] = 3
    scores = volume_scores(boxed(), predicted, settings, full=True)
    assert scores["dice/blood_pool"] == 1
    assert all(math.isnan(value) for name, value in scores.items() if name.endswith("right_ventricle"))


def test_a_structure_in_unknown_surroundings_has_no_scores():
    volume = boxed(background=UNKNOWN)
    scores = volume_scores(volume, volume.mask, ONE, full=True)
    assert all(math.isnan(value) for value in scores.values())


def test_voxels_nobody_labelled_are_left_out():
    volume = boxed()
    mask = volume.mask.copy()
    mask[4] = UNKNOWN
    mask[2, 30:] = UNKNOWN
    predicted = volume.mask.copy()
    predicted[4, 10:20, 10:20] = 1
    predicted[2, 30:] = 1
    scores = volume_scores(Volume("cine_ed", volume.image, volume.affine, mask), predicted, ONE, full=True)
    assert scores["dice/blood_pool"] == 1
    assert scores["volume_error_ml/blood_pool"] == 0


def test_ejection_fraction_error_is_predicted_minus_drawn():
    diastole, systole = boxed(), boxed("cine_es", rows=slice(10, 15))  # 50 %
    pairs = [(diastole, diastole.mask), (systole, boxed(rows=slice(10, 14)).mask)]  # predicted 60 %
    assert case_scores(pairs, ONE, full=True)["ef_error"] == pytest.approx(0.1)
    assert "ef_error" not in case_scores(pairs[:1], ONE, full=True)
    assert "ef_error" not in case_scores(pairs, ONE, full=False)


def test_a_cases_dice_is_the_mean_over_its_volumes_where_it_is_defined():
    diastole, systole = boxed(), boxed("cine_es")
    half = boxed(rows=slice(10, 15)).mask
    scores = case_scores([(diastole, diastole.mask), (systole, half)], ONE, full=False)
    assert scores == {"dice/blood_pool": pytest.approx((1 + 2 / 3) / 2)}
    unknown = boxed("cine_es", background=UNKNOWN)
    scores = case_scores([(diastole, half), (unknown, unknown.mask)], ONE, full=True)
    assert scores["dice/blood_pool"] == pytest.approx(2 / 3)
    assert math.isnan(scores["ef_error"])


def test_a_case_is_scored_on_its_own_grid(toy_heart, threshold):
    task = build({"structures": {"blood_pool": 1, "myocardium": 2}})
    case = Case("p", (toy_heart(), toy_heart("cine_es", radius_mm=16)))
    scores = task.score(threshold, case)
    assert scores["dice/blood_pool"] > 0.97
    assert scores["dice/myocardium"] > 0.94
    assert scores["hd95_mm/myocardium"] < 2.5
    assert scores["surface_dice/myocardium"] > 0.97
    assert abs(scores["ef_error"]) < 0.01
    assert list(task.score(threshold, case, full=False)) == ["dice/blood_pool", "dice/myocardium"]
    with pytest.raises(ValueError, match="no mask for any of cine_ed"):
        task.score(threshold, Case("p", (toy_heart("lge"),)))
