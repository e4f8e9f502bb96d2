"""The hospitals' archives: patients as DICOM files, generated ones and the real ones of the Sunnybrook data, and the sender."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.labels import LabelMap
from fl_client.intake.sunnybrook import admit_sunnybrook
from fl_client.intake.write_back import write_seg
from simulation.dicom import write_patient
from simulation.federation.programs import run
from simulation.hospital_case import patient_case
from simulation.scanner import Series
from simulation.settings import GeneratedHospital
from tasks.case import Volume

KEY = b"an archive's key, used only to find the patients' own names again"


def generate(
    hospital: GeneratedHospital,
    seeds: Sequence[int],
    folder: Path,
    *,
    series: tuple[Series, ...],
    oversampling: int,
    subslices: int,
) -> None:
    """Write generated patients of a hospital as its scanner and its readers' workstation would: images, SEG, endpoints.csv."""
    for seed in seeds:
        case = patient_case(
            seed,
            hospital.scanner,
            hospital.reader,
            hospital.case_mix,
            series,
            oversampling=oversampling,
            subslices=subslices,
        )
        write_patient(case, folder)


def sunnybrook(source: Path, folder: Path, *, scratch: Path) -> None:
    """Write the Sunnybrook patients' end-diastole as an archive would hold it, with the experts' contours as DICOM SEG.

    The published files have a frame of reference of their own each, UIDs that are none, and no series description; a
    workstation that could draw on them had to mend that, and so does this. Pixels and geometry stay as they are. Who is refused
    at the door for displaced contours is refused here as well, and sent without a mask.
    """
    labels = LabelMap.load("sunnybrook")
    names = Deidentifier(KEY)
    cohort = Cohort(scratch)
    admit_sunnybrook(source, cohort, key=KEY, labels=labels)
    with discreet():
        for images in sorted((source / "dicom").iterdir()):
            pseudonym = names.pseudonym(images.name)
            volume = cohort.case(pseudonym).volume("cine_ed") if pseudonym in cohort.patients else None
            _write(images, folder / images.name, volume)
    shutil.rmtree(scratch)


def _write(images: Path, folder: Path, volume: Volume | None) -> None:
    """One patient's series `cine_ed`, and the mask beside it if there is one."""
    kept = _phase([pydicom.dcmread(path) for path in sorted(images.glob("*.dcm"))], None if volume is None else volume.image)
    study, series, reference = (generate_uid(entropy_srcs=[images.name, what]) for what in ("study", "cine_ed", "reference"))
    (folder / "cine_ed").mkdir(parents=True)
    for number, image in enumerate(kept, 1):
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, reference
        image.SOPInstanceUID = generate_uid(entropy_srcs=[images.name, "cine_ed", str(number)])
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.SeriesDescription, image.SeriesNumber = "cine sax ed", 1
        image.ImageOrientationPatient = kept[0].ImageOrientationPatient  # equal but for the last digit
        image.save_as(folder / "cine_ed" / f"IM{number:04d}.dcm", enforce_file_format=True)
    if volume is not None and volume.mask is not None:
        write_seg(np.asarray(volume.mask), kept, folder / "cine_ed-mask.dcm", LabelMap.load("cardiac"), algorithm=None)


def _phase(
    images: Sequence[pydicom.Dataset], volume: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None
) -> list[pydicom.Dataset]:
    """The frames of end-diastole: those whose pixels the volume holds, or one per position for a patient without a volume."""
    if volume is None:
        at: dict[tuple[float, ...], pydicom.Dataset] = {}
        for image in images:
            at.setdefault(tuple(map(float, image.ImagePositionPatient)), image)
        return list(at.values())
    return [image for image in images if any(np.array_equal(image.pixel_array, plane) for plane in volume)]


def send(folder: Path, *, port: int, called: str, calling: str, log: Path) -> str:
    """Send all DICOM files below a folder to a DICOM node of this machine; which program did it.

    By DCMTK's storescu where it is installed, by pynetdicom's otherwise. Raises `CommandFailed`.
    """
    if program := dcmtk("storescu"):
        run(
            [program, "-aet", calling, "-aec", called, "-R", "+sd", "+r", "+sp", "*.dcm", "127.0.0.1", str(port), str(folder)],
            log=log,
        )
        return "DCMTK storescu"
    run(
        [
            sys.executable,
            "-m",
            "pynetdicom",
            "storescu",
            "127.0.0.1",
            str(port),
            str(folder),
            "-r",
            "-aet",
            calling,
            "-aec",
            called,
        ],
        log=log,
    )
    return "pynetdicom storescu"


def dcmtk(name: str) -> str | None:
    """Where DCMTK's program of this name is; its namesakes of pynetdicom, which are scripts, are passed over."""
    for place in os.get_exec_path():
        path = Path(place) / name
        if path.is_file() and os.access(path, os.X_OK):
            with open(path, "rb") as file:
                if file.read(2) != b"#!":
                    return str(path)
    return None
