"""Clinical data from FHIR, let in: each patient of a delivery becomes endpoints of that patient's case, or a reason.

The identifier that the mapping names is the PatientID of the DICOM headers, so images and endpoints of one patient get one
pseudonym under the hospital's key, and meet in one case whichever comes first. What isn't known is not written: a later
delivery adds to the case and takes nothing away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Door, Intake, Progress
from fl_client.intake.fhir import read_delivery
from fl_client.intake.mapping import ClinicalMapping, Present, Source, Survival
from fl_client.intake.variables import is_undated, values_of
from tasks.case import Case


def admit_fhir(path: Path, cohort: Cohort, *, key: bytes, mapping: ClinicalMapping, progress: Progress | None = None) -> Intake:
    """Let in a FHIR bundle (JSON), a bulk export (NDJSON) or a folder of them.

    `key` is the hospital's secret; the same key gives the same pseudonyms. Raises `DeliveryUnreadable` (a `ValueError`) and
    lets nobody in if nothing of it can be read, `FileNotFoundError`, and `OSError` if the cohort can't be written. What is
    wrong with a patient becomes a reason.
    """
    door = Door(cohort, Deidentifier(key))
    delivery = read_delivery(Path(path), mapping)
    for file, reason in delivery.left_out:
        door.leave_out(door.deidentify.handle(f"{file}: {reason}"), reason, file if file.name else Path(path))
    for resource, name in _taken_for_none(mapping):
        if resource not in delivery.types:
            reason = f"no {resource} came at all, so that nobody's {name} is taken for 0"
            door.leave_out(door.deidentify.handle(f"{path}: {reason}"), reason, Path(path))
    for done, (identifier, person) in enumerate(sorted(delivery.people.items()), 1):
        pseudonym = door.deidentify.pseudonym(identifier)
        for variable in mapping.variables:
            if isinstance(variable, Survival) and is_undated(variable, person):
                reason = f"{variable.event} happened on a day that isn't known, so that {variable.time} is missing"
                door.leave_out(f"{pseudonym}-{variable.event}", reason)
        try:
            if person.problem:
                raise ValueError(person.problem)
            values = values_of(person, mapping, came=delivery.types)
        except ValueError as problem:
            door.refuse(pseudonym, str(problem))
        else:
            if values:
                door.admit(Case(pseudonym, (), values))
            else:
                door.refuse(pseudonym, "nothing that the mapping asks for is known of this patient")
        if progress:
            progress(done, len(delivery.people))
    return door.summary(len(delivery.people))


def _taken_for_none(mapping: ClinicalMapping) -> Iterator[tuple[str, str]]:
    """Types of resources of which none means that something did not happen, each with the name of the value that says so."""
    for variable in mapping.variables:
        if isinstance(variable, Present) and variable.if_none == 0:
            yield variable.resource, variable.name
        elif isinstance(variable, Survival) and isinstance(variable.of, Source):
            yield variable.of.resource, variable.event
