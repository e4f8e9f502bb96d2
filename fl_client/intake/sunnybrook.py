"""The Sunnybrook Cardiac Data: DICOM frames with contours in text files.

Source: Radau et al., MIDAS Journal 2009, hdl.handle.net/10380/3070; public domain (CC0).

    dicom/<patient>/IM-0001-NNNN.dcm       contours/<original>/i-contours/IM-0001-NNNN-icontour-manual.txt (endocardium)
    link.csv: patient_id, original_id      contours/<original>/o-contours/IM-0001-NNNN-ocontour-manual.txt (epicardium)

The files don't say where they count from. It is from one, as in Matlab: over the 36 frames of SCD0000101 and SCD0000201 the
brightness falls most steeply across the endocardium a pixel (1.4 mm) to the left of and above where counting from zero puts it.

Experts drew both contours at end-diastole and the endocardium alone at end-systole, so a frame with an epicardial contour is
end-diastolic. At end-systole nobody looked for the myocardium: what lies outside the cavity is anything but the cavity there.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.door import Door, Intake, Progress
from fl_client.intake.headers import read_header, unsuitable
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import MaskRefused
from fl_client.intake.plausibility import check_volume
from fl_client.intake.polygon import covered
from fl_client.intake.volume import Frame, GeometryRefused, to_volume
from tasks.case import UNKNOWN, Case, Volume

ENDO, EPI = "icontour", "ocontour"
FINE = 4  # points per pixel and axis
Flags = npt.NDArray[np.bool_]


class ContourRefused(ValueError):
    """A contour file can't be read or doesn't belong to the images; the text says why."""


def admit_sunnybrook(folder: Path, cohort: Cohort, *, key: bytes, labels: LabelMap, progress: Progress | None = None) -> Intake:
    """Let in a folder in the layout above; each patient gives the series `cine_ed` and `cine_es`.

    `labels` maps `icontour` (what lies inside it) and `ocontour` (what lies between the two). Raises `NotADirectoryError` or
    `FileNotFoundError` for a folder that has another layout, `ValueError` for a `link.csv` that can't be read, and `OSError`
    if the cohort can't be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder with dicom/, contours/ and link.csv")
    deidentify = Deidentifier(key, words=labels.words)
    door = Door(cohort, deidentify)
    link = _link(folder / "link.csv")
    with discreet():
        for done, (patient, original) in enumerate(sorted(link.items()), 1):
            pseudonym = deidentify.pseudonym(patient)
            try:
                case = _case(pseudonym, folder / "dicom" / patient, folder / "contours" / original, labels, deidentify)
            except (ContourRefused, GeometryRefused, MaskRefused, UnmappedLabel) as reason:
                door.refuse(pseudonym, str(reason))
            except Exception as error:  # a header that breaks an assumption is a reason, never a traceback
                door.refuse(pseudonym, f"its files can't be understood ({type(error).__name__})")
            else:
                door.admit(case)
            if progress:
                progress(done, len(link))
    return door.summary(len(link))


def _link(path: Path) -> dict[str, str]:
    """Folder of the contours by folder of the images. Raises `ValueError` naming file and line."""
    link: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = {"patient_id", "original_id"} - set(rows.fieldnames or [])
            if missing:
                raise ValueError(f"{path}, line 1: no column {' and no column '.join(sorted(missing))}")
            for row in rows:
                patient, original = (row["patient_id"] or "").strip(), (row["original_id"] or "").strip()
                if not patient or not original or patient in link:
                    why = "a patient that stands above already" if patient in link else "an empty patient_id or original_id"
                    raise ValueError(f"{path}, line {rows.line_num}: {why}")
                link[patient] = original
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path} can't be read as comma-separated values in UTF-8") from None
    return link


