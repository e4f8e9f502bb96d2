"""The hospital's synthetic cases: patients who don't exist, learned from beside those who do, and used for nothing else.

    <site>/synthetic/<batch>/cases/...      each folder that was added is a cohort of its own (fl_client.cohort)
    <site>/synthetic/<batch>/origin.json    where a person says that they come from; a folder without it is no batch

They are drawn for a step, clipped and summed as patients are, so that nothing that is promised to a patient changes: who is
compared is the hospital with and without one real patient, and the synthetic cases are the same in both
(docs/decisions/0010-synthetic-cases.md). No split, score, count, ledger or declared size knows of them. A batch is copied
beside its place and moved in by one rename: it is there with all its cases, or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from fl_client.audit import AuditLog
from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from tasks.weights import force_folder

FULL = (errno.ENOSPC, errno.EDQUOT)
LONGEST = 300
"""Characters of an origin."""

_OF_A_PATIENT = re.compile(r"[PF][0-9A-F]{16}")
"""A pseudonym as the intake makes it out of a patient's number or a file's name."""


@dataclass(frozen=True)
class Batch:
    """What was added at once."""

    name: str
    folder: Path
    origin: str
    who: str
    when: str  # ISO 8601, UTC
    cases: Mapping[str, str]  # pseudonym in the folder that was added: digest of the case there


# -- what a person does ----------------------------------------------------------------------------------------------------


def batches(site: Site) -> list[Batch]:
    """Everything that was added and not taken away again, sorted by name. Raises `ValueError` for an origin that isn't one."""
    return [_read(folder) for folder in folders(site)]


def how_many(site: Site) -> int:
    """Cases of all batches together."""
    return sum(len(batch.cases) for batch in batches(site))


def folders(site: Site) -> list[Path]:
    """Where they lie, sorted."""
    return [path.parent for path in sorted(_place(site).glob("[!.]*/origin.json"))]


def add(site: Site, folder: Path, *, origin: str, who: str) -> tuple[Batch, bool]:
    """Copy the cases of a cohort folder; the batch, and whether it is new. The audit log gets its line first.

    Raises `ValueError` in words, having added nothing: without an origin; for a folder that holds no cases, or damaged ones, or
    what may be patients; for cases that are here; and for more cases than patients are declared. `OSError` for a full disk.
    """
    origin = " ".join(origin.split())
    if not 0 < len(origin) <= LONGEST:
        raise ValueError(
            f"say in a line of at most {LONGEST} characters where these cases come from, and why they are nobody's"
        )
    states = _nobodys(site, folder)
    batch = hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:12]
    with _alone(site) as place:
        there = {one.name: one for one in batches(site)}
        if batch in there:
            return there[batch], False
        _require_new(states, list(there.values()))
        if (count := sum(len(one.cases) for one in there.values()) + len(states)) > site.declared_size:
            raise ValueError(
                f"with these there would be {count} synthetic cases, and {site.name} declares {site.declared_size} patients: "
                "at most as many may take part, or they would outweigh the patients"
            )
        said = {"origin": origin, "who": who, "when": datetime.now(UTC).isoformat(timespec="seconds"), "cases": states}
        part = place / f".{uuid4().hex}.part"
        try:
            _copy(Cohort(folder), part, said)
            AuditLog(site.folder / "audit.jsonl").append(
                "synthetic-added", batch=batch, cases=len(states), origin=origin, who=who
            )
            part.rename(place / batch)
            force_folder(place)
        except OSError as error:
            if error.errno not in FULL:
                raise
            words = f"there is no room left on the disk for {place}: no case was added; free some space"
            raise OSError(words) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return _read(place / batch), True


def remove(site: Site, start_of_name: str, *, who: str) -> Batch:
    """Take a batch away, by its name or the beginning of it. Raises `ValueError` where that names none, or several."""
    with _alone(site) as place:
        found = [one for one in batches(site) if start_of_name and one.name.startswith(start_of_name)]
        if len(found) != 1:
            raise ValueError(f"{len(found)} batches of synthetic cases have a name that starts with '{start_of_name}'")
        batch = found[0]
        AuditLog(site.folder / "audit.jsonl").append("synthetic-removed", batch=batch.name, cases=len(batch.cases), who=who)
        away = place / f".{uuid4().hex}.part"
        batch.folder.rename(away)  # no half of it is ever learned from
        force_folder(place)
        _remove(away)
    return batch


# -- inside ----------------------------------------------------------------------------------------------------------------


def _place(site: Site) -> Path:
    return site.folder / "synthetic"


@contextmanager
def _alone(site: Site) -> Iterator[Path]:
    """While this lasts no other process adds or removes; what a killed one left half done goes first."""
    place = _place(site)
    make_folder(place)
    file = os.open(place / ".lock", os.O_RDWR | os.O_CREAT, file_mode(place))
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        for part in place.glob(".*.part"):
            _remove(part)
        yield place
    finally:
        os.close(file)


def _remove(folder: Path) -> None:
    """A batch that is a link, as a rehearsal's are, stays where it points to."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _nobodys(site: Site, folder: Path) -> dict[str, str]:
    """Digests of the folder's cases by pseudonym. Raises `ValueError` for one that can't be read or may be a patient."""
    if not (folder / "cases").is_dir():
        raise ValueError(
            f"{folder} is no folder of cases: it has no folder cases/ in it, as `python -m simulation.synthetic` makes one"
        )
    real = Cohort(site.cohort_folder)
    if folder.resolve() == site.cohort_folder.resolve():
        raise ValueError(f"{folder} is the cohort of {site.name}: it holds patients, and no synthetic cases")
    cohort = Cohort(folder)
    damaged = [case for case in cohort.look() if isinstance(case, CaseUnreadable)]
    if damaged:
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise ValueError(f"{damaged[0]}{more}; nothing was added")
    if not (names := cohort.patients):
        raise ValueError(f"{folder} holds no case")
    if people := [name for name in names if _OF_A_PATIENT.fullmatch(name)]:
        raise ValueError(
            f"{len(people)} of the {len(names)} cases in {folder} are named as an intake names patients ({people[0]}); "
            "synthetic cases are nobody's, and nothing was added"
        )
    if known := sorted({*real.patients, *real.withdrawn}.intersection(names)):
        raise ValueError(f"{known[0]} is a patient of {site.name}: synthetic cases are nobody's, and nothing was added")
    return {name: cohort.state(name) for name in names}


def _require_new(states: Mapping[str, str], there: Sequence[Batch]) -> None:
    for batch in there:
        if again := set(states.values()).intersection(batch.cases.values()):
            raise ValueError(
                f"{len(again)} of the {len(states)} cases are here already, added as {batch.name}: who counted twice would be "
                f"clipped twice. Take those away first: konsil-site remove-synthetic {batch.name}"
            )


def _copy(source: Cohort, part: Path, said: Mapping[str, object]) -> None:
    """All cases, then the origin, without which it is no batch; each is on the disk before the next begins."""
    cohort = Cohort(part)
    for case in source:
        cohort.admit(case)
    with open(part / "origin.json", "w") as file:
        file.write(json.dumps(said, indent=1))
        file.flush()
        os.fsync(file.fileno())
    force_folder(part)


def _read(folder: Path) -> Batch:
    try:
        said = json.loads((folder / "origin.json").read_text())
        return Batch(folder.name, folder, said["origin"], said["who"], said["when"], dict(said["cases"]))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / 'origin.json'} is not what was written; a person has to look") from None
