"""Removing what the identity zone holds of one patient: originals, quarantine, what goes back to the archive, the way back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import pydicom

from fl_client.intake.deidentify import discreet
from fl_client.intake.pseudonyms import Pseudonyms
from fl_client.intake.quarantine import LIST
from fl_client.intake.returned import folder_of
from fl_client.intake.way_back import WayBack


def forget_identity(identity: Path, pseudonym: str, *, names: Pseudonyms) -> tuple[int, int]:
    """Remove the patient's originals and the way back; (files removed, files nobody can attribute).

    A file in the identity zone belongs to the patient if its own header says so, or if the quarantine's list does. What can't
    be read stays, and is counted: a person has to look at it. Raises `OSError`.
    """
    quarantine = identity / "quarantine"
    listed = {line["file"] for line in _lines(quarantine / LIST) if line.get("pseudonym") == pseudonym}
    removed, unknown = 0, 0
    for folder in (identity / "incoming", quarantine):
        for path in sorted(folder.rglob("*.dcm")):
            whose = pseudonym if folder == quarantine and path.name in listed else _owner(path, names)
            if whose == pseudonym:
                path.unlink()
                removed += 1
            unknown += whose is None
    _without(quarantine / LIST, pseudonym)
    if (returned := folder_of(identity, pseudonym)).exists():
        removed += len(list(returned.glob("*.dcm")))
        shutil.rmtree(returned)
    if (identity / "map.sqlite").exists():
        WayBack(identity / "map.sqlite").forget(pseudonym)
    return removed, unknown


def _owner(path: Path, names: Pseudonyms) -> str | None:
    with discreet():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"], force=True)
            patient_id = str(header.get("PatientID", "") or "").strip()
        except OSError:
            raise
        except Exception:  # a damaged header: nobody can say whose it is
            return None
    return names.pseudonym(patient_id) if patient_id else None


def _lines(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # cut short by a power failure
            continue
    return found


def _without(path: Path, pseudonym: str) -> None:
    """The list without the patient's lines, whole or as it was."""
    if not path.exists():
        return
    kept = [line for line in _lines(path) if line.get("pseudonym") != pseudonym]
    part = path.with_name(f".{uuid4().hex}.part")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(line) + "\n" for line in kept)
        out.flush()
        os.fsync(file)
    part.replace(path)
