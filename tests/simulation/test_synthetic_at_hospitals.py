"""A rehearsal in which a hospital has synthetic cases beside its patients."""

import dataclasses
import json
import shutil

import pytest

from fl_client.cohort import Cohort
from fl_server.record import Record
from simulation.__main__ import main
from simulation.hospital import Hospital
from simulation.synthetic import main as draw

HOUSES = [
    *(f"~hospitals.sites.{name}" for name in ("alster", "donau", "spree")),
    "~hospitals.held_out.limmat",
    *(f"hospitals.sites.{name}.scanner.{key}" for name in ("isar", "rhein") for key in ("matrix=64", "pixel_mm=4")),
    *("hospitals.sites.isar.relative_size=1", "hospitals.sites.rhein.relative_size=1"),
    *("hospitals.patients=8", "hospitals.oversampling=1", "hospitals.subslices=1", "workers=0", "size=small", "real=null"),
]
SMALL = [
    *(*HOUSES, "rounds=1", "arms=[federation_private]", "privacy.epsilon=8", "clinical=false", "pretraining=null"),
    *("task.voxels=16", "task.roi_mm=null", "task.field_mm=160", "task.working_mm=8", "task.channels=[4,8]"),
    *("task.strides=[2]", "task.num_res_units=0", "full_scores=none"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of six cases with dilated hearts."""
    out = tmp_path_factory.mktemp("made")
    assert draw([str(out), "--patients", "6", "--case-mix", "dcm=1", "--protocol", "matrix=64", "pixel_mm=4"]) == 0
    return out


@pytest.fixture
def two(made, tmp_path):
    """The first two of them."""
    for case in sorted((made / "cases").iterdir())[:2]:
        shutil.copytree(case, tmp_path / "two" / "cases" / case.name)
    return tmp_path / "two"


def test_they_train_at_their_hospital_and_the_report_tells_of_them_and_no_ledger(two, tmp_path):
    runs = tmp_path / "runs"
    for name, more in (("bare", []), ("beside", [f"synthetic={{isar: {two}}}"])):
        assert main([*SMALL, f"runs_folder={runs}", f"name={name}", *more]) == 0
    bare, beside = (Record.read(runs / name / "record.json") for name in ("bare", "beside"))
    assert [beside.sites[name].cases_synthetic for name in ("isar", "rhein")] == [2, None]
    assert bare.sites["isar"].cases_synthetic is None
    assert beside.sites["isar"].cases_used == bare.sites["isar"].cases_used == 8
    assert "and 2 synthetic at hand" in (runs / "beside" / "report.html").read_text()
    assert "synthetic at hand" not in (runs / "bare" / "report.html").read_text()
    for name, count in (("isar", 2), ("rhein", 0)):
        place = runs / "beside" / "arms" / "federation_private" / "0" / "sites" / name
        lines = [json.loads(line) for line in (place / "log" / "training.jsonl").read_text().splitlines()]
        assert lines[-1]["synthetic"] == count
        assert beside.sites[name].epsilon == bare.sites[name].epsilon
    assert bare.rounds[-1].arrays_sha256 != beside.rounds[-1].arrays_sha256


def test_another_folder_makes_another_hospital(made, two):
    bare = Hospital("isar", made, 0.2, "", 6, {})
    beside = dataclasses.replace(bare, synthetic=two)
    before = beside.identity
    assert bare.identity != before == dataclasses.replace(bare, synthetic=two).identity
    shutil.rmtree(two / "cases" / Cohort(two).patients[0])
    assert beside.identity not in (before, bare.identity)


def test_what_a_hospital_does_not_take_is_refused_in_words_before_anything_trains(made, tmp_path, capsys):
    def refused(settings, *words):
        assert main([*settings, f"runs_folder={tmp_path / 'runs'}", *words]) == 2
        return capsys.readouterr().err

    said = refused(SMALL, f"synthetic={{spree: {made}}}")
    assert "synthetic: no hospital spree trains here; there are isar, rhein" in said
    nothing = tmp_path / "nothing"
    assert f"synthetic.isar: {nothing} is no folder of cases" in refused(SMALL, f"synthetic={{isar: {nothing}}}")
    late = tmp_path / "late"
    assert draw([str(late), "--patients", "1", "--series", "lge", "--protocol", "matrix=64", "pixel_mm=4"]) == 0
    capsys.readouterr()
    said = refused(SMALL, f"synthetic={{isar: {late}}}")
    assert f"synthetic.isar: {late} has no case that the task learns from: " in said
    assert "cine_ed, cine_es" in said
    assert not (tmp_path / "runs").exists()
    said = refused([*HOUSES, "study=intensity_scale", "secure=null"], f"synthetic={{isar: {made}}}")
    assert "only a study that learns by gradients learns from synthetic cases" in said
    said = refused(SMALL, f"synthetic={{isar: {made}}}")
    assert "synthetic.isar: with these there would be 6 synthetic cases, and isar declares 5 patients" in said
    assert not list((tmp_path / "runs").glob("*/arms"))
