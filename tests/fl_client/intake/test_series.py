from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fl_client.cohort import Cohort
from fl_client.intake.door import Intake
from fl_client.intake.endpoints import EndpointRules
from fl_client.intake.series import SeriesRule, SeriesRules
from fl_client.intake.visitors import visitors
from simulation.dicom import Identity, write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]
KEY = b"a hospital's key"


def test_rules_can_ask_for_other_series_and_columns(archive: Path, let_in: LetIn) -> None:
    rules = SeriesRules(rules=(SeriesRule(name="late", words=("lge",)),))
    intake, cohort = let_in(archive, series=rules, endpoints=EndpointRules(numbers=("event",), categories={}))
    read = cohort.case(intake.admitted[0])
    assert [volume.series for volume in read.volumes] == ["late"]
    assert dict(read.endpoints) == {"event": 1}
    assert sum("no series rule asks for" in reason for reason in intake.left_out.values()) == 2
    assert sum("doesn't ask for" in reason for reason in intake.left_out.values()) == 2


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


@pytest.fixture
def years(case: Case, tmp_path: Path) -> Callable[..., Path]:
    """The case's first volumes in a folder per year: `years(first=[0], second=[1])`; the later ones have half the values."""

    def write(**volumes: list[int]) -> Path:
        person = Identity.invent(case.patient)
        for later, (name, numbers) in enumerate(volumes.items()):
            some = tuple(
                dataclasses.replace(case.volumes[n], image=case.volumes[n].image // (1 + later), mask=None) for n in numbers
            )
            there = dataclasses.replace(person, study_date=str(int(person.study_date) + 10000 * later))
            write_patient(dataclasses.replace(case, volumes=some), tmp_path / "years" / name, identity=there)
            (tmp_path / "years" / name / "endpoints.csv").unlink(missing_ok=True)
        return tmp_path / "years"

    return write


def test_end_diastole_of_one_study_and_end_systole_of_a_later_one_make_no_case(
    years: Callable[..., Path], let_in: LetIn, case: Case
) -> None:
    folder = years(first=[0], second=[1])
    let_in(folder / "first")  # end-diastole is in the cohort already
    intake, cohort = let_in(folder)
    (volume,) = cohort.case(intake.admitted[0]).volumes
    assert volume.series == "cine_es"
    assert np.array_equal(volume.image, case.volumes[1].image // 2)
    (reason,) = intake.left_out.values()
    assert reason == "cine_ed of an earlier study than cine_es; the two phases of a cine are taken from one"
    (visitor,), _ = visitors(folder, key=KEY, rules=SeriesRules(), wanted=("cine_ed", "cine_es"))
    assert set(visitor.series) == {"cine_es"}


def test_a_lone_later_phase_does_not_part_the_two_of_an_earlier_study(
    years: Callable[..., Path], let_in: LetIn, case: Case
) -> None:
    intake, cohort = let_in(years(first=[0, 1], second=[1]))
    ed, es = cohort.case(intake.admitted[0]).volumes
    assert np.array_equal(ed.image, case.volumes[0].image)
    assert np.array_equal(es.image, case.volumes[1].image)
    assert list(intake.left_out.values()) == ["a later cine_es without cine_ed; an earlier study has both"]


def test_one_visit_may_come_as_two_studies_and_without_dates_the_study_decides(
    years: Callable[..., Path], let_in: LetIn, edit: Edit
) -> None:
    folder = years(first=[0], second=[1])
    for path in folder.rglob("*.dcm"):
        edit(path, lambda dataset: (setattr(dataset, "StudyDate", "20240105"), setattr(dataset, "AcquisitionDate", "20240105")))
    intake, cohort = let_in(folder)
    assert [volume.series for volume in cohort.case(intake.admitted[0]).volumes] == ["cine_ed", "cine_es"]
    for path in folder.rglob("*.dcm"):
        edit(path, lambda dataset: (setattr(dataset, "StudyDate", ""), setattr(dataset, "AcquisitionDate", "")))
    (reason,) = let_in(folder)[0].refused.values()
    assert reason == "cine_ed and cine_es are of two studies, and there are no dates to say which is the later"


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
        (reason,) = intake.refused.values()
        assert f"cine: only phase {drawn + 1} of {count} has a mask, {drawn / count:.0%} of the cycle" in reason
    else:
        (volume,) = cohort.case(intake.admitted[0]).volumes
        assert volume.series == name
        assert np.array_equal(volume.mask, case.volumes[0].mask)
        missing, taken = {
            "cine_ed": ("end-systole", "end-diastole"),
            "cine_es": ("end-diastole", "end-systole"),
        }[name]
        (line,) = cohort.refused
        assert line["reason"] == f"cine: {missing} has no mask, so only {taken} is admitted"
        assert line["what"].startswith(intake.admitted[0])
        assert intake.left_out == {line["what"]: line["reason"]}


def test_a_cine_on_which_nobody_drew_gives_the_phase_at_the_r_wave(
    cine: Callable[[int | None, int], Path], let_in: LetIn
) -> None:
    intake, cohort = let_in(cine(None, 4))
    (volume,) = cohort.case(intake.admitted[0]).volumes
    assert (volume.series, volume.mask) == ("cine_ed", None)
    (reason,) = intake.left_out.values()
    assert reason == "cine: no phase has a mask, so only end-diastole is admitted"


@pytest.fixture
def beside(case: Case, tmp_path: Path) -> Callable[..., Path]:
    """Put a series with half the case's `cine_ed` values, of another name perhaps, beside what an archive holds."""

    def write(archive: Path, *, name: str = "cine_ed", masked: bool) -> Path:
        ed = case.volumes[0]
        volume = dataclasses.replace(ed, series=name, image=ed.image // 2, mask=ed.mask if masked else None)
        write_patient(dataclasses.replace(case, patient="stand-in", volumes=(volume,)), archive / "beside")
        (archive / "beside" / "endpoints.csv").unlink(missing_ok=True)
        mine = pydicom.dcmread(next(path for path in archive.rglob("IM*.dcm") if "beside" not in path.parts))
        for path in (archive / "beside").rglob("*.dcm"):
            dataset = pydicom.dcmread(path)
            dataset.PatientID, dataset.PatientBirthDate, dataset.StudyDate = (
                mine.PatientID,
                mine.PatientBirthDate,
                mine.StudyDate,
            )
            dataset.save_as(path)
        return archive

    return write


@pytest.mark.parametrize(
    ("on_cine", "on_own", "half", "reason"),
    [
        (True, False, False, "a series cine_ed on which nobody drew, of a patient with a mask on end-diastole of the cine"),
        (False, True, True, "cine: its end-diastole has no mask, and there is a series cine_ed with one"),
        (False, False, True, "cine: its end-diastole has no mask, and there is a series cine_ed too"),
    ],
)
def test_of_a_cine_and_a_series_with_the_name_of_its_phase_the_drawn_one_counts_and_else_the_named_one(
    cine: Callable[[int | None, int], Path],
    beside: Callable[..., Path],
    let_in: LetIn,
    case: Case,
    on_cine: bool,
    on_own: bool,
    half: bool,
    reason: str,
) -> None:
    archive = beside(cine(0 if on_cine else None, 4), masked=on_own)
    intake, cohort = let_in(archive)
    assert not intake.refused
    (volume,) = cohort.case(intake.admitted[0]).volumes
    ed = case.volumes[0]
    assert volume.series == "cine_ed"
    assert np.array_equal(volume.image, ed.image // 2 if half else ed.image)
    assert (volume.mask is not None) == (on_cine or on_own)
    assert reason in intake.left_out.values()
    assert reason in [line["reason"] for line in cohort.refused]
    (visitor,), reasons = visitors(archive, key=KEY, rules=SeriesRules(), wanted=("cine_ed",))
    seen, _ = visitor.read("cine_ed")  # a trained model looks at the image that training would have seen
    assert np.array_equal(seen.image, volume.image)
    assert reason in reasons.left_out.values()


def test_masks_on_a_cine_s_phase_and_on_a_series_of_that_name_refuse_the_patient(
    cine: Callable[[int | None, int], Path], beside: Callable[..., Path], let_in: LetIn
) -> None:
    intake, cohort = let_in(beside(cine(0, 4), masked=True))
    (reason,) = intake.refused.values()
    assert reason == "cine_ed is there twice with a mask, as end-diastole of the cine and as a series of its own"
    assert len(cohort) == 0


def test_a_cine_s_undrawn_phase_may_come_as_a_series_of_its_own(
    cine: Callable[[int | None, int], Path], beside: Callable[..., Path], let_in: LetIn
) -> None:
    intake, cohort = let_in(beside(cine(0, 4), name="cine_es", masked=True))
    volumes = cohort.case(intake.admitted[0]).volumes
    assert [(volume.series, volume.mask is not None) for volume in volumes] == [("cine_ed", True), ("cine_es", True)]
    assert not intake.left_out


def test_a_visitor_whose_cine_lacks_the_phase_that_the_model_reads_is_told_which_one_it_gives(
    cine: Callable[[int | None, int], Path],
) -> None:
    _, reasons = visitors(cine(2, 8), key=KEY, rules=SeriesRules(), wanted=("cine_ed",))
    (reason,) = reasons.refused.values()
    assert reason == "the cine gives cine_es alone, by the phase with a mask or else the first, and the model reads cine_ed"


@pytest.fixture
def mixed(case: Case, tmp_path: Path) -> Callable[..., Path]:
    """The case's `lge`, and beside it in the same series the slices of `cine_ed` with other elements."""

    def write(**elements: object) -> Path:
        archive = tmp_path / "mixed"
        write_patient(dataclasses.replace(case, volumes=(case.volumes[0], case.volumes[2])), archive)
        next(archive.rglob("cine_ed-mask.dcm")).unlink()
        reference = pydicom.dcmread(next(archive.rglob("lge/*.dcm")))
        for path in archive.rglob("cine_ed/*.dcm"):
            dataset = pydicom.dcmread(path)
            for name in ("SeriesDescription", "SeriesInstanceUID", "FrameOfReferenceUID"):
                setattr(dataset, name, reference[name].value)
            dataset.update(elements)
            dataset.save_as(path)
        return archive

    return write


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "lge: 6 images of a localizer among the slices, by ImageType"),
        ({"ImageType": ["DERIVED", "PRIMARY", "OTHER"]}, "lge: derived images beside the original ones: 6 DERIVED"),
    ],
)
def test_what_does_not_belong_to_the_volume_is_split_off_and_told(
    mixed: Callable[..., Path], let_in: LetIn, case: Case, elements: dict[str, object], reason: str
) -> None:
    intake, cohort = let_in(mixed(**elements))
    assert list(intake.left_out.values()) == [reason]
    assert [line["reason"] for line in cohort.refused] == [reason]
    volume = cohort.case(intake.admitted[0]).volume("lge")
    assert volume is not None
    assert np.array_equal(volume.image, case.volumes[2].image)


def test_two_echoes_of_one_series_are_refused_in_words_and_read_by_two_rules(
    mixed: Callable[..., Path], let_in: LetIn, case: Case
) -> None:
    archive = mixed(EchoTime="4.2")
    intake, _ = let_in(archive)
    assert list(intake.refused.values()) == ["lge: 2 echoes: 1.6 ms, 4.2 ms; say echo in the series rule"]
    rules = SeriesRules(
        rules=(SeriesRule(name="early", words=("lge",), echo=1), SeriesRule(name="late", words=("lge",), echo=2))
    )
    intake, cohort = let_in(archive, series=rules)
    early, late = cohort.case(intake.admitted[0]).volumes
    assert np.array_equal(early.image, case.volumes[2].image)
    assert np.array_equal(late.image, case.volumes[0].image)
    (visitor,), _ = visitors(archive, key=KEY, rules=rules, wanted=("late",))
    assert np.array_equal(visitor.read("late")[0].image, case.volumes[0].image)


def test_a_series_without_the_image_type_that_the_rule_asks_for_is_none_of_its_series(
    mixed: Callable[..., Path], let_in: LetIn
) -> None:
    rules = SeriesRules(rules=(SeriesRule(name="phase", words=("lge",), image_type=("P",)),))
    intake, _ = let_in(mixed(), series=rules)
    (reason,) = intake.refused.values()
    assert reason.endswith("there were a series of 12 MR images of an ImageType that no series rule asks for")


def test_a_mosaic_is_left_out_by_name(archive: Path, let_in: LetIn, edit: Edit) -> None:
    for path in archive.rglob("lge/*.dcm"):
        edit(path, lambda dataset: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
    intake, cohort = let_in(archive)
    assert cohort.case(intake.admitted[0]).volume("lge") is None
    assert {reason[:40] for reason in intake.left_out.values()} == {"a mosaic, all slices tiled in one image;"}
