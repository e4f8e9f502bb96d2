"""`konsil-site segment` from end to end: a patient as DICOM and a run's model in, masks on the images' own grid out."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

from fl_client.__main__ import main
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.labels import LabelMap
from fl_client.site import Site
from simulation.dicom import Identity, write_patient
from tasks.case import Case
from tasks.fingerprint import fingerprint
from tasks.segmentation.export import export_torchscript
from tasks.task import load

Segment = Callable[..., int]


@pytest.fixture
def clinic(hospitals) -> Path:
    """The settings file of a hospital with four patients, and with a key."""
    key = hospitals.site("a").key_file
    key.write_text("a key that nobody else knows")
    key.chmod(0o600)
    return hospitals.sites["a"]


@pytest.fixture
def cases(clinic) -> list[Case]:
    """Two patients as an oblique scan would store them: whole numbers, no axis along another."""
    axis = np.array([0.36, 0.48, 0.8])  # a unit vector, for Rodrigues' rotation by 40 degrees
    cross = np.cross(np.eye(3), axis)
    turn = np.eye(3) + np.sin(np.radians(40)) * cross + (1 - np.cos(np.radians(40))) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn[:, ::-1] @ np.diag([8.0, 3.0, 3.0]), (-31.5, 12.25, 80.0)
    return [
        dataclasses.replace(
            case, volumes=tuple(dataclasses.replace(v, image=v.image.astype(np.int16), affine=affine) for v in case.volumes)
        )
        for case in list(Cohort(Site.load(clinic).cohort_folder))[:2]
    ]


@pytest.fixture
def archive(cases, tmp_path) -> Path:
    for case in cases:
        write_patient(case, tmp_path / "archive")
    for mask in (tmp_path / "archive").rglob("*-mask.dcm"):
        mask.unlink()
    return tmp_path / "archive"


@pytest.fixture
def run(hospitals, tmp_path) -> Path:
    """The folder of a run that ended with a model which finds something of everything."""
    folder, study = tmp_path / "run", hospitals.study(name="pilot")
    folder.mkdir()
    torch.manual_seed(3)
    model = load(study.task).model()
    torch.nn.init.normal_(model.head.weight, std=5.0)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "record.json").write_text(
        json.dumps({"schema": "konsil-record/1", "name": "pilot", "study": study.model_dump(mode="json")})
    )
    return folder


@pytest.fixture
def segment(clinic, tmp_path) -> Segment:
    return lambda *said: main(["--site", str(clinic), "segment", *map(str, said), "--out", str(tmp_path / "out")])


def expected(run: Path, case: Case) -> dict[str, np.ndarray]:
    """What the task itself gives for a case that went through no DICOM."""
    task = load(json.loads((run / "record.json").read_text())["study"]["task"])
    model = task.model()
    model.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    return {series: found.mask for series, found in task.segment(model, case).items()}


def pseudonym(clinic: Path, case: Case) -> str:
    return Deidentifier(Site.load(clinic).key_file.read_bytes()).pseudonym(Identity.invent(case.patient).patient_id)


def images_of(archive: Path, case: Case, series: str) -> list[Path]:
    return sorted((archive / Identity.invent(case.patient).patient_id / series).glob("*.dcm"))


def test_masks_of_dicom_lie_on_the_images_as_nifti_and_as_seg(clinic, run, archive, cases, segment, tmp_path, capsys):
    assert segment(run, archive) == 0
    said = capsys.readouterr().out
    assert f"4 masks of 2 patients in {tmp_path / 'out'}, 0 refused. Research use only, not for diagnosis" in said
    for case in cases:
        place = tmp_path / "out" / pseudonym(clinic, case)
        assert str(archive / Identity.invent(case.patient).patient_id) in said
        assert {path.name for path in place.iterdir()} == {
            f"cine_{phase}.{ending}" for phase in ("ed", "es") for ending in ("nii.gz", "seg.dcm")
        }
        for series, mask in expected(run, case).items():
            assert len(np.unique(mask)) > 2  # else a swap of structures could not be seen
            files = images_of(archive, case, series)
            images, written = sitk.ReadImage([str(path) for path in files]), sitk.ReadImage(str(place / f"{series}.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(written), mask)
            for index in ((0, 0, 0), (31, 31, 2), (5, 20, 1)):
                point = images.TransformIndexToPhysicalPoint(index)
                assert written.TransformIndexToPhysicalPoint(index) == pytest.approx(point, abs=1e-3)

            seg = hd.seg.segread(place / f"{series}.seg.dcm")
            headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
            places = [tuple(map(float, header.ImagePositionPatient)) for header in headers]
            names = {number: seg.get_segment_description(number).segment_label for number in seg.segment_numbers}
            values = {number: {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3}[name] for number, name in names.items()}
            whole = seg.get_pixels_by_source_instance(
                [header.SOPInstanceUID for header in headers],
                combine_segments=True,
                assert_missing_frames_are_empty=True,
            )
            np.testing.assert_array_equal(np.vectorize({0: 0, **values}.get)(whole), mask)
            for group in seg.PerFrameFunctionalGroupsSequence:
                source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
                number = [header.SOPInstanceUID for header in headers].index(source)
                assert tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)) == places[number]
            assert (seg.PatientID, seg.StudyInstanceUID) == (headers[0].PatientID, headers[0].StudyInstanceUID)
            assert (
                seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName.startswith("pilot model ")
            )
            assert seg.SeriesDescription.startswith("mask by pilot model ")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_the_seg_is_sound_for_a_checker_that_konsil_did_not_write(run, archive, segment, tmp_path):
    assert segment(run, archive) == 0
    for path in (tmp_path / "out").rglob("*.seg.dcm"):
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr
        assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_patients_of_the_cohort_are_segmented_by_pseudonym(clinic, run, segment, tmp_path, capsys):
    case = Cohort(Site.load(clinic).cohort_folder).case("p0-1")
    assert segment(run / "model.pt", "--patient", "p0-1") == 0
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")} == {
        "masks.csv",
        "p0-1/cine_ed.nii.gz",
        "p0-1/cine_es.nii.gz",  # what was let in has no originals that a SEG could refer to
    }
    for series, mask in expected(run, case).items():
        written = sitk.ReadImage(str(tmp_path / "out" / "p0-1" / f"{series}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), mask)
        assert written.GetSpacing() == pytest.approx((3.0, 3.0, 8.0))
    with open(tmp_path / "out" / "masks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["patient"], row["series"]) for row in rows] == [("p0-1", "cine_ed"), ("p0-1", "cine_es")]
    mask = expected(run, case)["cine_ed"]
    assert float(rows[0]["myocardium_ml"]) == pytest.approx((mask == 2).sum() * 0.072, abs=1e-3)  # 8 x 3 x 3 mm
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def test_who_is_refused_is_listed_with_the_reason_and_the_others_get_their_masks(
    clinic, run, archive, cases, segment, tmp_path, capsys
):
    images_of(archive, cases[0], "cine_ed")[1].unlink()
    other = dataclasses.replace(cases[1], patient="other", volumes=(dataclasses.replace(cases[1].volumes[0], series="lge"),))
    write_patient(other, archive)
    assert segment(run, archive) == 3
    said = capsys.readouterr().out
    assert "3 masks of 2 patients" in said
    gap = "cine_ed refused: slices lie 16.000 mm apart, 2 times the stated 8 mm: slices are missing"
    assert f"{pseudonym(clinic, cases[0])} {gap}" in said
    assert f"{pseudonym(clinic, other)} refused: none of the series that the model reads (cine_ed, cine_es)" in said
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.nii.gz")}
    first, second = (pseudonym(clinic, case) for case in cases)
    assert made == {f"{first}/cine_es.nii.gz", f"{second}/cine_ed.nii.gz", f"{second}/cine_es.nii.gz"}
    assert "slices are missing" in (tmp_path / "out" / "masks.csv").read_text()


def test_a_series_whose_seg_cannot_be_written_leaves_no_file_at_all(clinic, run, archive, cases, segment, tmp_path, capsys):
    with discreet():
        for path in images_of(archive, cases[0], "cine_es"):
            dataset = pydicom.dcmread(path)
            dataset.StudyInstanceUID = "1.02.3"  # no number of a UID begins with 0
            dataset.save_as(path)
    who = pseudonym(clinic, cases[0])
    assert segment(run, archive, "--patient", who) == 3
    assert f"{who} cine_es refused: no DICOM SEG can refer to these images: StudyInstanceUID" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out" / who).iterdir()) == ["cine_ed.nii.gz", "cine_ed.seg.dcm"]


def test_a_mask_in_which_nothing_was_found_is_told_and_has_no_seg(run, archive, segment, tmp_path, capsys):
    state = torch.load(run / "model.pt", weights_only=True)
    state["head.weight"] *= 0
    state["head.bias"] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    torch.save(state, run / "model.pt")
    assert segment(run, archive) == 0
    assert capsys.readouterr().out.count("the model found nothing; the mask is empty, and there is no DICOM SEG of it") == 4
    assert list((tmp_path / "out").rglob("*.dcm")) == []
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (tmp_path / "out").rglob("*.nii.gz")]
    assert [mask.max() for mask in masks] == [0, 0, 0, 0]


@pytest.mark.parametrize("way", ["file", "hash"])
def test_without_a_record_the_study_is_named(way, clinic, hospitals, run, segment, tmp_path):
    study = hospitals.study(name="pilot")
    (run / "record.json").rename(tmp_path / "record.json")
    (tmp_path / "study.json").write_text(study.model_dump_json())
    Approvals(Site.load(clinic).folder).put_down(study)
    named = {"file": tmp_path / "study.json", "hash": study.hash[:8]}[way]
    assert segment(run, "--study", named, "--patient", "p0-0") == 0
    assert (tmp_path / "out" / "p0-0" / "cine_ed.nii.gz").exists()


def other_structures(run: Path) -> None:
    record = json.loads((run / "record.json").read_text())
    record["study"]["task"]["structures"] = {"anterior": 1, "posterior": 2}
    record["study"]["task"]["roi_mm"], record["study"]["task"]["locate"] = None, []
    (run / "record.json").write_text(json.dumps(record))


def other_organ(run: Path) -> None:
    other_structures(run)
    torch.save(load(json.loads((run / "record.json").read_text())["study"]["task"]).model().state_dict(), run / "model.pt")


def torchscript(run: Path) -> None:
    task = load(json.loads((run / "record.json").read_text())["study"]["task"])
    export_torchscript(task.model(), task.settings, run / "model.pt")


def not_finite(run: Path) -> None:
    state = torch.load(run / "model.pt", weights_only=True)
    state["head.bias"][1] = float("nan")
    torch.save(state, run / "model.pt")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: (run / "model.pt").unlink(), "model.pt is missing: a run leaves its model as model.pt"),
        (
            lambda run: (run / "record.json").unlink(),
            "record.json is missing, and the weights alone don't say what they segment",
        ),
        (lambda run: (run / "record.json").write_text("[]"), "record.json is neither a study nor a run's record"),
        (lambda run: (run / "model.pt").write_bytes(b"PK\3\4 cut short"), "model.pt holds no weights"),
        (lambda run: torch.save([1, 2], run / "model.pt"), "holds something else than weights by name"),
        (torchscript, "this command reads model.pt, which is not model.ts.pt"),
        (not_finite, "holds numbers that are not finite, first in head.bias"),
        (
            other_structures,
            "is not a model of study pilot, which segments anterior, posterior: head.weight has shape (4, 4, 1, 1)",
        ),
        (other_organ, "the model segments anterior (1), posterior (2), and the label map cardiac knows blood_pool (1)"),
    ],
)
def test_a_model_that_will_not_do_is_refused_in_words(spoil, told, run, archive, segment, tmp_path, capsys):
    spoil(run)
    assert segment(run, archive) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["{archive}/nowhere"], "nowhere is no folder; give a folder of DICOM files"),
        (["{empty}"], "holds no images that the model reads"),
        (["{archive}", "--patient", "P1"], "no patient P1 in "),
        (["--patient", "Müller"], "no patient Müller in "),
        (["{archive}", "--labels", "brain"], "no label map brain; conf/labels holds cardiac"),
        (["--study", "ffff"], "0 studies have a hash that starts with 'ffff'"),
    ],
)
def test_an_input_that_will_not_do_is_refused_in_words(more, told, run, archive, segment, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert segment(run, *(text.format(archive=archive, empty=tmp_path / "empty") for text in more)) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_told(hospitals, clinic, run, segment, capsys):
    hospitals.save(Site.load(clinic).model_copy(update={"device": "cuda:99"}))
    assert segment(run) == 1
    assert "site.yaml asks for device cuda:99, which this machine hasn't" in capsys.readouterr().err


def test_masks_go_into_a_new_folder_that_no_intake_reads(clinic, run, archive, tmp_path, capsys):
    command = ["--site", str(clinic), "segment", str(run), str(archive), "--out"]
    assert main([*command, str(archive / "masks")]) == 1
    assert "where the masks would be taken for a reader's; choose another --out" in capsys.readouterr().err
    corrected = tmp_path / "old" / "cine_ed.nii.gz"
    corrected.parent.mkdir()
    corrected.write_text("a mask that somebody has corrected by hand")
    assert main([*command, str(corrected.parent)]) == 1
    assert "stands already; masks are never written over others" in capsys.readouterr().err
    assert corrected.read_text() == "a mask that somebody has corrected by hand"
    assert list(corrected.parent.iterdir()) == [corrected]


def test_a_model_of_another_organ_goes_with_its_own_label_map(run, archive, segment, tmp_path):
    other_organ(run)
    assert LabelMap.load("hippocampus").structures["posterior"].value == 2
    assert segment(run, archive, "--labels", "hippocampus") == 0
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 4


def test_a_damaged_folder_of_the_cohort_is_refused_and_the_others_get_their_masks(clinic, run, segment, tmp_path, capsys):
    cases = Site.load(clinic).cohort_folder / "cases"
    (cases / "p0-1" / "case.json").unlink()
    (cases / "p0-2" / "case.json").write_text('{"patient": "p0')
    assert segment(run) == 3
    said = capsys.readouterr().out
    assert "4 masks of 2 patients" in said
    assert f"p0-1 refused: can't be read: case.json is missing  ({cases / 'p0-1'})" in said
    assert f"p0-2 refused: can't be read: case.json is cut short, or isn't JSON  ({cases / 'p0-2'})" in said
    with open(tmp_path / "out" / "masks.csv", newline="") as file:
        refused = {row["patient"]: row["refused"] for row in csv.DictReader(file) if row["refused"]}
    assert refused == {
        "p0-1": "can't be read: case.json is missing",
        "p0-2": "can't be read: case.json is cut short, or isn't JSON",
    }
    assert str(cases) not in (tmp_path / "out" / "masks.csv").read_text()


def recorded(run: Path, *rounds: str, **said: int) -> None:
    """Let the run's record tell these fingerprints of its model, round by round, and what else is said."""
    record = json.loads((run / "record.json").read_text()) | said
    record["rounds"] = [{"round": n, "arrays_sha256": sha} for n, sha in enumerate(rounds, 1)]
    (run / "record.json").write_text(json.dumps(record))


