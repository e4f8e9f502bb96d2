"""Fetching over DICOMweb from an archive on loopback that answers as told: rightly, brokenly, or with ill will."""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from conftest import KEY, a_case
from dicom_peers import certificates, image, originals
from pydantic import ValidationError
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from fl_client import halt
from fl_client.__main__ import main
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.intake import dicomweb as client
from fl_client.intake.arrivals import Arrivals
from fl_client.intake.incoming import Incoming, only_one
from fl_client.intake.multipart import BadAnswer, only_file
from fl_client.intake.part10 import split
from fl_client.site import DicomWeb, Site
from simulation.dicom import Identity, write_patient

LEVELS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
TOLD = {
    "studies": ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate"),
    "series": ("SeriesInstanceUID", "Modality"),
    "instances": ("SOPInstanceUID", "SOPClassUID"),
}


class Archive(ThreadingHTTPServer):
    """A small DICOMweb archive. `edit` may change any answer: it gets the path and gives status, headers and body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.held: dict[tuple[str, str, str], tuple[Dataset, bytes]] = {}
        self.asked: list[str] = []
        self.seen: list[dict[str, str]] = []
        self.edit: Callable[[str, int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]] | None = None
        self.page = 10**6  # the most entries of a list that it gives at a time
        self.takes_offset = self.takes_filter = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dicom-web"

    def hold(self, dataset: Dataset) -> bytes:
        out = BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        key = (str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID))
        self.held[key] = (dataset, out.getvalue())
        return out.getvalue()

    def fetched(self) -> list[str]:
        return [path for path in self.asked if len(path.split("/")) == 8]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers that hang up are what these tests are about."""

    def answer(self, where: str, params: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        parts = where.strip("/").split("/")[1:]
        given = dict(zip(parts[::2], parts[1::2], strict=False))
        if "instances" in given:
            held = self.held.get((given["studies"], given["series"], given["instances"]))
            return (200, *as_part(held[1])) if held else (404, {}, b"")
        level = parts[-1]
        found = {}
        for key, (dataset, _) in self.held.items():
            place = dict(zip(LEVELS, key, strict=True))
            if all(place[name] == uid for name, uid in given.items()) and self._fits(dataset, params):
                tags = {name: str(dataset.get(name, "")) for name in TOLD[level]}
                entry = {
                    f"{tag_for_keyword(name):08X}": {"vr": "LO", "Value": [value]} for name, value in tags.items() if value
                }
                found[place[level]] = entry
        start = int(params.get("offset", 0)) if self.takes_offset else 0
        page = list(found.values())[start : start + min(self.page, int(params.get("limit", 10**6)))]
        more = {"warning": "299 archive: there are more"} if len(page) < len(found) - start else {}
        return 200, {"content-type": "application/dicom+json", **more}, json.dumps(page).encode()

    def _fits(self, dataset: Dataset, params: dict[str, str]) -> bool:
        filters = {name: value for name, value in params.items() if name not in ("limit", "offset")}
        if "StudyDate" in filters:
            first, _, last = filters.pop("StudyDate").partition("-")
            filters.pop("ModalitiesInStudy", None)
            if self.takes_filter and not first <= str(dataset.StudyDate) <= last:
                return False
        return not self.takes_filter or all(str(dataset.get(name, "")) == value for name, value in filters.items())


def as_part(data: bytes, *, kind: str = "application/dicom", edge: str = "an-edge") -> tuple[dict[str, str], bytes]:
    head = f"--{edge}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    return (
        {"content-type": f'multipart/related; type="application/dicom"; boundary={edge}'},
        head + data + f"\r\n--{edge}--\r\n".encode(),
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Archive

    def do_GET(self) -> None:
        where = urllib.parse.urlsplit(self.path)
        self.server.asked.append(where.path)
        self.server.seen.append({name.lower(): value for name, value in self.headers.items()})
        status, headers, body = self.server.answer(where.path, dict(urllib.parse.parse_qsl(where.query)))
        if self.server.edit:
            status, headers, body = self.server.edit(where.path, status, headers, body)
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if headers.get("connection") == "close":
            self.close_connection = True

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture
def archive_door() -> Iterator[Archive]:
    server = Archive()
    running = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    running.start()
    yield server
    server.shutdown()
    running.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.Web.__init__, "__kwdefaults__", {"pause_s": 0.01})


