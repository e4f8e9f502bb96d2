"""A patient withdraws: in no round from then on, not let in again, and gone from every file of the house."""

import shutil

import pytest

from fl_client.__main__ import main
from fl_client.audit import AuditLog
from fl_client.catalog import Catalog
from fl_client.cohort import Cohort, Withdrawn
from fl_client.intake.clean import deidentify_file
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.quarantine import Quarantine
from fl_client.intake.way_back import WayBack
from fl_client.patients import note
from fl_client.site import Site
from fl_client.withdrawal import pseudonym_of
from simulation.dicom import Identity, write_patient
from tasks.task import load

NUMBER, OTHER = (Identity.invent(name).patient_id for name in ("p0-0", "p0-1"))


@pytest.fixture
def clinic(tmp_path, hospitals):
    """A hospital that got two patients as DICOM: originals kept, clean files, cases, prepared arrays, a catalog, logs."""
    path = tmp_path / "clinic" / "site.yaml"
    assert main(["--site", str(path), "init", "--name", "clinic", "--declared-size", "5"]) == 0
    site = Site.load(path)
    deidentify, way_back = Deidentifier(site.key_file.read_bytes()), WayBack(site.identity_folder / "map.sqlite")
    quarantine = Quarantine(site.identity_folder / "quarantine")
    cohort = Cohort(site.cohort_folder)
    task = load(hospitals.study().task)
    for case in list(Cohort(hospitals.site("a").cohort_folder))[:2]:
        folder = site.identity_folder / "incoming" / case.patient
        whole = [v.__class__(v.series, v.image.astype("int16"), v.affine, v.mask) for v in case.volumes]
        write_patient(case.__class__(case.patient, tuple(whole), case.endpoints, case.scanner), folder)
        (folder / "endpoints.csv").unlink()
        for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
            file.rename(folder / f"{number}.dcm")
        shutil.rmtree(folder / Identity.invent(case.patient).patient_id)
        for file in folder.rglob("*.dcm"):
            deidentify_file(file, site.folder / "clean", deidentify=deidentify, way_back=way_back)
        pseudonym = deidentify.pseudonym(Identity.invent(case.patient).patient_id)
        shutil.copy(next(folder.rglob("*.dcm")), quarantine.folder / f"{case.patient}-copy.dcm")
        quarantine.note(f"{case.patient}-copy.dcm", "a copy", pseudonym=pseudonym)
        cohort.admit(case.__class__(pseudonym, case.volumes, case.endpoints, case.scanner))
        cohort.prepared(task, pseudonym)
        (site.cohort_folder / "quality").mkdir(exist_ok=True)
        (site.cohort_folder / "quality" / f"{pseudonym}.json").write_text("{}")
        cohort.refuse(f"{pseudonym}-series", "a series that nobody asks for")
        note(site, patient=pseudonym, left_out="once")
    Catalog.of(site).refresh(cohort, test_fraction=0.0)
    return path


def traces(site, *words):
    """Files of the house that hold one of the words in their name or in their bytes."""
    found = []
    for path in site.folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if any(word in str(path.relative_to(site.folder)) or word.encode() in data for word in words):
            found.append(str(path.relative_to(site.folder)))
    return sorted(found)


def bytes_of(site, path):
    return (site.folder / path).read_bytes() if (site.folder / path).is_file() else b"a folder"


def test_nothing_of_the_patient_is_left_but_the_line_that_keeps_them_out(clinic, capsys):
    site = Site.load(clinic)
    pseudonym = pseudonym_of(site, NUMBER)
    before = traces(site, pseudonym, NUMBER)
    assert {path.split("/")[0] for path in before} == {"catalog.sqlite", "clean", "cohort", "identity", "log"}
    assert main(["--site", str(clinic), "withdraw", NUMBER, "--who", "Dr. Alpha"]) == 0
    said = capsys.readouterr().out
    assert f"{pseudonym} takes part in nothing any more" in said
    assert "no trained model is unlearned" in said
    assert traces(site, pseudonym, NUMBER) == ["cohort/withdrawn"]
    assert (site.cohort_folder / "withdrawn").read_text() == f"{pseudonym}\n"


