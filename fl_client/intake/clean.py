"""The clean store: whole DICOM files, de-identified, from which cases are made and made again.

    <clean>/<pseudonym>/<new study uid>/<new series uid>/<new sop instance uid>.dcm

One original gives one file, and the same original always the same bytes, so that every step can be repeated after a kill. Pixel
data come out as they went in, compressed ones compressed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from fl_client.intake.deidentify import Deidentifier, Unattributable, discreet
from fl_client.intake.part10 import BIG_ENDIAN, DEFLATED, IMPLICIT, UNDEFINED, Bytes, holds
from fl_client.intake.pixels import clean_pixels, problem
from fl_client.intake.pseudonyms import patient_number
from fl_client.intake.way_back import TwoPeople, WayBack

IMPLEMENTATION = "2.25.219830236116190285178391290513214730541"
DIRECTORY = "1.2.840.10008.1.3.10"
PIXELS = 0x7FE00010
FIRST_ITEM = b"\xfe\xff\x00\xe0"
LARGE = 2**16  # bytes of pixel data from which on another copy in memory would matter

Parts = tuple[Bytes, ...]
"""A file's bytes in pieces, one after the other."""


@dataclass(frozen=True)
class Cleaned:
    """A file of the clean store. UIDs are the new ones."""

    path: Path
    pseudonym: str
    study: str
    series: str
    instance: str
    sop_class: str
    new: bool  # False: the same bytes lay there already
    dropped: Mapping[str, int] = field(default_factory=dict)  # keyword, 'private' or 'unknown': how often


@dataclass(frozen=True)
class Quarantined:
    """An original that may not pass. The reason repeats nothing of it; the pseudonym is empty if nobody is named."""

    reason: str
    pseudonym: str = ""
    series: str = ""  # the new UIDs, if the image is part of a series that is short of it now
    instance: str = ""


def deidentify_file(
    source: Path,
    clean_folder: Path,
    *,
    deidentify: Deidentifier,
    way_back: WayBack | None = None,
    accept_faces: bool = False,
) -> Cleaned | Quarantined:
    """Write the de-identified file of one original to the clean store, on the disk; or say why it may not pass.

    The way back is written first, so that no file of the store is without one. A second call gives the same bytes and writes
    nothing. Raises `OSError` if the original can't be read from the disk or the store can't be written; whatever else is wrong
    with a file is a reason.
    """
    pseudonym = ""
    with open(source, "rb") as file, discreet():
        try:
            original = pydicom.dcmread(file)
            if original.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
                return Quarantined("a DICOMDIR: the files it lists are read instead")
            if patient_id := patient_number(original):
                pseudonym = deidentify.pseudonym(patient_id)
            new_uids = [deidentify.uid(str(original.get(name, ""))) for name in ("SeriesInstanceUID", "SOPInstanceUID")]
            if (why := problem(original, accept_faces=accept_faces)) is not None:
                return Quarantined(why, pseudonym, *new_uids)
            result, done = deidentify.clean(original)
            if (why := clean_pixels(original, result)) is not None:
                return Quarantined(why, pseudonym, *new_uids)
            names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            study, series, instance = (str(result.get(name, "")) for name in names)
            if not (study and series and instance):
                return Quarantined("a file without StudyInstanceUID, SeriesInstanceUID or SOPInstanceUID", pseudonym)
            new = as_parts(result)
        except Unattributable as reason:
            return Quarantined(str(reason), pseudonym)
        except InvalidDicomError:
            return Quarantined("not a DICOM file")
        except Exception as error:  # a header that breaks an assumption is a reason, never a traceback
            if isinstance(error, OSError) and error.errno is not None:  # the disk's; pydicom's own have no number
                raise
            return Quarantined(f"it can't be read ({type(error).__name__}): corrupt or cut short", pseudonym)
    place = Path(clean_folder) / pseudonym / study / series / f"{instance}.dcm"
    there = place.exists()
    written = not there or not holds(place, new)
    if there and written and _method(place) == str(result.DeidentificationMethod):
        if _says_the_same(place, new):  # in another transfer syntax; the first one stays
            return Cleaned(place, pseudonym, study, series, instance, str(result.SOPClassUID), False, dict(done.dropped))
        return Quarantined("another file of the same SOPInstanceUID has arrived before, and holds something else", pseudonym)
    if way_back is not None:
        try:
            with discreet():
                way_back.remember(original, deidentify, arrived=source.stat().st_mtime_ns)
        except TwoPeople as reason:
            return Quarantined(str(reason), pseudonym)
    if written:
        _write(Path(clean_folder), place, new)
    return Cleaned(place, pseudonym, study, series, instance, str(result.SOPClassUID), written, dict(done.dropped))


