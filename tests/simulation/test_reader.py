import numpy as np
import pytest

from simulation.hospital_case import patient_case
from simulation.phantom import draw_patient
from simulation.reader import Reader, endpoint, read
from simulation.scanner import Scanner, scan

SMALL = Scanner(matrix=112, pixel_mm=2.0, slice_thickness_mm=8.0, slice_gap_mm=2.0)
EXACT = Reader(name="exact", contour_sd_mm=0.0, patient_sd_mm=0.0)


def imaged(seed: int = 5, disease: str = "infarct", series: str = "lge"):
    patient = draw_patient(seed, {disease: 1.0})
    return patient, scan(patient, SMALL, series, seed=0, oversampling=1, subslices=1)


def test_a_reader_without_habits_draws_the_truth():
    patient, image = imaged()
    assert np.array_equal(read(image, patient, EXACT, seed=0).mask, image.mask)


def test_a_bias_in_millimetres_moves_the_contour_by_that_much():
    patient, image = imaged(series="cine_ed", disease="normal")
    wide = EXACT.model_copy(update={"contour_bias_mm": 1.5})
    middle = len(image.mask) // 2
    radius = [
        np.sqrt(((mask[middle] == 1).sum() * 4.0) / np.pi) for mask in (image.mask, read(image, patient, wide, seed=0).mask)
    ]
    assert radius[1] - radius[0] == pytest.approx(1.5, abs=0.35)


def test_readings_are_repeatable_and_readers_differ():
    patient, image = imaged()
    one, again, other = (read(image, patient, Reader(name=name), seed=4) for name in ("a", "a", "b"))
    assert np.array_equal(one.mask, again.mask)
    assert np.array_equal(one.certainty, again.certainty)
    assert not np.array_equal(one.mask, other.mask)
    both = (one.mask == 2).sum() + (other.mask == 2).sum()
    agreement = 2 * ((one.mask == 2) & (other.mask == 2)).sum() / both
    assert 0.75 < agreement < 0.995  # like two people on 2 mm pixels


def test_calls_follow_the_truth_and_the_more_so_the_surer_the_reader():
    calls, truths, certainty = [], [], []
    for seed in range(12):
        patient, image = imaged(seed, ("infarct", "myocarditis", "normal")[seed % 3])
        reading = read(image, patient, Reader(), seed=0)
        calls.append(reading.segments_positive)
        truths.append(reading.segments_true)
        certainty.append(reading.certainty)
    right, sure = np.concatenate(calls) == np.concatenate(truths), np.concatenate(certainty)
    assert right.mean() > 0.8
    assert right[sure >= 4].mean() > right[sure <= 2].mean()
    assert set(np.unique(sure)) <= {1, 2, 3, 4, 5}
    assert len(np.unique(sure)) >= 4


def test_a_normal_heart_has_no_true_positive_segment():
    patient, image = imaged(3, "normal")
    assert not read(image, patient, Reader(), seed=0).segments_true.any()


def test_the_endpoint_is_repeatable_and_worse_for_sicker_hearts():
    def mean_event(disease: str) -> float:
        events = []
        for seed in range(3):
            patient, image = imaged(seed, disease)
            months, _ = endpoint(patient, image, seed=0)
            assert endpoint(patient, image, seed=0)[0] == months
            assert 0 <= months <= 84
            events += [endpoint(patient, image, seed=follow_up)[1] for follow_up in range(150)]
        return float(np.mean(events))

    assert mean_event("amyloid") > mean_event("normal") + 0.1


def test_a_case_is_complete():
    case = patient_case(42, SMALL, Reader(), {"infarct": 1.0}, oversampling=1, subslices=1)
    assert case.patient == "G00000042"
    assert [volume.series for volume in case.volumes] == ["cine_ed", "cine_es", "lge"]
    assert case.scanner == {"manufacturer": "SIEMENS", "field_strength_t": 1.5, "modality": "MR"}
    assert case.endpoints["disease"] == "infarct"
    assert case.endpoints["event"] in (0, 1)
    assert len([name for name in case.endpoints if name.startswith("certainty_")]) == 17
    for volume in case.volumes:
        assert volume.spacing_mm == pytest.approx((10.0, 2.0, 2.0))
        assert {1, 2, 3} <= set(np.unique(volume.mask))


def test_a_case_needs_a_series():
    with pytest.raises(ValueError, match="at least one series"):
        patient_case(1, SMALL, Reader(), {"normal": 1.0}, series=())
