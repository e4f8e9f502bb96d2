"""Every case that this hospital has heard of, and what became of it: inside, damaged, refused, quarantined or withdrawn.

Nobody is lost between the doors: whoever is named by a file of the cohort or of the quarantine stands in exactly one place. A
patient who was refused once and let in later is inside. For the hospital's own screen.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.intake.quarantine import LIST, lines_of
from fl_client.site import Site

_PSEUDONYM = re.compile(r"P[0-9A-F]{16}")


@dataclass(frozen=True)
class Reckoning:
    """Patients by pseudonym, each in one place, with the reason where there is one."""

    inside: tuple[str, ...]
    damaged: Mapping[str, str]
    refused: Mapping[str, str]  # the last reason
    quarantined: Mapping[str, str]
    withdrawn: int
    left_out: Mapping[str, str]  # files, series and rows by handle: parts of no case
    notes: tuple[str, ...] = field(default=())  # what could not be looked at

    @property
    def expected(self) -> int:
        """Patients that this hospital has heard of."""
        return len(self.inside) + len(self.damaged) + len(self.refused) + len(self.quarantined) + self.withdrawn


def reckoning(site: Site) -> Reckoning:
    """What became of everybody. Raises `OSError` if there is no cohort that can be read."""
    cohort = Cohort(site.cohort_folder)
    damaged = {case.folder.name: case.reason for case in cohort.look() if isinstance(case, CaseUnreadable)}
    inside = tuple(patient for patient in cohort.patients if patient not in damaged)
    there = {*inside, *damaged, *cohort.withdrawn}
    told = {line["what"]: line["reason"] for line in cohort.refused}
    refused = {what: reason for what, reason in told.items() if _PSEUDONYM.fullmatch(what) and what not in there}
    left_out = {what: reason for what, reason in told.items() if not _PSEUDONYM.fullmatch(what)}
    quarantined, notes = _quarantined(site.identity_folder / "quarantine" / LIST)
    aside: dict[str, str] = {}
    for number, (pseudonym, reason) in enumerate(quarantined):
        if not pseudonym:
            left_out[f"quarantined file {number}"] = reason
        elif pseudonym not in there and pseudonym not in refused:
            aside[pseudonym] = reason
        elif pseudonym not in cohort.withdrawn:
            left_out[f"quarantined file {number}"] = reason
    return Reckoning(inside, damaged, refused, aside, len(cohort.withdrawn), left_out, notes)


def _quarantined(path: Path) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Pseudonym (or nothing) and reason of every file in quarantine, and what this user can't see."""
    try:
        return [(str(line.get("pseudonym", "")), str(line["reason"])) for line in lines_of(path)], ()
    except PermissionError:
        return [], (f"{path.parent} is closed to this user: what lies in quarantine is not counted here",)


def summary(found: Reckoning) -> Iterator[str]:
    """Numbers, and how often each reason was given."""
    places = {
        "inside": len(found.inside),
        "damaged": len(found.damaged),
        "refused": len(found.refused),
        "in quarantine": len(found.quarantined),
        "withdrawn": found.withdrawn,
    }
    yield f"{found.expected} patients expected: {', '.join(f'{number} {place}' for place, number in places.items())}"
    for what, reasons in (("refused", found.refused), ("in quarantine", found.quarantined), ("damaged", found.damaged)):
        for number, reason in by_reason(reasons.values()):
            yield f"  {number} {what}: {reason}"
    if found.left_out:
        yield f"{len(found.left_out)} files, series and rows that are part of no case:"
        for number, reason in by_reason(found.left_out.values()):
            yield f"  {number}: {reason}"
    yield from found.notes


def by_reason(reasons: Iterable[str]) -> list[tuple[int, str]]:
    """How often each reason was given, the commonest first. Those that differ in numbers and pseudonyms alone are one."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for reason in reasons:
        kind = re.sub(r"[PF]?[0-9A-F]{16}|\d+(\.\d+)?", "#", reason)
        counts[kind] += 1
        first.setdefault(kind, reason)
    found = []
    for kind, number in counts.most_common():
        alike = " (and alike)" if number > 1 and kind != first[kind] else ""
        found.append((number, first[kind] + alike))
    return found


def listed(site: Site, found: Reckoning) -> Iterator[str]:
    """One line per patient: where, what is known of the case, or the reason."""
    cohort = Cohort(site.cohort_folder)
    sides = {p: side for side in ("train", "test") for p in cohort.split(side, test_fraction=site.test_fraction)}
    for patient in found.inside:
        case = cohort.case(patient)
        images = ", ".join(f"{volume.series}{' with a mask' if volume.mask is not None else ''}" for volume in case.volumes)
        known = sum(value is not None for value in case.endpoints.values())
        yield f"  {patient} inside, {sides[patient]}: {images or 'no images'}; {known} clinical values"
    for place, people in (("damaged", found.damaged), ("refused", found.refused), ("quarantined", found.quarantined)):
        for patient, reason in sorted(people.items()):
            yield f"  {patient} {place}: {reason}"


def last_round(site: Site) -> str:
    """How many patients the last round used, from the hospital's own log; empty if there was none."""
    path = site.folder / "log" / "training.jsonl"
    left_out: set[str] = set()
    told = ""
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:  # cut short by a power failure
            continue
        if "left_out" in line:
            left_out.add(str(line.get("patient", "")))
        elif "patients" in line and "study" in line:
            told = (
                f"the last round (study {str(line['study'])[:12]}, round {line.get('round', 1)}) used {line['patients']} "
                f"training patients and left out {len(left_out)}"
                + (f"; beside them {line['synthetic']} synthetic cases" if line.get("synthetic") else "")
            )
            left_out = set()
        elif "scored" in line:
            left_out = set()
    return told
