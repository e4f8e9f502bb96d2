from __future__ import annotations

import dataclasses
import json
import logging
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fl_client.cohort import Cohort
from fl_client.intake import admit
from fl_client.intake.admit import Intake, SeriesRule, SeriesRules
from fl_client.intake.endpoints import EndpointRules
from simulation.dicom import Identity, write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]


def snapshot(cohort: Cohort) -> dict[str, bytes]:
    return {
        path.relative_to(cohort.folder).as_posix(): path.read_bytes()
        for path in sorted(cohort.folder.rglob("*"))
        if path.is_file()
    }


def only(reasons: Any) -> str:
    assert len(reasons) == 1, reasons
    return str(next(iter(reasons.values())))


def file_of(archive: Path, series: str, number: int) -> Path:
    return next(archive.rglob(f"{series}/IM{number:04d}.dcm"))


def test_a_patient_through_dicom_is_the_case_handed_over_directly(
    archive: Path, case: Case, let_in: LetIn, tmp_path: Path
) -> None:
    direct = Cohort(tmp_path / "direct")
    direct.admit(case)
    intake, cohort = let_in(archive)
    assert (intake.expected, len(intake.admitted), intake.refused, intake.left_out) == (1, 1, {}, {})
    through, handed = cohort.case(intake.admitted[0]), direct.case(case.patient)
    assert {volume.series for volume in through.volumes} == {volume.series for volume in handed.volumes}
    for expected in handed.volumes:
        volume = through.volume(expected.series)
        assert volume is not None
        assert volume.image.dtype == expected.image.dtype
        assert np.array_equal(volume.image, expected.image)
        # a decimal string has 16 characters: at least 10 digits of a coordinate in mm
        assert np.abs(volume.affine - expected.affine).max() < 1e-8
        assert (volume.mask is None) == (expected.mask is None)
        if expected.mask is not None:
            assert np.array_equal(volume.mask, expected.mask)
    assert through.endpoints == handed.endpoints
    assert through.scanner == handed.scanner


def test_nothing_that_names_the_person_reaches_the_cohort(
    archive: Path, case: Case, let_in: LetIn, caplog: Any, capfd: Any
) -> None:
    person = Identity.invent(case.patient)
    planted = {value for name, value in dataclasses.asdict(person).items() if name not in ("sex", "study_time")}
    planted |= {part for value in (person.name, person.physician, person.operator) for part in value.split("^")}
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in archive.rglob("*.dcm")}
    stray = archive / person.name / f"{person.patient_id}.txt"  # a name in a path, too
    stray.parent.mkdir()
    stray.write_text(person.name)
    file_of(archive, "lge", 3).unlink()
    caplog.set_level(logging.DEBUG)
    original = b"".join(path.read_bytes() for path in archive.rglob("*") if path.is_file())
    assert [text for text in planted if text.encode() not in original] == []  # what is looked for is really there
    intake, cohort = let_in(archive)
    assert intake.refused
    shutil.rmtree(stray.parent)
    shutil.rmtree(archive.parent / "archive" / person.patient_id / "lge")
    intake, cohort = let_in(archive)
    assert intake.admitted
    written = b"".join([*snapshot(cohort).values(), *(name.encode() for name in snapshot(cohort))])
    screen = "".join(capfd.readouterr()) + caplog.text + repr(intake)
    assert [text for text in planted | uids if text.lower().encode() in written.lower()] == []
    assert [text for text in planted | uids if text.lower() in screen.lower()] == []


def test_two_hospitals_with_different_keys_share_no_pseudonym(archive: Path, let_in: LetIn) -> None:
    ours, _ = let_in(archive)
    theirs, cohort = let_in(archive, key=b"the key of another hospital")
    assert set(ours.admitted).isdisjoint(theirs.admitted)
    assert len(cohort) == 2


