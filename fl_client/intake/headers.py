"""What a folder holds, from its headers alone: slices and masks by patient and series, and which files are neither.

Headers are de-identified as they are read, so that whatever comes after sees pseudonyms. A file that is of no use is left out
with the reason; one that is a patient's and of no use still makes that patient known, who then ends as a refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from fl_client.intake.deidentify import Deidentifier, Unattributable
from fl_client.intake.door import Progress, Reasons
from fl_client.intake.endpoints import FILE as ENDPOINTS
from fl_client.intake.moments import DRAWN, LABELMAP_SEG, RTSTRUCT, SEG, Moment
from fl_client.intake.multiframe import ENHANCED, Unframed, frames_of
from fl_client.intake.pixels import problem
from fl_client.intake.volume import Frame
from fl_client.intake.way_back import TWO_NUMBERS, TWO_PEOPLE, Facts, facts_of

MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass
class Patient:
    """All that a folder holds of one patient, de-identified."""

    series: dict[str, list[Frame]] = field(default_factory=dict)  # series UID: images
    masks: list[Frame] = field(default_factory=list)
    moments: dict[str, Moment] = field(default_factory=dict)  # instance UID: when a mask was drawn, as its original says
    facts: list[Facts] = field(default_factory=list)  # what the way back keeps of originals. They name the patient
    doubts: dict[str, list[str]] = field(default_factory=dict)  # why files may be another person's: their handles

    def add_masks(self, drawn: Patient) -> None:
        """The masks of another folder, and what is known of them."""
        self.masks.extend(drawn.masks)
        self.moments.update(drawn.moments)
        self.facts.extend(drawn.facts)
        for reason, files in drawn.doubts.items():
            self.doubts.setdefault(reason, []).extend(files)

    def doubt(self) -> str:
        """In words, that these are files of two people; empty if nothing says so."""
        if not self.doubts:
            return ""
        reason, files = min(self.doubts.items())
        named = f"{', '.join(files[:3])}{f' and {len(files) - 3} more' if len(files) > 3 else ''}"
        return f"its files may be of two people, and nobody here can tell which are whose: {named}: {reason}"


@dataclass(frozen=True)
class _Opened:
    """A de-identified header, and what only the original says."""

    header: Dataset
    problem: str | None  # by the pixel policy
    facts: Facts | None  # of an original


def read_headers(
    folder: Path,
    reasons: Reasons,
    progress: Progress | None,
    *,
    skip: Collection[Path] = (),
    accept_faces: bool = True,
    originals: bool = False,
) -> dict[str, Patient]:
    """De-identified headers by patient and series; files that are no images or masks of anybody are left out.

    Those in `skip` are somebody else's to read. Of `originals` those are left out, too, that the pixel policy doesn't let pass,
    and those that may be another person's: known under another number, or their number with another issuer or birth date. The
    patient then has `doubts`: which file was read first doesn't say whose the others are.
    """
    patients: dict[str, Patient] = {}
    seen: dict[str, tuple[Path, str]] = {}  # SOP instance: first file, and whose it is
    people: dict[str, dict[str, str]] = {}  # pseudonym: what its files say of the person
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / ENDPOINTS and path not in skip]
    for done, path in enumerate(files, 1):
        handle = reasons.deidentify.handle(path.relative_to(folder).as_posix())
        try:
            opened = _open(path, reasons.deidentify, accept_faces=accept_faces, originals=originals)
            header = opened.header
        except Unattributable as reason:
            reasons.leave_out(handle, str(reason), path)
        except InvalidDicomError:
            reasons.leave_out(handle, "not a DICOM file", path)
        except Exception as error:
            reasons.leave_out(handle, f"the header can't be read ({type(error).__name__}): corrupt or cut short", path)
        else:
            # a patient whose every file is of no use still ends as a refusal
            patient = patients.setdefault(header.PatientID, Patient())
            unfit, frames = unsuitable(header), [Frame(path, header)]
            if unfit is None and header.SOPClassUID in ENHANCED:
                try:
                    frames = frames_of(path, header)
                except Unframed as reason:
                    unfit = str(reason)
                except Exception as error:  # a header that breaks an assumption is a reason, never a traceback
                    unfit = f"an enhanced image whose frames can't be understood ({type(error).__name__})"
            instance = str(header.get("SOPInstanceUID", ""))
            if unfit is None and instance in seen and _digest(seen[instance][0]) == _digest(path):
                unfit = "a copy of another file, byte by byte"
            unfit = unfit or (opened.problem if originals else None)
            if unfit is None and opened.facts is not None:
                unfit = _of_another(opened.facts, people.setdefault(header.PatientID, {}))
                owner = seen[instance][1] if instance in seen else header.PatientID
                if unfit is None and owner != header.PatientID:
                    unfit = TWO_NUMBERS
                    patients[owner].doubts.setdefault(unfit, []).append(handle)
                if unfit is not None:
                    patient.doubts.setdefault(unfit, []).append(handle)
                else:
                    patient.facts.append(opened.facts)
                    if opened.facts.moment is not None:
                        patient.moments[instance] = opened.facts.moment
            if unfit is not None:
                reasons.leave_out(handle, unfit, path)
            elif header.SOPClassUID in DRAWN:
                patient.masks.append(Frame(path, header))
            else:
                patient.series.setdefault(str(header.get("SeriesInstanceUID", "")), []).extend(frames)
            seen.setdefault(instance, (path, header.PatientID))
        if progress:
            progress(done, len(files))
    return patients


def read_header(path: Path, deidentify: Deidentifier) -> Dataset:
    """The de-identified header; a segmentation keeps its pixels, which are the mask. Raises many kinds of exception."""
    return _open(path, deidentify).header


def _open(path: Path, deidentify: Deidentifier, *, accept_faces: bool = True, originals: bool = False) -> _Opened:
    with pydicom.dcmread(path, stop_before_pixels=True) as original:
        if original.get("SOPClassUID") in (SEG, LABELMAP_SEG):
            original = pydicom.dcmread(path)
        elif original.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
            raise Unattributable("a DICOMDIR: the files it lists are read instead")
        header = deidentify(original)
        why = problem(original, accept_faces=accept_faces)
        facts = facts_of(original, deidentify) if originals else None
    for element in header.iterall():
        _ = element.value  # converts numbers now, so that a broken one is this file's fault
    return _Opened(header, why, facts)


def _of_another(facts: Facts, known: dict[str, str]) -> str | None:
    """Why a file may be somebody else's of the same number; else what it says of the person is known from now on."""
    said = {"issuer": facts.texts["IssuerOfPatientID"], "birth_date": facts.texts["PatientBirthDate"]}
    for name, reason in TWO_PEOPLE.items():
        if said[name] and known.setdefault(name, said[name]) != said[name]:
            return reason
    return None


