"""A whole study of reference values: drawn hospitals count, curves are fitted, a hospital shows its patients among them."""

import json
import re
import shutil

import numpy as np
import pytest

from conf.study import Study
from fl_client.__main__ import main as konsil_site
from fl_client.cohort import Cohort
from fl_client.contract import contract
from fl_client.intake.report_page import Drawn, Report, draw
from fl_client.page import people
from fl_client.privacy import calibrate
from fl_client.reference_chart import figure_of
from fl_client.reference_values import kept, placed, values_of
from fl_client.site import Site
from fl_server.record import Record
from simulation.__main__ import main
from tasks.reference_values.place import source
from tasks.reference_values.values import ReferenceValues

HOSPITALS = ("ammer", "iller", "lech")
OVERRIDES = [
    "study=reference_values",
    *(f"~hospitals.sites.{name}" for name in ("mangfall", "regen", "salzach")),
    *(f"hospitals.sites.{name}.scanner.{key}" for name in HOSPITALS for key in ("matrix=64", "pixel_mm=4")),
    *("hospitals.patients=12", "hospitals.subslices=1", "hospitals.test_fraction=0.2", "workers=0", "name=spread"),
    *("privacy.epsilon=60", "secure=null", "reference.task.age_edges=[18,50,90]", "reference.task.suppress_below=2"),
    "reference.task.measures=[{name: edv, indexed: true, female: [38, 122], male: [38, 132], bins: 6}, "
    "{name: ef, female: [40, 82], male: [38, 80], bins: 6}]",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run's folder."""
    runs = tmp_path_factory.mktemp("runs")
    assert main([*OVERRIDES, f"runs_folder={runs}"]) == 0
    return runs / "spread"


@pytest.fixture
def clinic(run, tmp_path):
    """A hospital with the first one's patients, and its settings file."""
    site = Site(name="clinic", folder=tmp_path / "clinic", declared_size=10)
    site.folder.mkdir()
    shutil.copytree(run / "arms" / "federation_private" / "0" / "sites" / "ammer" / "cohort", site.cohort_folder)
    site.save(tmp_path / "clinic" / "site.yaml")
    return site


def test_the_federation_counts_once_and_every_hospital_pays(run):
    record = Record.read(run / "record.json")
    assert record.verdict == "complete"
    assert record.study["task"]["name"] == "reference_values"
    assert len(record.rounds) == 1
    multiplier = calibrate(epsilon=60.0, delta=1e-3, sample_rate=1.0, steps=1)
    for name in HOSPITALS:
        (entry,) = [line["event"] for line in map(json.loads, (run / "ledgers" / f"{name}.jsonl").read_text().splitlines())]
        assert entry["noise_multiplier"] == pytest.approx(multiplier)
        assert record.sites[name].epsilon == pytest.approx(60, rel=0.01)


def test_the_noise_is_what_the_study_promises(run):
    values = ReferenceValues.model_validate_json((run / "reference_values.json").read_text())
    multiplier = calibrate(epsilon=60.0, delta=1e-3, sample_rate=1.0, steps=1)
    assert values.noise_sd == pytest.approx(multiplier * np.sqrt(3) * np.sqrt(2), rel=1e-6)  # three hospitals, two measures
    assert values.hospitals == HOSPITALS
    assert (values.epsilon, values.one_noise) == (60.0, False)


def test_curves_rise_by_percentile_and_lie_where_the_patients_do(run):
    values = ReferenceValues.model_validate_json((run / "reference_values.json").read_text())
    told = [curve for curve in values.curves if curve.ages]
    assert told
    for curve in told:
        drawn = curve.percentiles(curve.ages)
        assert (np.diff(drawn, axis=1) > 0).all()
        middle = {"edv_index": 78, "ef": 62}[curve.measure.key]
        assert drawn[:, 2].mean() == pytest.approx(middle, rel=0.2)


def test_the_report_shows_curves_and_patients_and_says_where_they_come_from(run):
    text = (run / "report.html").read_text()
    values = ReferenceValues.model_validate_json((run / "reference_values.json").read_text())
    assert source(values) in text
    assert text.count("data:image/png;base64,") == 2 + 3 * 2  # women, men, two patients of each hospital
    assert "counted together how measures of the heart are spread by age and sex" in (run / "clinical_report.html").read_text()


def test_a_second_call_counts_nothing_again(run, capsys):
    before = (run / "ledgers" / "lech.jsonl").read_bytes()
    assert main([*OVERRIDES, f"runs_folder={run.parent}"]) == 0
    assert (run / "ledgers" / "lech.jsonl").read_bytes() == before
    assert "ejection fraction, women" in capsys.readouterr().out


def test_a_person_reads_in_the_contract_that_one_patient_counts_one_at_most(run, clinic):
    study = Study.model_validate(Record.read(run / "record.json").study)
    said = dict(contract(clinic.model_copy(update={"name": "ammer"}), study, days=30))
    assert "task reference_values" in said["What it runs"][0]
    assert "one sum over all patients: 49 numbers" in said["What leaves"][0]  # two measures of six bins, two bands, two sexes
    assert "a patient's share is cut to length 1 and noise is added" in said["What leaves"][1]


def test_a_hospital_keeps_the_values_and_places_its_patients(run, clinic, capsys):
    assert konsil_site(["--site", str(clinic.folder / "site.yaml"), "add-reference-values", str(run)]) == 0
    assert "clinic now has the reference values of study spread" in capsys.readouterr().out
    values = kept(clinic)
    assert values == values_of(run)
    cohort = Cohort(clinic.cohort_folder)
    seen = 0
    for patient in cohort.patients:
        case = cohort.case(patient)
        for place in placed(case, values):
            assert place.sex == case.endpoints["sex"]
            assert place.percentile is None or 0 <= place.low <= place.percentile <= place.high <= 100
            seen += place.percentile is not None
    assert seen


def test_the_patients_page_has_what_there_is_to_say_and_nothing_without_values(run, clinic):
    cohort = Cohort(clinic.cohort_folder)
    case = cohort.case(cohort.patients[0])
    assert people.compared(clinic, case) is None
    with pytest.raises(KeyError):
        people.compared_picture(clinic, case.patient)
    shutil.copy(run / "reference_values.json", clinic.reference_values_path)
    found = people.compared(clinic, case)
    assert [place.measure.key for place in found.places] == ["edv_index", "ef"]
    assert "epsilon 60 at delta 0.001" in found.source
    assert people.compared_picture(clinic, case.patient).startswith(b"\x89PNG")
    (clinic.reference_values_path).write_text("{}")
    assert "no reference values that this konsil can read" in people.compared(clinic, case).trouble


def test_the_report_to_the_archive_has_a_second_page_where_there_is_a_place(run, clinic):
    values = values_of(run)
    cohort = Cohort(clinic.cohort_folder)
    case = cohort.case(cohort.patients[0])
    drawn = [Drawn(one.series, one.image, one.mask, one.spacing_mm) for one in case.volumes]
    lines = [("Patient number", "MRN-1"), ("Examination of", "2026-01-02")]
    both = Report("Outlines", lines, {"blood_pool": 1}, drawn, values, placed(case, values))
    alone = Report("Outlines", lines, {"blood_pool": 1}, drawn)
    assert [len(re.findall(rb"/Type /Page\b", draw(one))) for one in (both, alone)] == [2, 1]
    assert draw(both) == draw(both)


def test_a_picture_has_a_panel_for_each_measure_and_a_dot_at_the_patient(run, clinic):
    values = values_of(run)
    cohort = Cohort(clinic.cohort_folder)
    case = cohort.case(cohort.patients[0])
    own = placed(case, values)
    figure = figure_of(values, own[0].sex, own)
    assert len(figure.axes) == 2
    for axes, place in zip(figure.axes, own, strict=True):
        (dot,) = [line for line in axes.lines if line.get_marker() in ("o", "^", "v")]
        assert dot.get_xdata()[0] == place.age
        assert dot.get_ydata()[0] == pytest.approx(place.value)


def test_another_run_and_an_exchanged_sum_are_refused(run, clinic, tmp_path, capsys):
    site = ["--site", str(clinic.folder / "site.yaml"), "add-reference-values"]
    assert konsil_site([*site, str(tmp_path)]) == 1
    assert "reference values are read from both files of a run's folder" in capsys.readouterr().err
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.pt", "record.json"):
        shutil.copy(run / name, copy / name)
    record = json.loads((copy / "record.json").read_text())
    record["rounds"][0]["arrays_sha256"] = "0" * 64
    (copy / "record.json").write_text(json.dumps(record))
    assert konsil_site([*site, str(copy)]) == 1
    assert "one of the two was exchanged" in capsys.readouterr().err
    record["study"]["task"] = {"name": "count", "tables": [{"axes": []}]}
    (copy / "record.json").write_text(json.dumps(record))
    assert konsil_site([*site, str(copy)]) == 1
    assert "reference values come from reference_values" in capsys.readouterr().err
    assert kept(clinic) is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hospitals.series=[cine_ed]", "reference.task: the hospitals have cine_ed, not cine_es"),
        ("reference.task.age_edges=[60,40,20]", "age_edges must rise"),
        ("+reference.shwn=3", "no such setting"),
    ],
)
def test_settings_that_cannot_be_run_are_refused_in_words(override, words, capsys):
    assert main([*OVERRIDES, override, "--show"]) == 2
    assert words in capsys.readouterr().err
