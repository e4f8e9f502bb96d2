import csv

import numpy as np
import pytest

from simulation import signature
from simulation.reader import Reader
from simulation.scanner import Scanner
from simulation.settings import GeneratedHospital
from simulation.signature import CONF, Collection, Measured, calibration_cases, judged, learned_from, measured, profiles, write
from tasks.radiomics.rows import Rows

SMALL = Collection(patients=1, repeated=1, oversampling=1, subslices=1)


@pytest.fixture(scope="module")
def hospitals():
    scanner = {"matrix": 96, "pixel_mm": 2.4, "slice_thickness_mm": 8}
    mix = {"myocarditis": 1.0}
    return {
        "one": GeneratedHospital(scanner=Scanner(name="one", **scanner), reader=Reader(name="one"), case_mix=mix),
        "two": GeneratedHospital(scanner=Scanner(name="two", psir=False, **scanner), case_mix={"myocarditis": 3, "normal": 3}),
    }


@pytest.fixture(scope="module")
def settings():
    return learned_from("radiomics")


def test_a_patient_is_scanned_scanned_elsewhere_and_drawn_again(hospitals, settings):
    found = measured(hospitals, settings, SMALL, workers=0)
    assert [(one.hospital, one.seed) for one in found] == [("one", 61_000_000), ("two", 61_010_000)]
    for one in found:
        assert one.rows.X.shape == (len(one.rows.region), len(settings.columns))
        assert np.isfinite(one.rows.X).mean() > 0.98
        assert set(one.rows.y) <= {0, 1}
        for again in (one.rescanned, one.redrawn):
            assert again is not None
            both = np.intersect1d(one.rows.region, again.region)
            assert len(both) >= 15
            mean, other = one.rows.X[np.isin(one.rows.region, both), 0], again.X[np.isin(again.region, both), 0]
            assert not np.array_equal(mean, other)
            assert np.corrcoef(mean, other)[0, 1] > 0.5


def test_calibration_scans_are_of_the_same_patient_on_every_scanner(hospitals):
    cases = dict(calibration_cases(hospitals, 61_500_000, SMALL))
    assert list(cases) == ["one", "two"]
    facts = [[case.endpoints[name] for name in ("disease", "age", "sex", "ef", "edv_ml")] for case in cases.values()]
    assert facts[0] == facts[1]
    images = [case.volume("lge").image for case in cases.values()]
    assert images[0].shape != images[1].shape or not np.array_equal(*images)


def rows(X):
    X = np.asarray(X, float)
    return Rows(X, np.array([0.0, 1.0, 0.0, 1.0]), np.array([5, 5, 5, 1]), np.arange(1, 5))


def test_columns_are_judged_on_certain_segments_and_on_what_two_scans_share(settings):
    mean, log = settings.radiomic[0], next(feature for feature in settings.radiomic if feature.scale == "log")
    small = settings.model_copy(update={"radiomic": (mean, log)})
    X = np.array([[0.0, 1], [3, 2], [1, 4], [-9, 8]])  # the fourth segment is uncertain: it would be the lowest
    shifted = X * [1, 10] + [7, 0]  # a shift, which on a log scale is a factor
    turned = rows(X[::-1])
    patient = Measured("one", 1, rows(X), rows(shifted), Rows(turned.X, turned.y, turned.certainty, turned.region[::-1]))
    first, second = judged([patient], small)
    assert (first.auc, second.auc) == (1.0, 0.5)  # 3 is above 0 and 1; 2 is above 1 and below 4
    assert first.icc_rescan == pytest.approx(1)
    assert second.icc_rescan == pytest.approx(1)
    assert first.icc_mask == pytest.approx(1)  # segments are matched by number, in whatever order they stand


def test_the_table_tells_of_the_columns_that_are_learned_from(settings):
    with open(signature.TABLE, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["column"] for line in lines] == [feature.name for feature in settings.radiomic]
    for line, feature in zip(lines, settings.radiomic, strict=True):
        assert (float(line["lower"]), float(line["upper"])) == (feature.lower, feature.upper)
        assert min(float(line["icc_rescan"]), float(line["icc_mask"])) >= 0.75


def test_a_table_is_written_as_it_is_read(settings, tmp_path):
    column = signature.Column(settings.radiomic[0], 0.87654, 0.9, 0.8)
    write([column], tmp_path / "new" / "lge.csv")
    name, lower, upper = settings.radiomic[0].name, settings.radiomic[0].lower, settings.radiomic[0].upper
    expected = f"column,auc,icc_rescan,icc_mask,lower,upper\n{name},0.877,0.900,0.800,{lower:g},{upper:g}\n"
    assert (tmp_path / "new" / "lge.csv").read_text() == expected


def test_six_hospitals_are_read_from_their_file():
    found = profiles("six_myocarditis")
    assert len(found) == 6
    assert (CONF / "hospitals" / "six_myocarditis.yaml").is_file()
    for hospital in found.values():
        assert sum(hospital.case_mix.values()) == pytest.approx(1)
