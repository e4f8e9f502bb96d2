"""`konsil-site return` from end to end: images come from an archive, masks and a report go back to it. The archive is an
Orthanc where there is one, and else a peer that answers as told; all on loopback, on ports that the system chooses."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import highdicom as hd
import httpx
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt

from conf.study import Study
from fl_client import returning
from fl_client.__main__ import main
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.clean import Cleaned, deidentify_file
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.labels import LabelMap
from fl_client.intake.way_back import WayBack
from fl_client.site import Archive, Peer, Site
from simulation.dicom import Identity, write_patient
from tasks.case import Case, Volume
from tasks.fingerprint import fingerprint
from tasks.task import load
from tasks.uncertainty.calibration import Calibration, Curve

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PATIENTS = ("first", "second")
TASK = {
    **{"name": "segmentation", "voxels": 16, "field_mm": 80, "roi_mm": None, "working_mm": 4, "channels": [4, 8]},
    **{"strides": [2], "groups": 2, "head_channels": 4},
}


def a_case(patient: str) -> Case:
    """Three slices with a disc in a ring, in whole numbers as a scanner stores them."""
    rng, (rows, columns) = np.random.default_rng(len(patient)), np.mgrid[:32, :32]
    radius = np.hypot(rows - 15, columns - 17)
    image = np.where(radius < 5, 200, np.where(radius < 8, 50, 100)) + 10 * rng.normal(size=(3, 32, 32))
    affine = np.diag([8.0, 3.0, 3.0, 1.0])
    return Case(patient, tuple(Volume(series, np.rint(image).astype(np.int16), affine) for series in ("cine_ed", "cine_es")))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scanner made of two patients."""
    folder = tmp_path_factory.mktemp("scanner")
    for patient in PATIENTS:
        write_patient(a_case(patient), folder)
    return folder


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A hospital through whose door the images came."""
    folder = tmp_path_factory.mktemp("founded")
    (folder / "site.yaml").write_text("{name: clinic, declared_size: 5, minimum_cohort: 1}")
    (folder / "pseudonym.key").write_text("a key that nobody else knows")
    (folder / "pseudonym.key").chmod(0o600)
    site = Site.load(folder / "site.yaml")
    way_back = WayBack(site.identity_folder / "map.sqlite")
    deidentify = Deidentifier(site.key_file.read_bytes(), retain=("dates", "descriptors"))
    for path in images.rglob("*.dcm"):
        assert isinstance(deidentify_file(path, site.folder / "clean", deidentify=deidentify, way_back=way_back), Cleaned)
    way_back.close()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose last model finds something of everything."""
    folder = tmp_path_factory.mktemp("finished")
    study = Study(konsil_version=version("konsil"), name="pilot", rounds=1, sites=("clinic",), task=TASK)
    torch.manual_seed(3)
    model = load(study.task).model()
    torch.nn.init.normal_(model.head.weight, std=5.0)
    torch.save(model.state_dict(), folder / "model.pt")
    record = {"schema": "konsil-record/1", "name": "pilot", "study": study.model_dump(mode="json"), "study_hash": study.hash}
    record["rounds"] = [{"round": 1, "arrays_sha256": fingerprint(model.state_dict())}]
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def clinic(founded, tmp_path) -> Path:
    """The settings file of a copy that a test may change."""
    return shutil.copytree(founded, tmp_path / "clinic") / "site.yaml"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def connect(clinic: Path, port: int, *, ours: str = "KONSIL", theirs: str = "PACS") -> None:
    """Name the archive in the hospital's settings."""
    site = Site.load(clinic)
    archive = Archive(peer=Peer(ae_title=theirs, address="127.0.0.1", port=port), ae_title=ours)
    site.model_copy(update={"archive": archive}).save(clinic)


def back(clinic: Path, run: Path, *said: object) -> int:
    return main(["--site", str(clinic), "return", str(run), "--who", "Dr. Alpha", *map(str, said)])


def pseudonym(clinic: Path, patient: str) -> str:
    return Deidentifier(Site.load(clinic).key_file.read_bytes()).pseudonym(Identity.invent(patient).patient_id)


def waiting(clinic: Path) -> list[Path]:
    return sorted((Site.load(clinic).identity_folder / "returned").rglob("*.dcm"))


