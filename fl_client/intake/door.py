"""What one walk through the door tells and writes down: who came in, who stayed outside, and why.

Reasons speak of pseudonyms and handles, never of names or paths; only the person at the screen is told where a file lies.
Several walks make one cohort: a patient is one case, however many folders arrive, and each reason stands there once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_client.cohort import Cohort
from fl_client.intake import quality
from fl_client.intake.deidentify import Deidentifier
from tasks.case import Case

Progress = Callable[[int, int], None]
"""Called with (files or patients done, in all)."""


@dataclass(frozen=True)
class Intake:
    """What became of a folder. `left_out` are files, series and table rows that belong to no admitted or refused patient."""

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

    def __init__(self, cohort: Cohort, deidentify: Deidentifier) -> None:
        super().__init__(deidentify)
        self.cohort = cohort
        self.admitted: list[str] = []
        self._known = {(line["what"], line["reason"]) for line in cohort.refused}

    def admit(self, case: Case, notes: Mapping[str, float | bool | str] = {}) -> None:
        """Merge the case with what the cohort has of this patient, and store it. Raises `OSError` if the disk can't take it."""
        merged = merge(self.cohort, case)
        self.cohort.admit(merged)
        quality.record(self.cohort.folder, merged, notes)
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
        if (what, reason) not in self._known:  # the same folder twice gives the same cohort
            self.cohort.refuse(what, reason)
            self._known.add((what, reason))

    def summary(self, expected: int) -> Intake:
        """The walk's outcome."""
        return Intake(expected, tuple(sorted(self.admitted)), self.refused, self.left_out, self.where)


def merge(cohort: Cohort, case: Case) -> Case:
    """One patient is one case, however many studies arrive: new series and endpoints replace old ones, others stay."""
    try:
        old = cohort.case(case.patient)
    except KeyError:
        return case
    new = {volume.series for volume in case.volumes}
    volumes = (*case.volumes, *(volume for volume in old.volumes if volume.series not in new))
    return Case(
        case.patient,
        tuple(sorted(volumes, key=lambda volume: volume.series)),
        {**old.endpoints, **case.endpoints},
        {**old.scanner, **case.scanner},
    )
