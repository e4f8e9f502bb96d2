from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from conftest import KEY, a_case
from dicom_peers import answers, image, needs, originals, storescu, write_images

from fl_client.__main__ import main
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.intake import arrivals as arrivals_module
from fl_client.intake import at_the_door, letting_in
from fl_client.intake.admit import admit_folder
from fl_client.intake.arrivals import DAMAGED, DEADLY, Arrivals
from fl_client.intake.at_the_door import _Worker, once
from fl_client.intake.incoming import Incoming, InUse, done
from fl_client.intake.labels import LabelMap
from fl_client.intake.part10 import split
from fl_client.intake.watch import WatchFolder
from fl_client.site import Site
from fl_client.withdrawal import withdraw
from simulation.dicom import Identity, write_patient


def a_site(folder: Path, **arrivals: Any) -> Site:
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "pseudonym.key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    return Site(
        name="clinic",
        folder=folder,
        key_file=key,
        identity_folder=folder / "identity",
        declared_size=5,
        arrivals={"quiet_s": 60.0, "min_free_gib": 0.0, **arrivals},
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return a_site(tmp_path / "site")


def push(site: Site, folder: Path) -> None:
    """Put all files of a folder where the door puts them."""
    incoming = Incoming(site.identity_folder, clean=site.folder / "clean")
    for path in sorted(folder.rglob("*.dcm")):
        data = path.read_bytes()
        start, syntax = split(data)
        incoming.keep(data[:start], data[start:], transfer_syntax=syntax, instance=path.stem)


def equal_cases(ours: Cohort, theirs: Cohort) -> bool:
    if ours.patients != theirs.patients:
        return False
    for patient in ours.patients:
        one, other = ours.case(patient), theirs.case(patient)
        if one.scanner != other.scanner or len(one.volumes) != len(other.volumes):
            return False
        for volume in one.volumes:
            twin = other.volume(volume.series)
            if twin is None or not np.array_equal(volume.image, twin.image) or not np.array_equal(volume.affine, twin.affine):
                return False
            if (volume.mask is None) != (twin.mask is None) or not np.array_equal(volume.mask, twin.mask):
                return False
    return True


def quarantined(site: Site) -> list[str]:
    return [line["reason"] for line in Incoming(site.identity_folder, clean=site.folder / "clean").quarantine.lines()]


def test_what_arrived_makes_the_cohort_that_the_same_folder_makes(site: Site, archive: Path, labels: LabelMap) -> None:
    write_patient(a_case("patient-2", seed=2), archive)
    push(site, archive)
    counts = Arrivals(site).work(all_quiet=True)
    (archive / "endpoints.csv").unlink()
    direct = Cohort(site.folder / "direct")
    admit_folder(archive, direct, key=KEY, labels=labels)
    assert (counts["studies"], counts["cleaned"], counts["admitted"]) == (2, 2 * 20, 2)
    assert equal_cases(Cohort(site.cohort_folder), direct)
    assert originals(site.identity_folder) == []  # keep_originals_days is 0