@pytest.fixture
def clinic(tmp_path: Path, archive_door: Archive) -> Path:
    """The settings file of a hospital that knows the archive."""
    return settle(tmp_path, url=archive_door.url)


def settle(folder: Path, *, free: float = 0.0, **web: Any) -> Path:
    house = folder / "house"
    house.mkdir(exist_ok=True)
    (house / "pseudonym.key").write_bytes(KEY)
    (house / "pseudonym.key").chmod(0o600)
    settings = {"name": "clinic", "declared_size": 5, "arrivals": {"min_free_gib": free}, "dicomweb": {"timeout_s": 5, **web}}
    (house / "site.yaml").write_text(json.dumps(settings))
    return house / "site.yaml"


def a_study(archive: Archive, number: int = 3, **elements: Any) -> list[bytes]:
    elements = {"AccessionNumber": "ACC-4711", "StudyDate": "20261120", **elements}
    return [archive.hold(image(i, **elements)) for i in range(1, number + 1)]


def pull(clinic: Path, *said: str) -> int:
    return main(["--site", str(clinic), "pull", *said, "--who", "Dr. Alpha"])


def identity(clinic: Path) -> Path:
    return Site.load(clinic).identity_folder


def nothing_half_written(clinic: Path) -> bool:
    return list((identity(clinic) / "incoming" / ".parts").iterdir()) == []


def test_what_is_fetched_is_what_the_archive_keeps_byte_for_byte(clinic: Path, archive_door: Archive, capsys: Any) -> None:
    files = a_study(archive_door)
    assert pull(clinic, "accession", "ACC-4711") == 0
    assert sorted(path.read_bytes() for path in originals(identity(clinic))) == sorted(files)
    assert {path.stat().st_mode & 0o777 for path in originals(identity(clinic))} == {0o600}
    assert nothing_half_written(clinic)
    said = capsys.readouterr().out
    assert "1 studies with 3 images (CT, MR, PT, RTSTRUCT, SEG)\n3 images fetched, 0 were here already, 0 could not" in said
    assert "konsil-site intake --once lets their patients in" in said
    (line,) = AuditLog(Site.load(clinic).folder / "audit.jsonl").lines
    assert {key: line[key] for key in ("happening", "by", "studies", "images", "who")} == {
        **{"happening": "pulled", "by": "accession", "studies": 1, "images": 3, "who": "Dr. Alpha"}
    }


def test_what_was_fetched_and_what_was_sent_are_the_same_to_the_intake(clinic: Path, archive_door: Archive) -> None:
    a_study(archive_door)
    sent = Incoming(identity(clinic), clean=Site.load(clinic).folder / "clean")
    assert pull(clinic, "accession", "ACC-4711") == 0
    for _, data in archive_door.held.values():
        start, syntax = split(data)
        assert sent.keep(b"another head", data[start:], transfer_syntax=syntax, instance="1.2") == "again"


def test_a_patient_who_was_pulled_is_let_in_like_one_who_was_sent(clinic: Path, archive_door: Archive, tmp_path: Path) -> None:
    import pydicom

    write_patient(a_case(), tmp_path / "scanner")
    for path in (tmp_path / "scanner").rglob("*.dcm"):
        archive_door.hold(pydicom.dcmread(path))
    assert pull(clinic, "patient", Identity.invent("patient-1").patient_id) == 0
    counts = Arrivals(Site.load(clinic)).work(all_quiet=True)
    assert (counts["admitted"], counts["cleaned"]) == (1, 20)
    volumes = {volume.series: volume.mask is not None for volume in next(iter(Cohort(Site.load(clinic).cohort_folder))).volumes}
    assert volumes == {"cine_ed": True, "cine_es": True, "lge": False}
    before = len(archive_door.fetched())
    assert pull(clinic, "patient", Identity.invent("patient-1").patient_id) == 0  # originals are gone, their copies are here
    assert len(archive_door.fetched()) == before


