"""The hospitals' archives: patients as DICOM files, generated ones and the real ones of the Sunnybrook data, and the sender.

    python -m simulation.federation.archive FOLDER --scanner alster --patients 12 --seed 1

writes generated patients, to try a hospital with before there is any real one.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
import yaml
from pydicom.uid import generate_uid

from fl_client.cohort import Cohort
from fl_client.commands import whole
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.labels import LabelMap
from fl_client.intake.sunnybrook import admit_sunnybrook
from fl_client.intake.write_back import write_seg
from fl_client.segmenting import progress_bars
from simulation.dicom import write_patient
from simulation.federation.programs import run
from simulation.hospital_case import patient_case
from simulation.scanner import Series
from simulation.settings import GeneratedHospital
from tasks.case import Volume

KEY = b"an archive's key, used only to find the patients' own names again"
HOSPITALS = Path(__file__).parents[2] / "conf" / "hospitals" / "six_myocarditis.yaml"
SERIES: tuple[Series, ...] = ("cine_ed", "lge")
FIRST_SEED = 7_000_000
APART = 10_000
"""So many seeds lie between two hospitals, and between two numbers of `--seed`."""


def profiles() -> dict[str, GeneratedHospital]:
    """The hospitals that don't exist, by name: their scanners, readers and case mixes."""
    sites: Mapping[str, object] = yaml.safe_load(HOSPITALS.read_text())["sites"]
    return {name: GeneratedHospital.model_validate(profile) for name, profile in sites.items()}


def _nothing() -> None:
    return


def generate(
    hospital: GeneratedHospital,
    seeds: Sequence[int],
    folder: Path,
    *,
    series: tuple[Series, ...],
    oversampling: int,
    subslices: int,
    written: Callable[[], None] = _nothing,
) -> None:
    """Write generated patients of a hospital as its scanner and its readers' workstation would: images, SEG, endpoints.csv.

    `written` is called after each of them.
    """
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
        written()


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write generated patients as DICOM files; 0 if they are there, 1 with a sentence on standard error if not."""
    known = profiles()
    parser = argparse.ArgumentParser(
        prog="python -m simulation.federation.archive",
        description="Write patients who do not exist as DICOM files, with masks and endpoints.csv, to try a hospital with.",
    )
    parser.add_argument("folder", type=Path, help="a new folder for the files")
    parser.add_argument("--scanner", default="alster", help=f"whose: {', '.join(known)} (default alster)")
    parser.add_argument("--patients", type=whole(1, APART), default=12, help="how many (default 12)")
    parser.add_argument("--seed", type=whole(0, 10_000), default=1, help="another number, other patients (default 1)")
    options = parser.parse_args(arguments)
    if options.scanner not in known:
        parser.error(f"no scanner is called {options.scanner!r}; there are {', '.join(known)}")
    first = FIRST_SEED + APART * (sorted(known).index(options.scanner) + len(known) * options.seed)
    total, done = options.patients, 0
    try:
        _require_new(options.folder)
        with progress_bars() as advance:

            def written() -> None:
                nonlocal done
                done += 1
                advance("patients", done, total)

            generate(
                known[options.scanner],
                range(first, first + total),
                options.folder,
                series=SERIES,
                oversampling=1,
                subslices=1,
                written=written,
            )
    except OSError as error:
        print(
            f"{error.filename or options.folder}: {error.strerror or error}; {done} of {total} patients written",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"{options.folder}: stopped; {done} of {total} patients written", file=sys.stderr)
        return 130
    files = sum(1 for _ in options.folder.rglob("*.dcm"))
    print(f"{total} patients who do not exist, on the scanner {options.scanner}: {files} DICOM files in {options.folder}")
    return 0


def _require_new(folder: Path) -> None:
    """Raise `OSError` for a place where there is something already."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(errno.EEXIST, "is a file; name a new folder", str(folder))
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(errno.EEXIST, "is not empty; name a new folder", str(folder))


if __name__ == "__main__":
    sys.exit(main())