def test_nothing_that_names_the_person_leaves_the_identity_zone(
    site: Site, archive: Path, case: Any, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    person = Identity.invent(case.patient)
    push(site, archive)
    arrivals_module.tell(Arrivals(site).work(all_quiet=True))
    planted = {person.patient_id, person.accession, *person.name.split("^"), person.birth_date, person.device_serial}
    planted |= {str(pydicom.dcmread(path).SOPInstanceUID) for path in archive.rglob("*.dcm")}
    outside = [path for path in site.folder.rglob("*") if path.is_file() and site.identity_folder not in path.parents]
    text = b"".join(path.read_bytes() + str(path).encode() for path in outside) + caplog.text.encode()
    text += "".join(capfd.readouterr()).encode()
    assert [value for value in planted if value.lower().encode() in text.lower()] == []
    assert "20 cleaned" in caplog.text


def test_a_study_waits_until_nothing_has_come_for_a_while_and_a_restart_changes_nothing(site: Site, tmp_path: Path) -> None:
    push(site, write_images(tmp_path / "images", 2))
    last = max(path.stat().st_mtime for path in originals(site.identity_folder))
    assert Arrivals(site, clock=lambda: last + 59).work() == {}
    assert Arrivals(site, clock=lambda: last + 61).work()["cleaned"] == 2


def test_a_clock_that_was_set_back_does_not_keep_a_study_waiting(tmp_path: Path) -> None:
    site = a_site(tmp_path / "site", quiet_s=0.2)
    push(site, write_images(tmp_path / "images", 2))
    work = Arrivals(site, clock=lambda: 1000.0)  # in 1970
    assert work.work() == {}
    time.sleep(0.25)
    assert work.work()["cleaned"] == 2


def test_a_later_mask_of_the_same_patient_finds_its_images(site: Site, archive: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in archive.rglob("*-mask.dcm"):
        shutil.move(path, masks / path.name)
    push(site, archive)
    Arrivals(site).work(all_quiet=True)
    (patient,) = Cohort(site.cohort_folder).patients
    assert [volume.mask for volume in Cohort(site.cohort_folder).case(patient).volumes] == [None] * 3
    push(site, masks)
    Arrivals(site).work(all_quiet=True)
    found = {volume.series: volume.mask is not None for volume in Cohort(site.cohort_folder).case(patient).volumes}
    assert found == {"cine_ed": True, "cine_es": True, "lge": False}


@pytest.mark.parametrize("by", ["time", "arrival"])
def test_a_corrected_mask_that_comes_on_the_same_day_takes_the_first_ones_place(
    site: Site, archive: Path, edit: Any, tmp_path: Path, by: str
) -> None:
    for series in ("cine_es", "lge"):
        shutil.rmtree(next(archive.rglob(series)))
    next(archive.rglob("cine_es-mask.dcm")).unlink()
    mask = next(archive.rglob("cine_ed-mask.dcm"))
    drawn = np.count_nonzero(a_case().volumes[0].mask)
    correction = tmp_path / "correction" / "mask.dcm"
    correction.parent.mkdir()
    shutil.copy(mask, correction)

    def correct(seg: pydicom.Dataset) -> None:
        pixels = bytearray(seg.PixelData)
        at = next(number for number, byte in enumerate(pixels) if byte)
        pixels[at] &= pixels[at] - 1
        seg.PixelData, seg.SOPInstanceUID = bytes(pixels), "1.2.3.4"
        if by == "time":
            seg.ContentTime = "000001"  # it came later, and was drawn before

    edit(correction, correct)
    push(site, archive)
    Arrivals(site).work(all_quiet=True)
    time.sleep(0.02)
    push(site, correction.parent)
    assert Arrivals(site).work(all_quiet=True)["admitted"] == 1
    cohort = Cohort(site.cohort_folder)
    volume = cohort.case(cohort.patients[0]).volume("cine_ed")
    assert volume is not None
    assert np.count_nonzero(volume.mask) == drawn - (by == "arrival")
    assert "cine_ed: a mask drawn later on the same day takes its place" in [line["reason"] for line in cohort.refused]


def test_originals_stay_as_long_as_the_hospital_says(tmp_path: Path) -> None:
    site = a_site(tmp_path / "site", keep_originals_days=2.0)
    push(site, write_images(tmp_path / "images", 2))
    now = time.time()
    Arrivals(site, clock=lambda: now).work(all_quiet=True)
    assert len(originals(site.identity_folder)) == 2
    assert Arrivals(site, clock=lambda: now + 86400).work(all_quiet=True) == {}
    assert len(originals(site.identity_folder)) == 2
    Arrivals(site, clock=lambda: now + 2 * 86400 + 1).work(all_quiet=True)
    assert originals(site.identity_folder) == []


def test_a_study_at_rest_is_looked_at_again_when_its_time_has_come_or_when_something_comes(tmp_path: Path) -> None:
    site = a_site(tmp_path / "site", keep_originals_days=1.0)
    push(site, write_images(tmp_path / "images", 2))
    now = [time.time() + 100]
    work = Arrivals(site, clock=lambda: now[0])
    assert work.work()["cleaned"] == 2
    push(site, write_images(tmp_path / "images", 3))
    assert work.work()["cleaned"] == 1
    assert len(originals(site.identity_folder)) == 3
    now[0] += 86401
    assert work.work() == {}
    assert originals(site.identity_folder) == []


class Killed(BaseException):
    """As a kill: nothing catches it."""


STEPS: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "before the copy": lambda patch: (arrivals_module, "deidentify_file"),
    "after the copy": lambda patch: (Arrivals, "_note_pending"),
    "before the line": lambda patch: (arrivals_module, "mark_done"),
    "before the patient is let in": lambda patch: (letting_in, "admit_folder"),
    "before an original goes": lambda patch: (Arrivals, "_remove_old"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_loses_nothing_and_doubles_nothing(
    site: Site, archive: Path, tmp_path: Path, monkeypatch: Any, step: str
) -> None:
    def contents(of: Site) -> dict[str, bytes]:
        folders = (of.folder / "clean", of.cohort_folder / "cases")
        return {p.relative_to(of.folder).as_posix(): p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file()}

    for series in ("cine_es", "lge"):  # one series is enough
        shutil.rmtree(next(archive.rglob(series)))
    next(archive.rglob("cine_es-mask.dcm")).unlink()
    undisturbed = a_site(tmp_path / "undisturbed")
    push(undisturbed, archive)
    Arrivals(undisturbed).work(all_quiet=True)
    push(site, archive)
    where, name = STEPS[step](monkeypatch)
    real, calls = getattr(where, name), 0

    def die(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (1 if name in ("admit_folder", "_remove_old") else 4):
            raise Killed
        return real(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, die)
        with pytest.raises(Killed):
            Arrivals(site).work(all_quiet=True)
    Arrivals(site).work(all_quiet=True)
    assert contents(site) == contents(undisturbed)
    assert (quarantined(site), originals(site.identity_folder)) == ([], [])
    assert list((site.identity_folder / "pending").iterdir()) == []


def test_one_patients_failure_does_not_stop_the_others(site: Site, archive: Path, monkeypatch: Any) -> None:
    write_patient(a_case("patient-2", seed=2), archive)
    push(site, archive)
    real = admit_folder

    def fail_once(folder: Path, *args: Any, **settings: Any) -> Any:
        if folder.name == sorted(path.name for path in folder.parent.glob("P*"))[0]:
            raise RuntimeError("a bug")
        return real(folder, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(letting_in, "admit_folder", fail_once)
        counts = Arrivals(site).work(all_quiet=True)
    assert (counts["admitted"], counts["failed"]) == (1, 1)
    assert Arrivals(site).work(all_quiet=True)["admitted"] == 1  # and is tried again


def test_a_file_damaged_on_the_disk_is_put_aside_and_may_come_again(site: Site, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    push(site, images)
    file = originals(site.identity_folder)[0]
    file.write_bytes(file.read_bytes()[:-100])
    counts = Arrivals(site).work(all_quiet=True)
    assert (counts["cleaned"], counts["quarantined"], quarantined(site)) == (1, 1, [DAMAGED])
    push(site, images)
    assert Arrivals(site).work(all_quiet=True)["cleaned"] == 1


@pytest.mark.parametrize("garbage", [b"", b"\0" * 1000, bytes(range(256)) * 20])
def test_garbage_under_a_dicom_header_ends_in_the_quarantine(site: Site, garbage: bytes) -> None:
    incoming = Incoming(site.identity_folder, clean=site.folder / "clean")
    whole = image()
    path = site.folder / "one.dcm"
    whole.save_as(path, enforce_file_format=True)
    start, syntax = split(path.read_bytes())
    incoming.keep(path.read_bytes()[:start], garbage, transfer_syntax=syntax, instance="1.2.3")
    counts = Arrivals(site).work(all_quiet=True)
    assert (counts["quarantined"], len(quarantined(site)), originals(site.identity_folder)) == (1, 1, [])


def test_a_file_that_ends_the_process_twice_is_put_aside(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    push(site, write_images(tmp_path / "images", 2))
    deadly = originals(site.identity_folder)[0].name
    real = arrivals_module.deidentify_file

    def crash(source: Path, *args: Any, **settings: Any) -> Any:
        return os._exit(139) if source.name == deadly else real(source, *args, **settings)

    monkeypatch.setattr(arrivals_module, "deidentify_file", crash)
    for _ in range(2):
        child = os.fork()
        if child == 0:
            Arrivals(site).work(all_quiet=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 139
    counts = Arrivals(site).work(all_quiet=True)
    assert (counts["quarantined"], counts["cleaned"], quarantined(site)) == (1, 1, [DEADLY])


def test_images_of_a_patient_who_has_withdrawn_are_removed_and_nothing_is_kept(site: Site, archive: Path, case: Any) -> None:
    push(site, archive)
    Arrivals(site).work(all_quiet=True)
    (patient,) = Cohort(site.cohort_folder).patients
    Cohort(site.cohort_folder).withdraw(patient)
    shutil.rmtree(site.folder / "clean" / patient)
    push(site, archive)
    counts = Arrivals(site).work(all_quiet=True)
    assert (counts["withdrawn"], counts["cleaned"], counts["admitted"]) == (20, 0, 0)
    assert (originals(site.identity_folder), list((site.folder / "clean").glob("P*"))) == ([], [])


def test_an_image_that_comes_while_its_study_is_worked_off_is_not_forgotten(
    site: Site, tmp_path: Path, monkeypatch: Any
) -> None:
    push(site, write_images(tmp_path / "first", 1))
    now = [time.time() + 100]
    work, real = Arrivals(site, clock=lambda: now[0]), arrivals_module.deidentify_file

    def meanwhile(*args: Any, **settings: Any) -> Any:
        became = real(*args, **settings)
        push(site, write_images(tmp_path / "both", 2))
        return became

    with monkeypatch.context() as patch:
        patch.setattr(arrivals_module, "deidentify_file", meanwhile)
        assert work.work()["cleaned"] == 1
    now[0] += 3600
    assert work.work()["cleaned"] == 1
    assert originals(site.identity_folder) == []


def test_what_failed_is_tried_again_also_when_the_clock_was_set_back(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*args: Any, **settings: Any) -> Any:
        raise OSError("the disk is full")

    monkeypatch.setattr(arrivals_module, "RETRY_S", 0.3)
    monkeypatch.setattr(letting_in, "RETRY_S", 0.3)
    push(site, write_images(tmp_path / "images", 1))
    now = [time.time() + 100]
    work = Arrivals(site, clock=lambda: now[0])
    with monkeypatch.context() as patch:
        patch.setattr(arrivals_module, "deidentify_file", full)
        assert work.work()["failed"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(letting_in, "admit_folder", full)
        time.sleep(0.35)
        now[0] -= 30 * 86400
        assert work.work(all_quiet=True)["cleaned"] == 1
        now[0] -= 30 * 86400
    time.sleep(0.35)
    counts = work.work()
    assert counts["admitted"] + counts["refused"] == 1


def test_a_file_that_failed_rests_until_it_is_tried_again(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*args: Any, **settings: Any) -> Any:
        raise OSError("the disk is full")

    push(site, write_images(tmp_path / "images", 1))
    time.sleep(0.1)
    work = Arrivals(site, clock=lambda: time.time() + 100)
    monkeypatch.setattr(arrivals_module, "deidentify_file", full)
    assert [work.work()["failed"] for _ in range(3)] == [1, 0, 0]


def test_a_damaged_list_stops_neither_its_own_study_nor_others(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    push(site, write_images(tmp_path / "one", 2))
    Arrivals(site).work(all_quiet=True)
    (study,) = Incoming(site.identity_folder, clean=site.folder / "clean").studies()
    damaged = bytearray((study / "done.jsonl").read_bytes())
    damaged[5] = 0xFF  # a byte that no text has
    (study / "done.jsonl").write_bytes(bytes(damaged) + b"5\n[]\n{}\n")
    (site.identity_folder / "quarantine" / "quarantine.jsonl").write_bytes(b"\xff\n5\n")
    (study.parent / "lost+found").mkdir()
    push(site, write_images(tmp_path / "two", 3))
    assert Arrivals(site).work(all_quiet=True)["cleaned"] == 2  # the one whose line is gone, and the new one


def test_one_studys_failure_does_not_stop_the_others(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    push(site, write_images(tmp_path / "one", 1))
    push(site, write_images(tmp_path / "two", 1, StudyInstanceUID="1.2.3.4", SOPInstanceUID="1.2.3.5"))
    work = Arrivals(site)
    first, real = work.incoming.studies()[0], Arrivals._to_do
    monkeypatch.setattr(Arrivals, "_to_do", lambda self, study: 1 / 0 if study == first else real(self, study))
    counts = work.work(all_quiet=True)
    assert (counts["failed"], counts["cleaned"]) == (1, 1)


def quarantined_files(site: Site) -> list[Path]:
    return list((site.identity_folder / "quarantine").glob("*.dcm"))


@pytest.mark.parametrize("elements", [{"RetrieveAETitle": "PACS2"}, {"ReferringPhysicianName": "Brunnthaler^Bertrand"}])
def test_an_image_that_comes_again_with_other_words_that_do_not_pass_is_the_same_image(
    site: Site, tmp_path: Path, elements: dict[str, str]
) -> None:
    push(site, write_images(tmp_path / "first", 1, **dict.fromkeys(elements, "Anders")))
    push(site, write_images(tmp_path / "again", 1, **elements))
    assert Arrivals(site).work(all_quiet=True)["cleaned"] == 2
    assert len(list((site.folder / "clean").rglob("*.dcm"))) == 1
    assert (quarantined_files(site), originals(site.identity_folder)) == ([], [])


def test_an_image_that_comes_again_in_another_transfer_syntax_is_the_same_image(site: Site, tmp_path: Path) -> None:
    push(site, write_images(tmp_path / "first", 1))
    Arrivals(site).work(all_quiet=True)
    (copy,) = (site.folder / "clean").rglob("*.dcm")
    before, implicit = copy.read_bytes(), image(1)
    implicit.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    (tmp_path / "again").mkdir()
    implicit.save_as(tmp_path / "again" / "1.dcm", enforce_file_format=True)
    push(site, tmp_path / "again")
    assert Arrivals(site).work(all_quiet=True)["cleaned"] == 1
    assert (copy.read_bytes(), quarantined_files(site)) == (before, [])


@pytest.mark.parametrize("worked_off_between", [False, True])
def test_of_two_images_with_one_uid_the_first_that_came_counts(site: Site, tmp_path: Path, worked_off_between: bool) -> None:
    for sizes in ((16, 20), (20, 16)):  # whatever their digests are
        push(site, write_images(tmp_path / f"{sizes[0]} first", 1, size=sizes[0], StudyInstanceUID=f"1.2.{sizes[0]}"))
        time.sleep(0.02)  # the kernel's clock for files ticks
        if worked_off_between:
            Arrivals(site).work(all_quiet=True)
        push(site, write_images(tmp_path / f"{sizes[0]} then", 1, size=sizes[1], StudyInstanceUID=f"1.2.{sizes[0]}"))
    Arrivals(site).work(all_quiet=True)
    assert len(quarantined_files(site)) == 2
    assert sorted(pydicom.dcmread(path).Rows for path in (site.folder / "clean").rglob("*.dcm")) == [16, 20]
    aside = {str(pydicom.dcmread(path).StudyInstanceUID): pydicom.dcmread(path).Rows for path in quarantined_files(site)}
    assert aside == {"1.2.16": 20, "1.2.20": 16}


def test_of_a_patient_who_has_withdrawn_other_bytes_under_a_known_uid_are_not_kept_either(site: Site, tmp_path: Path) -> None:
    withdraw(site, "MRN-0815", who="Dr. Alpha")
    push(site, write_images(tmp_path / "first", 1))
    push(site, write_images(tmp_path / "other", 1, size=20))
    assert Arrivals(site).work(all_quiet=True)["withdrawn"] == 2
    assert (quarantined_files(site), quarantined(site), originals(site.identity_folder)) == ([], [], [])


def test_whoever_withdraws_goes_from_the_quarantine_and_from_the_lists_of_studies(site: Site, tmp_path: Path) -> None:
    push(site, write_images(tmp_path / "first", 2))
    push(site, write_images(tmp_path / "other", 1, size=20))
    push(site, write_images(tmp_path / "somebody", 1, PatientID="MRN-0816", SOPInstanceUID="1.2.3.5"))
    Arrivals(site).work(all_quiet=True)
    assert len(quarantined_files(site)) == 1
    gone = withdraw(site, "MRN-0815", who="Dr. Alpha")
    (others,) = (path.name for path in (site.folder / "clean").glob("P*"))
    files = [path for path in site.folder.rglob("*") if path.is_file()]
    assert [p.name for p in files if gone.pseudonym.encode() in p.read_bytes()] == ["withdrawn"]
    assert {p.name for p in files if others.encode() in p.read_bytes()} >= {"done.jsonl", "map.sqlite"}
    assert quarantined_files(site) == []


def test_what_was_put_aside_is_judged_again_when_somebody_lets_it(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    site = a_site(tmp_path / "site")
    site.save(site.folder / "site.yaml")
    command = ["--site", str(site.folder / "site.yaml"), "quarantine"]
    push(site, write_images(tmp_path / "heads", 2, BodyPartExamined="BRAIN"))
    assert Arrivals(site).work(all_quiet=True)["quarantined"] == 2
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 files in" in said
    assert "Abendroth" not in said
    files = sorted(path.name for path in quarantined_files(site))
    assert main([*command, "release"]) == 1  # which?
    assert main([*command, "drop", files[0]]) == 0
    assert [path.name for path in quarantined_files(site)] == files[1:]
    assert main([*command, "release", "--reason", "head"]) == 0
    assert (quarantined_files(site), quarantined(site)) == ([], [])
    assert Arrivals(site).work(all_quiet=True)["quarantined"] == 1  # by the same settings
    assert main([*command, "release", files[1][:48]]) == 0
    faces = a_site(site.folder, accept_faces=True)
    assert Arrivals(faces).work(all_quiet=True)["cleaned"] == 1
    decided = [line for line in AuditLog(site.folder / "audit.jsonl").lines if line["happening"] == "quarantine"]
    assert [line["decision"] for line in decided] == ["drop", "release", "release"]
    push(faces, tmp_path / "heads")  # the dropped one comes again
    assert Arrivals(faces).work(all_quiet=True)["cleaned"] == 1


def test_damaged_bytes_are_not_released_and_names_from_elsewhere_are_refused(site: Site, tmp_path: Path) -> None:
    push(site, write_images(tmp_path / "images", 1))
    file = originals(site.identity_folder)[0]
    file.write_bytes(file.read_bytes()[:-100])
    Arrivals(site).work(all_quiet=True)
    incoming = Incoming(site.identity_folder, clean=site.folder / "clean")
    (aside,) = quarantined_files(site)
    for name in (aside.name, "../map.sqlite", "", f"{'0' * 32}-{'0' * 32}.dcm"):
        with pytest.raises(ValueError, match="is no original"):
            incoming.again(name)
    with pytest.raises(ValueError, match="no file of the quarantine"):
        incoming.quarantine.drop("../map.sqlite")
    incoming.quarantine.drop(aside.name)
    assert (quarantined_files(site), quarantined(site)) == ([], [])


def test_a_process_that_we_end_does_not_put_its_file_aside(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    push(site, write_images(tmp_path / "images", 1))
    incoming = Incoming(site.identity_folder, clean=site.folder / "clean")
    monkeypatch.setattr(at_the_door, "STOP_S", 0.2)
    deaf = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    for _ in range(3):
        incoming.at_work.write_text(json.dumps({"file": originals(site.identity_folder)[0].name, "times": 1}))
        worker = _Worker([sys.executable, "-c", deaf], incoming.at_work, notes=incoming.folder.parent / "run")
        worker.look()
        time.sleep(0.3)
        worker.stop()
        assert not incoming.at_work.exists()
    assert Arrivals(site).work(all_quiet=True)["cleaned"] == 1


def test_a_study_that_still_arrives_is_not_listed(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    push(site, write_images(tmp_path / "images", 2))
    listed: list[Path] = []
    real = arrivals_module.originals
    monkeypatch.setattr(arrivals_module, "originals", lambda study: listed.append(study) or real(study))
    assert Arrivals(site).work() == {}
    assert listed == []
    assert Arrivals(site).work(all_quiet=True)["cleaned"] == 2


def test_a_large_file_is_worked_off_with_one_copy_of_it_in_memory(site: Site, tmp_path: Path) -> None:
    mebibytes = 64
    frames = mebibytes * 2  # of 512 x 512 pixels of two bytes
    several = {"NumberOfFrames": frames, "Rows": 512, "Columns": 512, "PixelData": bytes(frames * 512 * 512 * 2)}
    push(site, write_images(tmp_path / "images", 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", **several))
    site.save(site.folder / "site.yaml")
    measure = (
        "import resource, sys; from pathlib import Path; from fl_client.site import Site\n"
        "from fl_client.intake.arrivals import Arrivals; work = Arrivals(Site.load(Path(sys.argv[1])))\n"
        "peak = lambda: int(next(s for s in open('/proc/self/status') if s.startswith('VmHWM')).split()[1]) // 1024\n"
        "before = peak(); assert work.work(all_quiet=True)['cleaned'] == 1; print(peak() - before)\n"
    )
    command = [sys.executable, "-c", measure, str(site.folder / "site.yaml")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert grown < 1.5 * mebibytes


def test_a_stack_whose_end_slice_may_not_pass_is_not_let_in_shorter(
    site: Site, archive: Path, edit: Any, monkeypatch: Any
) -> None:
    for series in ("cine_ed", "cine_es"):
        shutil.rmtree(next(archive.rglob(series)))
        next(archive.rglob(f"{series}-mask.dcm")).unlink()
    slices = sorted(next(archive.rglob("lge")).glob("*.dcm"), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    edit(slices[-1], lambda header: setattr(header, "BurnedInAnnotation", "YES"))
    push(site, archive)
    counts = Arrivals(site).work(all_quiet=True)
    assert (counts["quarantined"], counts["admitted"], counts["refused"]) == (1, 0, 1)
    (refused,) = Cohort(site.cohort_folder).refused
    assert "in the quarantine" in refused["reason"]
    settings = site.folder / "site.yaml"
    site.save(settings)
    (aside,) = quarantined_files(site)
    assert main(["--site", str(settings), "quarantine", "drop", aside.name]) == 0  # somebody says that it may be shorter
    assert Arrivals(site).work(all_quiet=True)["admitted"] == 1


def test_a_stack_is_let_in_once_its_corrected_slice_has_come(site: Site, archive: Path, edit: Any) -> None:
    for series in ("cine_ed", "cine_es"):
        shutil.rmtree(next(archive.rglob(series)))
        next(archive.rglob(f"{series}-mask.dcm")).unlink()
    slices = sorted(next(archive.rglob("lge")).glob("*.dcm"))
    edit(slices[-1], lambda header: setattr(header, "BurnedInAnnotation", "YES"))
    push(site, archive)
    assert Arrivals(site).work(all_quiet=True)["refused"] == 1
    edit(slices[-1], lambda header: setattr(header, "BurnedInAnnotation", "NO"))
    push(site, archive)
    assert Arrivals(site).work(all_quiet=True)["admitted"] == 1


def test_only_one_process_works_off_what_arrives(site: Site) -> None:
    with Arrivals(site).alone(), pytest.raises(InUse, match="by another process already"), Arrivals(site).alone():
        pass


# -- the watch folder ----------------------------------------------------------------------------------------------------


def test_a_watched_folder_gives_what_the_door_gives_and_stays_as_it_is(
    tmp_path: Path, archive: Path, labels: LabelMap, capsys: Any
) -> None:
    site = a_site(tmp_path / "site", watch=archive)
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*")}
    assert once(site) == 0
    assert {path: path.stat().st_mtime_ns for path in archive.rglob("*")} == before
    said = capsys.readouterr().out
    assert "1 admitted" in said
    assert "20 stored" in said
    (archive / "endpoints.csv").unlink()
    direct = Cohort(site.folder / "direct")
    admit_folder(archive, direct, key=KEY, labels=labels)
    assert equal_cases(Cohort(site.cohort_folder), direct)
    assert once(site) == 0
    assert "nothing new" in capsys.readouterr().out


def test_a_file_is_taken_once_it_has_stopped_growing(tmp_path: Path, site: Site) -> None:
    folder = write_images(tmp_path / "watched", 1)
    incoming = Incoming(site.identity_folder, clean=site.folder / "clean")
    watch = WatchFolder(folder, incoming, quiet_s=0.3)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:400])
    assert watch.look() == {}
    time.sleep(0.2)
    file.write_bytes(whole)
    assert watch.look() == {}
    time.sleep(0.2)
    assert watch.look() == {}  # it grew 0.2 s ago
    time.sleep(0.2)
    assert watch.look() == {"stored": 1}
    assert watch.look() == {}
    assert WatchFolder(folder, incoming, quiet_s=0.0).look() == {}  # a new process remembers
    image(7).save_as(file, enforce_file_format=True)
    assert WatchFolder(folder, incoming, quiet_s=0.0).look() == {"stored": 1}


def test_what_is_no_dicom_file_is_told_and_left_where_it_is_and_links_are_not_followed(tmp_path: Path, site: Site) -> None:
    folder = write_images(tmp_path / "watched", 1)
    (folder / "Abendroth^Annelore.txt").write_text("a letter about Annelore Abendroth")
    (tmp_path / "outside.dcm").write_bytes(next(folder.glob("*.dcm")).read_bytes())
    (folder / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    (folder / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    incoming = Incoming(site.identity_folder, clean=site.folder / "clean")
    assert WatchFolder(folder, incoming, quiet_s=0.0).look() == {"stored": 1, "not DICOM": 1}
    (line,) = incoming.quarantine.lines()
    assert "no DICOM file" in line["reason"]
    assert "Abendroth" not in json.dumps(line)


def test_a_file_that_can_not_be_read_is_told_once_a_minute(tmp_path: Path, site: Site, caplog: Any, monkeypatch: Any) -> None:
    def closed(path: Path, *rest: Any) -> int:
        raise PermissionError(13, "no")

    folder = write_images(tmp_path / "watched", 5)
    watch = WatchFolder(folder, Incoming(site.identity_folder, clean=site.folder / "clean"), quiet_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr("fl_client.intake.watch.os.open", closed)
        assert [watch.look() for _ in range(3)] == [{"failed": 5}] * 3
    assert len(caplog.records) == 1


def test_a_full_disk_lets_the_watch_folder_wait(tmp_path: Path, site: Site, caplog: Any) -> None:
    folder = write_images(tmp_path / "watched", 3)
    full = Incoming(site.identity_folder, clean=site.folder / "clean", min_free_bytes=2**60)
    assert WatchFolder(folder, full, quiet_s=0.0).look() == {"no room": 1}
    free = Incoming(site.identity_folder, clean=site.folder / "clean")
    assert WatchFolder(folder, free, quiet_s=0.0).look() == {"stored": 3}


# -- the command ---------------------------------------------------------------------------------------------------------


@needs("storescu")
def test_the_command_receives_a_patient_over_the_network_and_lets_him_in(
    tmp_path: Path, archive: Path, labels: LabelMap
) -> None:
    (archive / "endpoints.csv").unlink()
    site = a_site(tmp_path / "site", quiet_s=1.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site = site.model_copy(
        update={
            "dicom": Site.model_validate(
                {**site.model_dump(), "dicom": {"port": port, "peers": [{"ae_title": "PACS", "address": "127.0.0.1"}]}}
            ).dicom
        }
    )
    settings = site.folder / "site.yaml"
    site.save(settings)
    command = [sys.executable, "-m", "fl_client", "--site", str(settings), "intake"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert running.stderr is not None
    with running.stderr:
        try:
            assert f"KONSIL listens on 127.0.0.1:{port}" in running.stderr.readline()
            assert answers(storescu(port, archive)) == 20
            until = time.monotonic() + 60
            while not Cohort(site.cohort_folder).patients and time.monotonic() < until:
                time.sleep(0.2)
        finally:
            running.send_signal(signal.SIGTERM)
            said = running.stderr.read()
    assert running.wait(30) == 0
    direct = Cohort(site.folder / "direct")
    admit_folder(archive, direct, key=KEY, labels=labels)
    assert equal_cases(Cohort(site.cohort_folder), direct)
    assert "received 20 images" in said
    assert "1 studies, 20 cleaned, 1 admitted" in said
    assert not any(path.name in said for path in archive.rglob("*.dcm"))
    assert len(done(next((site.identity_folder / "incoming").glob("[0-9a-f]*")))) == 20


def test_a_site_without_any_way_in_is_told_so(site: Site) -> None:
    from fl_client.intake.at_the_door import open_door

    with pytest.raises(ValueError, match="no way in"):
        open_door(site, site.folder / "site.yaml")
