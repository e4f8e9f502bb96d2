"""Faults in a hospital's house: its disk, its patients, its budget, its software, its clock.

Each is made in the hospital's real folder for as long as it answers one message, and mended afterwards; what a killed process
left unmended is put right before the next one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from simulation.faults.crashes import Instant, answered_in_child, crashed
from simulation.faults.fault import Answer, InHospital, settings_of

if TYPE_CHECKING:
    from flwr.app import Context, Message

    from fl_client.site import Site

ANOTHER = "another study"
NEW_NAMESPACE, NEW_USER, BIND, PRIVATE_ALL = 0x00020000, 0x10000000, 4096, 0x40000 | 0x4000
"""CLONE_NEWNS, CLONE_NEWUSER, MS_BIND and MS_PRIVATE | MS_REC of Linux."""
READ_ONLY = ("cohort", "models")
"""Folders that are read from where they are."""


class InHouse(InHospital):
    """A fault that is there while a message is answered."""

    asked: ClassVar[frozenset[str]] = frozenset({"train", "evaluate"})
    in_federation: ClassVar[bool] = True

    def around(self, answer: Answer, question: Message, context: Context) -> Message:
        """Make it, answer, mend it."""
        from fl_client.site import Site

        with self.made(Site.load(settings_of(context))):
            return answer(question, context)

    @abstractmethod
    def made(self, site: Site) -> AbstractContextManager[None]:
        """The house as it is with this fault."""


class CorruptCase(InHouse):
    """A file of one training patient is cut in the middle, as by a disk that fails."""

    fault: Literal["corrupt_case"]
    patient: Annotated[int, Field(ge=0)] = 0  # which of the training patients, in the order of their pseudonyms

    @contextmanager
    def made(self, site: Site) -> Iterator[None]:
        """The cohort is a copy in which that file is cut; all else is linked."""
        from fl_client.cohort import Cohort

        with _aside(site.cohort_folder) as whole:
            patients = Cohort(whole).split("train", test_fraction=site.test_fraction)
            chosen = patients[self.patient % len(patients)] if patients else ""
            _linked(whole, site.cohort_folder, but=chosen)
            if chosen:
                copy = site.cohort_folder / "cases" / chosen
                shutil.copytree((whole / "cases" / chosen).resolve(), copy)
                image = sorted(copy.glob("*.image.npy"))[0]
                os.truncate(image, image.stat().st_size // 2)
            yield


class EmptyCohort(InHouse):
    """The hospital's cohort is empty: nobody has come in, or the folder of the cases isn't there."""

    fault: Literal["empty_cohort"]

    @contextmanager
    def made(self, site: Site) -> Iterator[None]:
        """A cohort of nobody stands in its place."""
        with _aside(site.cohort_folder):
            (site.cohort_folder / "cases").mkdir(parents=True)
            yield


class BudgetSpentElsewhere(InHouse):
    """Another study takes all that is left of the hospital's budget."""

    fault: Literal["budget_spent"]

    @contextmanager
    def made(self, site: Site) -> Iterator[None]:
        """One more release stands in the ledger, and stays there."""
        from fl_client.app import ledger_of
        from fl_client.privacy import Event, calibrate

        ledger = ledger_of(site)
        past = ledger.events
        noisy = [event for event in past if event.noise_multiplier > 0]
        if all(event.study_name != ANOTHER for event in past):
            epsilon, delta = site.budget.epsilon, site.budget.delta
            noise = calibrate(epsilon=epsilon, delta=delta, sample_rate=1.0, steps=1, alongside=noisy)
            ledger.spend(Event(noise_multiplier=noise, study="0" * 64, study_name=ANOTHER, round=1, noise="seeded"))
        yield