def changed(run: Path) -> str:
    """Change one weight of the model; what was its fingerprint before?"""
    state = torch.load(run / "model.pt", weights_only=True)
    before = fingerprint(state)
    state["head.bias"][0] += 0.5
    torch.save(state, run / "model.pt")
    return before


def test_the_model_that_the_record_tells_of_is_taken(run, segment, tmp_path):
    recorded(run, "0" * 64, fingerprint(torch.load(run / "model.pt", weights_only=True)))
    assert segment(run, "--patient", "p0-0") == 0
    assert (tmp_path / "out" / "p0-0" / "cine_ed.nii.gz").exists()


@pytest.mark.parametrize("way", ["beside", "given", "beside, and a study is named"])
def test_weights_that_the_record_does_not_tell_of_are_refused(way, clinic, hospitals, run, segment, tmp_path, capsys):
    recorded(run, "0" * 64, changed(run))
    named, record = [], run / "record.json"
    if way == "given":
        record = record.rename(tmp_path / "record.json")
        named = ["--study", record]
    elif way != "beside":
        study = hospitals.study(name="pilot")
        Approvals(Site.load(clinic).folder).put_down(study)
        named = ["--study", study.hash]
    assert segment(run, *named) == 1
    said = capsys.readouterr().err
    assert f"{run / 'model.pt'} holds other weights than {record} tells of: their fingerprint is " in said
    assert "the model after the record's last round (2) has " in said
    assert not (tmp_path / "out").exists()


