"""A whole cine: the volume curve over the beat, counted in voxels, and what the intake makes of it as DICOM."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage

from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.labels import LabelMap
from simulation import cine_sheet
from simulation.cine import scan_cine
from simulation.cycle import left_beat, right_beat, volume_ml
from simulation.dicom import Identity, write_cine
from simulation.patient import DISEASES, draw_patient
from simulation.scanner import Scanner, scan
from tasks.case import Case

KEY = b"0123456789abcdef0123456789abcdef"
THIN = Scanner(matrix=80, pixel_mm=2.2, slice_thickness_mm=3.0, slice_gap_mm=0.0, breath_hold_shift_mm=0.0)
SMALL = Scanner(matrix=96, pixel_mm=3.0, manufacturer="SIEMENS")


def beat_of(rate, disease="normal", seed=3):
    beat = left_beat(draw_patient(seed, {disease: 1.0}), rate)
    times = np.linspace(0, beat.cycle, 4001)
    return beat, times, beat.contraction(times)


@pytest.mark.parametrize("rate", [40, 60, 75, 100, 130])
@pytest.mark.parametrize("disease", DISEASES)
def test_the_ventricle_empties_once_and_fills_again(rate, disease):
    for of in (left_beat, right_beat):
        beat = of(draw_patient(3, {disease: 1.0}), rate)
        times = np.linspace(0, beat.cycle, 4001)
        given = beat.contraction(times)
        assert given[0] == given[-1] == pytest.approx(0, abs=1e-9)
        assert given.max() == pytest.approx(1, abs=1e-9)
        assert given.min() >= -1e-9
        steps = np.diff(given)
        assert (steps[times[1:] <= beat.closes] >= -1e-12).all()
        assert (steps[times[:-1] >= beat.closes] <= 1e-12).all()
        assert np.abs(steps).max() < 0.01  # no jump between two of 4000 moments


def test_nothing_flows_while_all_valves_are_closed():
    beat, times, given = beat_of(60)
    assert np.ptp(given[times < beat.opens]) == 0
    assert np.ptp(given[(times > beat.closes) & (times < beat.fills)]) < 1e-9
    assert 40 < beat.opens < 90  # isovolumic contraction
    assert 50 < beat.fills - beat.closes < 100  # isovolumic relaxation, Nagueh 2009: 67 to 87 by age


@pytest.mark.parametrize(("rate", "ejection"), [(60, 311), (80, 277), (100, 243)])
def test_a_man_s_ejection_takes_as_long_as_weissler_says(rate, ejection):
    """413 - 1.7 x rate, for a ventricle that is not weak."""
    patient = next(
        p for seed in range(50) if (p := draw_patient(seed, {"normal": 1.0})).sex == "M" and p.ejection_fraction > 0.62
    )
    beat = left_beat(patient, rate)
    assert beat.closes - beat.opens == pytest.approx(ejection, abs=0.5)


def test_systole_is_a_third_at_60_and_half_at_110_and_diastasis_goes_with_the_rate():
    slow, _, _ = beat_of(60)
    fast, times, given = beat_of(110)
    assert 0.29 < (slow.closes - slow.opens) / slow.cycle < 0.35
    assert 0.48 < fast.systole < 0.56
    assert slow.fills + slow.rapid < slow.cycle - slow.atrial  # a rest between the two waves
    assert fast.fills + fast.rapid > fast.cycle - fast.atrial  # they run into each other
    assert given[-1] == pytest.approx(0, abs=1e-9)
    assert times[-1] == fast.cycle


def test_rapid_filling_brings_most_and_the_atrium_a_fifth_or_more():
    beat, times, given = beat_of(60)
    after_rapid = np.interp(beat.fills + beat.rapid, times, given)
    before_atrium = np.interp(beat.cycle - beat.atrial, times, given)
    assert 0.55 < 1 - after_rapid < 0.82
    assert 0 < after_rapid - before_atrium <= 0.051
    assert 0.18 < before_atrium < 0.42
    inflow = -np.diff(given[(times > beat.fills)])
    assert inflow.argmax() < 0.35 * len(inflow)  # the early wave is the steeper one


def test_failing_hearts_eject_later_and_shorter_and_thick_ones_fill_more_slowly():
    normal, _, _ = beat_of(70)
    weak = left_beat(draw_patient(3, {"dcm": 1.0}), 70)
    stiff = left_beat(draw_patient(3, {"hcm": 1.0}), 70)
    assert weak.opens > normal.opens + 20
    assert weak.closes - weak.opens < normal.closes - normal.opens - 20
    assert weak.closes == pytest.approx(normal.closes, abs=5)
    assert stiff.rapid > normal.rapid
    assert stiff.atrial_share > left_beat(draw_patient(3, {"hcm": 1.0}), 70).atrial_share - 1e-9


def test_a_heart_rate_or_a_number_of_phases_that_is_none_is_refused():
    patient = draw_patient(3, {"normal": 1.0})
    with pytest.raises(ValueError, match="between 30 and 180"):
        left_beat(patient, 12)
    with pytest.raises(ValueError, match="8 to 25 phases, not 7"):
        scan_cine(patient, SMALL, seed=0, phases=7)


@pytest.fixture(scope="module", params=["normal", "dcm", "hcm", "ph"])
def thin(request):
    """A patient and a cine in slices without gaps, so that summing them gives volumes."""
    patient = draw_patient(4, {request.param: 1.0})
    return patient, scan_cine(patient, THIN, seed=0, phases=8, heart_rate_per_min=65, oversampling=1, subslices=1)


def test_voxels_follow_the_curve_and_muscle_keeps_its_volume(thin):
    patient, cine = thin
    counted, muscle, right = (cine.volumes_ml(label) for label in (1, 2, 3))
    wanted = volume_ml(patient, cine.trigger_times_ms, 65)
    assert np.abs(counted / wanted - 1).max() < 0.08
    assert 1 - counted.min() / counted.max() == pytest.approx(patient.ejection_fraction, abs=0.05)
    assert np.ptp(muscle) / muscle.mean() < 0.08
    assert np.corrcoef(right, 1 - cine.right)[0, 1] > 0.97
    assert right.min() < 0.85 * right.max()


def test_the_valve_plane_descends_and_comes_back(thin):
    patient, cine = thin
    top = np.array([cine.grid.levels_mm[(mask == 2).any(axis=(1, 2))].min() for mask in cine.mask])
    fallen = top - top[0]
    assert fallen[cine.end_systole] == pytest.approx(0.25 * patient.ejection_fraction * patient.length_mm, abs=3.1)
    assert (fallen >= -3.1).all()
    assert np.corrcoef(fallen, cine.left)[0, 1] > 0.9


def test_end_diastole_and_end_systole_are_those_of_the_two_series():
    patient = draw_patient(7, {"infarct": 1.0})
    cine = scan_cine(patient, SMALL, seed=5, phases=25, oversampling=1, subslices=1)
    ed, es = (scan(patient, SMALL, series, seed=5, oversampling=1, subslices=1) for series in ("cine_ed", "cine_es"))
    assert cine.end_diastole == 0
    assert np.array_equal(cine.mask[0], ed.mask)
    assert np.array_equal(cine.affine, ed.affine)
    left = np.isin(es.mask, (1, 2))  # the right ventricle has its own end-systole
    assert cine.left.max() == pytest.approx(1, abs=1e-6)
    assert np.array_equal(np.isin(cine.mask[cine.end_systole], (1, 2)), left)


def test_moments_differ_in_noise_and_motion_alone():
    patient = draw_patient(7, {"normal": 1.0})
    cine = scan_cine(patient, SMALL, seed=5, phases=8, oversampling=1, subslices=1)
    far = ~ndimage.binary_dilation((cine.mask > 0).any(axis=(0, 1)), iterations=12)
    change = cine.image[1][:, far].astype(float) - cine.image[5][:, far]
    assert abs(change.mean()) < 0.02 * cine.image[:, :, far].mean()  # one contrast, and nothing moves there
    assert change.std() < 0.2 * cine.image[0][:, far].std()
    assert change.std() > 0


def test_equal_arguments_give_equal_bytes_in_another_process_with_other_threads():
    program = (
        "import sys; from simulation.cine import scan_cine; from simulation.patient import draw_patient\n"
        "from simulation.scanner import Scanner; scanner = Scanner(matrix=64, pixel_mm=4, slice_gap_mm=10)\n"
        "cine = scan_cine(draw_patient(3, {'dcm': 1}), scanner, seed=2, phases=8, oversampling=1, subslices=1)\n"
        "sys.stdout.buffer.write(cine.image.tobytes() + cine.mask.tobytes() + cine.trigger_times_ms.tobytes())"
    )

    def drawn(threads):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment).stdout

    assert drawn("1") == drawn("3") != b""


def test_the_page_shows_curves_and_a_strip_for_each_heart(tmp_path, monkeypatch):
    monkeypatch.setattr(cine_sheet, "SCANNER", SMALL)
    monkeypatch.setattr(cine_sheet, "COUNTED", 10)
    with Image.open(cine_sheet.write_cine_sheet(tmp_path / "new" / "page.png")) as page:
        colours = {colour for _, colour in page.convert("RGB").getcolors(1 << 22) or []}
    assert {tuple(bytes.fromhex(line[1:])) for line in cine_sheet.LINES} <= colours
    assert any(red > 220 and green > 170 and blue < 90 for red, green, blue in colours)  # the right ventricle's outline


# -- as DICOM, through the intake ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A cine, and the archive it was written into."""
    archive = tmp_path_factory.mktemp("archive")
    cine = scan_cine(draw_patient(5, {"hcm": 1.0}), SMALL, seed=1, phases=10, oversampling=1, subslices=1)
    case = Case("G1", (), {"event": 1}, {"manufacturer": "SIEMENS", "field_strength_t": 1.5})
    write_cine(case, cine, archive)
    return cine, archive


