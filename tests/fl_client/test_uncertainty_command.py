"""`konsil-site calibrate`, and how sure a model is in what `segment` writes: from a cohort and a run's model to the table."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

from fl_client import segmenting, uncertainty
from fl_client.__main__ import main
from fl_client.cohort import Cohort
from fl_client.commands import MEMBERS as SAID
from fl_client.intake.heat_map import make_heat_map
from fl_client.site import Site
from fl_client.withdrawal import tell, withdraw
from simulation.dicom import Identity, write_patient
from tasks.case import Case, Volume
from tasks.fingerprint import fingerprint
from tasks.task import load
from tasks.uncertainty.calibration import Calibration, Curve
from tasks.uncertainty.views import MEMBERS


@pytest.fixture
def clinic(hospitals) -> Path:
    """The settings file of a hospital with 20 patients, eleven of whom are held back."""
    hospitals.add("d", patients=20, test_fraction=0.5)
    site = hospitals.site("d")
    site.key_file.write_text("a key that nobody else knows")
    site.key_file.chmod(0o600)
    assert len(Cohort(site.cohort_folder).split("test", test_fraction=0.5)) >= 8
    return hospitals.sites["d"]


def a_run(folder: Path, study, *, seed: int = 3) -> Path:
    """The folder of a run that ended with a model which finds something of everything."""
    folder.mkdir()
    torch.manual_seed(seed)
    model = load(study.task).model()
    torch.nn.init.normal_(model.head.weight, std=5.0)
    torch.save(model.state_dict(), folder / "model.pt")
    record = {"schema": "konsil-record/1", "name": "pilot", "study": study.model_dump(mode="json")}
    record["rounds"] = [{"round": 1, "arrays_sha256": fingerprint(model.state_dict())}]
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def run(hospitals, tmp_path) -> Path:
    return a_run(tmp_path / "run", hospitals.study(name="pilot"))


def konsil(clinic: Path, *said: object) -> int:
    return main(["--site", str(clinic), *map(str, said)])


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "masks.csv", newline="") as file:
        return list(csv.DictReader(file))


def model_of(run: Path) -> str:
    return fingerprint(torch.load(run / "model.pt", weights_only=True))


def beside(run: Path, **changes: object) -> None:
    """A calibration that came along with the model."""
    curve = Curve(agreement=(0.0, 1.0), dice=(0.1, 0.9), below=0.2, patients=30)
    facts = {"models": (model_of(run),), "members": 4, "of": "generated patients", "patients": 30, "temperature": 2.0}
    facts |= {"error_before": 0.1, "error_after": 0.05, "miss": 0.04, "rank": 0.7}
    found = Calibration.model_validate({**facts, "curves": {"blood_pool": curve, "myocardium": curve}, **changes})
    (run / "calibration.json").write_text(found.model_dump_json())


def test_without_a_calibration_agreement_ranks_patients_and_says_so(clinic, run, tmp_path, capsys):
    assert konsil(clinic, "segment", run, "--out", tmp_path / "out", "--members", 3) == 0
    said = capsys.readouterr().out
    assert "Look first at: p3-" in said
    assert "(agreement 0." in said
    assert "No calibration is here (konsil-site calibrate): agreement of 3 members ranks patients, and is no Dice." in said
    rows = table(tmp_path / "out")
    assert {row["blood_pool_expected_dice"] for row in rows} == {""}
    names = ("blood_pool", "myocardium", "right_ventricle")
    worst: dict[str, float] = {}
    for row in rows:
        mean = np.mean([float(row[f"{name}_agreement"]) for name in names])
        worst[row["patient"]] = min(worst.get(row["patient"], 1.0), float(mean))
        assert all(float(row[f"{name}_ml_sd"]) >= 0 for name in names)
    looked = {row["patient"]: int(row["look"]) for row in rows}
    assert sorted(looked.values()) == list(range(1, 21))
    in_order = [worst[patient] for patient in sorted(looked, key=looked.__getitem__)]
    assert np.diff(in_order).min() > -0.002  # the table's three places


def test_a_hospital_learns_from_its_held_back_patients_and_segment_uses_it(clinic, run, tmp_path, capsys):
    site = Site.load(clinic)
    assert konsil(clinic, "calibrate", run, "--members", 3) == 0
    said = capsys.readouterr().out
    held_back = Cohort(site.cohort_folder).split("test", test_fraction=0.5)
    assert said.startswith(f"{len(held_back)} patients, 3 members: expected Dice is off by ")
    assert "must not leave the house" in said
    assert f"  {len(held_back)} patients are few: one or two of them say how far one in ten lies below" in said
    (kept,) = (site.folder / "calibrations").iterdir()
    assert set(json.loads(kept.read_text())["patients"]) == set(held_back)
    assert konsil(clinic, "segment", run, "--out", tmp_path / "out", "--members", 3) == 0
    said = capsys.readouterr().out
    assert f"Expected Dice as learned from {len(held_back)} patients (held back at d), by 3 members" in said
    assert "(expected Dice 0." in said
    for row in table(tmp_path / "out"):
        assert 0 <= float(row["myocardium_expected_dice_low"]) <= float(row["myocardium_expected_dice"]) <= 1
        assert row["right_ventricle_expected_dice"] == ""  # nobody drew one
    assert konsil(clinic, "segment", run, "--out", tmp_path / "other", "--members", 4) == 0
    assert "No calibration is here" in capsys.readouterr().out  # other members: another scale


def test_the_masks_are_those_of_the_model_alone(clinic, run, tmp_path):
    for members in (1, 4):
        out = tmp_path / str(members)
        assert konsil(clinic, "segment", run, "--out", out, "--patient", "p3-2", "--members", members) == 0
    for series in ("cine_ed", "cine_es"):
        one, four = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / n / "p3-2" / f"{series}.nii.gz"))) for n in "14")
        np.testing.assert_array_equal(one, four)


def test_one_member_alone_is_told_and_has_no_order(clinic, run, tmp_path, capsys):
    assert konsil(clinic, "segment", run, "--out", tmp_path / "out", "--members", 1) == 0
    assert "One member alone can't disagree: how sure the model is can't be told." in capsys.readouterr().out
    assert {(row["look"], row["blood_pool_agreement"]) for row in table(tmp_path / "out")} == {("", "")}
    assert konsil(clinic, "segment", run, "--out", tmp_path / "maps", "--members", 1, "--heat-maps") == 1
    assert "there are no heat maps of it; take --members 8" in capsys.readouterr().err
    assert konsil(clinic, "calibrate", run, "--members", 1) == 1
    assert "one member can't disagree with itself" in capsys.readouterr().err


def test_what_came_with_the_model_is_used_where_it_fits_and_the_house_goes_first(clinic, run, tmp_path, capsys):
    beside(run)
    assert konsil(clinic, "segment", run, "--out", tmp_path / "a", "--members", 4) == 0
    assert (
        "Expected Dice as learned from 30 patients (generated patients), by 4 members; off by 0.040" in capsys.readouterr().out
    )
    for row in table(tmp_path / "a"):
        agreement = float(row["myocardium_agreement"])
        assert float(row["myocardium_expected_dice"]) == pytest.approx(0.1 + 0.8 * agreement, abs=2e-3)
        assert float(row["myocardium_expected_dice_low"]) == pytest.approx(max(0, 0.8 * agreement - 0.1), abs=2e-3)
    assert konsil(clinic, "calibrate", run, "--members", 4) == 0
    assert konsil(clinic, "segment", run, "--out", tmp_path / "b", "--members", 4) == 0
    assert "(held back at d)" in capsys.readouterr().out
    shutil.rmtree(Site.load(clinic).folder / "calibrations")
    beside(run, models=("0" * 64,))
    assert konsil(clinic, "segment", run, "--out", tmp_path / "c", "--members", 4) == 0
    assert "calibration.json is of other members than these: agreement of 4 members" in capsys.readouterr().out
    (run / "calibration.json").write_text("{}")
    assert konsil(clinic, "segment", run, "--out", tmp_path / "d", "--members", 4) == 1
    assert "holds no calibration that this konsil can read" in capsys.readouterr().err


def test_weights_of_a_number_type_without_a_fingerprint_are_told_apart(clinic, run, hospitals, tmp_path, capsys):
    other = a_run(tmp_path / "other", hospitals.study(name="pilot"), seed=4)
    for folder in (run, other):
        state = torch.load(folder / "model.pt", weights_only=True)
        torch.save({name: tensor.bfloat16() for name, tensor in state.items()}, folder / "model.pt")
        (folder / "record.json").write_text(json.dumps({"study": hospitals.study(name="pilot").model_dump(mode="json")}))
    assert konsil(clinic, "calibrate", run, "--members", 2) == 0
    for folder, words in ((run, "Expected Dice as learned from"), (other, "No calibration is here")):
        capsys.readouterr()
        assert konsil(clinic, "segment", folder, "--out", tmp_path / f"{folder.name} masks", "--members", 2) == 0
        assert words in capsys.readouterr().out


def test_another_model_can_be_asked_too(clinic, run, hospitals, tmp_path, capsys):
    other = a_run(tmp_path / "second", hospitals.study(name="second"), seed=4)
    assert konsil(clinic, "segment", run, "--out", tmp_path / "out", "--also", other, "--members", 2) == 0
    assert "agreement of 2 members" in capsys.readouterr().out
    assert float(table(tmp_path / "out")[0]["myocardium_agreement"]) < 0.9  # networks that were never trained agree by chance
    strange = a_run(tmp_path / "third", hospitals.study(name="third", task={**hospitals.study().task, "dice_smooth": 2.0}))
    assert konsil(clinic, "segment", run, "--out", tmp_path / "no", "--also", strange) == 1
    assert "members answer the same question" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert konsil(clinic, "segment", run, "--out", tmp_path / "no", "--also", other, "--members", 1) == 1
    assert "2 networks can't be 1 members" in capsys.readouterr().err


def test_too_few_patients_and_nobody_held_back_are_refused_in_words(hospitals, run, tmp_path, capsys):
    assert konsil(hospitals.sites["a"], "calibrate", run) == 1
    assert "a holds nobody back from training (test_fraction 0, 4 patients)" in capsys.readouterr().err
    hospitals.add("e", patients=9, test_fraction=0.5)
    assert konsil(hospitals.sites["e"], "calibrate", run, "--members", 2) == 1
    assert "and a calibration needs 8" in capsys.readouterr().err
    assert not (hospitals.site("e").folder / "calibrations").exists()


def test_a_patient_who_withdraws_takes_the_calibration_along(clinic, run):
    site = Site.load(clinic)
    assert konsil(clinic, "calibrate", run, "--members", 2) == 0
    held_back = Cohort(site.cohort_folder).split("test", test_fraction=0.5)
    trained_on = next(patient for patient in Cohort(site.cohort_folder).patients if patient not in held_back)
    assert uncertainty.forget(site, trained_on) == 0
    assert uncertainty.forget(site, held_back[0]) == 1
    assert list((site.folder / "calibrations").iterdir()) == []


@pytest.mark.parametrize("turn", [0, -1], ids=["who is looked at", "whose turn has not come"])
def test_who_withdraws_while_it_is_learned_is_in_no_calibration(clinic, run, turn, monkeypatch, capsys):
    site = Site.load(clinic)
    cohort = Cohort(site.cohort_folder)
    held_back = list(cohort.split("test", test_fraction=0.5))
    judge, gone = uncertainty.judge, held_back.pop(turn)

    def once(*said):
        monkeypatch.setattr(uncertainty, "judge", judge)
        judged = judge(*said)
        cohort.withdraw(gone)
        return judged

    monkeypatch.setattr(uncertainty, "judge", once)
    if turn == 0:
        assert konsil(clinic, "calibrate", run, "--members", 2) == 1
        assert "withdrew meanwhile, so nothing was kept; calibrate again" in capsys.readouterr().err
        assert list((site.folder / "calibrations").iterdir()) == []
    assert konsil(clinic, "calibrate", run, "--members", 2) == 0
    (kept,) = (site.folder / "calibrations").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["patients"] == held_back


def test_what_a_kill_left_half_written_goes_with_any_patient(clinic):
    site = Site.load(clinic)
    (site.folder / "calibrations").mkdir()
    (site.folder / "calibrations" / "0123-8.part").write_text('{"patients": ["p3-')
    assert uncertainty.forget(site, "p3-1") == 1
    assert list((site.folder / "calibrations").iterdir()) == []


def test_a_withdrawal_tells_of_the_calibration(clinic, run):
    site = Site.load(clinic)
    (site.folder / "calibrations").mkdir()
    (site.folder / "calibrations" / "broken-8.json").write_text("torn")  # says of nobody, and counts as of everybody
    done = withdraw(site, "P" + 16 * "0", who="somebody")
    assert done.calibrations == 1
    assert any("1 calibrations that were learned from them" in line for line in tell(done, site))


def test_a_model_that_gives_no_numbers_is_refused_by_patient(clinic, run, tmp_path, capsys):
    state = torch.load(run / "model.pt", weights_only=True)
    state["head.weight"] = 3e38 * state["head.weight"].sign()  # finite, and no product of them is
    torch.save(state, run / "model.pt")
    record = json.loads((run / "record.json").read_text())
    record["rounds"] = [{"round": 1, "arrays_sha256": fingerprint(state)}]
    (run / "record.json").write_text(json.dumps(record))
    assert konsil(clinic, "segment", run, "--out", tmp_path / "out", "--patient", "p3-0", "--members", 2) == 3
    assert "p3-0 cine_ed refused: the model answers to cine_ed with numbers that are not finite" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["masks.csv"]


def test_the_commands_default_is_the_tasks():
    assert SAID == MEMBERS


# -- heat maps ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(clinic, tmp_path) -> Path:
    """One patient's images, as a scanner left them."""
    case = Cohort(Site.load(clinic).cohort_folder).case("p3-0")
    volumes = tuple(Volume(v.series, np.rint(v.image).astype(np.int16), v.affine) for v in case.volumes)
    write_patient(Case("somebody", volumes), tmp_path / "archive")
    return tmp_path / "archive"