def unsuitable(header: Dataset) -> str | None:
    """Why a readable file is neither a slice nor a mask, or None if it is one."""
    kind = header.get("SOPClassUID")
    if kind in DRAWN:
        return "a model of konsil drew this mask, and no other learns from it" if _is_ours(header) else None
    if kind not in (MR, CT, *ENHANCED):
        # a private UID may carry a hospital's own root, so only the standard's names are repeated
        standard = str(kind or "").startswith("1.2.840.10008.")
        name = pydicom.uid.UID(str(kind)).name if standard else "an object of no standard class"
        return f"{name} is neither MR or CT images nor a segmentation or structure set"
    if header.get("BurnedInAnnotation") == "YES":
        return "BurnedInAnnotation is YES: names may stand in the pixels"
    if "MOSAIC" in (header.get("ImageType") or ()):
        return "a mosaic, all slices tiled in one image; exported as enhanced images or slice by slice it can be read"
    if header.get("Rows") is None or header.get("Columns") is None:
        return "an image header without Rows and Columns"
    return None


def _is_ours(seg: Dataset) -> bool:
    """Whether it went out of this door: an archive may send on to us what we gave it."""
    drawn = {segment.get("SegmentAlgorithmType") for segment in seg.get("SegmentSequence") or []}
    return seg.get("Manufacturer") == "konsil" and "AUTOMATIC" in drawn


def references(seg: Dataset) -> Iterator[str]:
    """Slices of the images that a segmentation or structure set was drawn on, as `Frame.key` calls them.

    Of a multi-frame image these are its frames, where the segmentation says which; else the whole image, by its UID alone.
    """
    if seg.get("SOPClassUID") == RTSTRUCT:
        yield from _structure_references(seg)
        return
    frames: dict[str, set[int]] = {}
    groups = [*(seg.get("SharedFunctionalGroupsSequence") or []), *(seg.get("PerFrameFunctionalGroupsSequence") or [])]
    for source in (
        s for g in groups for d in g.get("DerivationImageSequence") or [] for s in d.get("SourceImageSequence") or []
    ):
        numbers = source.get("ReferencedFrameNumber")
        if numbers not in (None, ""):
            several = [numbers] if isinstance(numbers, int) else numbers
            frames.setdefault(str(source.get("ReferencedSOPInstanceUID", "")), set()).update(map(int, several))
    for series in seg.get("ReferencedSeriesSequence", []):
        for item in series.get("ReferencedInstanceSequence", []):
            uid = str(item.get("ReferencedSOPInstanceUID", ""))
            if uid not in frames:
                yield uid
    for uid, several in frames.items():
        for number in sorted(several):
            yield f"{uid}#{number}"


def structure_series(structures: Dataset) -> Iterator[tuple[str, Dataset]]:
    """Series that a structure set refers to, each with its UID."""
    for frame in structures.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield str(series.get("SeriesInstanceUID", "")), series


def _structure_references(structures: Dataset) -> Iterator[str]:
    contours = [c for item in structures.get("ROIContourSequence") or [] for c in item.get("ContourSequence") or []]
    for item in [*(series for _, series in structure_series(structures)), *contours]:
        for image in item.get("ContourImageSequence") or []:
            uid, frames = str(image.get("ReferencedSOPInstanceUID", "")), image.get("ReferencedFrameNumber")
            if frames in (None, ""):
                yield uid
            else:
                yield from (f"{uid}#{int(frame)}" for frame in ([frames] if isinstance(frames, int) else frames))


def is_drawn(frames: list[Frame], masks: list[Frame]) -> bool:
    """Whether a mask refers to any of these images."""
    drawn = {key for mask in masks for key in references(mask.header)}
    return any(key in drawn for frame in frames for key in frame.keys)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
