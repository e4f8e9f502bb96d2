"""Who a patient is stays in the identity zone: nowhere else in the house, nor at the coordinator, nor on any screen.

People with unmistakable names are written into DICOM in several character sets, come in by every way, take part in a study and
in one that fails; then everything that any of it left behind is searched. The same search finds them in the identity zone.
"""

import base64
import gzip
import re
import sqlite3
import zlib
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import yaml
from planted import Search, forms, marks_of, screens
from pydicom.uid import EncapsulatedPDFStorage

from conf.study import LocalTraining, Study
from fl_client import app as training
from fl_client.__main__ import main
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.metrics import metrics
from fl_client.site import Site
from fl_server.rounds import run, versions
from fl_server.weights import initial_state
from simulation.dicom import Identity, write_patient
from simulation.grid import InProcessGrid
from simulation.hospital_case import patient_case
from simulation.reader import Reader
from simulation.scanner import Scanner

SCANNER = Scanner(name="planted", manufacturer="SIEMENS", matrix=72, pixel_mm=3.5)
TASK = {
    **{"name": "segmentation", "series": ["cine_ed"], "voxels": 16, "field_mm": 192, "roi_mm": None, "working_mm": 12},
    **{"channels": [4, 8], "strides": [2], "groups": 2, "head_channels": 4},
}
NAMES = {  # the character set that the archive writes them in
    "Quastenflosser^Zwiebelinde": "ISO_IR 192",
    "Dröschelmöller^Jüttøna": "ISO_IR 100",
    "Жмерюковский^Ефросинья": "ISO_IR 144",
    "Yamadabashi^Tarouemon=山田橋^太郎右衛門=": ["", "ISO 2022 IR 87"],
    "Schnürpelfritz^Waldtraute": "GB18030",
}


def person(number, name):
    return replace(
        Identity.invent(f"planted {number}"),
        name=name,
        birth_date=f"19{33 + number}0{2 + number}1{7 - number}",
        institution=f"Spital Hinterpfuiteufel {number}{number}",
        physician=f"Kraehwinkler{number}^Ottokarius{number}",
        operator=f"Kraehwinkler{number}^Bertholdine{number}",
    )


PEOPLE = [person(number, name) for number, name in enumerate(NAMES)]
MARKS = {f"{what} of patient {n}": text for n, one in enumerate(PEOPLE) for what, text in marks_of(one).items()}


def folder_of(who):
    return who.name.partition("=")[0].replace("^", " ")


