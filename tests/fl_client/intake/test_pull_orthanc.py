"""Fetching over DICOMweb from an Orthanc, in a network of its own where the system allows that; on loopback in any case."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pydicom
import pytest
from conftest import KEY, a_case
from dicom_peers import image, originals
from pydicom.uid import JPEGLosslessSV1

from fl_client.__main__ import main
from fl_client.cohort import Cohort
from fl_client.intake.arrivals import Arrivals
from fl_client.site import Site
from simulation.dicom import Identity, write_patient
from simulation.federation.archive import dcmtk

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
missing = ORTHANC is None or not PLUGIN.exists()
pytestmark = pytest.mark.skipif(missing, reason="Orthanc with its DICOMweb plugin is not installed")

USER, PASSWORD = "konsil", "läßt uns ein"


@dataclass(frozen=True)
class Held:
    """An archive with two patients in it."""

    url: str
    files: dict[str, bytes]  # as Orthanc itself gives them, by SOPInstanceUID


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def own_network() -> Iterator[None]:
    """A network with nothing but loopback in it: whatever a plugin opens, nobody else can reach it."""
    libc, before = ctypes.CDLL(None, use_errno=True), os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    apart = shutil.which("ip") is not None and libc.unshare(0x40000000) == 0  # CLONE_NEWNET
    try:
        if apart:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        if apart:
            libc.setns(before, 0x40000000)
        os.close(before)


@pytest.fixture(scope="module")
def orthanc(own_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    folder, http = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {
        "Name": "archive", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [str(PLUGIN)],
        "HttpPort": http, "RemoteAccessAllowed": False, "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD},
        "DicomServerEnabled": False, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    images = tmp_path_factory.mktemp("scanner")
    write_patient(a_case("patient-1"), images)
    image(1, AccessionNumber="ACC-1").save_as(images / "plain.dcm", enforce_file_format=True)
    compressed(images)
    process = subprocess.Popen(
        [str(ORTHANC), str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{http}", auth=(USER, PASSWORD), timeout=20, trust_env=False) as rest:
            for _ in range(200):
                try:
                    rest.get("/system").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            for path in images.rglob("*.dcm"):
                rest.post("/instances", content=path.read_bytes()).raise_for_status()
            names = rest.get("/instances").json()
            uids = {name: rest.get(f"/instances/{name}").json()["MainDicomTags"]["SOPInstanceUID"] for name in names}
            yield Held(
                f"http://127.0.0.1:{http}/dicom-web",
                {uid: rest.get(f"/instances/{name}/file").content for name, uid in uids.items()},
            )
    finally:
        process.terminate()
        process.wait(20)


def compressed(folder: Path) -> None:
    """The second slice of the small patient in JPEG Lossless, where DCMTK is there to make it."""
    image(2, AccessionNumber="ACC-1").save_as(folder / "second.dcm", enforce_file_format=True)
    if dcmtk("dcmcjpeg"):
        done = subprocess.run(
            [str(dcmtk("dcmcjpeg")), "+e1", str(folder / "second.dcm"), str(folder / "smaller.dcm")], check=False
        )
        if done.returncode == 0:
            (folder / "smaller.dcm").replace(folder / "second.dcm")


@pytest.fixture
def clinic(tmp_path: Path, orthanc: Held) -> Path:
    house = tmp_path / "house"
    house.mkdir()
    (house / "pseudonym.key").write_bytes(KEY)
    (house / "pacs.yaml").write_text(f'user: {USER}\npassword: "{PASSWORD}"\n')
    for name in ("pseudonym.key", "pacs.yaml"):
        (house / name).chmod(0o600)
    web = {"url": orthanc.url, "credentials": "pacs.yaml"}
    settings = {"name": "clinic", "declared_size": 5, "arrivals": {"min_free_gib": 0}, "dicomweb": web}
    (house / "site.yaml").write_text(json.dumps(settings))
    return house / "site.yaml"


def pull(clinic: Path, *said: str) -> int:
    return main(["--site", str(clinic), "pull", *said])


def kept(clinic: Path) -> dict[str, bytes]:
    found = originals(Site.load(clinic).identity_folder)
    return {str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): path.read_bytes() for path in found}


def test_instances_come_as_orthanc_keeps_them_compressed_ones_too(clinic: Path, orthanc: Held) -> None:
    assert pull(clinic, "accession", "ACC-1") == 0
    mine = kept(clinic)
    assert set(mine) == {str(image(number).SOPInstanceUID) for number in (1, 2)}
    assert mine == {uid: orthanc.files[uid] for uid in mine}
    if dcmtk("dcmcjpeg"):
        syntaxes = {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in originals(Site.load(clinic).identity_folder)}
        assert JPEGLosslessSV1 in syntaxes


def test_a_patient_is_found_by_number_fetched_once_and_let_in(
    clinic: Path, orthanc: Held, capsys: pytest.CaptureFixture
) -> None:
    number = Identity.invent("patient-1").patient_id
    assert pull(clinic, "patient", number, "--dry-run") == 0
    assert "20 images to fetch, 0 are here already" in capsys.readouterr().out
    assert pull(clinic, "patient", number) == 0
    assert len(kept(clinic)) == 20
    assert Arrivals(Site.load(clinic)).work(all_quiet=True)["admitted"] == 1
    (case,) = Cohort(Site.load(clinic).cohort_folder)
    assert [(volume.series, volume.mask is not None) for volume in case.volumes] == [
        ("cine_ed", True),
        ("cine_es", True),
        ("lge", False),
    ]
    capsys.readouterr()
    assert pull(clinic, "patient", number) == 0
    assert "0 images fetched, 20 were here already, 0 could not be fetched" in capsys.readouterr().out


def test_who_is_not_there_and_a_wrong_password_are_told(clinic: Path, capsys: pytest.CaptureFixture) -> None:
    assert pull(clinic, "accession", "NOBODY") == 3
    assert "accession 1 of 1: the archive has no such study" in capsys.readouterr().out
    (clinic.parent / "pacs.yaml").write_text(f"user: {USER}\npassword: another")
    assert pull(clinic, "accession", "ACC-1") == 1
    assert "it does not know our credentials (dicomweb.credentials) (status 401)" in capsys.readouterr().err
