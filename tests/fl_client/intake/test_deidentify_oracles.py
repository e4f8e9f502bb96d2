"""Programs that know nothing of konsil judge what comes out: dciodvfy finds no new errors, and what Orthanc's own basic profile
takes away doesn't pass here. Orthanc runs without any network: a script in it reads and writes the files."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from conftest import KEY
from dicom_bytes import CT, ENHANCED_MR, MR, RTSTRUCT, SEG, element, joined, part10, sequence, skeleton
from pydicom.dataset import Dataset
from test_deidentify_planted import UNTOUCHED, DicomDictionary, vr_of

from fl_client.intake.clean import Cleaned, deidentify_file
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.positive_list import rules

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PLAIN = Deidentifier(KEY, retain=())
OPTIONS = Deidentifier(KEY, retain=("dates", "descriptors"))


def clean(source: Path, folder: Path, deidentify: Deidentifier = OPTIONS) -> Path:
    result = deidentify_file(source, folder, deidentify=deidentify, accept_faces=True)
    assert isinstance(result, Cleaned), result
    return result.path


def errors(path: Path) -> Counter[str]:
    """Error lines of dciodvfy without the values that de-identification changes."""
    told = subprocess.run(["dciodvfy", path], capture_output=True, check=False).stderr.decode(errors="replace")
    return Counter(re.sub(r"<[0-9.]{9,}>", "<uid>", line) for line in told.splitlines() if line.startswith("Error"))


needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")


@needs_dciodvfy
@pytest.mark.parametrize("deidentify", [PLAIN, OPTIONS], ids=["plain", "options"])
def test_images_and_segmentations_written_here_get_no_new_errors(
    archive: Path, tmp_path: Path, deidentify: Deidentifier
) -> None:
    for source in archive.rglob("*.dcm"):
        assert errors(clean(source, tmp_path / "clean", deidentify)) - errors(source) == Counter()


@needs_dciodvfy
@pytest.mark.parametrize(
    "pattern",
    [
        "**/10000_001.dcm", "**/6_2.dcm", "**/MR1_J2KI", "**/MR3_JLSN", "**/MR4_J2KI", "**/CT1_J2KI", "**/CT2_JLSL",
        "**/mf.dcm", "**/CT0012.fragmented*", "**/seg_image_*.dcm", "**/liver_rle.dcm", "**/sparse-labelmap-*.dcm",
        "**/mock_data/*rt.dcm", "**/693_J2KR.dcm",
    ],
)  # fmt: skip
def test_files_of_others_get_no_new_errors(pattern: str, shared_data: Path, tmp_path: Path) -> None:
    sources = sorted((shared_data / "dicom_files").glob(pattern))
    assert sources
    for number, source in enumerate(sources):
        before = errors(source)
        for deidentify in (PLAIN, OPTIONS) if number == 0 else (OPTIONS,):
            folder = tmp_path / f"{number}-{deidentify is PLAIN}"
            assert errors(clean(source, folder, deidentify)) - before == Counter(), source.name


def test_contours_still_lead_to_their_images(shared_data: Path, tmp_path: Path) -> None:
    with discreet():
        for source in (shared_data / "dicom_files").rglob("*_rt.dcm"):
            before = pydicom.dcmread(source)
            after = pydicom.dcmread(clean(source, tmp_path / source.stem))
            old = list(referred(before))
            assert [OPTIONS.uid(uid) for uid in old] == list(referred(after))
            assert old
            for one, other in zip(before.ROIContourSequence, after.ROIContourSequence, strict=True):
                mine = [list(contour.ContourData) for contour in one.get("ContourSequence", [])]
                assert mine == [list(contour.ContourData) for contour in other.get("ContourSequence", [])]


def referred(dataset: Dataset) -> Iterator[str]:
    for part in dataset.iterall():
        if part.keyword in ("ReferencedSOPInstanceUID", "ReferencedFrameOfReferenceUID"):
            yield str(part.value)


PLAUSIBLE = {
    **dict.fromkeys(("SH", "LO", "ST", "LT", "UC", "UT"), b"cine"),
    **{"CS": b"AXIAL", "AE": b"STORE", "PN": b"Abendroth^A", "UI": b"1.2.276.0.99.1", "UR": b"http://clinic.example"},
    **{"DA": b"20240115", "DT": b"20240115101112", "TM": b"101112", "AS": b"045Y", "DS": b"1.5", "IS": b"7"},
    **dict.fromkeys(("OB", "OW", "UN", "OV", "OD", "OF", "OL"), bytes(range(1, 9))),
    **{"US": struct.pack("<H", 3), "SS": struct.pack("<h", 3), "UL": struct.pack("<I", 3), "SL": struct.pack("<i", 3)},
    **{"FL": struct.pack("<f", 2.5), "FD": struct.pack("<d", 2.5), "AT": struct.pack("<HH", 0x20, 0x9056)},
    **{"SV": struct.pack("<q", 3), "UV": struct.pack("<Q", 3)},
}


def full_of_plausible_values(sop_class: str) -> bytes:
    """Every attribute of the dictionary at the top, and every listed one in an item of every listed sequence."""
    simple = {
        tag: element(tag, vr_of(tag), PLAUSIBLE[vr_of(tag)])
        for tag in DicomDictionary
        if 0x0008 <= tag >> 16 < 0x7FE0 and vr_of(tag) != "SQ" and tag not in UNTOUCHED | {0x00080001, 0x00080005}
    }
    listed = rules(sop_class)
    item = joined(
        {tag: value for tag, value in simple.items() if tag in listed and (listed[tag].kind != "number" or tag % 5 == 0)}
    )
    sequences = {tag: sequence(tag, [item]) for tag, rule in listed.items() if rule.vr == "SQ"}
    return part10(joined(simple | sequences | skeleton(sop_class)), sop_class)


SCRIPT = """
function Initialize()
  for path in io.lines('{folder}/list') do
    local file = io.open(path, 'rb')
    local stored = ParseJson(RestApiPost('/instances', file:read('*a')))
    file:close()
    file = io.open(path .. '.anonymised', 'wb')
    file:write(RestApiPost('/instances/' .. stored['ID'] .. '/anonymize', '{{}}'))
    file:close()
    RestApiDelete('/instances/' .. stored['ID'])
  end
  RestApiPost('/tools/shutdown', '')