def plant(path, who):
    """Write a person into a file once more, in other places and in the character set of their archive."""
    file = pydicom.dcmread(path)
    plain = folder_of(who)
    file.SpecificCharacterSet = NAMES[who.name]
    file.PatientName, file.StudyDescription = who.name, f"MR {plain}"
    file.PatientComments = file.ImageComments = file.DerivationDescription = f"{plain}, born {who.birth_date}, {who.accession}"
    file.ReferringPhysicianName, file.OperatorsName, file.ContentCreatorName = who.physician, who.operator, who.name
    file.StationName, file.ProtocolName = who.accession, f"cine {plain}"[:60]
    file.OtherPatientNames, file.PatientAddress, file.OtherPatientIDs = [who.name], who.address, [who.accession]
    block = file.private_block(0x0021, "SIEMENS MR SDS 01", create=True)
    block.add_new(0x10, "OB", plain.encode("utf-16-le") + who.birth_date.encode())
    block.add_new(0x11, "LO", base64.b64encode(plain.encode()).decode()[:60])
    file.save_as(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Five people as an archive holds them; one more file of a kind that nobody may let in, and one that is cut short."""
    folder = tmp_path_factory.mktemp("archive")
    for number, who in enumerate(PEOPLE):
        case = patient_case(4000 + number, SCANNER, Reader(), {"normal": 1.0}, ("cine_ed",), oversampling=1, subslices=1)
        write_patient(case, folder, identity=who)
        place = folder / who.patient_id
        for path in place.rglob("IM*.dcm"):
            plant(path, who)
        place.rename(folder / folder_of(who))
    report = pydicom.dcmread(next(folder.rglob("IM0001.dcm")))
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    report.DocumentTitle = f"{PEOPLE[0].name}, {PEOPLE[0].birth_date}"
    report.save_as(folder / "Quastenflosser Zwiebelinde" / "report Quastenflosser.dcm")
    whole = next(folder.rglob("IM0002.dcm")).read_bytes()
    (folder / "Quastenflosser Zwiebelinde" / "cut Zwiebelinde.dcm").write_bytes(whole[: len(whole) // 3])
    (folder / "letter to Quastenflosser.txt").write_text(PEOPLE[0].name)
    rows = "".join(f"{who.patient_id},{5 + n},{who.name}\n" for n, who in enumerate(PEOPLE))
    (folder / "Quastenflosser.csv").write_text(f"number,ef,name\n{rows}{PEOPLE[1].patient_id},{PEOPLE[0].name},x\n")
    (folder / "columns.yaml").write_text(yaml.safe_dump({"patient_id": "number", "numbers": ["ef"]}))
    return folder


def test_no_planted_identity_is_outside_the_identity_zone(archive, tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level("DEBUG")
    house, coordinator, settings = tmp_path / "house", tmp_path / "coordinator", tmp_path / "house" / "site.yaml"
    watched = tmp_path / "watched"
    said = []

    def konsil(*words, expect=(0,)):
        assert main(["--site", str(settings), *map(str, words)]) in expect, words
        text = "".join(capfd.readouterr())
        for word in map(str, words):
            text = text.replace(word, "")  # a screen may repeat what was typed there
        said.append((words[0], text))

    konsil("init", "--name", "planted", "--declared-size", "5", "--epsilon", "1000")
    text = re.sub(r"(?m)^(arrivals|minimum_cohort|test_fraction):.*\n", "", settings.read_text())
    more = {
        "arrivals": {"quiet_s": 1.0, "min_free_gib": 0.0, "watch": str(watched), "keep_originals_days": 7},
        "minimum_cohort": 1,
        "test_fraction": 0.0,
    }
    settings.write_text(text + yaml.safe_dump(more))
    site = Site.load(settings)

    # three come by the watch folder, two by hand with their masks, and all of them stand in a table
    watched.mkdir()
    folders = sorted(path for path in archive.iterdir() if path.is_dir())
    for place in folders[:3]:
        (watched / place.name).symlink_to(place)  # links are not followed
    konsil("intake", "--once")
    for place in folders[:3]:
        (watched / place.name).unlink()
        place.rename(watched / place.name)
    konsil("intake", "--once")
    for place in folders[3:]:
        konsil("admit", place, expect=(0, 1))
    konsil("admit", archive / "Quastenflosser.csv", "--columns", archive / "columns.yaml", expect=(0, 1))
    konsil("admit", archive / "letter to Quastenflosser.txt", expect=(0, 1, 2))
    cohort = Cohort(site.cohort_folder)
    assert len(cohort) == len(PEOPLE)

    # a study that runs, one that fails in the middle, one that waits
    facts = {"konsil_version": versions()["konsil"], "task": TASK, "sites": ("planted",)}
    facts |= {"rounds": 1, "training": LocalTraining(views=1)}
    for name in ("works", "fails", "waits"):
        study = Study.model_validate({**facts, "name": name})
        Approvals(site.folder).put_down(study)
        if name == "waits":
            continue
        konsil("approve", study.hash, "--who", "Dr. Alpha")
        if name == "fails":
            monkeypatch.setattr(training, "dp_sgd", lambda model, patients, **more: fail(cohort, patients))
        grid = InProcessGrid("fl_client.app:app", [{"site": str(settings)}], {"study": study.to_json()})
        _, record = run(grid, study, initial_state(study), folder=coordinator / name)
        assert record.verdict == {"works": "complete", "fails": "failed"}[name]
    assert "PlantedFailure" in (house / "log" / "failures.log").read_text()

    for words in (["status"], ["cohort", "--list"], ["quality"], ["quarantine"], ["studies"], ["ledger"], ["audit-log"]):
        konsil(*words)
    konsil("quality", "--csv", house / "quality.csv")
    konsil("support-bundle", house / "help.zip")
    konsil("check", expect=(0, 1))
    said += [("metrics", metrics(site).decode()), ("logging", caplog.text), *screens(site)]

    search = Search(MARKS)
    assert search.below(house, but=(site.identity_folder,)) == set()
    assert search.below(coordinator) == set()
    assert {found for where, text in said for found in search.of(text.encode(), where)} == set()

    # the same search finds them all where they may be: so it can fail
    inside = {what for what, _ in search.below(site.identity_folder)}
    watched_people = {n for n, who in enumerate(PEOPLE) if (watched / folder_of(who)).exists()}
    assert len(watched_people) == 3
    for n in watched_people:
        found = {what.partition(" of patient ")[0] for what in inside if what.endswith(f"patient {n}")}
        assert {"family name", "given name", "number", "accession", "address", "physician", "operator"} <= found, n
        assert any(what.startswith("born") for what in found)


class PlantedFailure(Exception):
    """What a training may die of, with a patient's own things in its words."""


def fail(cohort, patients):
    raise PlantedFailure(f"{cohort.folder} {cohort.case(cohort.patients[0])!r} {patients!r}")


@pytest.mark.parametrize("form", ["utf-8", "utf-16-le", "latin-1", "base64", "npz", "gzip", "sqlite", "pdf"])
def test_the_search_finds_a_name_however_it_is_written(form, tmp_path):
    name, path = "Dröschelmöller", tmp_path / "file"
    text = f"of {name}, too"
    if form == "npz":
        np.savez_compressed(path.with_suffix(".npz"), note=np.array([text]))
    elif form == "sqlite":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE note (text TEXT)")
            database.execute("INSERT INTO note VALUES (?)", (text,))
        database.close()
    else:
        written = {
            "base64": lambda: base64.b64encode(text.encode()),
            "gzip": lambda: gzip.compress(text.encode()),
            "pdf": lambda: b"%PDF-1.4\nstream\n" + zlib.compress(text.encode()) + b"\nendstream",
        }
        path.write_bytes(written[form]() if form in written else text.encode(form))
    assert {what for what, _ in Search({"name": name}).below(tmp_path)} == {"name"}
    assert Search({"name": "Drosselmeier"}).below(tmp_path) == set()


def test_a_day_within_a_longer_number_is_none():
    search = Search({"born": "19330217"})
    assert search.of(b"2.25.119330217", "uid") == set()
    assert search.of(b"DA\x08\x0019330217", "element") == {("born", "element")}
    assert b"1\x009\x003\x003\x000\x002\x001\x007\x00" in forms("19330217")
