"""Which scans are read, what they are, and in which order each reader sees them.

The choice and every order hang on a seed, so that a process that was killed goes on with the same. `reading.json` in the folder
of answers holds the solution; the answers themselves name scans by the digests of their grey values.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from conf.study import Frozen
from fl_client.cohort import CaseUnreadable, Cohort
from simulation.reading.scans import Look, Scan, Unsuitable, scan_of

Kind = Literal["real", "synthetic"]
KINDS: tuple[Kind, Kind] = ("real", "synthetic")
FILE = "reading.json"
USUAL = 40
"""Scans of a reading whose number nobody gave, if there are so many."""

FEWEST = 2
"""Of each kind. So few are a try; what they say is in the width of the interval."""

DRAWN = re.compile(r"G9\d{7}")
"""Pseudonyms that `python -m simulation.synthetic` gives."""


class Entry(Frozen):
    """The solution for one scan."""

    kind: Kind
    patient: str


class Reading(Frozen):
    """A reading as it is kept in `reading.json`."""

    real: str  # folders
    synthetic: str
    seed: Annotated[int, Field(ge=0)]
    look: Look
    scans: dict[str, Entry]  # by the scans' names

    def order(self, reader: str) -> tuple[str, ...]:
        """The names of the scans as this reader sees them: another order for each, the same whenever it is asked."""
        digest = hashlib.sha256(f"{self.seed}/{reader}".encode()).digest()
        names = sorted(self.scans)
        return tuple(names[index] for index in np.random.default_rng(list(digest)).permutation(len(names)))

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What each scan is."""
        return {name: entry.kind for name, entry in self.scans.items()}


@dataclass(frozen=True)
class Deck:
    """The reading with its scans, and why others of the two folders can't be shown."""

    reading: Reading
    scans: Mapping[str, Scan]
    left_out: Mapping[str, str]  # folder/patient -> why


def deal(real: Path, synthetic: Path, look: Look, *, seed: int, count: int | None) -> Deck:
    """Choose scans, half of them real. Raises `ValueError` in words where the folders don't give a reading."""
    folders = dict(zip(KINDS, (real, synthetic), strict=True))
    cohorts = {kind: _cohort(folder) for kind, folder in folders.items()}
    if real.resolve() == synthetic.resolve():
        raise ValueError(f"{real} is given for the real and for the synthetic scans; they are two folders")
    if all(DRAWN.fullmatch(patient) for patient in cohorts["real"].patients):
        raise ValueError(f"{real} holds scans that a generator drew; the folder of the real scans comes first")
    if count is not None and (count % 2 or count < 2 * FEWEST):
        raise ValueError(f"--count is an even number from {2 * FEWEST} on, half of it real; not {count}")
    left_out: dict[str, str] = {}
    found = {
        kind: _first(_suitable(cohorts[kind], look, seed, left_out), (count or USUAL) // 2) for kind in KINDS
    }  # patient -> scan
    half = (count or min(USUAL, 2 * min(map(len, found.values())))) // 2
    for kind in KINDS:
        if len(found[kind]) < max(half, FEWEST):
            raise ValueError(_too_few(folders[kind], kind, len(found[kind]), max(half, FEWEST), left_out))
    scans: dict[str, Scan] = {}
    entries: dict[str, Entry] = {}
    for kind in KINDS:
        for patient, scan in list(found[kind].items())[:half]:
            if scan.name in entries:
                other = entries[scan.name]
                raise ValueError(
                    f"{kind}/{patient} is the same scan as {other.kind}/{other.patient}; nobody could tell them apart"
                )
            scans[scan.name], entries[scan.name] = scan, Entry(kind=kind, patient=patient)
    reading = Reading(real=str(real.resolve()), synthetic=str(synthetic.resolve()), seed=seed, look=look, scans=entries)
    return Deck(reading, scans, left_out)


def _cohort(folder: Path) -> Cohort:
    """A cohort that is there: none is made for a wrong path."""
    if not (folder / "cases").is_dir():
        raise ValueError(f"{folder} is no cohort: it has no folder 'cases'")
    cohort = Cohort(folder)
    if not len(cohort):
        raise ValueError(f"{folder} is a cohort without patients")
    return cohort


def _suitable(cohort: Cohort, look: Look, seed: int, left_out: dict[str, str]) -> Iterator[tuple[str, Scan]]:
    """The patients in an order by seed, with their scans; those that can't be shown go into `left_out`."""
    patients = cohort.patients
    for index in np.random.default_rng(seed).permutation(len(patients)):
        patient = patients[index]
        try:
            yield patient, scan_of(cohort.case(patient), look)
        except (Unsuitable, CaseUnreadable) as why:
            left_out[f"{cohort.folder}/{patient}"] = str(why)


def _first(scans: Iterator[tuple[str, Scan]], count: int) -> dict[str, Scan]:
    return {patient: scan for (patient, scan), _ in zip(scans, range(count), strict=False)}


def _too_few(folder: Path, kind: Kind, found: int, wanted: int, left_out: Mapping[str, str]) -> str:
    reasons = [why for place, why in left_out.items() if place.startswith(f"{folder}/")]
    because = f"; of {len(reasons)} others the first can't be shown: {reasons[0]}" if reasons else ""
    return f"{wanted} {kind} scans are wanted and {folder} has {found}{because}"


def settle(reading: Reading, folder: Path) -> None:
    """Write the solution beside the answers, or make sure that it is the one there. Raises `ValueError` for another's."""
    path = folder / FILE
    if path.exists():
        before = kept(folder)
        if before.kinds != reading.kinds or before.seed != reading.seed:
            raise ValueError(_another(before, reading, folder))
        return
    if (folder / "answers.jsonl").exists():
        raise ValueError(f"{folder} has answers and no {FILE}, which says what was shown; choose another folder for answers")
    part = path.with_name(f".{FILE}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(reading.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(folder)


def _another(before: Reading, now: Reading, folder: Path) -> str:
    opposite = {name: KINDS[kind == "real"] for name, kind in now.kinds.items()}
    if set(before.kinds) & set(opposite) and all(
        opposite[name] == before.kinds[name] for name in opposite if name in before.kinds
    ):
        return f"real and synthetic folder are the other way round than in {folder / FILE}"
    return (
        f"{folder} has answers to another reading: of {before.real} and {before.synthetic}, seed {before.seed}, "
        f"{len(before.scans)} scans, looked at as {json.dumps(before.look.model_dump())}; go on with these, "
        "or choose another folder for answers"
    )


def kept(folder: Path) -> Reading:
    """The reading whose answers lie in this folder. Raises `ValueError` in words."""
    path = folder / FILE
    try:
        return Reading.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {FILE}: no reading was begun there") from None
    except ValidationError:
        raise ValueError(f"{path} can't be read; without it nobody knows what was shown") from None


def sync(folder: Path) -> None:
    """Bring a folder's entries to the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