class OlderVersion(InHouse):
    """The hospital runs an older konsil."""

    fault: Literal["older_version"]
    asked: ClassVar[frozenset[str]] = frozenset({"train", "evaluate", "query"})
    in_federation: ClassVar[bool] = False
    version: str = "0.0.1"

    @contextmanager
    def made(self, site: Site) -> Iterator[None]:
        """The first `konsil` that Python finds installed is that one."""
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / f"konsil-{self.version}.dist-info"
            told.mkdir()
            (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: konsil\nVersion: {self.version}\n")
            sys.path.insert(0, folder)
            try:
                yield
            finally:
                sys.path.remove(folder)


class ClockOff(InHospital):
    """The hospital's clock is wrong: ahead by an hour, or behind."""

    fault: Literal["clock_off"]
    asked: ClassVar[frozenset[str]] = frozenset({"train", "evaluate", "query"})
    hours: float = 1.0  # below 0: behind

    def around(self, answer: Answer, question: Message, context: Context) -> Message:
        """By its clock, the question was asked an hour earlier than it was."""
        question.metadata.created_at -= self.hours * 3600.0
        return answer(question, context)


class DiskFull(InHospital):
    """The disk of the hospital's folder is full: not a byte more can be written."""

    fault: Literal["disk_full"]
    asked: ClassVar[frozenset[str]] = frozenset({"train", "evaluate"})

    def around(self, answer: Answer, question: Message, context: Context) -> Message:
        """Answer in a process that has another disk, which is full; cohort and models are read as ever."""
        reply = answered_in_child(on_full_disk, "start", answer, question, context)
        return crashed(question) if reply is None else reply


def on_full_disk(instant: Instant, answer: Answer, question: Message, context: Context) -> Message:
    """Answer with the hospital's folder on a file system of memory that has no room left; its own process is needed.

    What was written all the same is copied to the folder, so that the books are those that a full disk leaves. Where this user
    may not mount anything, no file may grow instead, which programs are told in another word (EFBIG, not ENOSPC).
    """
    from fl_client.site import Site

    folder = Site.load(settings_of(context)).folder.resolve()
    with tempfile.TemporaryDirectory() as place:
        small = Path(place) / "small"
        small.mkdir()
        if not _own_mounts() or not _mount(None, small, "tmpfs", 0, f"size={_room(folder)}"):
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
            try:
                return answer(question, context)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        real = Path(place) / "real"
        real.mkdir()
        _mount(folder, real, None, BIND)
        for entry in folder.iterdir():
            _lay(entry, small / entry.name)
        _fill(small / "ballast")
        _mount(small, folder, None, BIND | 16384)  # MS_REC: with what is bound inside
        try:
            return answer(question, context)
        finally:
            for path in (path for path in small.iterdir() if path.is_file() and path.name != "ballast"):
                if not (real / path.name).exists() or (real / path.name).read_bytes() != path.read_bytes():
                    shutil.copy2(path, real / path.name)
            for where in (folder, *(path for path in small.iterdir() if os.path.ismount(path)), small, real):
                _libc().umount2(os.fsencode(where), 2)  # MNT_DETACH


def _lay(entry: Path, place: Path) -> None:
    """The cohort and the models are the same; all else is copied."""
    if entry.is_symlink():
        place.symlink_to(entry.readlink())
    elif entry.is_file():
        shutil.copy2(entry, place)
    elif entry.name in READ_ONLY:
        place.mkdir()
        _mount(entry, place, None, BIND)
    else:
        shutil.copytree(entry, place, symlinks=True)


def _room(folder: Path) -> int:
    """Bytes that a copy of the folder needs, and some more, which are filled."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in READ_ONLY]
    return sum(path.stat().st_size + 4096 for path in files) + (1 << 20)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue


def _own_mounts() -> bool:
    """Whether this process now has mounts of its own that nobody else sees."""
    user, group = os.getuid(), os.getgid()
    if _libc().unshare(NEW_NAMESPACE) != 0:
        if _libc().unshare(NEW_NAMESPACE | NEW_USER) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return bool(_libc().mount(None, b"/", None, PRIVATE_ALL, None) == 0)


def _mount(source: Path | None, place: Path, kind: str | None, flags: int, options: str = "") -> bool:
    what = b"none" if source is None else os.fsencode(source)
    words = options.encode() or None
    return bool(_libc().mount(what, os.fsencode(place), kind.encode() if kind else None, flags, words) == 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """The folder (or the link to one) steps aside, under the name that is given; it comes back in the end."""
    whole = folder.with_name(f"{folder.name}.whole")
    if whole.exists():  # a killed process left it so
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
    folder.rename(whole)
    try:
        yield whole
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)


def _linked(cohort: Path, place: Path, *, but: str) -> None:
    """A cohort at `place` whose cases, and what tasks made of them, are links to those of `cohort`, but for one patient's."""
    for case in (cohort / "cases").iterdir():
        if case.name != but and not case.name.startswith("."):
            (place / "cases").mkdir(parents=True, exist_ok=True)
            (place / "cases" / case.name).symlink_to(case.resolve())
    (place / "cases").mkdir(parents=True, exist_ok=True)
    for prepared in (cohort / "prepared").glob("*/*"):
        if not prepared.name.startswith((f"{but}.", ".")):
            link = place / "prepared" / prepared.parent.name / prepared.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(prepared.resolve())
    for name in ("withdrawn", "refused.jsonl"):
        if (cohort / name).exists():
            shutil.copy2(cohort / name, place / name)