end
"""


def anonymised(folder: Path, sources: list[Path]) -> None:
    """Let Orthanc write `<source>.anonymised` for each."""
    (folder / "list").write_text("\n".join(map(str, sources)))
    (folder / "script.lua").write_text(SCRIPT.format(folder=folder))
    (folder / "orthanc.json").write_text(
        '{"HttpServerEnabled": false, "DicomServerEnabled": false, "Plugins": [], "StorageDirectory": "FOLDER/storage",'
        ' "IndexDirectory": "FOLDER/storage", "LuaScripts": ["FOLDER/script.lua"]}'.replace("FOLDER", str(folder))
    )
    subprocess.run([str(ORTHANC), folder / "orthanc.json"], check=True, capture_output=True, timeout=60)


def values(dataset: Dataset, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of keywords, value) of every element that has one."""
    for part in dataset:
        name = (*path, part.keyword or str(part.tag))
        if part.VR == "SQ":
            for number, item in enumerate(part.value):
                yield from values(item, (*name, str(number)))
        elif part.value not in (None, "", b""):
            yield name, str(part.value)


CLEANED = {"ContrastBolusAgent", "ProtocolName", "ROIName", "SeriesDescription", "StructureSetLabel", "StudyDescription"}
"""Descriptors: Orthanc removes them, the Clean Descriptors option lets words of the vocabulary pass."""


@pytest.fixture(scope="module")
def by_orthanc(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file full of plausible values of each class, beside which lies what Orthanc makes of it."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    sources = {sop_class: folder / f"{sop_class}.dcm" for sop_class in (MR, ENHANCED_MR, CT, SEG, RTSTRUCT)}
    for sop_class, source in sources.items():
        source.write_bytes(full_of_plausible_values(sop_class))
    anonymised(folder, list(sources.values()))
    return sources


@pytest.mark.parametrize(
    ("sop_class", "deidentify", "justified"),
    [
        *((sop_class, PLAIN, set()) for sop_class in (MR, ENHANCED_MR, CT, SEG, RTSTRUCT)),
        *((sop_class, OPTIONS, CLEANED) for sop_class in (MR, RTSTRUCT)),
    ],
)
def test_what_orthanc_takes_away_does_not_pass(
    sop_class: str, deidentify: Deidentifier, justified: set[str], by_orthanc: dict[str, Path], tmp_path: Path
) -> None:
    source = by_orthanc[sop_class]
    with discreet():
        before = dict(values(pydicom.dcmread(source)))
        theirs = dict(values(pydicom.dcmread(source.with_name(f"{source.name}.anonymised"))))
        ours = dict(values(pydicom.dcmread(clean(source, tmp_path / "clean", deidentify))))
    taken = {path for path, value in before.items() if theirs.get(path) != value}
    passed = {path for path, value in before.items() if ours.get(path) == value}
    assert len(taken) > 200
    assert sorted({path[-1] for path in taken & passed} - justified) == []
