"""The hospital's cohort: de-identified cases on disk, prepared once per task and memory-mapped.

    cohort/cases/<pseudonym>/case.json, <series>.image.npy, <series>.mask.npy
    cohort/refused.jsonl                              one line per patient, series or file that did not get in, and why
    cohort/prepared/<task hash>/<pseudonym>.<state>/  the arrays a task made of a case in this state (a digest)
    cohort/damaged/<pseudonym>[.<when>]/              what could not be read any more, moved away by a person or by `admit`

A case is written into a folder beside its place and moved in whole. One that replaces another waits until the old one has
stepped aside under a name that carries the pseudonym; whoever opens the cohort after a kill in between puts the old one back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from fl_client.refused import RefusedList
from fl_client.sharing import file_mode, make_folder
from tasks.case import Case, Volume
from tasks.task import Arrays, Task

Split = Literal["train", "validation", "test"]


class CaseUnreadable(KeyError):
    """A patient's folder that holds no whole case: a file of it is missing, cut short, or closed to this user.

    A `KeyError`, because no case can be had under this pseudonym until the patient is admitted again. `reason` names files of
    the folder only; the text names the folder, and is for the hospital's own screen and log.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"{self.folder} can't be read: {self.reason}"


class Withdrawn(ValueError):
    """The patient has withdrawn."""