def test_heat_maps_lie_on_the_images_as_nifti_and_as_parametric_map(clinic, run, archive, tmp_path):
    beside(run)
    assert konsil(clinic, "segment", run, archive, "--out", tmp_path / "out", "--members", 4, "--heat-maps") == 0
    (place,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    endings = ("nii.gz", "seg.dcm", "entropy.nii.gz", "disagreement.nii.gz", "unsure.dcm")
    assert {path.name for path in place.iterdir()} == {f"cine_{phase}.{end}" for phase in ("ed", "es") for end in endings}
    entropy = sitk.GetArrayFromImage(sitk.ReadImage(str(place / "cine_ed.entropy.nii.gz")))
    split = sitk.GetArrayFromImage(sitk.ReadImage(str(place / "cine_ed.disagreement.nii.gz")))
    assert entropy.dtype == np.float32
    assert 0 <= split.min() <= split.max() <= 1
    assert entropy.max() > 0.3
    made = hd.imread(place / "cine_ed.unsure.dcm")
    assert made.Modality == "OT"
    assert made.ContentQualification == "RESEARCH"
    real = made.get_volume(apply_real_world_transform=True)
    np.testing.assert_allclose(real.array, entropy, atol=6e-4)
    folder = archive / Identity.invent("somebody").patient_id / "cine_ed"
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]
    assert (made.PatientID, made.StudyInstanceUID) == (headers[0].PatientID, headers[0].StudyInstanceUID)
    places = {header.SOPInstanceUID: tuple(map(float, header.ImagePositionPatient)) for header in headers}
    for group in made.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient)) == places[source]
    mapping = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "ENTROPY"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_a_checker_that_konsil_did_not_write_finds_no_error_in_a_heat_map(clinic, run, archive, tmp_path):
    assert konsil(clinic, "segment", run, archive, "--out", tmp_path / "out", "--members", 2, "--heat-maps") == 0
    paths = list((tmp_path / "out").rglob("*.unsure.dcm"))
    assert len(paths) == 2
    for path in paths:
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr.splitlines()
        assert said[0] == "ParametricMap"
        assert [line for line in said if line.startswith("Error")] == []