def test_the_other_patient_is_left_alone(clinic):
    site = Site.load(clinic)
    other = pseudonym_of(site, OTHER)
    lists = {"catalog.sqlite", "cohort/refused.jsonl", "log/training.jsonl"}
    lists |= {"identity/map.sqlite", "identity/quarantine/quarantine.jsonl"}
    wal = ("identity/map.sqlite-wal", "identity/map.sqlite-shm")  # empty once the database has been tidied
    before = {path: bytes_of(site, path) for path in traces(site, other, OTHER) if path not in wal}
    main(["--site", str(clinic), "withdraw", NUMBER])
    assert {path for path, data in before.items() if bytes_of(site, path) != data} <= lists
    assert set(traces(site, other, OTHER)) >= before.keys()
    assert Cohort(site.cohort_folder).patients == (other,)
    assert WayBack(site.identity_folder / "map.sqlite").person(other).patient_id == OTHER


def test_who_has_withdrawn_is_in_no_list_and_is_not_let_in_again(clinic):
    site = Site.load(clinic)
    cohort, pseudonym = Cohort(site.cohort_folder), pseudonym_of(site, NUMBER)
    case = cohort.case(pseudonym)
    case = case.__class__(pseudonym, tuple(v.__class__(v.series, v.image.copy(), v.affine, None) for v in case.volumes), {}, {})
    main(["--site", str(clinic), "withdraw", pseudonym])
    assert pseudonym not in cohort.split("train", test_fraction=0.0)
    with pytest.raises(KeyError, match="has withdrawn"):
        cohort.case(pseudonym)
    with pytest.raises(Withdrawn, match="is not let in again"):
        cohort.admit(case)


def test_a_folder_that_a_kill_left_behind_is_not_served_and_goes_the_next_time(clinic):
    """The list is on the disk before anything is removed."""
    site = Site.load(clinic)
    cohort, pseudonym = Cohort(site.cohort_folder), pseudonym_of(site, NUMBER)
    shutil.copytree(cohort.folder / "cases" / pseudonym, site.folder / "copy")
    main(["--site", str(clinic), "withdraw", pseudonym])
    (site.folder / "copy").rename(cohort.folder / "cases" / pseudonym)
    assert pseudonym not in cohort.patients
    assert main(["--site", str(clinic), "withdraw", pseudonym]) == 0
    assert not (cohort.folder / "cases" / pseudonym).exists()


def test_the_audit_log_tells_that_somebody_withdrew_and_not_who(clinic):
    site = Site.load(clinic)
    main(["--site", str(clinic), "withdraw", NUMBER, "--who", "Dr. Alpha"])
    (line,) = AuditLog(site.folder / "audit.jsonl").lines
    assert (line["happening"], line["who"]) == ("withdrawn", "Dr. Alpha")
    assert pseudonym_of(site, NUMBER) not in (site.folder / "audit.jsonl").read_text()


def test_somebody_who_was_never_here_is_kept_out_from_now_on(clinic, capsys):
    assert main(["--site", str(clinic), "withdraw", "nobody-7"]) == 0
    assert "nothing of this patient was in the cohort, and nothing will be let in" in capsys.readouterr().out
    assert len(Cohort(Site.load(clinic).cohort_folder).withdrawn) == 1


def test_what_a_kill_left_in_the_middle_of_preparing_or_removing_goes_as_well(clinic):
    site = Site.load(clinic)
    pseudonym = pseudonym_of(site, NUMBER)
    for left in (
        site.folder / "clean" / f".{pseudonym}.0a.part" / "1",
        site.cohort_folder / "prepared" / "hash" / f".{pseudonym}.0b.part",
    ):
        left.mkdir(parents=True)
        (left / "image.npy").write_bytes(b"theirs")
    (site.folder / "log" / "failures.log").write_text(f"a line\nKeyError: {pseudonym}\nanother\n")
    main(["--site", str(clinic), "withdraw", NUMBER])
    assert traces(site, pseudonym, NUMBER, "theirs") == ["cohort/withdrawn"]
    assert (site.folder / "log" / "failures.log").read_text() == "a line\nanother\n"


def test_a_broken_line_about_somebody_outside_stops_nothing(clinic):
    cohort = Cohort(Site.load(clinic).cohort_folder)
    before = len(cohort.refused)
    with open(cohort.folder / "refused.jsonl", "a") as file:
        file.write('{"what": "P0", "rea')
    cohort.refuse("P1", "a half \ud83d of a letter")
    assert [line["what"] for line in cohort.refused[before:]] in ([], ["P1"])
    cohort.refuse("P2", "whole")
    assert cohort.refused[-1]["what"] == "P2"
    assert Catalog.of(Site.load(clinic)).refresh(cohort, test_fraction=0.0)
