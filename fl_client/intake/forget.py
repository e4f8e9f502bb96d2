"""Removing what the identity zone holds of one patient: originals, quarantine, what goes back to the archive, the way back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pydicom

from fl_client.intake.deidentify import discreet
from fl_client.intake.incoming import DONE
from fl_client.intake.pseudonyms import Pseudonyms, patient_number
from fl_client.intake.quarantine import LIST, Quarantine, lines_of, without
from fl_client.intake.returned import folder_of
from fl_client.intake.way_back import WayBack


def forget_identity(identity: Path, pseudonym: str, *, names: Pseudonyms) -> tuple[int, int]:
    """Remove the patient's originals and the way back; (files removed, files nobody can attribute).

    A file in the identity zone belongs to the patient if its own header says so, or if the quarantine's list does. What can't
    be read stays, and is counted: a person has to look at it. Raises `OSError`.
    """
    quarantine = identity / "quarantine"
    listed = {line.get("file") for line in lines_of(quarantine / LIST) if line.get("pseudonym") == pseudonym}
    removed, unknown = 0, 0
    for folder in (identity / "incoming", quarantine):
        for path in sorted(folder.rglob("*.dcm")):
            whose = pseudonym if folder == quarantine and path.name in listed else owner(path, names)
            if whose == pseudonym:
                path.unlink()
                removed += 1
            unknown += whose is None
    if quarantine.exists():
        Quarantine(quarantine).forget(pseudonym=pseudonym)
    for became in (identity / "incoming").glob(f"*/{DONE}"):
        without(became, lambda line: str(line.get("clean", "")).startswith(f"{pseudonym}/"))
    if (returned := folder_of(identity, pseudonym)).exists():
        removed += len(list(returned.glob("*.dcm")))
        shutil.rmtree(returned)
    if (identity / "map.sqlite").exists():
        WayBack(identity / "map.sqlite").forget(pseudonym)
    return removed, unknown


def owner(path: Path, names: Pseudonyms) -> str | None:
    """Whose a file is, by its own header; None if that can't be read or names nobody. Raises `OSError`."""
    with discreet():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"], force=True)
            patient_id = patient_number(header)
        except OSError as error:
            if error.errno is not None:  # the disk's; pydicom has some without a number for a file that is cut short
                raise
            return None
        except Exception:  # a damaged header: nobody can say whose it is
            return None
    return names.pseudonym(patient_id) if patient_id else None
