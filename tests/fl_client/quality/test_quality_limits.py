"""A study's limits, records beside the cohort, and the table that a hospital sees."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from conf.quality import QualityLimits
from conf.study import Study
from fl_client.__main__ import main
from fl_client.cohort import Cohort
from fl_client.patients import chosen
from fl_client.quality import records
from fl_client.quality.limits import outside
from fl_client.quality.plot import quality_plot
from fl_client.quality.reference import Reference, found_in, modified_z
from fl_client.site import Site
from tasks.case import Case, Volume
from tasks.task import load_for


def a_case(patient: str, sd: float, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    drawn = np.stack([np.where(np.hypot(rows - 32, columns - 32) < 18, 1, 0).astype(np.uint8)] * 3)
    image = np.hypot(200.0 * drawn + sd * rng.standard_normal(drawn.shape), sd * rng.standard_normal(drawn.shape))
    return Case(patient, (Volume("cine_ed", image.astype(np.float32), np.diag([8.0, 2.0, 2.0, 1.0]), drawn),))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(name="clinic", folder=tmp_path, declared_size=10, test_fraction=0.0)
    made.save(tmp_path / "site.yaml")
    cohort = Cohort(made.cohort_folder)
    for number in range(12):
        cohort.admit(a_case(f"p{number:02d}", 40.0 if number == 7 else 4.0 + 0.1 * number, number))
    return made


def limits(**series) -> QualityLimits:
    return QualityLimits.model_validate({"series": series})


def test_a_patient_outside_the_limits_is_left_out_with_the_reason(hospitals, site):
    study = hospitals.study(sites=("clinic",), quality={"series": {"cine_ed": {"snr": {"min": 10}}}})
    _, usable, left_out = chosen(site, study, load_for(study), "train")
    assert len(usable) == 11
    assert list(left_out) == ["p07"]
    assert left_out["p07"].startswith("cine_ed: snr is ")
    assert left_out["p07"].endswith("; the study wants at least 10")


def test_each_patient_is_judged_alone(site):
    asked = limits(cine_ed={"snr": {"min": 35.0}})
    cohort = Cohort(site.cohort_folder)
    together = outside(cohort, asked, cohort.patients)
    alone = {p: reason for p in cohort.patients for reason in outside(cohort, asked, [p]).values()}
    assert together == alone
    assert 0 < len(alone) < 12


def test_what_cant_be_measured_is_used_unless_the_study_wants_evidence(site):
    cohort = Cohort(site.cohort_folder)
    assert outside(cohort, limits(cine_ed={"cnr": {"min": 1000}}), ["p00"]) == {}
    told = outside(cohort, limits(cine_ed={"cnr": {"min": 1000, "unmeasured": "leave_out"}}), ["p00"])
    why = "cine_ed: cnr can't be measured (fewer than two structures are drawn), and the study wants it"
    assert told == {"p00": why}
    assert outside(cohort, limits(lge={"snr": {"min": 1000}}), ["p00"]) == {}  # a series that isn't there


def test_a_study_with_limits_is_read_back_and_has_its_own_hash(hospitals):
    plain = hospitals.study()
    strict = hospitals.study(quality={"series": {"cine_ed": {"snr": {"min": 10}}}})
    assert Study.from_json(plain.to_json()).quality is None
    assert Study.from_json(strict.to_json()) == strict
    assert strict.hash != plain.hash
    assert str(strict.quality) == "snr of cine_ed at least 10"
    old = {name: value for name, value in json.loads(plain.to_json()).items() if name != "quality"}
    assert Study.from_json(json.dumps(old)).hash == plain.hash


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cine_ed": {"sharpness": {"min": 1}}}, "no quality parameter 'sharpness'"),
        ({"cine_ed": {"snr": {}}}, "a limit needs min, max or both"),
        ({"cine_ed": {"snr": {"min": 2, "max": 1}}}, "nobody could be within"),
        ({"cine_ed": {}}, "at least 1 item"),
        ({"../x": {"snr": {"min": 1}}}, "should match pattern"),
    ],
)
def test_limits_that_make_no_sense_are_refused_in_words(asked, told):
    with pytest.raises(ValidationError, match=told):
        limits(**asked)


def test_a_record_is_measured_anew_when_the_case_or_the_definitions_change(site):
    cohort = Cohort(site.cohort_folder)
    records.record(cohort.folder, cohort.case("p00"), {"slice_thickness_mm/cine_ed": 6.0})
    first = records.of(cohort, "p00")["cine_ed"].values
    assert first["slice_gap_mm"] == 2
    cohort.admit(a_case("p00", 20.0, 0))
    second = records.of(cohort, "p00")["cine_ed"].values
    assert second["noise_sigma"] == pytest.approx(20, rel=0.2)
    assert second["slice_gap_mm"] == 2  # what the door said stays
    place = cohort.folder / "quality" / "p00.json"
    place.write_text(place.read_text().replace('"definitions": 3', '"definitions": 2').replace("noise_sigma", "noise"))
    assert records.of(cohort, "p00")["cine_ed"].values == second


def test_modified_z_scores_are_those_of_the_definition():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100])
    assert modified_z(values)[-1] == pytest.approx(0.6745 * 94.5 / 2.5, rel=1e-4)  # median 5.5, MAD 2.5
    assert not modified_z(values[:9]).any()  # too few to call anybody an outlier


def test_the_command_tells_outliers_and_writes_table_picture_and_reference(site, tmp_path, capsys):
    where = ["--site", str(tmp_path / "site.yaml"), "quality"]
    out = [tmp_path / "q.csv", tmp_path / "plots", tmp_path / "own.yaml"]
    assert main([*where, "--csv", str(out[0]), "--plot", str(out[1]), "--write-reference", str(out[2])]) == 0
    told = capsys.readouterr().out
    assert "12 patients with images at clinic" in told
    assert "p07 cine_ed snr " in told
    rows = list(csv.DictReader(out[0].read_text().splitlines()))
    assert {row["patient"] for row in rows if row["metric"] == "snr" and row["outlier"] == "1"} == {"p07"}
    assert (out[1] / "cine_ed.png").read_bytes().startswith(b"\x89PNG")
    own = Reference.load(out[2])
    assert (own.source, own.ranges["cine_ed"]["slices"].median) == ("12 patients of clinic", 3)
    assert main([*where, "--patient", "p07", "--reference", str(out[2])]) == 0
    assert "snr" in capsys.readouterr().out
    assert main([*where, "--csv", str(out[0])]) == 1  # never over a file that is there


def test_the_shipped_reference_says_what_it_was_made_of_and_a_plot_needs_something_to_show(site):
    assert "Sunnybrook" in Reference.load().source
    found, _ = found_in(Cohort(site.cohort_folder))
    assert len(quality_plot(found, "cine_ed", reference=Reference.load(), highlight="p01").axes) >= 6
    with pytest.raises(ValueError, match="of series lge nothing was measured"):
        quality_plot(found, "lge")