def test_a_pull_that_was_broken_off_goes_on_where_it_was(clinic: Path, archive_door: Archive, capsys: Any) -> None:
    a_study(archive_door, 6)
    gone: list[str] = []

    def breaks(where: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if "/instances/" in where and len(archive_door.fetched()) > 4:
            gone.append(where)
            return 403, {}, b"MRN-0815 is not yours"
        return status, headers, body

    archive_door.edit = breaks
    assert pull(clinic, "accession", "ACC-4711") == 1
    first = len(originals(identity(clinic)))
    assert 0 < first < 6
    told = capsys.readouterr()
    assert "our credentials may not read there" in told.err
    assert f"{first} images fetched" in told.out
    archive_door.edit = None
    archive_door.asked.clear()
    assert pull(clinic, "accession", "ACC-4711") == 0
    assert len(archive_door.fetched()) == 6 - first
    assert f"{6 - first} images fetched, {first} were here already" in capsys.readouterr().out
    assert len(originals(identity(clinic))) == 6


def test_numbers_come_from_a_file_and_are_named_by_their_place_alone(
    clinic: Path, archive_door: Archive, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    a_study(archive_door)
    (tmp_path / "list.txt").write_text("# the study's patients\nACC-0\n\n ACC-4711 \nACC-4711\n")
    assert pull(clinic, "accession", "--list", str(tmp_path / "list.txt")) == 3
    told = capsys.readouterr()
    assert "accession 1 of 2: the archive has no such study" in told.out
    everything = told.out + told.err + caplog.text
    for planted in ("ACC-0", "ACC-4711", "MRN-0815", "Abendroth", str(image(1).SOPInstanceUID), str(image(1).StudyInstanceUID)):
        assert planted not in everything
    assert "ACC" not in (Site.load(clinic).folder / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("accession", "*"), "accession 1 of 1: 1 to 64 characters are right, and none of * ? \\"),
        (("patient", "4711?"), "patient 1 of 1: 1 to 64"),
        (("patient", "x" * 65), "patient 1 of 1: 1 to 64"),
        (("study", "1.2/../3"), "study 1 of 1: a Study Instance UID has digits and dots alone"),
        (("query", "heart"), "no saved query 'heart'; dicomweb.queries holds none"),
    ],
)
def test_numbers_that_stand_for_many_studies_are_refused_before_anybody_is_asked(
    clinic: Path, archive_door: Archive, capsys: Any, said: tuple[str, str], words: str
) -> None:
    assert pull(clinic, *said) == 1
    assert words in capsys.readouterr().err
    assert archive_door.asked == []


def test_an_archive_that_takes_no_notice_of_the_filter_gives_nobody_away(
    clinic: Path, archive_door: Archive, capsys: Any
) -> None:
    a_study(archive_door)
    archive_door.hold(image(9, StudyInstanceUID="1.2.9", PatientID="MRN-9", AccessionNumber="ACC-9"))
    archive_door.takes_filter = False
    assert pull(clinic, "accession", "ACC-4711") == 3
    assert (
        "accession 1 of 1: the archive gave 1 studies that were not asked for; they are not fetched" in capsys.readouterr().out
    )
    assert len(originals(identity(clinic))) == 3


def test_a_saved_query_asks_for_the_last_days_and_looks_what_comes(tmp_path: Path, archive_door: Archive, capsys: Any) -> None:
    from datetime import date, timedelta

    clinic = settle(tmp_path, url=archive_door.url, queries={"recent": {"days": 7, "modality": "MR"}})
    recent = f"{date.today() - timedelta(days=3):%Y%m%d}"
    archive_door.hold(image(1, StudyDate=recent, StudyInstanceUID="1.2.1"))
    archive_door.hold(image(2, StudyDate="20200101", StudyInstanceUID="1.2.2"))
    assert pull(clinic, "query", "recent") == 0
    assert len(originals(identity(clinic))) == 1
    archive_door.takes_filter = False
    assert pull(clinic, "query", "recent") == 3
    assert "query recent: the archive gave 1 studies that were not asked for" in capsys.readouterr().out