def test_weights_of_an_earlier_round_are_refused_as_such(run, segment, capsys):
    recorded(run, fingerprint(torch.load(run / "model.pt", weights_only=True)), "0" * 64)
    assert segment(run) == 1
    assert "they are those after round 1" in capsys.readouterr().err


def test_the_model_of_the_round_that_validation_chose_is_taken(run, segment, tmp_path):
    recorded(run, fingerprint(torch.load(run / "model.pt", weights_only=True)), "0" * 64, selected_round=1)
    assert segment(run, "--patient", "p0-0") == 0
    assert (tmp_path / "out" / "p0-0" / "cine_ed.nii.gz").exists()


def test_the_model_of_the_last_round_is_refused_where_another_was_chosen(run, segment, capsys):
    recorded(run, "0" * 64, fingerprint(torch.load(run / "model.pt", weights_only=True)), selected_round=1)
    assert segment(run) == 1
    said = capsys.readouterr().err
    assert "the model after the record's chosen round (1) has 0000000000000000..." in said
    assert "they are those after round 2" in said


def test_a_record_that_chose_a_round_it_has_not_is_refused(run, segment, capsys):
    recorded(run, "0" * 64, selected_round=2)
    assert segment(run) == 1
    assert "it has 1 rounds, and chose the model of round 2" in capsys.readouterr().err


def test_weights_of_a_type_that_no_run_saves_are_refused_in_words(run, segment, capsys):
    recorded(run, fingerprint(torch.load(run / "model.pt", weights_only=True)))
    torch.save({n: t.bfloat16() for n, t in torch.load(run / "model.pt", weights_only=True).items()}, run / "model.pt")
    assert segment(run) == 1
    assert "holds other weights than" in capsys.readouterr().err


def test_a_record_whose_rounds_tell_no_fingerprint_is_refused(run, segment, capsys):
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps({**record, "rounds": [{"round": 1}]}))
    assert segment(run) == 1
    assert "record.json is not a run's record: a round of it tells no fingerprint of its model" in capsys.readouterr().err
