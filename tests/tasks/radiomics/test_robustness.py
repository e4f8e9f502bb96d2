"""Intraclass correlations as published, and regions that move as somebody else might have drawn them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.case import UNKNOWN
from tasks.radiomics.robustness import Icc, icc, icc_columns, perturbed, robust

# Shrout & Fleiss 1979, table 2: six targets, four judges
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
NOISE = [
    [-0.019, 0.475, 1.115], [0.247, 0.941, -1.763], [2.918, -0.75, 1.567], [-0.066, -0.117, -0.593], [-1.329, 0.224, -0.967],
    [1.48, -1.332, -0.205], [-1.141, 1.026, -2.567], [-0.284, 0.77, -1.625], [0.342, 0.035, 0.164],
]  # fmt: skip


@pytest.mark.parametrize(
    ("ratings", "kind", "value", "low", "high"),  # pingouin 0.7.0, which gives intervals to two digits
    [
        (SHROUT_FLEISS, "agreement", 0.28976377952755916, 0.02, 0.76),  # 0.29 in the paper, table 4
        (SHROUT_FLEISS, "consistency", 0.7148407148407154, 0.34, 0.95),  # 0.71
        (NOISE, "agreement", -0.04536235721560307, -0.31, 0.46),
        (NOISE, "consistency", -0.04600774511539065, -0.32, 0.46),
    ],
)
def test_correlations_are_the_published_ones(ratings: object, kind: str, value: float, low: float, high: float) -> None:
    found = icc(ratings, kind=kind)  # type: ignore[arg-type]
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)


@pytest.mark.parametrize(("kind", "raters_sd"), [("consistency", 5.0), ("agreement", 0.5)])
def test_intervals_hold_the_truth_as_often_as_they_say(kind: str, raters_sd: float) -> None:
    rng = np.random.default_rng(3)
    truth = 4 / (4 + 1 + (raters_sd**2 if kind == "agreement" else 0))  # variances of patients, rest and scanners
    inside = []
    for _ in range(400):
        subjects, raters = 2 * rng.standard_normal((15, 1)), raters_sd * rng.standard_normal((1, 5))
        found = icc(subjects + raters + rng.standard_normal((15, 5)), kind=kind, confidence=0.9)  # type: ignore[arg-type]
        inside.append(found.low <= truth <= found.high)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def test_a_constant_difference_matters_to_agreement_only() -> None:
    table = np.array([[1.0, 4.0], [2.0, 5.0], [7.0, 10.0]])
    assert icc(table, kind="consistency") == Icc(1, 1, 1, 3)
    apart = icc(table)
    # by hand: MSR 2 * 31/3, MSC 13.5, MSE 0; 62/3 / (62/3 + 2 * 13.5 / 3)
    assert apart.value == pytest.approx(62 / 89, abs=1e-12)
    assert 0 < apart.low < apart.value < apart.high <= 1
    assert icc(table[:, [0, 0]]) == Icc(1, 1, 1, 3)


def test_a_subject_with_a_missing_rating_is_left_out() -> None:
    table = np.array([*SHROUT_FLEISS, [np.nan, 100, 3, 2]])
    assert icc(table) == icc(SHROUT_FLEISS)
    assert icc(table).subjects == 6


@pytest.mark.parametrize("table", [[[3.3, 3.3]] * 5, [[1.0, 2.0]], [[1.0, np.nan], [np.nan, 2.0]]])
def test_it_is_undefined_where_nothing_varies_or_one_subject_is_left(table: object) -> None:
    assert math.isnan(icc(table).value)  # type: ignore[arg-type]
    assert math.isnan(icc(table, kind="consistency").high)  # type: ignore[arg-type]


def test_two_raters_who_say_the_opposite_of_two_subjects_have_no_agreement_to_measure() -> None:
    assert math.isnan(icc([[1.0, -1.0], [-1.0, 1.0]]).value)
    assert icc([[1.0, -1.0], [-1.0, 1.0]], kind="consistency").value == -1


def test_what_is_not_a_table_of_raters_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more raters"):
        icc([[1.0], [2.0]])
    with pytest.raises(ValueError, match="tables of one shape"):
        icc_columns([np.zeros((3, 2)), np.zeros((4, 2))])
    with pytest.raises(ValueError, match="not 'absolute'"):
        icc(SHROUT_FLEISS, kind="absolute")  # type: ignore[arg-type]


def test_robust_columns_are_good_in_every_repetition() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 1, (40, 4))
    rescans = [truth + rng.normal(0, 1, truth.shape) * [0.1, 0.1, 2, 0] for _ in range(3)]
    masks = [truth + rng.normal(0, 1, truth.shape) * [0.1, 2, 0.1, 0] for _ in range(3)]
    for table in (*rescans, *masks):
        table[:, 3] = 1.0
    by_scan, by_mask = icc_columns(rescans), icc_columns(masks)
    assert by_scan[1] == icc(np.stack([table[:, 1] for table in rescans], axis=1))
    columns = ("steady", "by region", "by scanner", "constant")
    assert robust(columns, by_scan, by_mask) == ("steady",)
    assert robust(columns, by_scan) == ("steady", "by region")
    assert robust(columns, by_scan, by_mask, least=0.999) == ()
    with pytest.raises(ValueError, match="one correlation per column"):
        robust(columns[:3], by_scan)


ROW_MM, COLUMN_MM = 2.0, 0.5


def affine() -> np.ndarray:
    turned = np.array([[0, 0.6, -0.8], [0, 0.8, 0.6], [1, 0, 0]])  # slices along z, rows and columns turned in their plane
    result = np.eye(4)
    result[:3, :3] = turned * [8.0, ROW_MM, COLUMN_MM]
    return result


def ring(inner_mm: float = 20, outer_mm: float = 30, segments: int = 6) -> np.ndarray:
    """A ring of segments 1..6 in the second of three slices."""
    rows, columns = np.mgrid[:48, :192]
    y, x = (rows - 24) * ROW_MM, (columns - 96) * COLUMN_MM
    radius, angle = np.hypot(x, y), np.arctan2(y, x) % (2 * np.pi)
    mask = np.zeros((3, 48, 192), np.uint8)
    inside = (radius >= inner_mm) & (radius < outer_mm)
    mask[1][inside] = 1 + (angle[inside] * segments / (2 * np.pi)).astype(np.uint8)
    return mask


def centre_mm(mask: np.ndarray) -> np.ndarray:
    _, rows, columns = np.nonzero(mask)
    return np.array([rows.mean() * ROW_MM, columns.mean() * COLUMN_MM])


def test_nothing_changes_when_nothing_may_move() -> None:
    mask = ring()
    assert np.array_equal(perturbed(mask, affine(), np.random.default_rng(1), shift_mm=0, grow_mm=0), mask)


def test_regions_move_by_millimetres_along_both_axes_and_keep_their_size() -> None:
    rng, mask = np.random.default_rng(2), ring()
    found = [perturbed(mask, affine(), rng, shift_mm=3, grow_mm=0) for _ in range(80)]
    moved = np.array([centre_mm(each) - centre_mm(mask) for each in found])
    assert np.abs(moved).max() < 3.1
    assert moved.std(axis=0) == pytest.approx([3 / np.sqrt(3)] * 2, rel=0.25)  # uniform between -3 and 3
    sizes = np.array([(each > 0).sum() for each in found]) / (mask > 0).sum()
    assert sizes == pytest.approx(np.ones(80), abs=0.03)
    part = [centre_mm(each == 4) - centre_mm(mask == 4) for each in found]
    assert np.array(part) == pytest.approx(moved, abs=0.5)  # all regions together


def test_outlines_grow_and_shrink_by_millimetres() -> None:
    rng, mask = np.random.default_rng(3), (ring(0, 30) > 0).astype(np.uint8)
    areas = [(perturbed(mask, affine(), rng, shift_mm=0, grow_mm=2) > 0).sum() * ROW_MM * COLUMN_MM for _ in range(80)]
    grown = np.sqrt(np.array(areas) / np.pi) - 30  # of a disc's radius
    assert np.abs(grown).max() < 2.3
    assert grown.std() == pytest.approx(2 / np.sqrt(3), rel=0.25)
    assert grown.mean() == pytest.approx(0, abs=0.4)


def test_a_ring_of_segments_stays_whole_and_in_its_slice() -> None:
    rng, mask = np.random.default_rng(4), ring()
    for _ in range(20):
        found = perturbed(mask, affine(), rng, shift_mm=1.5, grow_mm=1.5)
        assert set(np.unique(found)) == set(range(7))
        assert not found[[0, 2]].any()
        around = np.linspace(0, 2 * np.pi, 720)
        y, x = 24 * ROW_MM + 25 * np.sin(around), 96 * COLUMN_MM + 25 * np.cos(around)
        middle = found[1][np.rint(y / ROW_MM).astype(int), np.rint(x / COLUMN_MM).astype(int)]
        assert (middle > 0).all()  # no gap between two segments
        assert (np.diff(middle.astype(int)) != 0).sum() <= 14  # each segment in one piece


def test_no_region_is_lost() -> None:
    rng, mask = np.random.default_rng(5), ring()
    mask[0, 10, 10] = 9  # one voxel
    mask[2, 20, 20:23] = 12
    for _ in range(30):
        found = perturbed(mask, affine(), rng, shift_mm=4, grow_mm=8)
        for label in range(1, 7):
            assert (found == label).sum() >= 2
        assert (found == 12).sum() >= 2
        assert found[0, 10, 10] == 9 or (found == 9).sum() >= 2


def test_unknown_voxels_stay_unknown() -> None:
    mask = ring()
    mask[1, :, 90:100] = UNKNOWN
    mask[2] = UNKNOWN
    found = perturbed(mask, affine(), np.random.default_rng(6), shift_mm=3, grow_mm=3)
    assert np.array_equal(found == UNKNOWN, mask == UNKNOWN)


def test_an_empty_mask_stays_empty_and_a_picture_is_refused() -> None:
    rng, empty = np.random.default_rng(7), np.zeros((2, 8, 8), np.uint8)
    assert not perturbed(empty, affine(), rng, shift_mm=1, grow_mm=1).any()
    with pytest.raises(ValueError, match="three axes"):
        perturbed(empty[0], affine(), rng, shift_mm=1, grow_mm=1)
    with pytest.raises(ValueError, match="positive lengths, not -1"):
        perturbed(empty, affine(), rng, shift_mm=-1, grow_mm=1)


def test_the_same_draw_gives_the_same_regions() -> None:
    one, two = (perturbed(ring(), affine(), np.random.default_rng(8), shift_mm=2, grow_mm=2) for _ in range(2))
    assert np.array_equal(one, two)