def unread(source: Path, deidentify: Deidentifier, why: str) -> Quarantined:
    """An original that could not be worked off, with the reason and with whose it is, as far as its header can be read."""
    with discreet():
        try:
            names = ["PatientID", "SeriesInstanceUID", "SOPInstanceUID"]
            header = pydicom.dcmread(source, stop_before_pixels=True, specific_tags=names)
            patient_id = patient_number(header)
            uids = [deidentify.uid(str(header.get(name, ""))) for name in names[1:]]
        except Exception:
            return Quarantined(why)
    return Quarantined(why, deidentify.pseudonym(patient_id), *uids) if patient_id else Quarantined(why)


def as_parts(dataset: Dataset) -> Parts:
    """The file, in pieces: our own meta information, the transfer syntax as it was, an empty preamble.

    Pixel data, the last element, are a piece of their own and not copied, since they can be very large.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    syntax = meta.TransferSyntaxUID = UID(str(dataset.file_meta.TransferSyntaxUID))
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION), "KONSIL"
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    pixels = _pixels(dataset, syntax)
    if pixels is not None:
        element = dataset["PixelData"]
        del dataset["PixelData"]
    buffer = io.BytesIO()
    try:
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    finally:
        if pixels is not None:
            dataset["PixelData"] = element
    if pixels is None:
        return (buffer.getbuffer(),)  # without a copy
    order = ">" if syntax == BIG_ENDIAN else "<"
    vr = b"" if syntax == IMPLICIT else struct.pack("2sxx", element.VR.encode())
    padding = b"\0" * (len(pixels) % 2)
    length = UNDEFINED if syntax.is_compressed else len(pixels) + len(padding)  # PS3.5 A.4
    end = padding + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if syntax.is_compressed else padding
    head = struct.pack(f"{order}HH", 0x7FE0, 0x0010) + vr + struct.pack(f"{order}I", length)
    return buffer.getbuffer(), head, pixels, end


def _pixels(dataset: Dataset, syntax: UID) -> bytes | None:
    """The pixel data if they can be a piece of their own: the last element, large, and not to be deflated with the rest."""
    if not syntax.is_transfer_syntax or syntax == DEFLATED or "PixelData" not in dataset or max(dataset.keys()) != PIXELS:
        return None
    value = dataset["PixelData"].value
    if not isinstance(value, bytes) or len(value) < LARGE or len(dataset["PixelData"].VR) != 2:
        return None
    return value if not syntax.is_compressed or value.startswith(FIRST_ITEM) else None  # else pydicom says what is wrong


class AlreadyClean(Deidentifier):
    """The identity: for files of the clean store, whose PatientID is the pseudonym and whose dates are shifted already."""

    def __init__(self) -> None:
        super().__init__(b"no key is needed here")

    def pseudonym(self, patient_id: str) -> str:
        """What stands there."""
        return patient_id.strip()

    def handle(self, what: str) -> str:
        """A name for a path of the clean store, which names nobody."""
        return "F" + hashlib.sha256(what.encode()).hexdigest()[:16].upper()

    def uid(self, uid: str) -> str:
        """What stands there."""
        return uid

    def shift_days(self, patient_id: str) -> int:
        """None: dates are shifted."""
        return 0

    def __call__(self, dataset: Dataset) -> Dataset:
        """The dataset itself. Raises `Unattributable` for one that this house has not de-identified."""
        if dataset.file_meta.get("ImplementationClassUID") != IMPLEMENTATION or dataset.get("PatientIdentityRemoved") != "YES":
            raise Unattributable("not a file of the clean store: it has not been de-identified here")
        return dataset


def _says_the_same(path: Path, new: Parts) -> bool:
    """Whether a file of the store and these bytes hold the same elements, pixels included."""
    try:
        with discreet():
            return bool(pydicom.dcmread(path) == pydicom.dcmread(io.BytesIO(b"".join(new))))
    except Exception:
        return False


def _method(path: Path) -> str:
    """How a file of the store was made; empty if it can't be read."""
    try:
        with discreet():
            return str(pydicom.dcmread(path, stop_before_pixels=True).get("DeidentificationMethod", ""))
    except Exception:
        return ""


def sweep(clean_folder: Path) -> int:
    """Remove what killed processes were writing. Gives how many. Call it when nobody writes."""
    left = list(Path(clean_folder).glob(".*.part"))
    for part in left:
        if part.is_dir():  # a patient who withdrew: the process that removed his files was killed
            shutil.rmtree(part)
        else:
            part.unlink()
    return len(left)


def _write(clean_folder: Path, place: Path, data: Parts) -> None:
    """The whole file on the disk, or nothing."""
    made = [folder for folder in (place.parent, *place.parents) if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    part = clean_folder / f".{uuid4().hex}.part"
    try:
        with open(part, "xb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    for folder in {place.parent, *(folder.parent for folder in made)}:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
