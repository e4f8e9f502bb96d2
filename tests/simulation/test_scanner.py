import hashlib
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from simulation import tissue
from simulation.phantom import draw_patient
from simulation.scanner import Scan, Scanner, random_scanner, scan
from simulation.tissue import Tissue

SMALL = Scanner(matrix=112, pixel_mm=2.0, slice_thickness_mm=6.0, slice_gap_mm=0.0)


def imaged(disease: str = "normal", series: str = "cine_ed", *, seed: int = 3, exam: int = 0, **changes: object) -> Scan:
    scanner = SMALL.model_copy(update=changes)
    return scan(draw_patient(seed, {disease: 1.0}), scanner, series, seed=exam, oversampling=1, subslices=2)  # type: ignore[arg-type]


# -- signal equations ----------------------------------------------------------------------------------------------------


def bloch_bssfp(t1_ms: float, t2_ms: float, tr_ms: float, flip_deg: float) -> float:
    """Steady state by simulating alternating pulses one after another, the slow obvious way."""
    angle, m = np.deg2rad(flip_deg), np.array([0.0, 0.0, 1.0])
    for n in range(6000):
        sign = 1 if n % 2 else -1
        c, s = np.cos(sign * angle), np.sin(sign * angle)
        m = np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ m
        echo = abs(m[1]) * np.exp(-tr_ms / 2 / t2_ms)
        m = np.array([m[0] * np.exp(-tr_ms / t2_ms), m[1] * np.exp(-tr_ms / t2_ms), 1 + (m[2] - 1) * np.exp(-tr_ms / t1_ms)])
    return float(echo)


@pytest.mark.parametrize(("t1", "t2"), [(1500.0, 240.0), (996.0, 55.8), (316.0, 68.0)])
def test_bssfp_is_the_steady_state_of_the_bloch_equation(t1, t2):
    formula = tissue.bssfp(np.float32([t1]), np.float32([t2]), np.float32([1]), tr_ms=3.3, flip_deg=50)
    assert float(formula[0]) == pytest.approx(bloch_bssfp(t1, t2, 3.3, 50), rel=1e-3)


@pytest.mark.parametrize("t1", [250.0, 420.0, 1000.0])
def test_inversion_recovery_is_the_repeated_experiment(t1):
    m, rr, ti, efficiency = 1.0, 1700.0, 290.0, 0.97
    for _ in range(50):
        m = -(2 * efficiency - 1) * m
        at_ti = 1 + (m - 1) * np.exp(-ti / t1)
        m = 1 + (m - 1) * np.exp(-rr / t1)
    formula = tissue.inversion_recovery(np.float32([t1]), np.float32([1]), ti_ms=ti, rr_ms=rr)
    assert float(formula[0]) == pytest.approx(at_ti, abs=1e-4)


def test_at_the_null_time_there_is_no_signal_and_it_nears_ln2_t1_for_long_pauses():
    t1 = 400.0
    null = tissue.null_time(t1, rr_ms=2000.0)
    assert float(tissue.inversion_recovery(np.float32([t1]), np.float32([1]), ti_ms=null, rr_ms=2000.0)[0]) == pytest.approx(
        0, abs=1e-5
    )
    assert tissue.null_time(t1, rr_ms=1e6, efficiency=1.0) == pytest.approx(np.log(2) * t1, rel=1e-6)


def test_contrast_agent_gives_the_measured_t1_of_healthy_myocardium():
    # aus dem Siepen et al. 2018: 1017 ms falls to 426 ± 38 ms 15 min after 0.2 mmol/kg at ECV 0.22; another agent: within 12 %
    plasma = tissue.plasma_gadolinium(dose_mmol_per_kg=0.2, delay_min=15)
    after = tissue.t1_after_contrast(np.float32([1017]), np.float32([0.22]), plasma_mmol_per_l=plasma, field_strength_t=1.5)
    assert float(after[0]) == pytest.approx(426, rel=0.12)


def test_an_unknown_field_strength_is_refused():
    with pytest.raises(ValueError, match=r"7\.0 T"):
        tissue.relaxation(7.0)
    with pytest.raises(ValidationError):
        Scanner(field_strength_t=7.0)  # type: ignore[arg-type]


def test_cine_shows_blood_brighter_than_muscle_and_lung_black():
    for field in (1.5, 3.0):
        t1, t2, density, _ = tissue.relaxation(field)
        signal = tissue.bssfp(t1, t2, density, tr_ms=3.2, flip_deg=50)
        assert 1.6 < signal[Tissue.BLOOD] / signal[Tissue.MYOCARDIUM] < 4
        assert signal[Tissue.LUNG] < 0.15 * signal[Tissue.BLOOD]
        assert signal[Tissue.FAT] > signal[Tissue.LIVER] > signal[Tissue.MUSCLE]