def test_the_same_folder_twice_gives_the_same_cohort(archive: Path, let_in: LetIn, tmp_path: Path) -> None:
    (archive / "note.txt").write_text("not DICOM")
    file_of(archive, "lge", 2).rename(archive / "moved")
    first, cohort = let_in(archive)
    before = snapshot(cohort)
    second, cohort = let_in(archive)
    assert (first.admitted, first.refused, first.left_out) == (second.admitted, second.refused, second.left_out)
    assert snapshot(cohort) == before


def test_a_later_folder_adds_to_the_one_case_of_the_patient(case: Case, let_in: LetIn, tmp_path: Path) -> None:
    write_patient(dataclasses.replace(case, volumes=case.volumes[:2]), tmp_path / "monday")
    write_patient(dataclasses.replace(case, volumes=case.volumes[2:], endpoints={"event": 0}), tmp_path / "friday")
    let_in(tmp_path / "monday")
    _, cohort = let_in(tmp_path / "friday")
    assert len(cohort) == 1
    merged = cohort.case(cohort.patients[0])
    assert [volume.series for volume in merged.volumes] == ["cine_ed", "cine_es", "lge"]
    assert (merged.endpoints["event"], merged.endpoints["ef"]) == (0, 0.4321)


def test_of_two_studies_the_later_counts(case: Case, let_in: LetIn, tmp_path: Path) -> None:
    person = Identity.invent(case.patient)
    later = dataclasses.replace(person, study_date=str(int(person.study_date) + 10000))
    double = dataclasses.replace(case, volumes=tuple(dataclasses.replace(v, image=v.image // 2) for v in case.volumes))
    write_patient(case, tmp_path / "both/first", identity=person)
    write_patient(double, tmp_path / "both/second", identity=later)
    for table in (tmp_path / "both").rglob("endpoints.csv"):
        table.unlink()
    intake, cohort = let_in(tmp_path / "both")
    volume = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert volume is not None
    assert np.array_equal(volume.image, case.volumes[0].image // 2)
    assert sum("earlier" in reason for reason in intake.left_out.values()) == 3


def change(pattern: str, **elements: object) -> Callable[[Path, Edit], None]:
    """Set elements in all files of this pattern."""

    def spoil(archive: Path, edit: Edit) -> None:
        for path in archive.rglob(pattern):
            edit(path, lambda dataset: dataset.update(elements))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a, edit: file_of(a, "cine_ed", 3).unlink(), "cine_ed: slices are missing"),
        (lambda a, edit: file_of(a, "cine_ed", 6).unlink(), "mask 1 refers to 6 images, of which 1 are not here"),
        (change("lge/IM0002.dcm", ImagePositionPatient=[0, 0, 0]), "lge: "),
        (change("lge/IM0002.dcm", PixelData=b"12"), "lge: the pixel data of image 2 of 6"),
        (change("IM*.dcm", Modality="OT"), "no usable series"),
        (change("cine_ed-mask.dcm", FrameOfReferenceUID="1.2.3"), "frame of reference"),
    ],
)
def test_a_patient_whose_images_or_mask_are_wrong_is_refused(
    archive: Path, let_in: LetIn, edit: Edit, spoil: Any, reason: str
) -> None:
    spoil(archive, edit)
    intake, cohort = let_in(archive)
    assert reason in only(intake.refused)
    assert len(cohort) == 0
    assert cohort.refused[-1]["what"] == next(iter(intake.refused))


def test_a_slice_sent_twice_under_two_names_counts_once(archive: Path, let_in: LetIn) -> None:
    shutil.copy(file_of(archive, "lge", 2), archive / "again.dcm")
    intake, _ = let_in(archive)
    assert len(intake.admitted) == 1
    assert only(intake.left_out) == "a copy of another file, byte by byte"


def test_a_second_slice_at_the_same_place_is_refused(archive: Path, let_in: LetIn, edit: Edit) -> None:
    shutil.copy(file_of(archive, "lge", 2), archive / "again.dcm")
    edit(archive / "again.dcm", lambda dataset: setattr(dataset, "SOPInstanceUID", "1.2.3.4"))
    assert "lge: 7 images at 6 positions" in only(let_in(archive)[0].refused)


def test_an_unmapped_label_refuses_the_patient_without_repeating_the_text(archive: Path, let_in: LetIn, edit: Edit) -> None:
    def rename(dataset: pydicom.Dataset) -> None:
        dataset.SegmentSequence[1].SegmentLabel = "Abendroth's lesion"
        dataset.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "52988006"

    edit(next(archive.rglob("cine_es-mask.dcm")), rename)
    reason = only(let_in(archive)[0].refused)
    assert reason.startswith("the mask of cine_es: segment 2 has a label and a code that stand nowhere in the label map")
    assert "Abendroth" not in reason


def test_a_label_and_a_code_that_disagree_refuse_the_patient(archive: Path, let_in: LetIn, edit: Edit) -> None:
    edit(
        next(archive.rglob("cine_ed-mask.dcm")),
        lambda dataset: setattr(dataset.SegmentSequence[0], "SegmentLabel", "myocardium"),
    )
    assert "segment 1 is myocardium by its label and blood_pool by its code" in only(let_in(archive)[0].refused)


def test_a_mask_drawn_on_another_patient_is_refused(
    archive: Path, case: Case, let_in: LetIn, edit: Edit, tmp_path: Path
) -> None:
    other = Identity.invent("somebody else")
    write_patient(dataclasses.replace(case, patient="somebody else"), archive, identity=other)
    mine = Identity.invent(case.patient).patient_id
    edit(archive / other.patient_id / "cine_ed-mask.dcm", lambda dataset: setattr(dataset, "PatientID", mine))
    intake, _ = let_in(archive)
    assert "refers to images of another patient" in only(intake.refused)
    assert len(intake.admitted) == 1  # the other, whose mask is now missing, not wrong


def test_two_masks_of_one_series_are_refused(archive: Path, let_in: LetIn, edit: Edit) -> None:
    mask = next(archive.rglob("cine_ed-mask.dcm"))
    shutil.copy(mask, archive / "second.dcm")
    edit(archive / "second.dcm", lambda dataset: setattr(dataset, "SOPInstanceUID", "1.2.3.4"))
    assert "two masks for cine_ed" in only(let_in(archive)[0].refused)


def test_files_that_are_nobodys_image_are_left_out_one_by_one(archive: Path, let_in: LetIn, edit: Edit) -> None:
    slice_2 = file_of(archive, "lge", 2)
    for name in ("report.dcm", "burned.dcm", "nobody.dcm", "cut.dcm"):
        shutil.copy(slice_2, archive / name)
    edit(archive / "report.dcm", lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11"))
    edit(archive / "burned.dcm", lambda d: setattr(d, "BurnedInAnnotation", "YES"))
    edit(archive / "nobody.dcm", lambda d: setattr(d, "PatientID", ""))
    (archive / "cut.dcm").write_bytes(slice_2.read_bytes()[:300])
    (archive / "notes.txt").write_text("x")
    intake, _ = let_in(archive)
    assert len(intake.admitted) == 1
    named = {intake.where[handle].name: reason for handle, reason in intake.left_out.items()}
    assert named.keys() == {"report.dcm", "burned.dcm", "nobody.dcm", "cut.dcm", "notes.txt"}
    assert named["report.dcm"].startswith("Basic Text SR Storage is neither MR or CT images")
    assert "BurnedInAnnotation" in named["burned.dcm"]
    assert named["nobody.dcm"].startswith("no PatientID")
    assert named["notes.txt"] == "not a DICOM file"


def test_a_cine_series_gives_the_two_phases_that_somebody_drew_on(
    case: Case, let_in: LetIn, edit: Edit, tmp_path: Path
) -> None:
    archive = tmp_path / "cine"
    write_patient(dataclasses.replace(case, volumes=case.volumes[:2]), archive)
    ed, es = case.volumes[:2]
    frames = {name: sorted(next(archive.rglob(name)).glob("*.dcm")) for name in ("cine_ed", "cine_es")}
    reference = pydicom.dcmread(frames["cine_ed"][0])

    def join(dataset: pydicom.Dataset) -> None:
        dataset.SeriesDescription, dataset.SeriesInstanceUID = "cine", reference.SeriesInstanceUID
        dataset.FrameOfReferenceUID = reference.FrameOfReferenceUID

    for path in frames["cine_ed"] + frames["cine_es"]:
        edit(path, join)
    for path in frames["cine_ed"]:  # a third phase between the two, on which nobody drew
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID, dataset.TriggerTime = dataset.SOPInstanceUID[:-4] + "7777", "100"
        dataset.save_as(path.with_name(f"between-{path.name}"))
    edit(
        next(archive.rglob("cine_es-mask.dcm")),
        lambda dataset: setattr(dataset, "FrameOfReferenceUID", reference.FrameOfReferenceUID),
    )
    for mask in archive.rglob("*-mask.dcm"):
        edit(mask, lambda d: setattr(d.ReferencedSeriesSequence[0], "SeriesInstanceUID", reference.SeriesInstanceUID))
    intake, cohort = let_in(archive)
    read = cohort.case(intake.admitted[0])
    for expected in (ed, es):
        volume = read.volume(expected.series)
        assert volume is not None
        assert np.array_equal(volume.image, expected.image)
        assert np.array_equal(volume.mask, expected.mask)


@pytest.fixture
def cine(case: Case, tmp_path: Path) -> Callable[[int | None, int], Path]:
    """A cine of `count` phases, 1/`count` s apart, on whose phase `drawn` (from 0) somebody drew; None for nobody."""

    def write(drawn: int | None, count: int) -> Path:
        archive = tmp_path / f"cine-{drawn}-of-{count}"
        write_patient(dataclasses.replace(case, volumes=case.volumes[:1]), archive)
        for path in sorted(archive.rglob("IM*.dcm")):
            dataset = pydicom.dcmread(path)
            dataset.SeriesDescription, instance = "cine", dataset.SOPInstanceUID
            path.unlink()
            for phase in range(count):
                dataset.SOPInstanceUID = instance if phase == drawn else f"{instance[:-4]}{7000 + phase}"
                dataset.TriggerTime = f"{1000 * phase / count:g}"
                dataset.save_as(path.with_name(f"{path.stem}-{phase}.dcm"))
        if drawn is None:
            next(archive.rglob("*-mask.dcm")).unlink()
        return archive

    return write


@pytest.mark.parametrize(
    ("drawn", "count", "name"),
    [
        (0, 8, "cine_ed"),
        (7, 8, "cine_ed"),  # before the R wave, by an eighth of the cycle
        (3, 16, None),
        (2, 8, "cine_es"),
        (4, 8, "cine_es"),
        (5, 8, None),
    ],
)
def test_a_single_phase_that_somebody_drew_on_is_named_by_its_place_in_the_cycle(
    cine: Callable[[int | None, int], Path], let_in: LetIn, case: Case, drawn: int, count: int, name: str | None
) -> None:
    intake, cohort = let_in(cine(drawn, count))
    if name is None:
        assert f"cine: only phase {drawn + 1} of {count} has a mask, {drawn / count:.0%} of the cycle" in only(intake.refused)
    else:
        (volume,) = cohort.case(intake.admitted[0]).volumes
        assert volume.series == name
        assert np.array_equal(volume.mask, case.volumes[0].mask)


def test_a_cine_on_which_nobody_drew_gives_the_phase_at_the_r_wave(
    cine: Callable[[int | None, int], Path], let_in: LetIn
) -> None:
    intake, cohort = let_in(cine(None, 4))
    (volume,) = cohort.case(intake.admitted[0]).volumes
    assert (volume.series, volume.mask) == ("cine_ed", None)


def test_endpoints_without_images_and_bad_cells_are_refusals(archive: Path, let_in: LetIn, case: Case) -> None:
    table = archive / "endpoints.csv"
    mine = Identity.invent(case.patient).patient_id
    table.write_text(f"patient_id,event\n{mine},maybe\nMRN-7,1\n")
    intake, cohort = let_in(archive)
    assert intake.expected == 2
    assert sorted(intake.refused.values()) == [
        "line 2 of endpoints.csv: event is no number",
        "stands in endpoints.csv, but there are no images",
    ]
    assert len(cohort) == 0


def test_an_unreadable_endpoint_table_is_left_out_with_the_reason(archive: Path, let_in: LetIn) -> None:
    (archive / "endpoints.csv").write_bytes(b"\xff\xfe1;2")
    intake, cohort = let_in(archive)
    assert "not UTF-8" in only(intake.left_out)
    assert not cohort.case(intake.admitted[0]).endpoints


def test_rules_can_ask_for_other_series_and_columns(archive: Path, let_in: LetIn) -> None:
    rules = SeriesRules(rules=(SeriesRule(name="late", words=("lge",)),))
    intake, cohort = let_in(archive, series=rules, endpoints=EndpointRules(numbers=("event",), categories={}))
    read = cohort.case(intake.admitted[0])
    assert [volume.series for volume in read.volumes] == ["late"]
    assert dict(read.endpoints) == {"event": 1}
    assert sum("no series rule asks for" in reason for reason in intake.left_out.values()) == 2
    assert sum("doesn't ask for" in reason for reason in intake.left_out.values()) == 2


def test_a_full_disk_leaves_the_cohort_as_it_was(archive: Path, let_in: LetIn, case: Case) -> None:
    _, cohort = let_in(archive)
    before = snapshot(cohort)
    write_patient(dataclasses.replace(case, patient="second"), archive)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # a volume has 21 kB: the write fails in the middle
    try:
        with pytest.raises(OSError, match="written"):
            let_in(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(cohort) == before
    intake, cohort = let_in(archive)
    assert len(cohort) == len(intake.admitted) == 2


def test_quality_is_recorded_beside_the_case(archive: Path, let_in: LetIn) -> None:
    intake, cohort = let_in(archive)
    text = json.loads((cohort.folder / "quality" / f"{intake.admitted[0]}.json").read_text())
    assert text["volumes"].keys() == {"cine_ed", "cine_es", "lge"}
    assert text["mask_resampled/cine_ed"] is False


def test_progress_counts_files_and_then_patients(archive: Path, let_in: LetIn) -> None:
    seen: list[tuple[int, int]] = []
    let_in(archive, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 20) for number in range(1, 21)] + [(1, 1)]


def test_a_folder_that_is_not_there_is_an_error(let_in: LetIn, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        let_in(tmp_path / "nowhere")


@pytest.mark.parametrize("rules", [None, SeriesRules(rules=(SeriesRule(name="mr"), SeriesRule(name="ct", modality="CT")))])
def test_every_file_of_other_projects_ends_as_a_case_or_a_reason(
    shared_data: Path, let_in: LetIn, rules: SeriesRules | None
) -> None:
    folder = shared_data / "dicom_files"
    if not folder.is_dir():
        pytest.skip(f"no collection of DICOM files at {folder}")
    intake, cohort = let_in(folder, series=rules)
    assert intake.expected == len(intake.admitted) + len(intake.refused)
    assert len(cohort) == len(intake.admitted)
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    assert files > 80
    names = subprocess.run(
        ["cut", "-d,", "-f13", folder / "manifest.csv"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[1:]
    written = b"".join(snapshot(cohort).values())
    assert [name for name in names if len(name) > 5 and "^" in name and name.encode() in written] == []


def test_an_unforeseen_error_is_a_refusal_that_repeats_no_text(archive: Path, let_in: LetIn, monkeypatch: Any) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Abendroth")

    monkeypatch.setattr(admit, "to_volume", fail)
    assert only(let_in(archive)[0].refused) == "its files can't be understood (RuntimeError)"
