"""The hospital's cohort: de-identified cases on disk, prepared once per task and memory-mapped.

    cohort/cases/<pseudonym>/case.json, <series>.image.npy, <series>.mask.npy
    cohort/refused.jsonl                      one line per patient, series or file that did not get in, with the reason
    cohort/prepared/<task hash>/<pseudonym>/  the arrays a task made of a case

A case is written into a folder beside its place and moved in with one rename, so a killed process leaves none half-written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from tasks.case import Case, Volume
from tasks.task import Arrays, GradientTask

Split = Literal["train", "test"]


class Cohort:
    """The cases of one hospital. Patients are listed in sorted order, so nothing depends on the order of arrival."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)

    # -- the door in's last step -------------------------------------------------------------------------------------

    def admit(self, case: Case) -> None:
        """Store the case, or replace it: one patient is one case. All of it is stored or nothing (`OSError`)."""
        place = self.folder / "cases" / _folder_name(case.patient)
        part = self.folder / "cases" / f".{uuid4().hex}.part"
        part.mkdir()
        try:
            volumes = []
            for volume in case.volumes:
                _save(part / f"{volume.series}.image.npy", volume.image)
                if volume.mask is not None:
                    _save(part / f"{volume.series}.mask.npy", volume.mask)
                volumes.append({"series": volume.series, "affine": volume.affine.tolist(), "mask": volume.mask is not None})
            text = {
                "patient": case.patient,
                "volumes": volumes,
                "endpoints": dict(case.endpoints),
                "scanner": dict(case.scanner),
            }
            (part / "case.json").write_text(json.dumps(text, indent=1))
            if place.exists():
                old = part.with_suffix(".old")
                place.rename(old)
                part.rename(place)
                shutil.rmtree(old)
            else:
                part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for prepared in (self.folder / "prepared").glob(f"*/{_folder_name(case.patient)}"):
            shutil.rmtree(prepared)

    def refuse(self, what: str, reason: str) -> None:
        """Write down that `what` (a pseudonym, never a name) did not get in, and why."""
        with open(self.folder / "refused.jsonl", "a") as file:
            file.write(json.dumps({"what": what, "reason": reason}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def refused(self) -> list[dict[str, str]]:
        """What did not get in, in order: `[{"what": pseudonym, "reason": sentence}]`."""
        path = self.folder / "refused.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    # -- what training and scoring read -----------------------------------------------------------------------------

    @property
    def patients(self) -> tuple[str, ...]:
        """Pseudonyms of all admitted patients, sorted."""
        return tuple(sorted(entry.name for entry in (self.folder / "cases").iterdir() if not entry.name.startswith(".")))

    def __len__(self) -> int:
        return len(self.patients)

    def __iter__(self) -> Iterator[Case]:
        return (self.case(patient) for patient in self.patients)

    def case(self, patient: str) -> Case:
        """The stored case; its arrays are memory-mapped read-only. Raises `KeyError` for an unknown pseudonym."""
        folder = self.folder / "cases" / patient
        if not (folder / "case.json").exists():
            raise KeyError(f"no patient '{patient}' in the cohort {self.folder}")
        text = json.loads((folder / "case.json").read_text())
        volumes = tuple(
            Volume(
                series=volume["series"],
                image=np.load(folder / f"{volume['series']}.image.npy", mmap_mode="r"),
                affine=np.array(volume["affine"]),
                mask=np.load(folder / f"{volume['series']}.mask.npy", mmap_mode="r") if volume["mask"] else None,
            )
            for volume in text["volumes"]
        )
        return Case(text["patient"], volumes, text["endpoints"], text["scanner"])

    def split(self, which: Split, *, test_fraction: float) -> tuple[str, ...]:
        """Patients of one side of the train/test split, sorted.

        Each patient's side depends on that patient's pseudonym alone: adding or removing another moves nobody, which
        patient-level privacy needs.
        """
        return tuple(patient for patient in self.patients if is_test(patient, test_fraction) == (which == "test"))

    def prepared(self, task: GradientTask, patient: str) -> Arrays:
        """The task's arrays of one case, computed at the first call and memory-mapped afterwards."""
        place = self.folder / "prepared" / task.hash / patient
        if not place.exists():
            arrays = task.prepare(self.case(patient))
            part = place.with_name(f".{uuid4().hex}.part")
            part.mkdir(parents=True)
            for name, array in arrays.items():
                _save(part / f"{name}.npy", array)
            try:
                part.rename(place)
            except OSError:  # another process was faster, with the same arrays
                shutil.rmtree(part)
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(place.glob("*.npy"))}


def _folder_name(pseudonym: str) -> str:
    if not pseudonym or not all(c.isalnum() or c in "-_" for c in pseudonym):
        raise ValueError(f"a pseudonym holds letters, digits, '-' and '_' only, not {pseudonym!r}")
    return pseudonym


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    with open(path, "wb") as file:
        np.save(file, np.ascontiguousarray(array))
        file.flush()
        os.fsync(file.fileno())


def is_test(patient: str, test_fraction: float) -> bool:
    """True if this patient is kept out of training. It depends on the pseudonym alone, so no other patient can change it."""
    drawn = int.from_bytes(hashlib.sha256(f"split/{patient}".encode()).digest()[:8], "big") / 2**64
    return drawn < test_fraction