# -- images --------------------------------------------------------------------------------------------------------------


def fingerprint(volume: Scan) -> str:
    return hashlib.sha256(
        volume.image.tobytes() + volume.mask.tobytes() + volume.aha.tobytes() + volume.affine.tobytes()
    ).hexdigest()


def test_the_same_scan_has_the_same_bytes_in_another_process():
    here = fingerprint(imaged("infarct", "lge"))
    assert fingerprint(imaged("infarct", "lge")) == here
    program = "from tests_scanner import fingerprint, imaged; print(fingerprint(imaged('infarct', 'lge')))"
    loader = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('tests_scanner', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); sys.modules['tests_scanner'] = module;"
        "spec.loader.exec_module(module);"
    )
    there = subprocess.run([sys.executable, "-c", loader + program, __file__], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_another_examination_differs_in_image_and_not_in_anatomy():
    first, second = imaged(exam=0), imaged(exam=1)
    voxel = 2.0 * 2.0 * 6.0
    assert fingerprint(first) != fingerprint(second)
    assert (first.mask == 1).sum() * voxel == pytest.approx((second.mask == 1).sum() * voxel, rel=0.08)


def test_a_rescan_elsewhere_shows_the_same_heart():
    patient = draw_patient(8, {"infarct": 1.0})
    volumes = []
    for scanner in (
        Scanner(name="one", matrix=128, pixel_mm=1.8, slice_thickness_mm=5, slice_gap_mm=0),
        Scanner(
            name="two", matrix=160, pixel_mm=1.4, slice_thickness_mm=5, slice_gap_mm=0, field_strength_t=3.0, apex_first=True
        ),
    ):
        volume = scan(patient, scanner, "cine_ed", seed=1, oversampling=1, subslices=1)
        voxel = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
        volumes.append([(volume.mask == label).sum() * voxel for label in (1, 2)])
    assert volumes[0] == pytest.approx(volumes[1], rel=0.06)
    assert volumes[0][0] == pytest.approx(patient.edv_ml, rel=0.06)


def test_the_heart_lies_at_the_same_place_of_the_body_in_every_scan():
    patient = draw_patient(8, {"normal": 1.0})
    centres = []
    for scanner in (
        SMALL,
        SMALL.model_copy(update={"name": "B", "in_plane_rotation_deg": 80.0, "apex_first": True, "pixel_mm": 1.5}),
    ):
        volume = scan(patient, scanner, "cine_ed", seed=1, oversampling=1, subslices=1)
        index = np.append(np.argwhere(volume.mask == 1).mean(axis=0), 1)
        centres.append((volume.affine @ index)[:3])
    assert np.linalg.norm(centres[0] - centres[1]) < 4  # breath-holds and slice positions differ


def test_the_affine_is_a_double_oblique_short_axis_view():
    volume = imaged(in_plane_rotation_deg=0.0)
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert directions.T @ directions == pytest.approx(np.eye(3), abs=1e-6)
    assert np.linalg.norm(volume.affine[:3, :3], axis=0) == pytest.approx([6.0, 2.0, 2.0])
    towards_apex = directions[:, 0]  # LPS: left, forward, down
    assert towards_apex[0] > 0.4
    assert towards_apex[1] < -0.4
    assert towards_apex[2] < 0
    flipped = imaged(apex_first=True)
    assert flipped.affine[:3, 0] @ volume.affine[:3, 0] < 0


def test_blood_has_the_scanners_grey_value_and_signal_to_noise_ratio():
    quiet = {"coil_bias": 0.0, "ghosting": 0.0, "flow_mottle": 0.0, "texture": 0.0, "intensity_scale": 500.0}
    many = [imaged("dcm", exam=0, snr=20.0, **quiet), imaged("dcm", exam=0, snr=2000.0, **quiet)]
    pool = many[0].mask == 1
    assert np.median(many[1].image[pool]) == pytest.approx(500, rel=0.04)
    noise = (many[0].image.astype(float) - many[1].image)[pool].std()
    assert 500 / noise == pytest.approx(20, rel=0.1)


def test_cine_blood_is_about_as_much_brighter_than_muscle_as_in_real_scans():
    # real 1.5 T cines of heart failure: 261 / 100 and 219 / 110 inside the experts' contours
    for seed in range(3):
        volume = imaged("dcm", seed=seed, tr_ms=3.35, flip_deg=45.0)
        ratio = volume.image[volume.mask == 1].mean() / volume.image[volume.mask == 2].mean()
        assert 1.7 < ratio < 3.6


def test_coil_bias_is_brightest_at_the_chest_wall():
    flat, biased = (imaged(coil_bias=bias, ghosting=0.0, snr=500.0).image.astype(float) for bias in (0.0, 1.0))
    ratio = biased[flat > 100] / flat[flat > 100]
    assert np.percentile(ratio, 99) > 2 * np.percentile(ratio, 10)


# -- late enhancement ----------------------------------------------------------------------------------------------------


def test_infarct_enhances_and_remote_muscle_is_nulled():
    volume = imaged("infarct", "lge", seed=5, psir=False, coil_bias=0.0, inversion_time_error_ms=0.0, flow_mottle=0.0)
    scar = volume.image[volume.lesion > 0].mean()
    remote = volume.image[(volume.mask == 2) & (volume.lesion == 0)].mean()
    assert scar > 2.0 * remote


def test_more_extracellular_volume_is_brighter():
    from dataclasses import replace

    patient = draw_patient(5, {"infarct": 1.0})
    brightness = []
    for ecv in (0.30, 0.45, 0.60):
        lesions = tuple(replace(lesion, ecv=ecv, obstruction=False) for lesion in patient.lesions)
        volume = scan(replace(patient, lesions=lesions), SMALL, "lge", seed=0, oversampling=1, subslices=1)
        brightness.append(volume.image[volume.lesion > 0].mean())
    assert brightness[0] < brightness[1] < brightness[2]


def test_phase_sensitive_images_keep_the_sign_and_magnitude_images_do_not():
    wrong = {"inversion_time_error_ms": 0.0, "coil_bias": 0.0, "intensity_scale": 1000.0, "snr": 200.0}
    signed, magnitude = imaged("normal", "lge", psir=True, **wrong), imaged("normal", "lge", psir=False, **wrong)
    assert signed.inversion_time_ms == magnitude.inversion_time_ms
    lungs_and_air = np.percentile(magnitude.image, 2)
    assert lungs_and_air < 60
    assert np.percentile(signed.image, 2) > 400  # zero signal is grey, at the offset of one scale
    assert np.median(signed.image[signed.mask == 2]) == pytest.approx(1000, abs=250)


def test_a_wrong_inversion_time_leaves_signal_in_normal_muscle():
    def remote(error_ms: float) -> float:
        values = []
        for exam in range(4):
            volume = imaged("normal", "lge", exam=exam, psir=False, snr=300.0, coil_bias=0.0, inversion_time_error_ms=error_ms)
            values.append(np.median(volume.image[volume.mask == 2]) / np.median(volume.image[volume.mask == 1]))
        return float(np.mean(values))

    assert remote(90.0) > remote(0.0) + 0.03


def test_only_late_enhancement_has_an_inversion_time():
    assert imaged(series="cine_ed").inversion_time_ms is None
    assert 120 <= (imaged(series="lge").inversion_time_ms or 0) <= 600
    assert imaged(series="cine_es").trigger_time_ms > imaged(series="cine_ed").trigger_time_ms
    with pytest.raises(ValueError, match="cine_ed, cine_es, lge"):
        imaged(series="t1")


# -- scanners of no hospital ---------------------------------------------------------------------------------------------


def test_random_scanners_are_repeatable_and_cover_real_protocols():
    drawn = [random_scanner(seed) for seed in range(400)]
    assert drawn[7] == random_scanner(7)
    assert {scanner.field_strength_t for scanner in drawn} == {1.5, 3.0}
    assert len({scanner.manufacturer for scanner in drawn}) == 4
    assert min(s.pixel_mm for s in drawn) < 1.1 < 1.9 < max(s.pixel_mm for s in drawn)
    assert min(s.slice_thickness_mm for s in drawn) < 5.5 < 9.5 < max(s.slice_thickness_mm for s in drawn)
    alike = [s for s in drawn if s.manufacturer.startswith("GE") and s.field_strength_t == 1.5 and abs(s.pixel_mm - 1.37) < 0.2]
    assert any(abs(s.matrix - 256) <= 32 and s.slice_thickness_mm > 8 for s in alike)


def test_a_random_scanner_gives_a_usable_image():
    volume = scan(draw_patient(2, {"dcm": 1.0}), random_scanner(5), "cine_ed", seed=0, oversampling=1, subslices=2)
    assert volume.image.dtype == np.uint16
    assert volume.image.shape == volume.mask.shape == volume.aha.shape
    assert {1, 2, 3} <= set(np.unique(volume.mask))
