from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fl_client.intake.labels import LabelMap
from fl_client.intake.mask import Drawing, MaskRefused, onto_grid
from fl_client.intake.plausibility import check_mask
from tasks.case import Volume

SPACING = (8.0, 1.4, 1.4)
rows, columns = np.mgrid[:40, :40]


def disc(row: float, column: float, radius: float) -> np.ndarray:
    return np.hypot(rows - row, columns - column) < radius


def heart() -> np.ndarray:
    mask = np.zeros((5, 40, 40), np.uint8)
    mask[:, disc(20, 20, 12)] = 2
    mask[:, disc(20, 20, 8)] = 1
    return mask


def shift_cavity(mask: np.ndarray) -> None:
    mask[mask == 1] = 2
    mask[:, disc(20, 29, 8)] = 1


def scatter(mask: np.ndarray) -> None:
    mask[:, :8, :8] = mask[:, -8:, -8:] = mask[:, :8, -8:] = 3


def test_a_sound_mask_passes(labels: LabelMap) -> None:
    check_mask(heart(), SPACING, labels)


def test_a_base_that_opens_to_the_outflow_tract_passes(labels: LabelMap) -> None:
    mask = heart()
    mask[0, :, 25:][mask[0, :, 25:] == 2] = 0
    check_mask(mask, SPACING, labels)


def test_a_cavity_without_any_wall_drawn_passes(labels: LabelMap) -> None:
    mask = heart()
    mask[mask == 2] = 0
    check_mask(mask, SPACING, labels)


def test_unknown_voxels_are_no_background(labels: LabelMap) -> None:
    mask = heart()
    mask[mask != 1] = 255
    check_mask(mask, SPACING, labels)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda mask: mask.fill(0), "empty"),
        (lambda mask: mask.fill(255), "empty"),
        (lambda mask: mask.__setitem__((0, 0, 0), 9), r"values \[9\], which no structure has"),
        (shift_cavity, "of the cavity's outline touches background"),
        (scatter, "right_ventricle lies in 3 pieces, the largest with 33%"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_reason(
    labels: LabelMap, spoil: Callable[[np.ndarray], object], reason: str
) -> None:
    mask = heart()
    spoil(mask)
    with pytest.raises(MaskRefused, match=reason):
        check_mask(mask, SPACING, labels)


def test_a_cavity_outside_its_epicardium_is_refused_with_the_percentages(labels: LabelMap) -> None:
    cavity, epicardium = np.stack([disc(20, 20, 8)] * 5), np.stack([disc(20, 20, 12)] * 5)
    check_mask(heart(), SPACING, labels, epicardium=epicardium, cavity=cavity)
    epicardium[1] = columns >= 20  # half of the cavity's columns and the middle one
    share = float((cavity[1] & (columns < 20)).sum() / cavity[1].sum())
    with pytest.raises(
        MaskRefused, match=rf"on 1 of 5 slices {share:.0%} to {share:.0%} of the cavity lies outside the epicardium"
    ):
        check_mask(heart(), SPACING, labels, epicardium=epicardium, cavity=cavity)


def test_the_generic_checks_hold_for_a_map_without_cavity() -> None:
    labels = LabelMap.load("hippocampus")
    mask = np.zeros((5, 40, 40), np.uint8)
    mask[1:3, 10:20, 10:20], mask[3:, 10:20, 10:20] = 1, 2
    check_mask(mask, (1, 1, 1), labels)
    mask[0, 30:, 30:] = 1
    mask[1:3, 10:20, 10:20] = 0
    check_mask(mask, (1, 1, 1), labels)
    with pytest.raises(MaskRefused, match="empty"):
        check_mask(np.zeros_like(mask), (1, 1, 1), labels)


def image() -> Volume:
    affine = np.diag([8.0, 1.4, 1.4, 1.0])
    return Volume("x", np.zeros((5, 40, 40), np.uint16), affine)


def test_a_mask_on_part_of_the_grid_with_slices_reversed_is_moved_without_resampling() -> None:
    mask = heart()
    part = mask[1:4][::-1].copy()
    affine = image().affine.copy()
    affine[:3, 3] = affine[:3, :3] @ [3, 0, 0]
    affine[:3, 0] *= -1
    moved, resampled = onto_grid(Drawing(part, affine), image())
    assert not resampled
    assert np.array_equal(moved[1:4], mask[1:4])
    assert not moved[0].any()
    assert not moved[4].any()


def test_a_mask_half_a_pixel_off_is_resampled_and_said_so() -> None:
    affine = image().affine.copy()
    affine[1, 3] += 0.6
    moved, resampled = onto_grid(Drawing(heart(), affine), image())
    assert resampled
    assert np.array_equal(moved, heart())  # 0.6 mm of 1.4 mm: the nearest voxel is the same


def test_a_mask_off_the_grid_is_refused() -> None:
    outside = image().affine.copy()
    outside[1, 3] += 1.4 * 25
    with pytest.raises(MaskRefused, match=r"only \d+\.\d% of the mask lies inside the image"):
        onto_grid(Drawing(heart(), outside), image())
    thin = heart()
    thin[:] = 0
    thin[3] = disc(20, 20, 8)
    fine = image().affine.copy()
    fine[:3, 0] /= 4  # a mask on slices of 2 mm, the labelled one at 6 mm, between the image's at 0 and 8
    with pytest.raises(MaskRefused, match="resampling would change label 1"):
        onto_grid(Drawing(np.concatenate([thin, thin * 0]), fine), image())
