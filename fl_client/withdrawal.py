"""A patient withdraws: excluded at once and in every later round, and what the house holds of them is removed.

    1. the pseudonym goes on the list of those who don't take part     3. originals, quarantine and the way back
    2. case, prepared arrays, quality, clean files, catalog, log      4. a line in the audit log, without the pseudonym
       lines, answers kept for a repetition, personalised models, calibrations

A kill in between leaves a patient who is excluded already; asking again removes the rest. Trained models are not unlearned:
what they learned from this patient was bounded, and covered by noise, before it left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fl_client import personalise, sent, uncertainty
from fl_client.admission import key_of
from fl_client.audit import AuditLog
from fl_client.catalog import Catalog
from fl_client.cohort import Cohort
from fl_client.intake.forget import forget_identity
from fl_client.intake.pseudonyms import Pseudonyms
from fl_client.site import Site

PSEUDONYM = re.compile(r"P[0-9A-F]{16}")


@dataclass(frozen=True)
class Withdrawal:
    """What was done."""

    pseudonym: str
    was_inside: bool
    originals: int  # files removed from the identity zone
    unknown: int  # files there that nobody can attribute
    models: int = 0  # that were trained further on them, for this house alone
    calibrations: int = 0  # that were learned from them


def pseudonym_of(site: Site, patient: str) -> str:
    """The pseudonym itself, or the one that the hospital's key makes of a hospital number."""
    return patient if PSEUDONYM.fullmatch(patient) else Pseudonyms(key_of(site)).pseudonym(patient)


def withdraw(site: Site, patient: str, *, who: str) -> Withdrawal:
    """Take the patient out for good. `patient` is a pseudonym or the hospital's number. May be asked again.

    Raises `OSError` where something can't be removed; the patient is excluded from the first moment on all the same.
    """
    cohort, pseudonym = Cohort(site.cohort_folder), pseudonym_of(site, patient)
    inside = cohort.withdraw(pseudonym)
    sent.forget(site)  # an answer that was kept may never have left
    models = personalise.forget(site, pseudonym)
    calibrations = uncertainty.forget(site, pseudonym)
    store = site.folder / "clean"
    if (store / pseudonym).exists():
        (store / pseudonym).rename(store / f".{pseudonym}.{uuid4().hex}.part")  # no half of it is ever read
    for away in store.glob(f".{pseudonym}.*.part"):  # one that a kill left, too
        inside = True
        shutil.rmtree(away)
    Catalog.of(site).forget(pseudonym)
    _forget_lines(site.folder / "log" / "training.jsonl", pseudonym)
    _forget_lines(cohort.folder / "refused.jsonl", pseudonym)
    _forget_failures(site.folder / "log" / "failures.log", pseudonym)
    originals, unknown = 0, 0
    if site.identity_folder.exists():
        originals, unknown = forget_identity(site.identity_folder, pseudonym, names=Pseudonyms(key_of(site)))
    AuditLog(site.folder / "audit.jsonl").append("withdrawn", who=who)
    return Withdrawal(pseudonym, inside, originals, unknown, models, calibrations)


def tell(done: Withdrawal, site: Site) -> list[str]:
    """What was done and what was not, in sentences."""
    lines = [
        f"{done.pseudonym} takes part in nothing any more"
        + ("" if done.was_inside else "; nothing of this patient was in the cohort, and nothing will be let in")
    ]
    lines.append(f"removed: case, prepared arrays, quality, clean files, catalog and log lines; {done.originals} originals")
    if done.models:
        lines.append(f"removed: {done.models} models of this house's own that were trained on them (konsil-site personalise)")
    if done.calibrations:
        lines.append(
            f"removed: {done.calibrations} calibrations that were learned from them; konsil-site calibrate makes new ones"
        )
    if done.unknown:
        lines.append(f"LOOK: {done.unknown} files in {site.identity_folder} say of no patient whose they are; they stayed")
    lines.append(
        "Not removed: what a model learned in earlier rounds. It was bounded and covered by noise before it left (konsil-site "
        "ledger), and no trained model is unlearned. Tables, masks and exports that you made yourself are yours to delete."
    )
    return lines


def _forget_lines(path: Path, pseudonym: str) -> None:
    """The JSON lines without those that name the pseudonym, or one of its series."""
    if not path.exists():
        return
    _write_anew(path, [line for line in path.read_text(errors="replace").splitlines() if not _names(line, pseudonym)])


def _write_anew(path: Path, kept: list[str]) -> None:
    """These lines and no others, with the permissions that the file had."""
    part = path.with_name(f".{uuid4().hex}.part")
    mode = path.stat().st_mode & 0o777
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    os.fchmod(file, mode)  # whatever the umask of who asks
    with open(file, "w") as out:
        out.writelines(f"{line}\n" for line in kept)
        out.flush()
        os.fsync(file)
    part.replace(path)


def _forget_failures(path: Path, pseudonym: str) -> None:
    """The texts of failures without the lines that name the pseudonym."""
    if path.exists() and pseudonym in (text := path.read_text(errors="replace")):
        _write_anew(path, [line for line in text.splitlines() if pseudonym not in line])


def _names(line: str, pseudonym: str) -> bool:
    try:
        facts = json.loads(line)
    except ValueError:
        return pseudonym in line
    return any(isinstance(value, str) and pseudonym in value for value in facts.values())