class Cohort:
    """The cases of one hospital. Patients are listed in sorted order, so nothing depends on the order of arrival."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._refused = RefusedList(self.folder / "refused.jsonl")
        self._cases.mkdir(parents=True, exist_ok=True)
        if any(self._cases.glob(".*.old")):
            with self._lock(fcntl.LOCK_EX):
                self._tidy()

    @property
    def _cases(self) -> Path:
        return self.folder / "cases"

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Whoever reads a case shares the cohort with other readers, whoever moves one has it alone. Ends with the process."""
        file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, file_mode(self.folder))
        try:
            fcntl.flock(file, kind)
            yield
        finally:
            os.close(file)

    def _tidy(self) -> None:
        """What killed processes left behind: a case that had stepped aside goes back, all else goes."""
        for old in self._cases.glob(".*.old"):
            place = self._cases / old.name.removeprefix(".").removesuffix(".old")
            if place.exists():
                shutil.rmtree(old)
            else:
                old.rename(place)
                _sync(self._cases)
        for part in self._cases.glob(".*.part"):
            _remove(part)

    # -- the door in's last step -------------------------------------------------------------------------------------

    def admit(self, case: Case, *, days: Mapping[str, str] = {}) -> None:
        """Store the case, or replace it: one patient is one case. All of it is stored or nothing (`OSError`).

        `days` are those of the series' examinations, as far as they are known: YYYYMMDD, moved as all the patient's dates are.

        A folder in its place that can't be read is not thrown away: it goes to `damaged/`. Raises `Withdrawn` for a patient
        who doesn't take part any more.
        """
        place = self._cases / _folder_name(case.patient)
        part, old = self._cases / f".{uuid4().hex}.part", self._cases / f".{place.name}.old"
        with self._lock(fcntl.LOCK_EX):
            if place.name in self.withdrawn:
                raise Withdrawn("this patient has withdrawn and is not let in again")
            self._tidy()
            part.mkdir()
            try:
                self._write(case, part, days)
                self._forget_prepared(place.name)
                if place.exists() and not self._is_whole(place.name):
                    self._put_aside(place)
                elif place.exists():
                    place.rename(old)
                    _sync(self._cases)
                part.rename(place)
                _sync(self._cases)  # the new case is on the disk before the old one leaves it
            finally:
                shutil.rmtree(part, ignore_errors=True)
                self._tidy()

    def _is_whole(self, patient: str) -> bool:
        try:
            self._read(patient)
        except CaseUnreadable:
            return False
        return True

    def _put_aside(self, place: Path) -> None:
        self.make_damaged_folder()
        place.rename(self.damaged_folder / f"{place.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        _sync(self.damaged_folder)
        _sync(self._cases)

    def _write(self, case: Case, part: Path, days: Mapping[str, str]) -> None:
        volumes = []
        for volume in case.volumes:
            digests = {"image": _save(part / f"{volume.series}.image.npy", volume.image)}
            if volume.mask is not None:
                digests["mask"] = _save(part / f"{volume.series}.mask.npy", volume.mask)
            entry = {"series": volume.series, "affine": volume.affine.tolist(), "mask": volume.mask is not None}
            if volume.annotated is not None:
                entry["annotated"] = list(volume.annotated)
            if days.get(volume.series):
                entry["day"] = days[volume.series]
            volumes.append({**entry, "sha256": digests})
        text = {
            "patient": case.patient,
            "volumes": volumes,
            "endpoints": dict(case.endpoints),
            "scanner": dict(case.scanner),
        }
        with open(part / "case.json", "w") as file:
            file.write(json.dumps(text, indent=1))
            file.flush()
            os.fsync(file.fileno())
        _sync(part)

    def _forget_prepared(self, patient: str) -> None:
        """Take away what tasks made of this patient; out of its place at once, so that no half of it is ever served."""
        for prepared in (self.folder / "prepared").glob(f"*/*{patient}*"):
            if prepared.name.removeprefix(".").partition(".")[0] == patient:
                away = prepared.with_name(f".{patient}.{uuid4().hex}.part")
                prepared.rename(away)
                shutil.rmtree(away)

    def withdraw(self, patient: str) -> bool:
        """Take the patient out for good: excluded when this begins, and gone from the cohort when it returns.

        The pseudonym goes on the list of those who don't take part, which is on the disk before anything is removed, so that
        whatever happens in between nobody can use them. Returns whether anything of them was here. May be asked again.
        """
        name = _folder_name(patient)
        with self._lock(fcntl.LOCK_EX):
            if name not in self.withdrawn:
                with open(self.folder / "withdrawn", "a") as file:
                    file.write(f"{name}\n")
                    file.flush()
                    os.fsync(file.fileno())
                _sync(self.folder)
            self._tidy()
            self._forget_prepared(name)
            theirs = [self._cases / name, self.folder / "quality" / f"{name}.json"]
            theirs += [path for path in self.damaged_folder.glob(f"{name}*") if path.name.partition(".")[0] == name]
            found = [path for path in theirs if path.exists()]
            for path in found:
                away = self._cases / f".{uuid4().hex}.part"
                path.rename(away)  # no half of it is ever served
                _remove(away)
            _sync(self._cases)
        return bool(found)

    @property
    def withdrawn(self) -> frozenset[str]:
        """Pseudonyms of those who have withdrawn: they are in no list of patients, and are not let in again."""
        path = self.folder / "withdrawn"
        return frozenset(path.read_text().split()) if path.exists() else frozenset()

    def refuse(self, what: str, reason: str) -> None:
        """Write down that `what` (a pseudonym, never a name) did not get in, and why."""
        self._refused.add(what, reason)

    @property
    def refused(self) -> list[dict[str, str]]:
        """What did not get in, in order: `[{"what": pseudonym, "reason": sentence}]`."""
        return self._refused.lines

    def has_refused(self, what: str, reason: str) -> bool:
        """Whether this has been written down."""
        return self._refused.knows(what, reason)

    # -- what training and scoring read -----------------------------------------------------------------------------

    @property
    def patients(self) -> tuple[str, ...]:
        """Pseudonyms of all admitted patients who haven't withdrawn, sorted."""
        away = self.withdrawn
        names = (entry.name for entry in self._cases.iterdir())
        return tuple(sorted(name for name in names if not name.startswith(".") and name not in away))

    def __len__(self) -> int:
        return len(self.patients)

    def __iter__(self) -> Iterator[Case]:
        return (self.case(patient) for patient in self.patients)

    def look(self) -> Iterator[Case | CaseUnreadable]:
        """Every patient's case, or why it can't be read: one damaged folder does not hide the others."""
        for patient in self.patients:
            try:
                yield self.case(patient)
            except CaseUnreadable as unreadable:
                yield unreadable

    @property
    def put_aside(self) -> tuple[str, ...]:
        """Folders in `damaged/`, sorted: their names are, or begin with, the pseudonyms of their patients."""
        return tuple(sorted(path.name for path in self.damaged_folder.glob("*")))

    @property
    def damaged_folder(self) -> Path:
        """Where folders that can't be read are moved to, by a person or by `admit`."""
        return self.folder / "damaged"

    def make_damaged_folder(self) -> None:
        """Make it, so that a person who is told to move a folder into it finds it."""
        make_folder(self.damaged_folder)

    def case(self, patient: str) -> Case:
        """The stored case; its arrays are memory-mapped read-only.

        Raises `KeyError` for an unknown pseudonym, and `CaseUnreadable`, which is one too, for a damaged folder.
        """
        with self._lock(fcntl.LOCK_SH):
            return self._read(patient)[0]

    def days(self, patient: str) -> dict[str, str]:
        """Series of the stored case with the days of their examinations; empty where nobody knows. Raises as `case`."""
        with self._lock(fcntl.LOCK_SH):
            self._read(patient)  # raises for a damaged folder
            volumes = json.loads(self._text(patient))["volumes"]
        return {str(volume["series"]): str(volume.get("day", "")) for volume in volumes}

    def _read(self, patient: str) -> tuple[Case, str]:
        """The case, and the state it is in. The caller holds the lock."""
        folder = self._cases / patient
        try:
            text = json.loads(self._text(patient))
        except ValueError:
            raise CaseUnreadable(folder, "case.json is cut short, or isn't JSON") from None
        try:
            volumes = tuple(
                Volume(
                    series=volume["series"],
                    image=_array(folder / f"{volume['series']}.image.npy"),
                    affine=np.array(volume["affine"]),
                    mask=_array(folder / f"{volume['series']}.mask.npy") if volume["mask"] else None,
                    annotated=tuple(volume["annotated"]) if "annotated" in volume else None,
                )
                for volume in text["volumes"]
            )
            case = Case(text["patient"], volumes, text["endpoints"], text["scanner"])
        except CaseUnreadable:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CaseUnreadable(folder, f"its files don't make a case ({type(error).__name__}: {error})") from None
        return case, self._state(patient)

    def _text(self, patient: str) -> bytes:
        place = self._cases / patient
        if patient in self.withdrawn:
            raise KeyError(f"the patient '{patient}' has withdrawn from the cohort {self.folder}")
        try:
            return (place / "case.json").read_bytes()
        except FileNotFoundError:
            if place.exists():
                raise CaseUnreadable(place, "case.json is missing") from None
            raise KeyError(f"no patient '{patient}' in the cohort {self.folder}") from None
        except NotADirectoryError:
            raise CaseUnreadable(place, "it is a file, and no patient's folder") from None
        except OSError as error:
            raise CaseUnreadable(place, f"case.json: {error.strerror}") from None

    def state(self, patient: str) -> str:
        """A digest of the stored case. Raises `KeyError` for an unknown pseudonym, and `CaseUnreadable`, which is one too."""
        with self._lock(fcntl.LOCK_SH):
            return self._state(patient)

    def _state(self, patient: str) -> str:
        """A digest of the stored case: other images, masks or endpoints give another."""
        return hashlib.sha256(self._text(patient)).hexdigest()[:16]

    def split(self, which: Split, *, test_fraction: float, validation_fraction: float = 0.0) -> tuple[str, ...]:
        """Patients of one side of the split, sorted; without `validation_fraction` all but the test patients train.

        Each patient's side depends on that patient's pseudonym alone: adding or removing another moves nobody, which
        patient-level privacy needs.
        """
        return tuple(patient for patient in self.patients if side_of(patient, test_fraction, validation_fraction) == which)

    def usable(self, task: Task, patients: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Those of the patients whom the task can use, and the reason for each of the others.

        Each is judged alone, so that nobody's presence moves another's. What is wrong with one patient's files is never an
        error: it would say something about that patient.
        """
        left_out: dict[str, str] = {}
        for patient in patients:
            try:
                self.prepared(task, patient)
            except (CaseUnreadable, ValueError) as error:  # in words
                left_out[patient] = str(error)
            except Exception as error:
                left_out[patient] = f"{type(error).__name__}: {error}"
        return tuple(patient for patient in patients if patient not in left_out), left_out

    def prepared(self, task: Task, patient: str) -> Arrays:
        """The task's arrays of one case, computed at the first call and memory-mapped afterwards."""
        folder = self.folder / "prepared" / task.hash
        with self._lock(fcntl.LOCK_SH):
            place = folder / f"{patient}.{self._state(patient)}"
        if not place.exists():
            with self._lock(fcntl.LOCK_SH):  # the case may have been replaced meanwhile
                case, state = self._read(patient)
            place = folder / f"{patient}.{state}"
            part = place.with_name(f".{patient}.{uuid4().hex}.part")
            part.mkdir(parents=True)
            try:
                for name, array in task.prepare(case).items():
                    _save(part / f"{name}.npy", array)
                _sync(part)
                part.rename(place)
            except OSError:
                if not place.exists():  # else another process was faster, with the same arrays
                    raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return _small(place) or {path.stem: np.load(path, mmap_mode="r") for path in sorted(place.glob("*.npy"))}


SMALL_BYTES = 1 << 14
"""A patient's arrays up to this size are read once and kept: opening files costs more than a step over a few numbers."""


@lru_cache(maxsize=4096)
def _small(place: Path) -> Arrays:
    """The arrays of this folder, whose name tells the state of the case, if they are small; else none."""
    files = sorted(place.glob("*.npy"))
    if sum(path.stat().st_size for path in files) > SMALL_BYTES:
        return {}
    arrays: Arrays = {path.stem: np.load(path) for path in files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _array(path: Path) -> npt.NDArray[Any]:
    """The array of this file, memory-mapped. Raises `CaseUnreadable` naming it."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise CaseUnreadable(path.parent, f"{path.name} is missing") from None
    except (EOFError, ValueError):
        raise CaseUnreadable(path.parent, f"{path.name} is cut short, or is no array") from None
    except OSError as error:
        raise CaseUnreadable(path.parent, f"{path.name}: {error.strerror}") from None
    return array


def _folder_name(pseudonym: str) -> str:
    if not pseudonym or not all(c.isalnum() or c in "-_" for c in pseudonym):
        raise ValueError(f"a pseudonym holds letters, digits, '-' and '_' only, not {pseudonym!r}")
    return pseudonym


def _save(path: Path, array: npt.NDArray[Any]) -> str:
    """Write one array to the disk itself; returns the SHA-256 of its bytes, shape and type."""
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.data)
    return digest.hexdigest()


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()


def _sync(folder: Path) -> None:
    """Bring the folder's entries to the disk; a rename alone may stay in memory."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def side_of(patient: str, test_fraction: float, validation_fraction: float = 0.0) -> Split:
    """The patient's side: tested once, asked between rounds (`validation_fraction` of the others), or trained on.

    It depends on the pseudonym alone, so no other patient can change it. Test patients are taken from the lower end of one
    number drawn from the pseudonym, validation patients from its upper end: whoever is one is never the other under another
    `validation_fraction`, and the test patients are the same with and without validation.
    """
    drawn = int.from_bytes(hashlib.sha256(f"split/{patient}".encode()).digest()[:8], "big") / 2**64
    if drawn < test_fraction:
        return "test"
    return "validation" if drawn >= 1 - validation_fraction * (1 - test_fraction) else "train"


def is_test(patient: str, test_fraction: float) -> bool:
    """True if this patient is kept out of every training."""
    return side_of(patient, test_fraction) == "test"