def test_the_intake_finds_both_phases_of_a_whole_cine(written, tmp_path):
    cine, archive = written
    cohort = Cohort(tmp_path / "cohort")
    intake = admit_folder(archive, cohort, key=KEY, labels=LabelMap.load("cardiac"))
    assert intake.refused == {}
    read = cohort.case(intake.admitted[0])
    assert [volume.series for volume in read.volumes] == ["cine_ed", "cine_es"]
    for series, phase in (("cine_ed", cine.end_diastole), ("cine_es", cine.end_systole)):
        volume = read.volume(series)
        assert np.array_equal(volume.image, cine.image[phase])
        assert np.array_equal(volume.mask, cine.mask[phase])
        assert np.abs(volume.affine - cine.affine).max() < 1e-8
    assert read.endpoints["event"] == 1


def test_headers_say_when_in_the_beat_an_image_was_taken(written):
    cine, archive = written
    files = sorted((archive / Identity.invent("G1").patient_id / "cine").glob("IM*.dcm"))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    assert len(headers) == 10 * cine.image.shape[1]
    assert len({header.SOPInstanceUID for header in headers}) == len(headers)
    assert [header.InstanceNumber for header in headers] == list(range(1, len(headers) + 1))
    assert [float(header.TriggerTime) for header in headers[:10]] == pytest.approx(cine.trigger_times_ms)
    assert {header.CardiacNumberOfImages for header in headers} == {10}
    assert headers[0].NominalInterval == round(cine.cycle_ms)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_a_cine_s_images_are_valid_dicom(written):
    _, archive = written
    folder: Path = archive / Identity.invent("G1").patient_id
    for path in (folder / "cine" / "IM0001.dcm", folder / "cine" / "IM0015.dcm", folder / "cine-es-mask.dcm"):
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")] == []
