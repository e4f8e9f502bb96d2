import numpy as np
import pytest

from simulation.phantom import DISEASES, draw_patient, truth
from simulation.reader import Reader, read
from simulation.scanner import PHASE, Scan, Scanner, affine, plan, random_scanner
from tasks.radiomics.segments import aha_segments


def examine(seed: int, disease: str, scanner: Scanner, series: str = "cine_ed") -> tuple[object, Scan]:
    """A scan without its image: only where things are."""
    patient = draw_patient(seed, {disease: 1.0})
    grid = plan(patient, scanner, series, seed=0, oversampling=1, subslices=1)
    drawn = truth(patient, grid, PHASE[series])
    blank = np.zeros(drawn.mask.shape, np.uint16)
    place = affine(patient, grid)
    return patient, Scan(series, blank, drawn.mask, drawn.lesion, drawn.aha, place, None, 0.0, grid, PHASE[series])  # type: ignore[arg-type]


def cohort(seeds: range) -> list[tuple[object, Scan]]:
    """Every disease, both series, any order of slices, 5 to 14 mm from slice to slice, views turned up to 180 degrees."""
    return [
        examine(
            seed,
            DISEASES[seed % 6],
            Scanner(apex_first=bool(seed % 2)) if seed % 3 == 0 else random_scanner(seed),
            ("cine_ed", "lge")[seed // 6 % 2],
        )
        for seed in seeds
    ]


def right(scan: Scan, mask: np.ndarray) -> float:
    """Part of the voxels drawn as myocardium, rightly, that are in the right segment."""
    both = (mask == 2) & (scan.mask == 2)
    return float((aha_segments(mask, scan.affine)[both] == scan.aha[both]).mean())


@pytest.fixture(scope="module")
def one() -> Scan:
    scans = (examine(seed, "normal", Scanner(matrix=128, pixel_mm=2.0))[1] for seed in range(20))
    return next(scan for scan in scans if (scan.aha == 17).any())  # not every stack reaches beyond the cavity


def test_voxels_of_generated_patients_are_in_the_right_segment():
    scores = [right(scan, scan.mask) for _, scan in cohort(range(5000, 5030))]
    # a slice close to the border of two thirds may fall on the wrong side: that is a tenth of the muscle
    assert np.mean(scores) > 0.95
    assert np.median(scores) > 0.98
    assert min(scores) > 0.70


def test_a_readers_contours_give_nearly_the_same_segments():
    pairs = cohort(range(6000, 6012))
    scores = [right(scan, read(scan, patient, Reader(contour_sd_mm=0.8), seed=1).mask) for patient, scan in pairs]  # type: ignore[arg-type]
    assert np.mean(scores) > 0.93


def test_every_segment_is_there_and_only_in_muscle(one):
    found = aha_segments(one.mask, one.affine)
    assert found.shape == one.mask.shape
    assert found.dtype == np.uint8
    assert set(np.unique(found[one.mask == 2]).tolist()) == set(range(1, 18))
    assert not found[one.mask != 2].any()


def test_the_order_of_the_slices_does_not_matter(one):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = len(one.mask) - 1
    flipped = aha_segments(one.mask[::-1].copy(), one.affine @ flip)
    assert np.array_equal(flipped[::-1], aha_segments(one.mask, one.affine))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_how_the_picture_is_turned_does_not_matter(one, quarters):
    mask, place = one.mask, one.affine
    for _ in range(quarters):  # rot90: the new pixel (row, column) is the old one (column, last - row)
        turn = np.eye(4)
        turn[1:3, 1:3] = [[0, 1], [-1, 0]]
        turn[2, 3] = mask.shape[2] - 1
        mask, place = np.rot90(mask, axes=(1, 2)), place @ turn
    found = aha_segments(np.ascontiguousarray(mask), place)
    assert np.array_equal(np.rot90(found, -quarters, axes=(1, 2)), aha_segments(one.mask, one.affine))


def test_a_picture_stored_mirrored_with_its_affine_gives_the_same_segments(one):
    mirror = np.diag([1.0, 1, -1, 1])
    mirror[2, 3] = one.mask.shape[2] - 1
    found = aha_segments(one.mask[:, :, ::-1].copy(), one.affine @ mirror)
    assert np.array_equal(found[:, :, ::-1], aha_segments(one.mask, one.affine))


def test_segment_2_borders_the_right_ventricle_and_lies_in_front_of_segment_3(one):
    found = aha_segments(one.mask, one.affine)

    def middle(chosen: np.ndarray) -> np.ndarray:
        return one.affine[:3, :3] @ np.argwhere(chosen).mean(axis=0)  # type: ignore[no-any-return]

    right_ventricle = middle(one.mask == 3)
    distance = {k: float(np.linalg.norm(middle(found == k) - right_ventricle)) for k in range(1, 7)}
    assert set(sorted(distance, key=distance.__getitem__)[:2]) == {2, 3}
    assert middle(found == 1)[2] > middle(found == 4)[2]  # LPS: the anterior wall lies above the inferior one,
    assert middle(found == 17)[0] > middle(found == 3)[0]  # the apex on the left


def test_unknown_voxels_are_in_no_segment(one):
    mask = one.mask.copy()
    hidden = np.zeros(mask.shape, bool)
    hidden[len(mask) // 2, :, : mask.shape[2] // 2] = True
    mask[hidden] = 255
    found = aha_segments(mask, one.affine)
    assert not found[hidden].any()
    assert found.any()


def test_stray_voxels_of_a_model_move_little(one):
    mask = one.mask.copy()
    mask[:, 2:5, 2:5] = 3
    mask[:, -5:-2, 2:5] = 1
    seen = one.mask == 2
    assert (aha_segments(mask, one.affine)[seen] == aha_segments(one.mask, one.affine)[seen]).mean() > 0.98


@pytest.mark.parametrize(
    ("label", "words"), [(2, "no myocardium"), (3, "no right ventricle.*septum"), (1, "no left-ventricular blood pool")]
)
def test_a_structure_that_is_missing_is_named(one, label, words):
    mask = one.mask.copy()
    mask[mask == label] = 0
    with pytest.raises(ValueError, match=words):
        aha_segments(mask, one.affine)


def test_too_few_slices_are_refused_with_their_number(one):
    rings = np.flatnonzero(((one.mask == 1).any(axis=(1, 2))) & (one.mask == 3).any(axis=(1, 2)))
    with pytest.raises(ValueError, match="in 2 slices"):
        aha_segments(one.mask[rings[1:3]], one.affine)


def test_a_mirrored_heart_is_refused(one):
    with pytest.raises(ValueError, match="contradict"):
        aha_segments(one.mask[::-1].copy(), one.affine)


def test_a_right_ventricle_that_touches_nothing_gives_no_septum(one):
    mask = one.mask.copy()
    mask[mask == 3] = 0
    mask[:, 2:5, 2:5] = 3
    with pytest.raises(ValueError, match="septum can't be found"):
        aha_segments(mask, one.affine)


@pytest.mark.parametrize(
    ("mask", "place", "words"),
    [
        (np.zeros((3, 4), np.uint8), np.eye(4), "three axes"),
        (np.full((3, 4, 4), 7, np.uint8), np.eye(4), "labels"),
        (np.full((3, 4, 4), 2, np.uint8), np.zeros((4, 4)), "affine"),
    ],
)
def test_what_is_no_mask_or_affine_is_refused(mask, place, words):
    with pytest.raises(ValueError, match=words):
        aha_segments(mask, place)