def marked(clinic: Path) -> int:
    """How many objects the sent lists name."""
    lists = (Site.load(clinic).identity_folder / "returned").rglob("sent.jsonl")
    return sum(len(path.read_text().splitlines()) for path in lists)


def returned_lines(clinic: Path) -> list[dict[str, object]]:
    return [dict(line) for line in AuditLog(Site.load(clinic).folder / "audit.jsonl").lines if line["happening"] == "returned"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], *ports: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for port in ports:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


# -- Orthanc -------------------------------------------------------------------------------------------------------------


class Rest:
    """An Orthanc's own view of what it holds."""

    def __init__(self, url: str, dicom_port: int) -> None:
        self._client, self.dicom_port = httpx.Client(base_url=url, timeout=20, trust_env=False), dicom_port

    def get(self, path: str) -> Any:
        return self._client.get(path).raise_for_status().json()

    def file(self, instance: str) -> bytes:
        return self._client.get(f"/instances/{instance}/file").raise_for_status().content

    def put(self, data: bytes) -> None:
        self._client.post("/instances", content=data).raise_for_status()

    def instances(self) -> dict[str, bytes]:
        """Every file by SOPInstanceUID."""
        found = {name: self.get(f"/instances/{name}")["MainDicomTags"]["SOPInstanceUID"] for name in self.get("/instances")}
        return {uid: self.file(name) for name, uid in found.items()}

    def tags(self, uid: str) -> dict[str, str]:
        """What Orthanc reads in an object's header."""
        (name,) = self._client.post("/tools/lookup", content=uid).raise_for_status().json()
        return self.get(f"/instances/{name['ID']}/simplified-tags")

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def own_network() -> Iterator[None]:
    """A network of this test's own with nothing but loopback in it, where the system allows that: Orthanc 1.10 can't bind its
    DICOM port to one address."""
    libc, before = ctypes.CDLL(None, use_errno=True), os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    new_network, apart = 0x40000000, shutil.which("ip") is not None  # CLONE_NEWNET
    try:
        apart = apart and libc.unshare(new_network) == 0
        if apart:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        if apart:
            libc.setns(before, new_network)
        os.close(before)


