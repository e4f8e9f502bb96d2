import itertools
import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from simulation.heart import contours
from simulation.phantom import DISEASES, Grid, anatomy, draw_patient, truth
from simulation.tissue import Tissue

THIN = np.arange(-24, 135, 2.0, dtype=np.float32)  # 2 mm apart, so that summing slices gives volumes


def grid(levels: np.ndarray = THIN, *, matrix: int = 110, pixel_mm: float = 1.6, **changes: object) -> Grid:
    settings = {"rotation_rad": 0.0, "offset_mm": (0.0, 0.0), "shifts_mm": np.zeros((len(levels), 2), np.float32), **changes}
    return Grid(levels, (matrix, matrix), pixel_mm, 2.0, oversampling=1, subslices=1, **settings)  # type: ignore[arg-type]


def volumes_ml(seed: int, disease: str, phase: float) -> tuple[float, float]:
    patient = draw_patient(seed, {disease: 1.0})
    mask = truth(patient, grid(), phase).mask
    voxel = 1.6 * 1.6 * 2.0 / 1000
    return float((mask == 1).sum() * voxel), float((mask == 2).sum() * voxel)


def test_the_same_seed_gives_the_same_patient_in_another_process():
    here = json.dumps(asdict(draw_patient(11, {"normal": 1, "infarct": 2})), sort_keys=True)
    program = (
        "import json; from dataclasses import asdict; from simulation.phantom import draw_patient;"
        "print(json.dumps(asdict(draw_patient(11, {'infarct': 2, 'normal': 1})), sort_keys=True))"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_the_case_mix_is_the_prevalence():
    mix = {"normal": 0.5, "infarct": 0.3, "amyloid": 0.2}
    drawn = [draw_patient(seed, mix).disease for seed in range(600)]
    for disease, weight in mix.items():  # binomial standard error 0.02, so 4 of them
        assert drawn.count(disease) / 600 == pytest.approx(weight, abs=0.08)
    assert set(drawn) == set(mix)


@pytest.mark.parametrize("mix", [{"flu": 1.0}, {"normal": -1.0}, {"normal": 0.0}, {}, {"normal": float("nan")}])
def test_a_case_mix_that_is_no_distribution_is_refused(mix):
    with pytest.raises(ValueError, match="case_mix"):
        draw_patient(0, mix)


@pytest.mark.parametrize("disease", DISEASES)
def test_volumes_in_the_mask_are_the_patients_own(disease):
    for seed in (1, 2):
        patient = draw_patient(seed, {disease: 1.0})
        diastole, muscle = volumes_ml(seed, disease, 0.0)
        systole, muscle_then = volumes_ml(seed, disease, 1.0)
        assert diastole == pytest.approx(patient.edv_ml, rel=0.05)
        assert 1 - systole / diastole == pytest.approx(patient.ejection_fraction, abs=0.05)
        assert muscle_then == pytest.approx(muscle, rel=0.08)  # muscle is incompressible


def test_hearts_cover_the_sizes_of_heart_failure_and_of_small_women():
    patients = [draw_patient(seed, dict.fromkeys(DISEASES, 1.0)) for seed in range(300)]
    volumes, walls = [p.edv_ml for p in patients], [p.wall_mm * p.septal_ratio for p in patients]
    assert min(volumes) < 100 < 300 < max(volumes)
    assert min(walls) < 7 < 15 < max(walls)
    assert min(p.ejection_fraction for p in patients) < 0.25


def test_contours_lie_inside_one_another():
    for seed, disease in enumerate(DISEASES):
        for phase in (0.0, 0.5, 1.0):
            tables = contours(draw_patient(seed, {disease: 1.0}), THIN, phase)
            rings = [
                tables.core,
                tables.cavity,
                tables.endo,
                tables.epi,
                tables.right_cavity,
                tables.right,
                tables.right_wall,
                tables.fat,
            ]
            for inner, outer in itertools.pairwise(rings):
                assert np.isfinite(outer).all()
                assert (outer - inner).min() > -1e-3


def test_every_myocardial_voxel_has_a_segment_and_nothing_else_has():
    patient = draw_patient(5, {"infarct": 1.0})
    drawn = truth(patient, grid(), 0.0)
    assert np.array_equal(drawn.aha > 0, drawn.mask == 2)
    assert set(np.unique(drawn.aha)) == set(range(18))


def test_the_septal_segments_face_the_right_ventricle():
    drawn = truth(draw_patient(5, {"normal": 1.0}), grid(), 0.0)
    right = np.argwhere(drawn.mask == 3)[:, 2].mean()
    cavity = np.argwhere(drawn.mask == 1)[:, 2].mean()
    assert right < cavity  # in the usual view the right ventricle stands at the image's left
    place = {n: np.argwhere(drawn.aha == n).mean(axis=0) for n in range(1, 18)}
    for septal, lateral in ((2, 5), (3, 6), (8, 11), (9, 12), (14, 16)):
        assert place[septal][2] < cavity < place[lateral][2]
    for anterior, inferior in ((1, 4), (7, 10), (13, 15)):
        assert place[anterior][1] < place[inferior][1]  # up is anterior
    assert place[1][0] < place[7][0] < place[13][0] < place[17][0]  # base, middle, apex, cap


def test_the_basal_mask_begins_where_muscle_surrounds_half_of_the_cavity():
    patient = draw_patient(9, {"normal": 1.0})
    tables, mask = contours(patient, THIN, 0.0), truth(patient, grid(), 0.0).mask
    for surrounded, slice_ in zip(tables.surrounded, mask, strict=True):
        assert (surrounded > 0.5) or not np.isin(slice_, (1, 2)).any()


def test_papillary_muscles_are_tissue_inside_the_masks_blood_pool():
    patient = draw_patient(4, {"normal": 1.0})
    g = grid()
    muscle = anatomy(patient, g, 0.0).labels[:, 0] == Tissue.PAPILLARY
    pool = truth(patient, g, 0.0).mask == 1
    assert 0.01 < (muscle & pool).sum() / pool.sum() < 0.25


def test_turning_the_view_turns_the_heart():
    patient = draw_patient(6, {"normal": 1.0})
    upright = truth(patient, grid(), 0.0).mask
    turned = truth(patient, grid(rotation_rad=np.pi / 2), 0.0).mask
    assert (np.rot90(upright, axes=(1, 2)) != turned).mean() < 1e-3


def test_every_lesion_lies_in_muscle_and_normal_hearts_have_none():
    assert truth(draw_patient(1, {"normal": 1.0}), grid(), 0.0).lesion.sum() == 0
    for disease in ("infarct", "amyloid", "myocarditis"):
        drawn = truth(draw_patient(1, {disease: 1.0}), grid(), 0.0)
        assert drawn.lesion.any()
        assert (drawn.mask[drawn.lesion > 0] == 2).all()


def test_an_infarct_starts_at_the_endocardium_and_myocarditis_spares_it():
    def touching_blood(disease: str) -> float:
        fractions = []
        for seed in range(4):
            drawn = truth(draw_patient(seed, {disease: 1.0}), grid(), 0.0)
            pool = drawn.mask == 1
            beside = pool | np.roll(pool, 1, 1) | np.roll(pool, -1, 1) | np.roll(pool, 1, 2) | np.roll(pool, -1, 2)
            rim = beside & (drawn.mask == 2)
            fractions.append((drawn.lesion[rim] > 0).mean() / max((drawn.lesion[drawn.mask == 2] > 0).mean(), 1e-9))
        return float(np.mean(fractions))

    assert touching_blood("infarct") > 1.1
    assert touching_blood("myocarditis") < 0.7


def test_the_thorax_holds_every_organ():
    patient = draw_patient(2, {"normal": 1.0})
    levels = np.arange(-10, 90, 10, dtype=np.float32)
    labels = anatomy(patient, grid(levels, matrix=200, pixel_mm=1.75), 0.0).labels
    organs = {
        Tissue.AIR,
        Tissue.LUNG,
        Tissue.FAT,
        Tissue.MUSCLE,
        Tissue.LIVER,
        Tissue.MARROW,
        Tissue.CORTEX,
        Tissue.RIGHT_BLOOD,
    }
    assert organs <= {Tissue(value) for value in np.unique(labels)}
