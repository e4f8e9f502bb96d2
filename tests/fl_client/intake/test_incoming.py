from __future__ import annotations

import os
import re
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicom_peers import image, originals
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from fl_client.intake import quarantine
from fl_client.intake.incoming import Incoming, NoRoom, done, mark_done
from fl_client.intake.part10 import NotPart10, header, look, split
from fl_client.intake.quarantine import Quarantine

SYNTAX = "1.2.840.10008.1.2.1"


def encoded(dataset: Dataset) -> bytes:
    """The dataset's bytes, as they travel."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    start, _ = split(buffer.getvalue())
    return buffer.getvalue()[start:]


def keep(incoming: Incoming, data: bytes, *, instance: str = "1.2.3", syntax: str = SYNTAX) -> str:
    meta = header(sop_class="1.2.840.10008.5.1.4.1.1.4", instance=instance, transfer_syntax=syntax, sender="PACS")
    return incoming.keep(meta, data, transfer_syntax=syntax, instance=instance)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return tmp_path / "identity"


@pytest.fixture
def incoming(identity: Path, tmp_path: Path) -> Incoming:
    return Incoming(identity, clean=tmp_path / "clean")


def test_an_original_is_kept_as_the_bytes_that_came_in_a_file_that_anybody_reads(incoming: Incoming, identity: Path) -> None:
    dataset = image()
    assert keep(incoming, encoded(dataset)) == "stored"
    (file,) = originals(identity)
    start, syntax = split(file.read_bytes())
    assert (file.read_bytes()[start:], syntax) == (encoded(dataset), SYNTAX)
    assert pydicom.dcmread(file) == dataset
    modes = {path.stat().st_mode & 0o777 for path in (identity, identity / "incoming", file.parent)}
    assert (modes, file.stat().st_mode & 0o777) == ({0o700}, 0o600)


def test_the_file_and_its_folders_are_flushed_before_it_counts_as_kept(incoming: Incoming, monkeypatch: Any) -> None:
    flushed: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (flushed.append(str(Path(f"/proc/self/fd/{file}").readlink())), real(file))[1]
    )
    keep(incoming, encoded(image()))
    (file,) = originals(incoming.folder.parent)
    assert flushed == [str(incoming.folder), str(file), str(file.parent)]


def test_the_same_bytes_again_are_not_written_again(incoming: Incoming, identity: Path, tmp_path: Path) -> None:
    data = encoded(image())
    keep(incoming, data)
    (before,) = [path.stat() for path in originals(identity)]
    assert keep(incoming, data) == "again"
    assert keep(Incoming(identity, clean=tmp_path / "clean"), data) == "again"  # a new process knows it, too
    (after,) = [path.stat() for path in originals(identity)]
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_bytes_under_one_uid_are_kept_apart_and_neither_is_lost(incoming: Incoming, identity: Path) -> None:
    first, second = encoded(image()), encoded(image(PatientName="Brunnthaler^Bertrand"))
    assert [keep(incoming, first), keep(incoming, second), keep(incoming, second)] == ["stored", "conflict", "again"]
    kept = [path.read_bytes() for path in originals(identity)]
    assert [sum(data.endswith(sent) for data in kept) for sent in (first, second)] == [1, 1]


def test_an_original_that_was_worked_off_is_not_taken_again_as_long_as_its_copy_is_there(
    incoming: Incoming, identity: Path, tmp_path: Path
) -> None:
    data = encoded(image())
    keep(incoming, data)
    (file,) = originals(identity)
    copy = tmp_path / "clean" / "P1" / "copy.dcm"
    copy.parent.mkdir(parents=True)
    copy.touch()
    mark_done(file.parent, file.name, clean="P1/copy.dcm", when=0.0)
    file.unlink()
    assert keep(incoming, data) == "again"
    assert keep(incoming, encoded(image(PatientName="Brunnthaler^Bertrand"))) == "conflict"
    originals(identity)[0].unlink()
    copy.unlink()  # the patient withdrew, say
    assert keep(incoming, data) == "stored"


def test_a_file_that_a_power_failure_cut_short_is_written_again(incoming: Incoming, identity: Path) -> None:
    data = encoded(image())
    keep(incoming, data)
    (file,) = originals(identity)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert keep(incoming, data) == "stored"
    assert file.read_bytes() == whole


def test_a_list_that_two_processes_write_in_turn_is_read_on_and_not_read_anew(tmp_path: Path, monkeypatch: Any) -> None:
    ours, theirs = Quarantine(tmp_path / "q", fsync=False), Quarantine(tmp_path / "q", fsync=False)
    read: list[int] = []
    real = quarantine._objects
    monkeypatch.setattr(quarantine, "_objects", lambda text: read.append(len(text)) or real(text))
    for number in range(100):
        ours.note(f"a{number}", "reason")
        theirs.note(f"b{number}", "reason")
        theirs.note(f"a{number}", "reason")  # is known
    assert sum(read) <= 2 * (tmp_path / "q" / "quarantine.jsonl").stat().st_size
    assert len(ours.lines()) == 200
    ours.forget(files=[f"a{number}" for number in range(50)])
    theirs.note("a0", "reason")
    theirs.note("b0", "reason")
    assert len(ours.lines()) == 151


def test_folders_that_are_no_studies_are_left_alone(incoming: Incoming) -> None:
    keep(incoming, encoded(image()))
    for name in ("lost+found", "A" * 32, "0" * 31):
        (incoming.folder / name).mkdir()
    assert [path.name for path in incoming.studies()] == [originals(incoming.folder.parent)[0].parent.name]


def test_a_file_whose_end_is_other_than_what_came_is_written_again(incoming: Incoming, identity: Path) -> None:
    data = encoded(image(size=1100))  # of more than two mebibytes
    keep(incoming, data)
    (file,) = originals(identity)
    whole = file.read_bytes()
    assert keep(incoming, data) == "again"
    for place in (len(whole) - len(data), len(whole) - 2**20 - 3, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert keep(incoming, data) == "stored"
        assert file.read_bytes() == whole


def test_two_senders_of_the_same_image_at_once_make_one_file(incoming: Incoming, identity: Path) -> None:
    data, kept = encoded(image(size=256)), list[str]()
    threads = [threading.Thread(target=lambda: kept.append(keep(incoming, data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kept) == ["again"] * 7 + ["stored"]
    assert len(originals(identity)) == 1


@pytest.mark.parametrize(
    "strange",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        "",
        "a\0b",
        "x" * 5000,
        "Müller^Jürgen",
        "1.2/../../3",
        ".parts",
        "done.jsonl",
    ],
)
def test_no_text_of_the_sender_becomes_a_path(incoming: Incoming, identity: Path, tmp_path: Path, strange: str) -> None:
    with pydicom.config.disable_value_validation():
        data = encoded(image(StudyInstanceUID=strange, SOPInstanceUID=strange, PatientID=strange))
    assert keep(incoming, data, instance=strange) == "stored"
    (file,) = originals(identity)
    assert re.fullmatch(r"[0-9a-f]{32}/[0-9a-f]{32}-[0-9a-f]{32}\.dcm", file.relative_to(identity / "incoming").as_posix())
    assert [path for path in tmp_path.iterdir() if path != identity] == []


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 50, os.urandom(5000), b"\x08\0\x18\0UI\xff\xff", b"\x08\0\x05\0SQ\0\0\xff\xff\xff\xff" * 3000]
)
def test_bytes_that_nobody_understands_are_kept_all_the_same(incoming: Incoming, identity: Path, data: bytes) -> None:
    assert keep(incoming, data) == "stored"
    (file,) = originals(identity)
    assert file.read_bytes().endswith(data)


def test_below_the_watermark_nothing_is_taken(identity: Path, tmp_path: Path) -> None:
    incoming = Incoming(identity, clean=tmp_path / "clean", min_free_bytes=2**60)
    with pytest.raises(NoRoom, match="min_free_gib"):
        keep(incoming, encoded(image()))
    assert [path for path in identity.rglob("*") if path.is_file()] == []


def test_a_disk_that_fails_while_flushing_leaves_nothing(incoming: Incoming, identity: Path, monkeypatch: Any) -> None:
    keep(incoming, encoded(image(1)))

    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            keep(incoming, encoded(image(2)))
    assert len(originals(identity)) == 1
    assert list((identity / "incoming" / ".parts").iterdir()) == []
    assert keep(incoming, encoded(image(2))) == "stored"


def test_on_a_full_disk_what_was_kept_is_whole_and_nothing_else_is_left(small_disk: Path, tmp_path: Path) -> None:
    incoming = Incoming(small_disk / "identity", clean=tmp_path / "clean", min_free_bytes=-(2**40))  # try, however full
    kept = [encoded(image(number, size=512)) for number in (1, 2, 3)]  # half a megabyte each
    assert [keep(incoming, data) for data in kept] == ["stored"] * 3
    with pytest.raises(OSError, match="No space left"):
        keep(incoming, encoded(image(4, size=512)))
    files = originals(small_disk / "identity")
    assert sorted(path.read_bytes()[-len(kept[0]) :] for path in files) == sorted(kept)
    assert list((small_disk / "identity" / "incoming" / ".parts").iterdir()) == []


def test_what_killed_processes_were_writing_is_swept_away(incoming: Incoming, identity: Path) -> None:
    keep(incoming, encoded(image()))
    (identity / "incoming" / ".parts" / "0123").write_bytes(b"half")
    (identity / "quarantine" / ".0123.part").write_bytes(b"half")
    assert incoming.sweep() == 2
    assert [path.suffix for path in identity.rglob("*") if path.is_file()] == [".dcm"]


def test_a_line_that_a_power_failure_cut_short_is_left_out_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    mark_done(tmp_path, "a.dcm", clean="", when=0.0)
    with open(tmp_path / "done.jsonl", "a") as file:
        file.write('{"file": "b.dc')
    mark_done(tmp_path, "c.dcm", clean="", when=0.0)
    assert list(done(tmp_path)) == ["a.dcm", "c.dcm"]


@pytest.mark.parametrize("syntax", [SYNTAX, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_identifiers_are_found_in_every_encoding_and_behind_sequences(syntax: str) -> None:
    dataset = image()
    item = Dataset()
    item.PatientID, item.StudyInstanceUID = "somebody else", "9.9.9"
    nested = Dataset()
    nested.ReferencedPatientSequence = [item]
    dataset.ReferencedPatientSequence = [nested, item]
    dataset["ReferencedPatientSequence"].is_undefined_length = True
    nested["ReferencedPatientSequence"].is_undefined_length = True
    for part in (nested, item):
        part.is_undefined_length_sequence_item = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = b"\0" * 512
    seen = look(encoded(dataset), syntax)
    assert (seen.instance.decode(), seen.patient, seen.study.decode()) == (
        dataset.SOPInstanceUID,
        b"MRN-0815",
        dataset.StudyInstanceUID,
    )


def test_identifiers_are_those_that_pydicom_reads(shared_data: Path) -> None:
    compared = 0
    for path in sorted((shared_data / "dicom_files").rglob("*")):
        try:
            data = path.read_bytes() if path.is_file() else b""
            start, syntax = split(data)
            read = pydicom.dcmread(path, stop_before_pixels=True)
            raw = [read.get_item(tag) for tag in (0x00080018, 0x00100020, 0x0020000D)]
            expected = [
                str(item.value or "" if not isinstance(item.value, bytes) else item.value.decode("latin1")).strip(" \0")
                if item
                else ""
                for item in raw
            ]
        except (NotPart10, pydicom.errors.InvalidDicomError, OSError, NotImplementedError, TypeError):
            continue
        seen = look(data[start:], syntax)
        assert [value.decode("latin1") for value in (seen.instance, seen.patient, seen.study)] == expected, path.name
        compared += 1
    assert compared > 50


def test_a_file_without_dicm_or_with_cut_meta_information_is_told_apart() -> None:
    with pytest.raises(NotPart10, match="byte 128"):
        split(b"PK" * 100)
    whole = header(sop_class="1.2", instance="1.2.3", transfer_syntax=SYNTAX, sender="PACS")
    assert split(whole) == (len(whole), SYNTAX)
    with pytest.raises(NotPart10, match="cut short"):
        split(whole[:-3])
