"""`konsil-site features` on a hospital of generated patients, and what pandas, R and a plain CSV reader make of its table."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import SimpleITK as sitk
import yaml

from conf.study import Study
from fl_client.__main__ import main
from fl_client.cohort import Cohort
from fl_client.feature_table import unit_of_feature
from fl_client.site import Site
from simulation.hospital_case import patient_case
from simulation.reader import Reader
from simulation.scanner import Scanner
from tasks.case import Case
from tasks.radiomics.features import Extractor
from tasks.task import load, settled

PARAMETERS = {
    "imageType": {"Original": {}},
    "featureClass": {"firstorder": ["Mean", "Energy", "Entropy"], "shape": ["VoxelVolume"], "glcm": ["SumEntropy"]},
    "setting": {"binWidth": 10, "minimumROIDimensions": 1},
}
TASK = {
    "name": "radiomics",
    "image": {"series": "lge", "regions": "aha", "intensity": "remote", "parameters": PARAMETERS},
    "radiomic": [
        {"name": "original_glcm_SumEntropy", "lower": 0, "upper": 9},
        {"name": "original_firstorder_Mean", "lower": -10, "upper": 80},
    ],
    "clinical": [{"name": "age", "lower": 0, "upper": 90}],
    "label": {"endpoint": "call_NN"},
    "certainty": {"endpoint": "certainty_NN"},
    "learner": {"kind": "forest", "trees": 4, "depth": 2},
}


@pytest.fixture(scope="session")
def scanned() -> list[Case]:
    """Three patients with late enhancement."""
    scanner = Scanner(matrix=112, pixel_mm=2.2)
    return [
        patient_case(seed, scanner, Reader(), {"myocarditis": 1.0}, ("lge",), oversampling=1, subslices=1)
        for seed in (7000, 7001, 7002)
    ]


@pytest.fixture
def clinic(tmp_path, scanned) -> Path:
    """The settings file of their hospital."""
    site = Site(name="clinic", folder=tmp_path / "clinic", declared_size=5)
    cohort = Cohort(site.cohort_folder)
    for case in scanned:
        cohort.admit(case)
    site.save(tmp_path / "clinic" / "site.yaml")
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump(PARAMETERS, sort_keys=False))
    return tmp_path / "clinic" / "site.yaml"


def study_of(task=TASK, **settings) -> Study:
    """One of the forest, counted once."""
    fields = {"name": "enhancement", "konsil_version": version("konsil"), "sites": ("clinic",), "rounds": 1}
    return Study.model_validate({**fields, "strategy": {"name": "sum"}, "task": settled(task), **settings})


@pytest.fixture
def study(tmp_path) -> Path:
    file = tmp_path / "study.json"
    file.write_text(study_of().to_json())
    return file


def run(clinic: Path, *said: object) -> int:
    workers = () if "--workers" in said else ("--workers", 1)
    return main(["--site", str(clinic), "features", *map(str, (*said, *workers))])


def plain(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_holds_what_the_study_would_learn_from_and_every_other_feature(clinic, study, scanned, tmp_path, capsys):
    assert run(clinic, "--study", study, "--out", tmp_path / "table.parquet") == 0
    said = capsys.readouterr().out
    assert "stays in the hospital" in said
    assert "nothing in it is protected by privacy" in said
    table = pandas.read_parquet(tmp_path / "table.parquet")
    radiomic = [name for name in table.columns if name.startswith("original_")]
    assert set(radiomic) == set(Extractor.of(PARAMETERS).names)
    task = load(json.loads(study.read_text())["task"])
    for case in scanned:
        rows, own = task.rows(task.prepare(case)), table[table.patient == case.patient]
        assert own.region.tolist() == rows.region.tolist()
        np.testing.assert_array_equal(own[["original_glcm_SumEntropy", "original_firstorder_Mean", "age"]], rows.X)
        np.testing.assert_array_equal(own.label, rows.y)
        np.testing.assert_array_equal(own.certainty, rows.certainty)
        truth = [case.endpoints[f"segment_{n:02d}"] for n in rows.region]
        assert own.segment_NN.tolist() == truth
        assert set(own.disease) == {"myocarditis"}
    names = dict(zip(table.region, table.segment, strict=True))
    assert (names[1], names[8], names[14], names.get(17, "apex")) == (
        "basal anterior",
        "mid anteroseptal",
        "apical septal",
        "apex",
    )


def test_parquet_csv_and_a_plain_reader_give_the_same_numbers(clinic, study, tmp_path):
    for name in ("table.parquet", "plain.csv"):
        assert run(clinic, "--study", study, "--out", tmp_path / name) == 0
    parquet, text = pandas.read_parquet(tmp_path / "table.parquet"), pandas.read_csv(tmp_path / "plain.csv")
    assert parquet.columns.tolist() == text.columns.tolist()
    for name in parquet.columns:
        assert parquet[name].tolist() == text[name].tolist(), name
    rows = plain(tmp_path / "plain.csv")
    assert [float(row["original_firstorder_Mean"]) for row in rows] == parquet.original_firstorder_Mean.tolist()


def test_the_header_says_what_every_column_is_and_what_made_it(clinic, study, scanned, tmp_path):
    out = tmp_path / "table.parquet"
    assert run(clinic, "--study", study, "--out", out) == 0
    header = json.loads((tmp_path / "table.json").read_text())
    assert header.pop("table_sha256") == hashlib.sha256(out.read_bytes()).hexdigest()
    assert json.loads(pyarrow.parquet.read_schema(out).metadata[b"konsil"]) == header
    columns = {column["name"]: column for column in header["columns"]}
    assert list(columns) == pandas.read_parquet(out).columns.tolist()
    units = {name: column["unit"] for name, column in columns.items()}
    assert (units["original_shape_VoxelVolume"], units["age"], units["edv_ml"]) == ("mm3", "years", "ml")
    assert units["original_firstorder_Mean"] == "% of the left ventricle's range of grey values"
    assert units["original_glcm_SumEntropy"] is None
    assert columns["label"]["meaning"] == "1 where the endpoint call_NN is 1 or more, else 0"
    asked = study_of()
    assert header["image"]["extraction"] == asked.task["image"]["extraction"]
    assert header["image"]["engine"].startswith("pyradiomics-bhklab 3.1.4, SimpleITK ")
    assert header["image"]["parameters"]["set"]["binWidth"] == 10
    assert (header["image"]["series"], header["image"]["masks"]) == ("lge", "a reader's")
    assert (header["study"]["hash"], header["patients"]) == (asked.hash, len(scanned))
    for path in (out, tmp_path / "table.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".*"))


def test_without_a_study_a_parameter_file_and_a_value_of_the_mask_are_enough(clinic, scanned, tmp_path):
    said = ("--parameters", tmp_path / "parameters.yaml", "--series", "lge", "--regions", "2")
    assert run(clinic, *said, "--out", tmp_path / "wall.csv") == 0
    rows = plain(tmp_path / "wall.csv")
    assert [(row["patient"], row["region"]) for row in rows] == [(case.patient, "2") for case in scanned]
    for row, case in zip(rows, scanned, strict=True):
        (volume,) = case.volumes
        wall = volume.mask == 2
        assert float(row["original_firstorder_Mean"]) == pytest.approx(volume.image[wall].mean(), rel=1e-5)
        assert float(row["original_shape_VoxelVolume"]) == pytest.approx(wall.sum() * np.prod(volume.spacing_mm))
        assert float(row["call_03"]) == case.endpoints["call_03"]
    assert "label" not in rows[0]
    header = json.loads((tmp_path / "wall.json").read_text())
    assert header["study"] is None
    assert {c["name"]: c["unit"] for c in header["columns"]}["original_firstorder_Mean"] == "grey value as stored"


def test_whoever_has_no_features_is_left_out_with_the_reason_and_stops_nobody(clinic, study, scanned, tmp_path, capsys):
    cohort, (volume,) = Cohort(Site.load(clinic).cohort_folder), scanned[0].volumes
    others = {
        "nomask": (dataclasses.replace(volume, mask=None),),
        "nolge": (dataclasses.replace(volume, series="cine_ed"),),
        "noimage": (),
        "flat": (dataclasses.replace(volume, image=volume.image * 0),),
        "damaged": (volume,),
    }
    for name, volumes in others.items():
        cohort.admit(Case(name, volumes, {"age": 50, "call_01": None}))
    (cohort.folder / "cases" / "damaged" / "lge.image.npy").unlink()
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv") == 3
    said = capsys.readouterr().out
    assert "of 3 patients" in said
    header = json.loads((tmp_path / "table.json").read_text())
    for name, reason in {
        "nomask": "case nomask: nobody has drawn a mask on its lge",
        "nolge": "case nolge has no lge; it has cine_ed",
        "noimage": "case noimage has no lge; it has no image",
        "flat": "case flat: the image is flat in the left ventricle",
        "damaged": "can't be read: lge.image.npy is missing",
    }.items():
        assert f"  {name} left out: {reason}" in said
        assert header["left_out"][name].startswith(reason)
    assert {row["patient"] for row in plain(tmp_path / "table.csv")} == {case.patient for case in scanned}


def test_a_missing_endpoint_or_label_is_empty_and_leaves_nobody_out(clinic, study, scanned, tmp_path):
    few = {"age": None, "call_01": 1, "site": "left", "label": "a word"}
    Cohort(Site.load(clinic).cohort_folder).admit(Case("bare", scanned[0].volumes, few))
    for name in ("table.csv", "table.parquet"):
        assert run(clinic, "--study", study, "--out", tmp_path / name, "--force") == 0
    own = [row for row in plain(tmp_path / "table.csv") if row["patient"] == "bare"]
    assert [row["label"] for row in own if row["region"] in ("1", "2")] == ["1.0", ""]
    assert {row["age"] for row in own} == {row["disease"] for row in own} == {""}
    assert {row["endpoint_label"] for row in own} == {"a word"}  # its own name stands for what the study learns
    table = pandas.read_parquet(tmp_path / "table.parquet")
    bare = table[table.patient == "bare"]
    assert bare.age.isna().all()
    assert bare.label.isna().sum() == len(bare) - 1
    assert table[table.patient != "bare"].site.isna().all()


def test_a_second_table_computes_nothing_and_new_images_are_computed_anew(clinic, study, scanned, tmp_path, monkeypatch):
    calls = []
    features = Extractor.features

    def counted(self, *args):
        calls.append(args)
        return features(self, *args)

    monkeypatch.setattr(Extractor, "features", counted)
    assert run(clinic, "--study", study, "--out", tmp_path / "one.csv") == 0
    assert len(calls) == 3
    assert run(clinic, "--study", study, "--out", tmp_path / "two.csv") == 0
    assert len(calls) == 3
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    case = scanned[1]
    brighter = dataclasses.replace(case.volumes[0], image=(case.volumes[0].image ** 1.1).astype(np.float32))
    Cohort(Site.load(clinic).cohort_folder).admit(dataclasses.replace(case, volumes=(brighter,)))
    assert run(clinic, "--study", study, "--out", tmp_path / "three.csv") == 0
    assert len(calls) == 4
    changed = [
        one["patient"] == case.patient
        for one, three in zip(plain(tmp_path / "one.csv"), plain(tmp_path / "three.csv"), strict=True)
        if one != three
    ]
    assert changed
    assert all(changed)


def test_several_processes_write_the_same_table_as_one(clinic, study, scanned, tmp_path):
    cohort = Cohort(Site.load(clinic).cohort_folder)
    for number in range(4):
        cohort.admit(dataclasses.replace(scanned[number % 3], patient=f"again{number}"))
    said = ("--parameters", tmp_path / "parameters.yaml", "--series", "lge", "--regions", "1")
    assert run(clinic, *said, "--out", tmp_path / "several.csv", "--workers", 2) == 0
    shutil.rmtree(cohort.folder / "prepared")
    assert run(clinic, *said, "--out", tmp_path / "one.csv", "--workers", 1) == 0
    assert (tmp_path / "several.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert len(plain(tmp_path / "one.csv")) == 7


def test_a_table_is_not_written_over_unless_it_is_asked_for(clinic, study, tmp_path, capsys):
    (tmp_path / "table.json").write_text("somebody's notes")
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv") == 1
    assert f"{tmp_path / 'table.json'} stands already; choose another --out" in capsys.readouterr().err
    assert not (tmp_path / "table.csv").exists()
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv", "--force") == 0
    assert json.loads((tmp_path / "table.json").read_text())["patients"] == 3


def test_what_a_killed_run_left_behind_is_cleared_away(clinic, study, tmp_path):
    (tmp_path / ".table.csv.part").write_text("half a table")
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv") == 0
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_told_in_words_and_leaves_the_old_table(clinic, study, tmp_path, monkeypatch, capsys):
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("table.*")}
    real = os.open

    def full(path, flags, *mode, **more):
        return real("/dev/full", os.O_WRONLY) if str(path).endswith(".part") else real(path, flags, *mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        assert run(clinic, "--study", study, "--out", tmp_path / "table.csv", "--force") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"there is no room left on the disk ({tmp_path}): no table was written")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("table.*")} == before
    shutil.rmtree(Site.load(clinic).cohort_folder / "prepared")
    monkeypatch.setattr("fl_client.cohort._save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv", "--force") == 1  # and not: all patients left out
    assert "there is no room left on the disk" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("--out", "table.xlsx"), "table.xlsx should end in .parquet or .csv"),
        (("--out", "nowhere/table.csv"), "there is no folder nowhere for the table"),
        (("--out", "clinic/cohort/table.csv"), "lies in the cohort"),
        (("--regions", "wall"), "--regions is aha (17 segments of the left ventricle) or a value of the mask, not 'wall'"),
        (("--regions", "255"), "--regions 255: label: Input should be less than or equal to 254"),
        (("--intensity", "bright"), "no intensity scale named 'bright'; known are remote, myocardium, none"),
        (("--parameters", "none.yaml"), "none.yaml"),
        (("--parameters", "strange.yaml"), "pyradiomics can't read these parameters"),
        (("--parameters", "notes.yaml"), "notes.yaml holds a str; lines of the form 'name: value' are right"),
        (("--series", "cine_ed"), "none of the 3 patients at clinic has what was asked for; no table was written"),
    ],
)
def test_what_can_not_be_done_is_refused_in_words(clinic, tmp_path, monkeypatch, capsys, said, told):
    monkeypatch.chdir(tmp_path)
    Path("strange.yaml").write_text("filters: {}")
    Path("notes.yaml").write_text("to be written")
    usual = {"--parameters": "parameters.yaml", "--series": "lge", "--out": "table.csv"} | {said[0]: said[1]}
    assert run(clinic, *(word for pair in usual.items() for word in pair)) == 1
    assert told in capsys.readouterr().err
    assert not Path("table.csv").exists()


def test_a_study_of_another_task_or_another_extraction_is_refused_in_words(clinic, study, tmp_path, capsys):
    out = tmp_path / "table.csv"
    study.write_text(study_of({"name": "segmentation"}, strategy={"name": "fedavg"}).to_json())
    assert run(clinic, "--study", study, "--out", out) == 1
    assert "study enhancement learns the task segmentation, which has no radiomic features" in capsys.readouterr().err
    study.write_text(study_of({**TASK, "image": {**TASK["image"], "extraction": "ab" * 32}}).to_json())
    assert run(clinic, "--study", study, "--out", out) == 1
    assert "the study's features are those of extraction abababababab; this installation" in capsys.readouterr().err
    study.write_text(study_of().to_json())
    assert run(clinic, "--study", study, "--series", "lge", "--out", out) == 1
    assert "--series stands in the study" in capsys.readouterr().err
    assert not out.exists()


def test_a_study_of_clinical_columns_alone_gives_one_row_per_patient(clinic, study, scanned, tmp_path):
    clinical = {key: TASK[key] for key in ("name", "clinical", "learner")}
    study.write_text(study_of({**clinical, "label": {"endpoint": "event"}}).to_json())
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv") == 0
    rows = plain(tmp_path / "table.csv")
    assert [row["patient"] for row in rows] == [case.patient for case in scanned]
    assert [float(row["label"]) for row in rows] == [case.endpoints["event"] for case in scanned]
    assert not {"region", "segment"} & set(rows[0])


def test_a_hospital_without_patients_says_so(tmp_path, study, capsys):
    Site(name="new", folder=tmp_path / "new", declared_size=5).save(tmp_path / "site.yaml")
    assert run(tmp_path / "site.yaml", "--study", study, "--out", tmp_path / "table.csv") == 1
    assert "holds no patient yet; konsil-site admit lets them in" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_r_reads_the_same_numbers(clinic, study, tmp_path):
    assert run(clinic, "--study", study, "--out", tmp_path / "table.csv") == 0
    table = f'd <- read.csv("{tmp_path / "table.csv"}", check.names = FALSE)'
    script = f"{table}; cat(nrow(d), is.numeric(d$original_firstorder_Mean), sum(d$region))"
    said = subprocess.run(["Rscript", "-e", script], capture_output=True, text=True, check=True).stdout.split()
    rows = plain(tmp_path / "table.csv")
    assert said == [str(len(rows)), "TRUE", str(sum(int(row["region"]) for row in rows))]


def test_units_follow_the_definitions_of_the_features():
    expected = {
        "original_shape_MeshVolume": "mm3",
        "original_shape_SurfaceArea": "mm2",
        "original_shape_SurfaceVolumeRatio": "1/mm",
        "original_shape_Maximum2DDiameterRow": "mm",
        "original_shape_LeastAxisLength": "mm",
        "original_shape_Sphericity": "1",
        "original_shape2D_PixelSurface": "mm2",
        "original_shape2D_Perimeter": "mm",
        "original_shape2D_PerimeterSurfaceRatio": "1/mm",
        "original_firstorder_Entropy": "bit",
        "original_firstorder_Kurtosis": "1",
        "log-sigma-2-0-mm-3D_firstorder_Variance": "(grey value as stored)^2",
        "wavelet-LLH_firstorder_TotalEnergy": "mm3 (grey value as stored)^2",
        "gradient_firstorder_Mean": None,
        "original_glszm_ZoneEntropy": None,
    }
    assert {name: unit_of_feature(name, intensity="none") for name in expected} == expected
    assert unit_of_feature("original_firstorder_Mean", intensity="none", rescaled=True) is None


def test_the_two_lines_of_the_page_describe_one_pair_of_files(scanned, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "radiomics.md"
    example = re.search(r"```python\n(.+?)```", page.read_text(), re.DOTALL)[1]
    assert len(example.strip().splitlines()) == 2
    monkeypatch.chdir(tmp_path)
    Path("parameters.yaml").write_text(yaml.safe_dump(PARAMETERS, sort_keys=False))
    (volume,) = scanned[0].volumes
    for name, values in (("image", volume.image), ("regions", volume.mask)):
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(volume.spacing_mm[::-1])
        sitk.WriteImage(image, f"{name}.nii.gz")
    there = {}
    exec(example, there)
    assert set(there["table"]) == set(np.unique(volume.mask).tolist()) - {0}
    mean = there["table"][2]["original_firstorder_Mean"]
    assert mean == pytest.approx(volume.image[volume.mask == 2].mean(), rel=1e-5)
    assert not math.isnan(there["table"][1]["original_shape_VoxelVolume"])
