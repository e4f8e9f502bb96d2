"""Patients whose images are read through the same door and not let in: a trained model looks at them, and nothing is kept.

The same headers, series rules and geometry gate as for patients who are let in, so that a model sees here what it saw in
training. A visitor also keeps the way back to the original files, because a DICOM SEG has to name them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from fl_client.intake.clean import AlreadyClean
from fl_client.intake.deidentify import Deidentifier, discreet
from fl_client.intake.door import Progress, Reasons, Refused
from fl_client.intake.headers import Patient, read_headers
from fl_client.intake.multiframe import Chosen
from fl_client.intake.series import SeriesRules, chosen
from fl_client.intake.volume import Frame, GeometryRefused, to_volume
from tasks.case import Volume

Originals = list[Dataset] | Chosen
"""Headers of one series as they came, in slice order, or the frames of one multi-frame image. They name the patient: for
`write_seg` and nothing else."""


@dataclass(frozen=True)
class Visitor:
    """One patient by pseudonym: the slices of each series that was asked for, by series name, not yet read."""

    patient: str
    series: Mapping[str, list[Frame]] = field(default_factory=dict)

    def read(self, series: str) -> tuple[Volume, Originals | None]:
        """The series as a volume, and its originals; None where they are frames of several multi-frame images.

        Raises `GeometryRefused` with the reason if the slices form no volume or can't be understood.
        """
        with discreet():
            try:
                volume, frames = to_volume(series, self.series[series])
                if any(frame.number for frame in frames):
                    one = len({frame.path for frame in frames}) == 1
                    image = pydicom.dcmread(frames[0].path, stop_before_pixels=True)
                    return volume, Chosen(image, tuple(frame.number for frame in frames)) if one else None
                return volume, [pydicom.dcmread(frame.path, stop_before_pixels=True) for frame in frames]
            except GeometryRefused:
                raise
            except Exception as error:  # a header that breaks an assumption is a reason, never a traceback
                raise GeometryRefused(f"its files can't be understood ({type(error).__name__})") from None


def visitors(
    folder: Path, *, key: bytes | None, rules: SeriesRules, wanted: Collection[str], progress: Progress | None = None
) -> tuple[list[Visitor], Reasons]:
    """Everybody in a folder of DICOM files who has a series named in `wanted`, sorted, and why others and files are of no use.

    `key` None is for files of the clean store. Of several studies the latest counts. A whole cine without masks gives its
    end-diastolic phase alone. Raises `NotADirectoryError` for a folder that isn't there.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; give a folder of DICOM files")
    reasons = Reasons(Deidentifier(key, words=rules.words) if key is not None else AlreadyClean())
    found = []
    with discreet():
        for pseudonym, patient in sorted(read_headers(folder, reasons, progress).items()):
            frames = [*patient.masks, *(frame for some in patient.series.values() for frame in some)]
            if frames:  # for the screen: who is this?
                reasons.where[pseudonym] = Path(os.path.commonpath([frame.path.parent for frame in frames]))
            try:
                found.append(Visitor(pseudonym, _series(pseudonym, patient, rules, wanted, reasons)))
            except (Refused, GeometryRefused) as reason:
                reasons.refuse(pseudonym, str(reason))
            except Exception as error:
                reasons.refuse(pseudonym, f"its files can't be understood ({type(error).__name__})")
    return found, reasons


def _series(
    pseudonym: str, patient: Patient, rules: SeriesRules, wanted: Collection[str], reasons: Reasons
) -> dict[str, list[Frame]]:
    matched = {uid: rules.match(frames[0].header) for uid, frames in patient.series.items()}
    asked = {uid: patient.series[uid] for uid, fit in matched.items() if any(rule.names & set(wanted) for rule in fit)}
    if not asked:
        others = sorted({name for fit in matched.values() for rule in fit for name in rule.names})
        there = f"{len(patient.series)} series, of which the series rules know {', '.join(others) or 'none'}"
        raise Refused(f"none of the series that the model reads ({', '.join(wanted)}); there are {there}")
    parts, _ = chosen(pseudonym, Patient(asked, patient.masks), rules, reasons)
    found = {name: frames for name, frames in parts.items() if name in wanted}
    if not found:  # a cine's other phase was
        raise Refused(
            f"the cine gives {', '.join(parts)} alone, by the phase with a mask or else the first, and the model reads "
            f"{', '.join(wanted)}"
        )
    return found