def test_lists_come_page_by_page_also_from_an_archive_that_takes_no_offset(clinic: Path, archive_door: Archive) -> None:
    a_study(archive_door, 7)
    archive_door.page = 3
    assert pull(clinic, "accession", "ACC-4711") == 0
    assert len(originals(identity(clinic))) == 7
    archive_door.takes_offset = False
    assert pull(clinic, "accession", "ACC-4711") == 0  # and ends


def test_series_of_other_kinds_stay_in_the_archive(clinic: Path, archive_door: Archive, capsys: Any) -> None:
    a_study(archive_door)
    archive_door.hold(image(8, AccessionNumber="ACC-4711", SeriesInstanceUID="1.2.8", Modality="SR"))
    assert pull(clinic, "accession", "ACC-4711", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "series of other kinds are left in the archive: 1 SR\n3 images to fetch, 0 are here already; nothing was" in told
    assert (archive_door.fetched(), originals(identity(clinic))) == ([], [])


def test_a_patient_who_has_withdrawn_is_not_fetched(clinic: Path, archive_door: Archive, capsys: Any) -> None:
    from fl_client.intake.pseudonyms import Pseudonyms

    a_study(archive_door)
    Cohort(Site.load(clinic).cohort_folder).withdraw(Pseudonyms(KEY).pseudonym("MRN-0815"))
    assert pull(clinic, "accession", "ACC-4711") == 0
    assert "1 studies of patients who have withdrawn are not fetched" in capsys.readouterr().out
    assert archive_door.fetched() == []


def test_more_studies_than_the_settings_allow_are_refused(tmp_path: Path, archive_door: Archive, capsys: Any) -> None:
    clinic = settle(tmp_path, url=archive_door.url, most_studies=1)
    for number in (1, 2):
        archive_door.hold(image(number, StudyInstanceUID=f"1.2.{number}"))
    assert pull(clinic, "patient", "MRN-0815") == 3
    assert "patient 1 of 1: its list has more entries than dicomweb.most_studies 1" in capsys.readouterr().out
    assert pull(clinic, "study", "1.2.1", "1.2.2") == 1
    assert "2 studies fit, more than dicomweb.most_studies 1; ask for fewer at a time" in capsys.readouterr().err
    assert archive_door.fetched() == []


def test_below_the_watermark_nothing_is_fetched(tmp_path: Path, archive_door: Archive, capsys: Any) -> None:
    clinic = settle(tmp_path, url=archive_door.url, free=1e9)
    a_study(archive_door)
    assert pull(clinic, "accession", "ACC-4711") == 1
    assert "less than arrivals.min_free_gib" in capsys.readouterr().err
    assert archive_door.fetched() == []


def test_one_pull_at_a_time_and_none_where_the_hospital_is_stopped(clinic: Path, archive_door: Archive, capsys: Any) -> None:
    a_study(archive_door)
    incoming = Incoming(identity(clinic), clean=Site.load(clinic).folder / "clean")
    with only_one(incoming.folder / ".lock", "the intake"), only_one(incoming.folder / ".pull.lock", "mine"):
        assert pull(clinic, "accession", "ACC-4711") == 1
    assert "another pull runs for this site already" in capsys.readouterr().err
    with only_one(incoming.folder / ".lock", "the intake"):  # which runs all the time
        assert pull(clinic, "accession", "ACC-4711") == 0
    halt.halt(Site.load(clinic).folder, "stopped", who="Dr. Alpha")
    assert pull(clinic, "accession", "ACC-4711") == 1
    assert "clinic is stopped; konsil-site resume" in capsys.readouterr().err


def test_stop_now_ends_a_pull_that_runs(clinic: Path, archive_door: Archive, capsys: Any) -> None:
    a_study(archive_door, 20)

    def stops(where: str, *answer: Any) -> Any:
        if len(archive_door.fetched()) == 3:
            halt.halt(Site.load(clinic).folder, "stopped", who="Dr. Alpha")
        return answer

    archive_door.edit = stops
    assert pull(clinic, "accession", "ACC-4711") == 1
    assert "clinic is stopped" in capsys.readouterr().err
    assert 2 <= len(originals(identity(clinic))) <= 5


def test_another_users_identity_zone_is_left_alone(clinic: Path, archive_door: Archive, capsys: Any, monkeypatch: Any) -> None:
    a_study(archive_door)
    identity(clinic).mkdir()
    monkeypatch.setattr("fl_client.intake.pull.os.geteuid", lambda: 62001)
    assert pull(clinic, "accession", "ACC-4711") == 1
    assert "belongs to another user (uid " in capsys.readouterr().err
    assert archive_door.asked == []


# -- archives with ill will ----------------------------------------------------------------------------------------------

DATA = b"\0" * 128 + b"DICM" + b"nothing that anybody wants"
CASES: dict[str, tuple[Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]], str]] = {
    "cut short in the middle": (lambda head, body: (head, body[:-400]), "it was cut short: its end is missing"),
    "cut short before its promised length": (
        lambda head, body: ({**head, "content-length": str(len(body) + 1000), "connection": "close"}, body),
        "the answer was broken off",
    ),
    "no head": (lambda head, body: (head, b"--an-edge\r\nContent-Type: application/dicom"), "its part has no head"),
    "nothing": (lambda head, body: (head, b""), "it holds no part"),
    "a page": (lambda head, body: ({"content-type": "text/html"}, b"<p>MRN-0815</p>"), "it is no multipart/related message"),
    "a part that is a picture": (lambda head, body: as_part(body, kind="image/jpeg"), "its part is no application/dicom"),
    "no boundary": (lambda head, body: ({"content-type": "multipart/related"}, body), "its parts have no boundary"),
    "two parts": (
        lambda head, body: (head, body.replace(b"\r\n--an-edge--", b"\r\n--an-edge\r\n\r\n\r\nmore\r\n--an-edge--")),
        "it holds more than the one file",
    ),
    "no DICOM file": (lambda head, body: as_part(b"x" * 3000), "no DICOM file: DICM does not stand at byte 128"),
    "another instance": (lambda head, body: as_part(DATA), "it is another instance than the one that was asked for"),
    "compressed": (lambda head, body: ({**head, "content-encoding": "gzip"}, body), "it is compressed, which nobody asked for"),
    "too large as promised": (
        lambda head, body: ({**head, "content-length": str(2**40), "connection": "close"}, b""),
        "it is larger than 1 MiB",
    ),
    "too large without a promise": (lambda head, body: as_part(b"x" * 2**21), "it is larger than 1 MiB"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_answer_is_told_and_leaves_nothing_and_the_others_are_fetched(
    tmp_path: Path, archive_door: Archive, capsys: Any, case: str
) -> None:
    clinic = settle(tmp_path, url=archive_door.url, largest_mib=1)
    a_study(archive_door, 2)
    spoil, words = CASES[case]
    bad = str(image(1).SOPInstanceUID)
    archive_door.edit = lambda where, status, headers, body: (
        (status, *spoil(headers, body)) if where.endswith(bad) else (status, headers, body)
    )
    assert pull(clinic, "accession", "ACC-4711") == 3
    told = capsys.readouterr()
    assert "1 images fetched, 0 were here already, 1 could not be fetched" in told.out
    assert f"  1: {words}" in told.out
    assert "MRN-0815" not in told.out + told.err
    assert len(originals(identity(clinic))) == 1
    assert nothing_half_written(clinic)
    archive_door.edit = None
    assert pull(clinic, "accession", "ACC-4711") == 0
    assert len(originals(identity(clinic))) == 2


@pytest.mark.parametrize(
    "uid", ["../../../etc/passwd", "1.2/../../x", "1.2?x=1", "", "1." * 40, "%2e%2e", "1.2\u0663", None, ["1.2"]]
)
@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_a_uid_that_is_a_path_leads_nowhere(clinic: Path, archive_door: Archive, tmp_path: Path, level: str, uid: Any) -> None:
    a_study(archive_door, 1)
    tag = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[level]

    def spoil(where: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if where.endswith(level):
            listed = json.loads(body)
            listed[0][tag] = {"vr": "UI", "Value": [uid]}
            body = json.dumps(listed).encode()
        return status, headers, body

    archive_door.edit = spoil
    status = pull(clinic, "accession", "ACC-4711")
    assert status == 3
    assert originals(identity(clinic)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"house"}
    wanted = r"/dicom-web/studies(/[0-9.]+/series(/[0-9.]+/instances(/[0-9.]+)?)?)?"
    assert all(re.fullmatch(wanted, path) for path in archive_door.asked)


@pytest.mark.parametrize("body", [b"{", b"{}", b"[1]", b'"MRN-0815"', b"[" * 100_000, b"\xff", b'[{"0020000D": 3}]'])
def test_a_list_that_is_none_is_told(clinic: Path, archive_door: Archive, capsys: Any, body: bytes) -> None:
    archive_door.edit = lambda where, status, headers, _: (status, headers, body)
    assert pull(clinic, "accession", "ACC-4711") == 3
    told = capsys.readouterr().out
    assert "accession 1 of 1: its list" in told
    assert "MRN" not in told


def test_an_archive_that_is_busy_is_asked_again_and_one_that_sends_us_elsewhere_is_not_followed(
    clinic: Path, archive_door: Archive, capsys: Any
) -> None:
    a_study(archive_door)
    left = [503, 429]
    archive_door.edit = lambda where, status, headers, body: (left.pop(), {}, b"") if left else (status, headers, body)
    assert pull(clinic, "accession", "ACC-4711") == 0
    archive_door.edit = lambda where, *answer: (503, {}, b"")
    assert pull(clinic, "accession", "ACC-4711") == 1
    assert "it could not do it (status 503)" in capsys.readouterr().err
    archive_door.edit = lambda where, *answer: (307, {"location": "http://127.0.0.1:1/"}, b"")
    assert pull(clinic, "accession", "ACC-4711") == 1
    assert "sends us elsewhere (status 307), where we don't go: mend dicomweb.url" in capsys.readouterr().err


# -- who we are, and who the archive is ----------------------------------------------------------------------------------


def test_credentials_come_from_a_closed_file_and_are_in_no_message(tmp_path: Path, archive_door: Archive, capsys: Any) -> None:
    clinic = settle(tmp_path, url=archive_door.url, credentials="pacs.yaml")
    secret = clinic.parent / "pacs.yaml"
    assert pull(clinic, "accession", "A") == 1
    assert "dicomweb.credentials: " in capsys.readouterr().err
    secret.write_text("token: s3cret\n")
    secret.chmod(0o640)
    assert pull(clinic, "accession", "A") == 1
    assert "has mode 0640, so others may read it; do: chmod 600" in capsys.readouterr().err
    secret.chmod(0o600)
    assert pull(clinic, "accession", "A") == 3
    assert archive_door.seen[-1]["authorization"] == "Bearer s3cret"
    secret.write_text('user: konsil\npassword: "pass:wörd"\n')
    assert pull(clinic, "accession", "A") == 3
    assert archive_door.seen[-1]["authorization"] == "Basic a29uc2lsOnBhc3M6d8O2cmQ="  # base64 of konsil:pass:wörd in UTF-8
    capsys.readouterr()
    for wrong in (
        "password: s3cret",
        "token: 4711",
        "token: s3cret\nuser: x",
        "token: 's3cret\n\n x'",
        "user: a:b\npassword: s3cret",
        "s3cret",
    ):
        secret.write_text(wrong)
        assert pull(clinic, "accession", "A") == 1
        told = capsys.readouterr().err
        assert "pacs.yaml" in told
        assert "s3cret" not in told


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.5/dicom-web",
        "https://user:pass@pacs.example/x",
        "pacs.example",
        "https://",
        "ftp://127.0.0.1/",
        "https://a/?b",
    ],
)
def test_addresses_without_tls_or_with_a_password_are_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"https://"):
        DicomWeb(url=url)
    assert DicomWeb(url="https://pacs.example:8443/dicom-web/").url == "https://pacs.example:8443/dicom-web"


