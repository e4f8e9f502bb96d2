"""De-identified copies of a folder for colleagues, with two tables: what became of each file, and what was taken away.

The copies carry the pseudonyms of the hospital's key, or, with another key that is thrown away, pseudonyms that lead nowhere.
Tables name files by handles, since a path may hold a name; which file a handle means is told on the screen alone.
"""

from __future__ import annotations

import csv
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fl_client.admission import key_of
from fl_client.cohort import Cohort
from fl_client.intake.clean import Cleaned, Quarantined, deidentify_file
from fl_client.intake.deidentify import Deidentifier, Option
from fl_client.intake.forget import owner
from fl_client.intake.pseudonyms import Pseudonyms
from fl_client.site import Site


def export(
    site: Site, folder: Path, out: Path, *, retain: Iterable[Option], accept_faces: bool = False, other_key: bool = False
) -> int:
    """Copy what may pass to `out/<pseudonym>/...`, write `files.csv` and `dropped.csv` beside it. Gives the exit status.

    Raises `NotADirectoryError` if there is no such folder, `FileExistsError` if `out` holds something, `OSError` if it can't be
    written.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; a folder of DICOM files is right")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds something already; name a new folder for the copies")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside {folder}: the copies would be read again")
    out.mkdir(parents=True, exist_ok=True)
    deidentify = Deidentifier(secrets.token_bytes(32) if other_key else key_of(site), retain=retain)
    files, dropped, reasons = [], Counter[str](), Counter[str]()
    away, names = Cohort(site.cohort_folder).withdrawn, Pseudonyms(key_of(site))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        result: Cleaned | Quarantined = Quarantined("its patient has withdrawn")
        if not away or owner(path, names) not in away:
            result = deidentify_file(path, out, deidentify=deidentify, accept_faces=accept_faces)
        handle = deidentify.handle(path.relative_to(folder).as_posix())
        if isinstance(result, Cleaned):
            files.append((handle, result.pseudonym, "copied", result.path.relative_to(out).as_posix()))
            dropped.update(result.dropped)
        else:
            files.append((handle, result.pseudonym, "not copied", result.reason))
            reasons[result.reason] += 1
            print(f"{handle}  {path.relative_to(folder)}: {result.reason}")
    _write(out / "files.csv", ("file", "patient", "outcome", "copy or reason"), files)
    _write(out / "dropped.csv", ("attribute", "times"), dropped.most_common())
    copied = sum(outcome == "copied" for _, _, outcome, _ in files)
    patients = len({patient for _, patient, outcome, _ in files if outcome == "copied"})
    print(f"{copied} of {len(files)} files copied, of {patients} patients; {sum(reasons.values())} not, {len(reasons)} reasons")
    print(f"{sum(dropped.values())} values taken away, of {len(dropped)} attributes: {out / 'dropped.csv'}")
    return 0 if copied else 1


def _write(path: Path, head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with open(path, "x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
