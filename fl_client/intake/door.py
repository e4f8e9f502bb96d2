"""What one walk through the door tells and writes down: who came in, who stayed outside, and why.

Reasons speak of pseudonyms and handles, never of names or paths; only the person at the screen is told where a file lies.
Several walks make one cohort: a patient is one case, however many folders arrive, and each reason stands there once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.newest import Choice, newest
from fl_client.quality.records import record
from tasks.case import Case, Volume

Progress = Callable[[int, int], None]
"""Called with (files or patients done, in all)."""


@dataclass(frozen=True)
class Intake:
    """What became of a folder. `left_out` are files, series, masks and table rows that are part of no case."""

    expected: int  # patients that the folder speaks of
    admitted: tuple[str, ...]
    refused: Mapping[str, str]  # pseudonym: reason
    left_out: Mapping[str, str] = field(default_factory=dict)  # handle: reason
    where: Mapping[str, Path] = field(
        default_factory=dict, repr=False
    )  # handle: file. For the screen at the hospital; never stored


class Refused(ValueError):
    """A patient can't be admitted; the text is the reason."""


class Reasons:
    """Why files, series and patients of a folder are of no use, kept in memory alone."""

    def __init__(self, deidentify: Deidentifier) -> None:
        self.deidentify = deidentify
        self.refused: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.where: dict[str, Path] = {}

    def refuse(self, pseudonym: str, reason: str) -> None:
        """A patient stays outside."""
        self.refused[pseudonym] = reason

    def leave_out(self, what: str, reason: str, path: Path | None = None) -> None:
        """A file, series or row stays outside; `what` must already be a handle."""
        self.left_out[what] = reason
        if path is not None:
            self.where[what] = path


class Door(Reasons):
    """What one walk through the door writes down: admissions, refusals and what was left out, each reason once."""

    def __init__(self, cohort: Cohort, deidentify: Deidentifier, *, measure: bool = True) -> None:
        super().__init__(deidentify)
        self.cohort, self._measure = cohort, measure
        self.admitted: list[str] = []

    def admit(
        self,
        case: Case,
        notes: Mapping[str, float | bool | str] = {},
        *,
        apart: Collection[str] = (),
        days: Mapping[str, str] = {},
    ) -> None:
        """Merge the case with what the cohort has of this patient, and store it. Raises `OSError` if the disk can't take it.

        Series named in `apart` go: they are of an earlier study than the case's other phase of the same cine. `days` are those
        of the examinations; of a series that is inside already the later counts (`newest`), and either way it is told.

        A patient whose stored case can't be read is refused: the new images alone would take the place of more.
        """
        if case.patient in self.cohort.withdrawn:
            self.refuse(case.patient, "this patient has withdrawn and is not let in again")
            return
        merged, lost, choice, undated = case, tuple[str, ...](), Choice({}, {}, {}), list[str]()
        days = {volume.series: days.get(volume.series, "") for volume in case.volumes}
        try:
            old, before = self.cohort.case(case.patient), self.cohort.days(case.patient)
            choice = newest(before, days)
            case, days = without(case, choice.stays), {**before, **_without(days, choice.stays)}
            undated = [
                v.series for v in case.volumes if v.series not in choice.decided and _is_another(v, old.volume(v.series))
            ]
            merged, lost = merge(old, case, apart={*(set(apart) - choice.decided), *choice.goes})
        except CaseUnreadable as damaged:  # a KeyError, too
            self.cohort.make_damaged_folder()
            self.refuse(
                case.patient,
                f"what the cohort has of this patient can't be read ({damaged.reason}), and what came now would replace it; "
                "move the patient's folder from cases/ to damaged/, then admit all images of this patient again",
            )
            return
        except KeyError:
            pass  # a new patient
        for series in lost:  # told before the mask goes: a line too many can be seen, a line too few can't
            self.leave_out(
                f"{case.patient}-{series}-mask",
                f"{series}: a newer image without a mask replaces the older one, and the older one's mask no longer applies",
            )
        goes = {series: reason for series, reason in choice.goes.items() if series not in apart}  # of those it was told
        for which, reasons in (("stays", choice.stays), ("goes", goes), ("replaced", choice.replaced)):
            for series, reason in reasons.items():
                self.leave_out(f"{case.patient}-{series}-{which}", reason)
        for series in undated:
            reason = (
                f"{series}: another one was inside, and nobody knows which is of the later day; what came now takes its place"
            )
            self.leave_out(f"{case.patient}-{series}-replaced", reason)
        self.cohort.admit(merged, days=days)
        notes = {name: note for name, note in notes.items() if name.rpartition("/")[2] not in choice.stays}
        record(self.cohort.folder, merged, notes, measured=self._measure)
        self.admitted.append(case.patient)

    def refuse(self, pseudonym: str, reason: str) -> None:
        """A patient stays outside, and the cohort says so."""
        super().refuse(pseudonym, reason)
        self._write(pseudonym, reason)

    def leave_out(self, what: str, reason: str, path: Path | None = None) -> None:
        """A file, series or row stays outside, and the cohort says so without its path."""
        super().leave_out(what, reason, path)
        self._write(what, reason)

    def _write(self, what: str, reason: str) -> None:
        if not self.cohort.has_refused(what, reason):  # the same folder twice gives the same cohort
            self.cohort.refuse(what, reason)

    def summary(self, expected: int) -> Intake:
        """The walk's outcome."""
        return Intake(expected, tuple(sorted(self.admitted)), self.refused, self.left_out, self.where)