@pytest.fixture(scope="module")
def orthanc(own_network, tmp_path_factory, images) -> Iterator[Rest]:
    """An archive that holds the originals and takes what comes from KONSIL at 127.0.0.1, and from nobody else."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed")
    folder, dicom, http = tmp_path_factory.mktemp("orthanc"), free_port(), free_port()
    settings = {
        "Name": "archive", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [],
        "HttpPort": http, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "OverwriteInstances": False,
        "DicomAet": "PACS", "DicomPort": dicom, "DicomCheckCalledAet": True, "DicomCheckModalityHost": True,
        "DicomAlwaysAllowStore": False, "DicomModalities": {"konsil": ["KONSIL", "127.0.0.1", 4242]},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running([str(ORTHANC), str(folder / "orthanc.json")], http, dicom):
        rest = Rest(f"http://127.0.0.1:{http}", dicom)
        for path in sorted(images.rglob("*.dcm")):
            rest.put(path.read_bytes())
        yield rest
        rest.close()


@dataclass(frozen=True)
class Sent:
    """A hospital that has sent its results; what the archive held before, and what it got, by SOPInstanceUID."""

    clinic: Path
    run: Path
    before: dict[str, bytes]
    got: dict[str, pydicom.Dataset]


@pytest.fixture(scope="module")
def sent(founded, finished, orthanc, tmp_path_factory) -> Sent:
    clinic = shutil.copytree(founded, tmp_path_factory.mktemp("sent") / "clinic") / "site.yaml"
    before = orthanc.instances()
    connect(clinic, orthanc.dicom_port)
    assert back(clinic, finished) == 0
    after = orthanc.instances()
    assert {uid: after[uid] for uid in before} == before  # no image was touched
    with discreet():
        got = {uid: pydicom.dcmread(io.BytesIO(data)) for uid, data in after.items() if uid not in before}
    return Sent(clinic, finished, before, got)


def test_the_archive_holds_images_masks_and_report_in_one_study_of_each_patient(sent, images, orthanc):
    assert len(sent.before) == 2 * 2 * 3  # patients, series, slices
    assert sorted(dataset.Modality for dataset in sent.got.values()) == ["DOC"] * 2 + ["SEG"] * 4
    assert len(orthanc.get("/patients")) == len(orthanc.get("/studies")) == 2
    for name in orthanc.get("/studies"):
        study = orthanc.get(f"/studies/{name}")
        series = [orthanc.get(f"/series/{one}") for one in study["Series"]]
        kinds = sorted((one["MainDicomTags"]["Modality"], len(one["Instances"])) for one in series)
        assert kinds == [("DOC", 1), ("MR", 3), ("MR", 3), ("SEG", 1), ("SEG", 1)]


@pytest.mark.parametrize("modality", ["SEG", "DOC"])
def test_what_comes_back_names_the_patient_as_the_archive_does_and_says_what_it_is(modality, sent, images, orthanc):
    weights = fingerprint(torch.load(sent.run / "model.pt", weights_only=True))
    people = {Identity.invent(patient).patient_id: Identity.invent(patient) for patient in PATIENTS}
    originals = {header.PatientID: header for header in headers(images)}
    found = [uid for uid, dataset in sent.got.items() if dataset.Modality == modality]
    for uid in found:
        tags = orthanc.tags(uid)
        person, original = people[tags["PatientID"]], originals[tags["PatientID"]]
        assert (tags["PatientName"], tags["PatientBirthDate"], tags["PatientSex"]) == (
            person.name,
            person.birth_date,
            person.sex,
        )
        assert tags["StudyInstanceUID"] == original.StudyInstanceUID
        assert (tags["StudyDate"], tags["StudyTime"]) == (person.study_date, person.study_time)
        assert (tags["AccessionNumber"], tags["StudyID"]) == (person.accession, "1")
        assert tags["SeriesDescription"].startswith("RESEARCH USE ONLY konsil pilot ")
        assert tags["ContentQualification"] == "RESEARCH"
        ours = [item for item in tags["ContributingEquipmentSequence"] if weights in item.get("ContributionDescription", "")]
        assert [(item["Manufacturer"], item["SoftwareVersions"]) for item in ours] == [("konsil", version("konsil"))]
        assert "PatientIdentityRemoved" not in tags
        if modality == "DOC":
            assert tags["BurnedInAnnotation"] == "YES"
            assert "RESEARCH USE ONLY" in tags["DocumentTitle"]
    assert {orthanc.tags(uid)["PatientID"] for uid in found} == people.keys()


def test_nothing_that_comes_back_tells_a_pseudonym_or_a_uid_of_the_clean_store(sent):
    clean = Site.load(sent.clinic).folder / "clean"
    ours = {part for path in clean.rglob("*.dcm") for part in path.relative_to(clean).with_suffix("").parts}
    assert len(ours) == 2 + 2 + 4 + 12  # patients, studies, series, images
    for dataset in sent.got.values():
        file = io.BytesIO()
        dataset.save_as(file)
        assert [name for name in ours if name.encode() in file.getvalue()] == []


def test_the_masks_refer_to_the_originals_and_lie_on_them_as_the_model_drew(sent, images):
    by_series: dict[str, list[pydicom.Dataset]] = {}
    for header in headers(images):
        by_series.setdefault(header.SeriesInstanceUID, []).append(header)
    task = load(TASK)
    model = task.model()
    model.load_state_dict(torch.load(sent.run / "model.pt", weights_only=True))
    segs = [dataset for dataset in sent.got.values() if dataset.Modality == "SEG"]
    for dataset in segs:
        seg = hd.seg.Segmentation.from_dataset(dataset)
        (reference,) = seg.ReferencedSeriesSequence
        there = sorted(by_series.pop(reference.SeriesInstanceUID), key=lambda header: header.InstanceNumber)
        assert seg.FrameOfReferenceUID == there[0].FrameOfReferenceUID
        uids = [header.SOPInstanceUID for header in there]
        assert {item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence} == set(uids)
        whole = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
        names = {number: seg.get_segment_description(number).segment_label for number in seg.segment_numbers}
        values = {number: {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3}[name] for number, name in names.items()}
        patient = next(name for name in PATIENTS if Identity.invent(name).patient_id == seg.PatientID)
        drawn = task.segment(model, a_case(patient))[there[0].SeriesDescription].mask
        np.testing.assert_array_equal(np.vectorize({0: 0, **values}.get)(whole), drawn)
        (algorithm,) = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("konsil pilot", fingerprint(model.state_dict()))
    assert by_series == {}


def test_the_report_is_one_page_that_says_what_it_is_for_and_whose_without_a_name(sent):
    weights = fingerprint(torch.load(sent.run / "model.pt", weights_only=True))
    originals = set(sent.before)
    segs = {uid: dataset for uid, dataset in sent.got.items() if dataset.Modality == "SEG"}
    for dataset in sent.got.values():
        if dataset.Modality != "DOC":
            continue
        page = dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength]
        assert (page[:5], page.rstrip()[-5:], len(re.findall(rb"/Type /Page\b", page))) == (b"%PDF-", b"%%EOF", 1)
        said = words(page)
        assert said.count("RESEARCH USE ONLY") == 2
        person = next(one for one in map(Identity.invent, PATIENTS) if one.patient_id == dataset.PatientID)
        assert {person.patient_id, "pilot", weights} <= set(said)
        assert not any(part in " ".join(said) for part in (*person.name.split("^"), person.birth_date))
        masks = [seg for seg in segs.values() if seg.PatientID == dataset.PatientID]
        for seg in masks:  # 8 x 3 x 3 mm a voxel
            for number, segment in enumerate(seg.SegmentSequence, 1):
                frames = [
                    g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in seg.PerFrameFunctionalGroupsSequence
                ]
                voxels = seg.pixel_array.reshape(len(frames), -1)[np.array(frames) == number].sum()
                assert f"{voxels * 0.072:.1f}" in said, segment.SegmentLabel
        named = {item.ReferencedSOPInstanceUID for item in dataset.SourceInstanceSequence}
        assert named & set(segs) == {seg.SOPInstanceUID for seg in masks}
        assert len(named & originals) == 6
        assert named <= originals | set(segs)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_a_checker_that_konsil_did_not_write_finds_no_error(clinic, run):
    connect(clinic, 1)
    assert back(clinic, run, "--dry-run") == 0
    assert len(waiting(clinic)) == 6
    for path in waiting(clinic):
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr
        assert told.splitlines()[0] in ("Segmentation", "EncapsulatedPDF")
        assert [line for line in told.splitlines() if line.startswith("Error")] == []


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_heat_maps_go_back_where_they_were_asked_for_and_the_report_names_them(clinic, run, images):
    connect(clinic, 1)
    who = pseudonym(clinic, "first")
    assert back(clinic, run, "--dry-run", "--patient", who) == 0
    without = {path.stem for path in waiting(clinic)}
    assert back(clinic, run, "--dry-run", "--patient", who, "--heat-maps", "--members", 3) == 0
    made = {path.stem: path for path in waiting(clinic) if path.stem not in without}
    with discreet():
        objects = {uid: pydicom.dcmread(path) for uid, path in made.items()}
    kinds = sorted(str(one.Modality) for one in objects.values())
    assert kinds == ["DOC", "OT", "OT"]  # the masks are those of before; the report names other objects, so it is another one
    (report,) = (one for one in objects.values() if one.Modality == "DOC")
    named = {item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for item in report.SourceInstanceSequence}
    for uid, one in objects.items():
        if one.Modality == "OT":
            assert named[uid] == one.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
            assert one.PatientID == Identity.invent("first").patient_id
            assert one.SeriesDescription.startswith("RESEARCH USE ONLY konsil pilot unsure cine_e")
            assert (one.ContentQualification, one.ContributingEquipmentSequence[0].Manufacturer) == ("RESEARCH", "konsil")
            said = subprocess.run(["dciodvfy", str(made[uid])], capture_output=True, text=True).stderr.splitlines()
            assert said[0] == "ParametricMap"
            assert [line for line in said if line.startswith("Error")] == []
    told = words(report.EncapsulatedDocument[: report.EncapsulatedDocumentLength])
    assert "Agreement of members" in told
    said = "No calibration is here (konsil-site calibrate): agreement of 3 members ranks patients, and is no Dice."
    assert said in told


def test_another_calibration_makes_other_heat_maps_and_another_report_of_the_same_masks(clinic, run):
    connect(clinic, 1)
    who, weights = pseudonym(clinic, "first"), fingerprint(torch.load(run / "model.pt", weights_only=True))
    curve = Curve(agreement=(0.0, 1.0), dice=(0.1, 0.9), below=0.2, patients=30)
    facts = {"models": (weights,), "members": 2, "of": "generated patients", "patients": 30, "curves": {"blood_pool": curve}}
    facts |= {"error_before": 0.1, "error_after": 0.05, "miss": 0.04, "rank": 0.7}
    made, seen = [], set()
    for temperature in (None, 1.5, 1.5, 2.5):
        if temperature is not None:
            found = Calibration.model_validate({**facts, "temperature": temperature})
            (run / "calibration.json").write_text(found.model_dump_json())
        assert back(clinic, run, "--dry-run", "--patient", who, "--heat-maps", "--members", 2) == 0
        with discreet():
            new = [pydicom.dcmread(path) for path in waiting(clinic) if path.stem not in seen]
        seen |= {path.stem for path in waiting(clinic)}
        made.append(sorted(str(one.Modality) for one in new))
    assert made == [["DOC", "OT", "OT", "SEG", "SEG"], ["DOC", "OT", "OT"], [], ["DOC", "OT", "OT"]]


def test_a_series_without_its_heat_map_is_refused_and_its_mask_does_not_wait(clinic, run, monkeypatch, capsys):
    made = returning.research_heat_map

    def only_the_first(entropy, originals, *, series, **names):
        if series == "cine_es":
            raise AttributeError("an odd header")
        return made(entropy, originals, series=series, **names)

    monkeypatch.setattr(returning, "research_heat_map", only_the_first)
    connect(clinic, 1)
    who = pseudonym(clinic, "first")
    assert back(clinic, run, "--dry-run", "--patient", who, "--heat-maps", "--members", 2) == 3
    assert f"{who} cine_es refused: no DICOM object can refer to these images (AttributeError)" in capsys.readouterr().out
    with discreet():
        objects = [pydicom.dcmread(path) for path in waiting(clinic)]
    assert sorted(str(one.Modality) for one in objects) == ["DOC", "OT", "SEG"]
    assert all("cine_es" not in one.SeriesDescription for one in objects)


def test_one_member_tells_no_doubt_and_sends_no_heat_map(clinic, run, capsys):
    connect(clinic, 1)
    assert back(clinic, run, "--dry-run", "--members", 1, "--heat-maps") == 1
    assert "there are no heat maps of it" in capsys.readouterr().err
    assert waiting(clinic) == []


def test_a_repeat_sends_nothing_new_and_the_audit_log_tells_of_objects_and_no_patient(sent, orthanc, capsys):
    (line,) = returned_lines(sent.clinic)
    weights = fingerprint(torch.load(sent.run / "model.pt", weights_only=True))
    assert (line["model"], line["objects"], line["destination"], line["who"]) == (weights, 6, "PACS", "Dr. Alpha")
    assert not any(pseudonym(sent.clinic, patient) in json.dumps(line) for patient in PATIENTS)
    assert (marked(sent.clinic), waiting(sent.clinic)) == (6, [])
    assert back(sent.clinic, sent.run) == 0
    assert "took 0 objects of 0 examinations; 2 were there already" in capsys.readouterr().out
    assert len(orthanc.get("/instances")) == 12 + 6
    assert len(returned_lines(sent.clinic)) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [("KONSIL", "OTHER", "it is not called OTHER"), ("STRANGER", "PACS", "gave no answer to an object; look at its log")],
)
def test_an_orthanc_that_wants_nothing_of_us_is_told_and_nothing_counts_as_sent(
    ours, theirs, told, clinic, run, orthanc, capsys
):
    held = len(orthanc.get("/instances"))
    connect(clinic, orthanc.dicom_port, ours=ours, theirs=theirs)
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 3
    assert told in capsys.readouterr().out
    assert (len(orthanc.get("/instances")), marked(clinic), returned_lines(clinic)) == (held, 0, [])


# -- without Orthanc -----------------------------------------------------------------------------------------------------


def headers(folder: Path) -> list[pydicom.Dataset]:
    with discreet():
        return [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.rglob("*.dcm"))]


def words(page: bytes) -> list[str]:
    """Every text of a PDF as matplotlib writes it: UTF-16, in pieces between which letters are moved."""
    found = []
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", page, re.DOTALL):
        try:
            content = zlib.decompress(stream)
        except zlib.error:
            continue
        for text in re.findall(rb"BT\n.*?\nET", content, re.DOTALL):
            pieces = re.findall(rb"\(((?:\\.|[^\\)])*)\)", text, re.DOTALL)
            found.append(re.sub(rb"\\(.)", rb"\1", b"".join(pieces), flags=re.DOTALL).decode("utf-16-be", "replace"))
    return found


def test_nobody_at_the_archive_is_told_and_nothing_counts_as_sent(clinic, run, capsys):
    port = free_port()
    connect(clinic, port)
    assert back(clinic, run) == 3
    said = capsys.readouterr().out
    assert f"PACS@127.0.0.1:{port}: it can't be reached (Connection refused); nothing was sent" in said
    assert (marked(clinic), returned_lines(clinic)) == (0, [])


@pytest.fixture
def pacs() -> Iterator[Callable[[dict[int, int]], int]]:
    """An archive that answers its nth request as told; gives the port. `pacs.taken` are the objects it was sent, in order."""
    servers = []

    def start(statuses: dict[int, int]) -> int:
        def store(event: evt.Event) -> int:
            start.taken.append((event.request.AffectedSOPInstanceUID, bytes(event.request.DataSet.getvalue())))
            return statuses.get(len(start.taken), 0)

        ours = AE(ae_title="PACS")
        for kind in ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.104.1"):
            ours.add_supported_context(kind, ExplicitVRLittleEndian)
        servers.append(ours.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]))
        return servers[-1].server_address[1]

    start.taken = []
    yield start
    for server in servers:
        server.shutdown()


def test_what_is_not_taken_is_told_and_goes_the_next_time_to_the_byte(clinic, run, pacs, capsys):
    connect(clinic, pacs({2: 0xC000}))
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 3
    said = capsys.readouterr().out
    assert "not taken: " in said
    assert "it can't understand the object (status 0xC000)" in said
    assert (len(pacs.taken), marked(clinic), len(waiting(clinic))) == (2, 1, 2)  # the report goes last, or not at all
    assert [line["objects"] for line in returned_lines(clinic)] == [1]
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 0
    assert (len(pacs.taken), marked(clinic), waiting(clinic)) == (4, 3, [])
    assert pacs.taken[1] == pacs.taken[2]
    assert [line["objects"] for line in returned_lines(clinic)] == [1, 2]


def test_a_warning_does_not_count_as_taken(clinic, run, pacs, capsys):
    connect(clinic, pacs({1: 0xB000, 2: 0xB000}))
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 3
    assert "stored with a warning" in capsys.readouterr().out
    assert (marked(clinic), returned_lines(clinic)) == (0, [])


def test_a_patient_may_be_named_by_the_hospitals_number(clinic, run, pacs):
    connect(clinic, pacs({}))
    assert back(clinic, run, "--patient", Identity.invent("second").patient_id) == 0
    assert {path.parent.name for path in (Site.load(clinic).identity_folder / "returned").rglob("sent.jsonl")} == {
        pseudonym(clinic, "second")
    }


def test_another_archive_has_not_got_it_yet(clinic, run, pacs):
    connect(clinic, pacs({}))
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 0
    connect(clinic, pacs({}))
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 0
    uids = [uid for uid, _ in pacs.taken]
    assert uids[:3] == uids[3:]
    assert marked(clinic) == 6


def test_what_was_looked_at_is_what_is_sent(clinic, run, pacs, capsys):
    connect(clinic, pacs({}))
    assert back(clinic, run, "--patient", pseudonym(clinic, "first"), "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"3 objects wait in {waiting(clinic)[0].parent}" in said
    assert "3 objects would go to PACS@127.0.0.1" in said
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in waiting(clinic))
    assert (pacs.taken, marked(clinic), returned_lines(clinic)) == ([], 0, [])
    looked_at = {path.stem: path.read_bytes() for path in waiting(clinic)}
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 0
    for uid, data in pacs.taken:
        assert looked_at[uid].endswith(data)
    assert len(pacs.taken) == 3


def test_a_model_that_finds_nothing_gives_a_report_and_no_mask(clinic, run, pacs):
    state = torch.load(run / "model.pt", weights_only=True)
    state["head.weight"] *= 0
    state["head.bias"] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    torch.save(state, run / "model.pt")
    record = json.loads((run / "record.json").read_text())
    record["rounds"].append({"round": 2, "arrays_sha256": fingerprint(state)})
    (run / "record.json").write_text(json.dumps(record))
    connect(clinic, pacs({}))
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 0
    ((_, data),) = pacs.taken
    report = pydicom.dcmread(io.BytesIO(data), force=True)
    assert report.Modality == "DOC"
    said = words(report.EncapsulatedDocument[: report.EncapsulatedDocumentLength])
    assert said.count("not found") == 6  # three structures in either series
    assert not any(re.fullmatch(r"\d+\.\d", word) for word in said)  # and no volume in ml


def test_a_series_that_cannot_be_drawn_is_told_and_the_other_one_goes(clinic, run, pacs, capsys):
    place = Site.load(clinic).folder / "clean" / pseudonym(clinic, "first")
    header = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in place.rglob("*.dcm")}
    next(path for path, one in header.items() if one.InstanceNumber == 2 and one.SeriesDescription == "cine es").unlink()
    connect(clinic, pacs({}))
    assert back(clinic, run, "--patient", place.name) == 3
    assert f"{place.name} cine_es refused: slices lie 16.000 mm apart" in capsys.readouterr().out
    assert len(pacs.taken) == 2


def test_a_patient_who_withdraws_takes_along_what_waits(clinic, run):
    connect(clinic, 1)
    assert back(clinic, run, "--dry-run") == 0
    assert main(["--site", str(clinic), "withdraw", pseudonym(clinic, "first")]) == 0
    assert {path.parent.name for path in waiting(clinic)} == {pseudonym(clinic, "second")}
    assert back(clinic, run, "--patient", pseudonym(clinic, "first")) == 1


def test_what_the_archive_sends_on_to_us_is_no_readers_mask(clinic, run, tmp_path):
    connect(clinic, 1)
    assert back(clinic, run, "--dry-run") == 0
    site = Site.load(clinic)
    deidentify = Deidentifier(site.key_file.read_bytes(), retain=("dates", "descriptors"))
    came = [deidentify_file(path, site.folder / "clean", deidentify=deidentify) for path in waiting(clinic)]
    assert sorted(type(one).__name__ for one in came) == ["Cleaned"] * 4 + ["Quarantined"] * 2  # documents don't pass
    found = admit_folder(site.folder / "clean", Cohort(tmp_path / "cohort"), key=None, labels=LabelMap.load("cardiac"))
    assert len(found.admitted) == 2
    assert all(volume.mask is None for case in Cohort(tmp_path / "cohort") for volume in case.volumes)
    assert list(found.left_out.values()) == ["a model of konsil drew this mask, and no other learns from it"] * 4


def no_archive(clinic: Path, run: Path) -> None:
    Site.load(clinic).model_copy(update={"archive": None}).save(clinic)


def stopped(clinic: Path, run: Path) -> None:
    main(["--site", str(clinic), "stop-now"])


def no_record(clinic: Path, run: Path) -> None:
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps({**record, "rounds": []}))


def other_weights(clinic: Path, run: Path) -> None:
    state = torch.load(run / "model.pt", weights_only=True)
    state["head.bias"][0] += 0.5
    torch.save(state, run / "model.pt")


def no_way_back(clinic: Path, run: Path) -> None:
    (Site.load(clinic).identity_folder / "map.sqlite").unlink()


@pytest.mark.parametrize(
    ("spoil", "more", "told"),
    [
        (no_archive, [], "this site names no archive: results go back only to the peer of a section archive"),
        (stopped, [], "this hospital is stopped (konsil-site stop-now)"),
        (no_record, [], "no record tells of the weights in"),
        (other_weights, [], "holds other weights than"),
        (no_way_back, [], "map.sqlite is missing: only images that came in through this hospital's door"),
        (None, ["--patient", "P0123456789ABCDEF"], "no patient P0123456789ABCDEF in "),
        (None, ["--labels", "brain"], "no label map brain"),
    ],
)
def test_what_will_not_do_is_refused_in_words_before_anything_is_made(spoil, more, told, clinic, run, capsys):
    connect(clinic, 1)
    if spoil is not None:
        spoil(clinic, run)
    capsys.readouterr()
    assert back(clinic, run, *more) == 1
    assert told in capsys.readouterr().err
    assert waiting(clinic) == []