def test_without_a_dicomweb_section_nothing_is_asked(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "site.yaml").write_text("{name: clinic, declared_size: 5}")
    assert pull(tmp_path / "site.yaml", "accession", "A") == 1
    assert "names no dicomweb" in capsys.readouterr().err


def test_an_archive_that_is_away_or_has_another_certificate_is_told(tmp_path: Path, archive_door: Archive, capsys: Any) -> None:
    files = certificates(tmp_path / "tls")
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(files["theirs.crt"], files["theirs.key"])
    archive_door.socket = secured.wrap_socket(archive_door.socket, server_side=True, do_handshake_on_connect=False)
    address = archive_door.url.replace("http:", "https:")
    for authority in (files["authority.crt"], files["stranger.crt"], None):  # the name is never right: it names no address
        clinic = settle(tmp_path, url=address, **({"authority": str(authority)} if authority else {}))
        assert pull(clinic, "accession", "A") == 1
        assert "its certificate is not good for dicomweb.authority or its name" in capsys.readouterr().err
    archive_door.shutdown()
    archive_door.socket.close()
    assert pull(settle(tmp_path, url=archive_door.url), "accession", "A") == 1
    assert "can't be reached: Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        b"preamble\r\n--e\r\nX: y\r\ncontent-type:Application/DICOM; x=y\r\n\r\nfile\r\n--e--",
        b"--e  \r\nContent-Type: application/dicom\r\n\r\nfile\r\n--e--epilogue",
    ],
)
def test_one_part_is_found_where_the_standard_lets_it_stand(body: bytes) -> None:
    assert bytes(only_file('Multipart/Related; boundary="e"', body)) == b"file"
    assert bytes(only_file("application/dicom", b"file")) == b"file"
    with pytest.raises(BadAnswer):
        only_file("", body)