def test_a_mask_without_its_heat_map_is_kept_and_the_reason_told(clinic, run, archive, tmp_path, monkeypatch, capsys):
    write = segmenting.write_heat_map

    def only_the_first(entropy, originals, path, *, algorithm):
        if path.name.startswith(".cine_es"):
            path.write_bytes(b"half")
            raise AttributeError("an odd header")
        write(entropy, originals, path, algorithm=algorithm)

    monkeypatch.setattr(segmenting, "write_heat_map", only_the_first)
    assert konsil(clinic, "segment", run, archive, "--out", tmp_path / "out", "--members", 2, "--heat-maps") == 3
    (place,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    endings = ("nii.gz", "seg.dcm", "entropy.nii.gz", "disagreement.nii.gz")
    both = {f"cine_{phase}.{end}" for phase in ("ed", "es") for end in endings}
    assert {path.name for path in place.iterdir()} == both | {"cine_ed.unsure.dcm"}
    said = capsys.readouterr().out
    assert "2 masks of 1 patients" in said
    why = "no DICOM Parametric Map can refer to these images (AttributeError)"
    assert f"{place.name} cine_es: the mask is here, the heat map is not: {why}" in said
    assert {row["refused"] for row in table(tmp_path / "out")} == {""}


def test_values_that_are_no_parts_of_one_make_no_heat_map(archive):
    folder = archive / Identity.invent("somebody").patient_id / "cine_ed"
    for wrong in (np.full((3, 32, 32), 1.5), np.full((3, 32, 32), np.nan)):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            make_heat_map(wrong, folder, algorithm="a test")
    with pytest.raises(ValueError, match=r"the heat map has shape \(2, 32, 32\), the series \(3, 32, 32\)"):
        make_heat_map(np.zeros((2, 32, 32)), folder, algorithm="a test")


def test_an_empty_mask_has_a_heat_map_and_no_seg(clinic, hospitals, archive, tmp_path, capsys):
    run = a_run(tmp_path / "empty", hospitals.study(name="pilot"))
    state = torch.load(run / "model.pt", weights_only=True)
    state["head.weight"] *= 0
    state["head.bias"] = torch.tensor([9.0, *[0.0] * (len(state["head.bias"]) - 1)])
    torch.save(state, run / "model.pt")
    record = json.loads((run / "record.json").read_text())
    record["rounds"] = [{"round": 1, "arrays_sha256": fingerprint(state)}]
    (run / "record.json").write_text(json.dumps(record))
    assert konsil(clinic, "segment", run, archive, "--out", tmp_path / "out", "--members", 3, "--heat-maps") == 0
    assert "the model found nothing" in capsys.readouterr().out
    (place,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert (place / "cine_ed.unsure.dcm").exists()
    assert not (place / "cine_ed.seg.dcm").exists()
    assert {row["myocardium_agreement"] for row in table(tmp_path / "out")} == {"0.000"}