def without(case: Case, series: Collection[str]) -> Case:
    """The case without these series; without any image it says nothing of a scanner."""
    volumes = tuple(volume for volume in case.volumes if volume.series not in series)
    return replace(case, volumes=volumes, scanner=case.scanner if volumes or not case.volumes else {})


def _without(days: Mapping[str, str], series: Collection[str]) -> dict[str, str]:
    return {name: day for name, day in days.items() if name not in series}


def merge(old: Case, new: Case, *, apart: Collection[str] = ()) -> tuple[Case, tuple[str, ...]]:
    """One patient is one case, however many studies arrive: new series and endpoints replace old ones, others stay.

    Those in `apart` don't stay.

    A mask outlives an arrival of its own image without a mask, equal in every voxel and place. Also gives the series whose mask
    is lost because another image came in its place, without one.
    """
    arrived = tuple(_with_known_mask(volume, old.volume(volume.series)) for volume in new.volumes)
    kept = tuple(volume for volume in old.volumes if new.volume(volume.series) is None and volume.series not in apart)
    masked = {volume.series for volume in old.volumes if volume.mask is not None}
    case = Case(
        new.patient,
        tuple(sorted((*arrived, *kept), key=lambda volume: volume.series)),
        {**old.endpoints, **new.endpoints},
        _scanners(old.scanner, new.scanner),
    )
    return case, tuple(volume.series for volume in arrived if volume.mask is None and volume.series in masked)


def _scanners(old: Mapping[str, float | str], new: Mapping[str, float | str]) -> dict[str, float | str]:
    """What is known of the scanners; images of two modalities have both, as `CT/MR`."""
    both = {word for facts in (old, new) for word in str(facts.get("modality", "")).split("/") if word}
    return {**old, **new, **({"modality": "/".join(sorted(both))} if both else {})}


def _with_known_mask(volume: Volume, before: Volume | None) -> Volume:
    if volume.mask is not None or before is None:
        return volume
    return volume if _is_another(volume, before) else replace(volume, mask=before.mask, annotated=before.annotated)


def _is_another(volume: Volume, before: Volume | None) -> bool:
    """Whether there was one before, with other voxels or in another place."""
    if before is None:
        return False
    return not (np.array_equal(volume.image, before.image) and np.array_equal(volume.affine, before.affine))