def test_check_asks_the_archive_for_nobody_and_says_what_to_mend(tmp_path: Path, archive_door: Archive) -> None:
    from fl_client.preflight import archive, keys

    clinic = settle(tmp_path, url=archive_door.url, credentials="pacs.yaml")
    (clinic.parent / "pacs.yaml").write_text("token: s3cret")
    (clinic.parent / "pacs.yaml").chmod(0o600)
    a_study(archive_door)

    def told() -> list[tuple[str, str]]:
        return [(finding.level, finding.text) for finding in archive(Site.load(clinic), clinic)]

    assert told() == [("ok", f"{archive_door.url} answers, and lets us in")]
    archive_door.takes_filter = False
    assert "takes no notice of what it is asked for" in told()[0][1]
    archive_door.edit = lambda where, *answer: (401, {}, b"")
    assert told() == [("mend", f"{archive_door.url}: it does not know our credentials (dicomweb.credentials) (status 401)")]
    (clinic.parent / "pacs.yaml").chmod(0o644)
    assert "mend" in {finding.level for finding in keys(Site.load(clinic), clinic) if "dicomweb credentials" in finding.text}


def test_an_archive_that_gives_everything_is_not_read_to_its_end(tmp_path: Path, archive_door: Archive, capsys: Any) -> None:
    clinic = settle(tmp_path, url=archive_door.url, most_studies=4)
    for number in range(20):
        archive_door.hold(image(number, StudyInstanceUID=f"1.2.{number}"))
    archive_door.takes_filter, archive_door.page = False, 3
    assert pull(clinic, "study", "1.2.1") == 3
    assert "study 1 of 1: its list has more entries than dicomweb.most_studies 4" in capsys.readouterr().out
    assert len(archive_door.asked) == 2
