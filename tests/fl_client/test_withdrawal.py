"""A patient withdraws: in no round from then on, not let in again, and gone from every file of the house."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from node_in_process import Node
from table_hospitals import PERCEPTRON, fill, row

from fl_client import cohort as cohorts
from fl_client.__main__ import main
from fl_client.audit import AuditLog
from fl_client.catalog import Catalog
from fl_client.cohort import Cohort, Withdrawn
from fl_client.intake.clean import deidentify_file
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.quarantine import Quarantine
from fl_client.intake.way_back import WayBack
from fl_client.loopback import Loopback
from fl_client.patients import note
from fl_client.site import Budget, Site
from fl_client.supernode import runtime_folder
from fl_client.withdrawal import pseudonym_of
from fl_client.worker import Worker
from fl_server.weights import initial_state
from simulation.dicom import Identity, write_patient
from simulation.grid import InProcessGrid
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


# -- in every later round ----------------------------------------------------------------------------------------------

LEAVER = "P0123456789ABCDEF"
TRAINING = {"views": 1, "steps": 3, "sample_rate": 0.9}
"""Who is drawn and what noise is added are the same wherever name, question and seed are; one in a thousand is never drawn."""


@pytest.fixture(params=["segmentation", "table"])
def study(request, hospitals):
    """Of images, or of a table."""
    own = {} if request.param == "segmentation" else {"task": PERCEPTRON}
    return hospitals.study(training=TRAINING, sites=("a",), **own)


@pytest.fixture
def three(new_hospitals, hospitals, study, one_thread):
    """Three times the same hospital: the leaver was never in the first, and is in the others."""
    stranger = next(iter(Cohort(hospitals.site("b").cohort_folder)))
    made = {}
    for name in ("never", "leaves", "stays"):
        made[name] = new_hospitals(name)
        table = study.task["name"] == "radiomics"
        site = made[name].add("a", patients=0 if table else 3, budget=Budget(epsilon=10.0, delta=1e-3))
        if table:
            fill(site, 3)
        if name != "never":
            Cohort(site.cohort_folder).admit(row(LEAVER, 7) if table else replace(stranger, patient=LEAVER))
    return made


def message_of(study, number, weights):
    config = ConfigRecord({"study-hash": study.hash, "server-round": number})
    return RecordDict({"arrays": ArrayRecord(dict(weights)), "config": config})


def arrays_of(reply):
    assert not reply.has_error(), reply.error
    return {name: array.numpy() for name, array in reply.content["arrays"].items()}


def update(hospital, study, number, weights):
    """The arrays that this hospital releases in this round."""
    grid = InProcessGrid("fl_client.app:app", hospital.nodes, {"study": study.to_json()})
    (reply,) = grid.send_and_receive([Message(message_of(study, number, weights), grid.get_node_ids()[0], "train")])
    return arrays_of(reply)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def after(study, arrays):
    """What a coordinator sends in the next round."""
    return initial_state(study) | {name: torch.from_numpy(array) for name, array in arrays.items()}


def patients_of_rounds(site):
    lines = map(json.loads, (site.folder / "log" / "training.jsonl").read_text().splitlines())
    return {line["round"]: line["patients"] for line in lines if "round" in line}


def test_the_round_after_is_that_of_a_hospital_that_never_had_the_patient(three, study):
    first = {name: update(hospital, study, 1, initial_state(study)) for name, hospital in three.items()}
    assert same(first["leaves"], first["stays"])
    assert not same(first["leaves"], first["never"])  # the patient was trained on, and it can be seen
    site = three["leaves"].site("a")
    note(site, patient=LEAVER, left_out="once")
    held = {path.split("/")[1] for path in traces(site, LEAVER) if path.startswith("cohort")}
    assert held == {"cases", "prepared"}

    assert main(["--site", str(three["leaves"].sites["a"]), "withdraw", LEAVER]) == 0
    weights = after(study, first["leaves"])
    second = {name: update(hospital, study, 2, weights) for name, hospital in three.items()}
    assert same(second["leaves"], second["never"])
    assert not same(second["stays"], second["never"])
    assert traces(site, LEAVER) == ["cohort/withdrawn"]
    assert patients_of_rounds(site) == {1: 4, 2: 3}


@pytest.mark.parametrize("study", ["table"], indirect=True)
def test_a_worker_that_has_the_patient_in_memory_leaves_them_out_of_the_next_round(three, study):
    hospital, never = three["leaves"], three["never"]
    site, path = hospital.site("a"), hospital.sites["a"]
    with Node(Loopback.make(runtime_folder(site))) as node:
        worker = Worker(path)

        def answered(number, weights):
            node.ask(message_of(study, number, weights), "train", study=study.to_json())
            end = time.monotonic() + 20
            while not (token := worker._acquire()):
                assert time.monotonic() < end, "no message came"
                time.sleep(0.02)
            worker.answer(token)
            return arrays_of(node.answer())

        first = answered(1, initial_state(study))
        assert not same(first, update(never, study, 1, initial_state(study)))
        (place,) = (site.cohort_folder / "prepared").glob(f"*/{LEAVER}.*")
        assert main(["--site", str(path), "withdraw", LEAVER]) == 0
        assert not place.exists()
        assert cohorts._small(place)  # the worker still has it
        weights = after(study, first)
        assert same(answered(2, weights), update(never, study, 2, weights))
        worker.close()
    assert traces(site, LEAVER) == ["cohort/withdrawn"]
    assert patients_of_rounds(site) == {1: 4, 2: 3}