def _case(pseudonym: str, images: Path, contours: Path, labels: LabelMap, deidentify: Deidentifier) -> Case:
    frames: dict[str, Frame] = {}
    for path in sorted(images.glob("*.dcm")):
        header = read_header(path, deidentify)
        reason = unsuitable(header)
        if reason:
            raise GeometryRefused(reason)
        if header.PatientID != pseudonym:
            raise GeometryRefused("an image of another patient lies in this patient's folder")
        frames[path.stem] = Frame(path, header)
    if not frames:
        raise GeometryRefused("no DICOM images")
    endo, epi = _contours(contours, ENDO), _contours(contours, EPI)
    phases = {"cine_ed": sorted(frames.keys() & epi.keys()), "cine_es": sorted(frames.keys() - epi.keys())}
    volumes = []
    for series, stems in phases.items():
        if not stems:
            raise ContourRefused(
                f"no {series}: of {len(frames)} images none {'has' if series == 'cine_ed' else 'lacks'} an epicardial contour"
            )
        try:
            # the published files carry a frame of reference of their own each; their positions do form a regular stack
            volume, ordered = to_volume(series, [frames[stem] for stem in stems], one_frame_of_reference=False)
            stem_of = [frame.path.stem for frame in ordered]
            volumes.append(_drawn(volume, stem_of, endo, epi if series == "cine_ed" else {}, labels))
        except (GeometryRefused, MaskRefused, ContourRefused) as reason:
            raise type(reason)(f"{series}: {reason}") from None
    # last, because what is wrong with the images and contours that are here says more
    lost = len(endo.keys() - frames.keys()) + len(epi.keys() - frames.keys())
    if lost:
        raise ContourRefused(f"{lost} of {len(endo) + len(epi)} contours were drawn on images that are not here")
    first = next(iter(frames.values())).header
    scanner: dict[str, float | str] = {
        "manufacturer": str(first.get("Manufacturer", "other")),
        "field_strength_t": float(first.get("MagneticFieldStrength", 0)),
    }
    return Case(pseudonym, tuple(volumes), {}, scanner)


def _contours(folder: Path, kind: str) -> dict[str, Path]:
    """Contour files by the stem of the image they were drawn on."""
    suffix = f"-{kind}-manual.txt"
    return {path.name.removesuffix(suffix): path for path in sorted((folder / f"{kind[0]}-contours").glob(f"*{suffix}"))}


def _drawn(volume: Volume, stems: Sequence[str], endo: dict[str, Path], epi: dict[str, Path], labels: LabelMap) -> Volume:
    """The volume with the mask of its contours, checked."""
    shape = volume.image.shape[1:]
    empty = np.zeros(shape, bool)
    cavity = np.stack([fill(read_contour(endo[stem]), shape) if stem in endo else empty for stem in stems])
    epicardium = np.stack([fill(read_contour(epi[stem]), shape) if stem in epi else empty for stem in stems])
    mask = np.full(volume.image.shape, UNKNOWN, np.uint8)
    mask[(epicardium | cavity).any(axis=(1, 2))] = 0
    mask[epicardium] = labels.of_source(EPI)
    mask[cavity] = labels.of_source(ENDO)
    sought = [labels.of_source(ENDO), *([labels.of_source(EPI)] if epi else [])]
    drawn = Volume(volume.series, volume.image, volume.affine, mask, tuple(sorted(sought)))
    check_volume(drawn, labels, epicardium=epicardium, cavity=cavity)
    return drawn


def read_contour(path: Path) -> npt.NDArray[np.float64]:
    """Vertices of a contour file, (points, 2): column and row in pixels, 0 the middle of the first; the file counts from 1."""
    try:
        points = np.array(
            [[float(number) for number in line.split()] for line in path.read_text().splitlines() if line.strip()]
        )
    except (ValueError, OSError) as error:
        raise ContourRefused(f"a contour file can't be read ({type(error).__name__}); each line holds column and row") from None
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ContourRefused(
            f"a contour needs at least 3 points of 2 finite numbers; there is an array of shape {points.shape}"
        )
    return points - 1


def fill(points: npt.NDArray[np.float64], shape: Sequence[int]) -> Flags:
    """Pixels (rows, columns) of which the closed polygon covers half or more, by the even-odd rule at 4 x 4 points each.

    Half the vertices of the Sunnybrook contours lie on pixel centres: whoever asks only whether a centre is inside decides
    those pixels by the side of the heart they are on. Raises `ContourRefused` for a polygon that leaves the image.
    """
    rows, columns = shape
    if points.min() < -0.5 or points[:, 0].max() > columns - 0.5 or points[:, 1].max() > rows - 0.5:
        raise ContourRefused(f"a contour leaves the image of {rows} x {columns} pixels")
    half: Flags = covered([points[:, ::-1]], shape, fine=FINE) >= FINE * FINE / 2
    return half
