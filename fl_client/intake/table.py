"""Patients without images: a table by itself, one row per patient, each row a case of endpoints alone.

The rules are those of an `endpoints.csv` beside images: declared columns pass, what stands for a missing value is declared,
the identifier becomes a pseudonym under the hospital's key. A row that can't be taken is refused with its line; others get in.
A patient whose images are inside already, under the same identifier, has endpoints in the same case afterwards.
"""

from __future__ import annotations

from pathlib import Path

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Door, Intake, Progress
from fl_client.intake.endpoints import EndpointRules, read_endpoints
from tasks.case import Case

CALLED = "the table"  # a file's name may name people, and reasons are stored


def admit_table(
    path: Path,
    cohort: Cohort,
    *,
    key: bytes,
    rules: EndpointRules | None = None,
    by_line: bool = False,
    progress: Progress | None = None,
) -> Intake:
    """Let in the rows of a table of comma-separated values, whose first line names the columns.

    `key` is the hospital's secret; the same key gives the same pseudonyms. `by_line` is for public tables without a column of
    identifiers: the line stands for the patient. No command offers it: in a hospital's next export the line is another's.

    Raises `EndpointsUnreadable` (a `ValueError`) and lets nobody in if the table as a whole can't be read or has no declared
    column; `FileNotFoundError`; and `OSError` if the cohort can't be written. What is wrong with a row becomes a reason.
    """
    path, rules = Path(path), rules or EndpointRules()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; a table of comma-separated values is needed")
    door = Door(cohort, Deidentifier(key))
    rows, notes = read_endpoints(path, rules, door.deidentify, called=CALLED, by_line=by_line)
    for note in notes:
        door.leave_out(door.deidentify.handle(f"{path.name}: {note}"), note, path)
    for done, (pseudonym, row) in enumerate(sorted(rows.items()), 1):
        if row.problem:
            door.refuse(pseudonym, row.problem)
        else:
            door.admit(Case(pseudonym, (), row.values))
        if progress:
            progress(done, len(rows))
    return door.summary(len(rows))
