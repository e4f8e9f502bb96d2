"""Originals as they arrived, in the identity zone: the very bytes, on the disk before anybody is told that they are safe.

    <identity>/incoming/<study>/<instance>-<content>.dcm   one original, a Part 10 file (PS3.10 7.1)
    <identity>/incoming/<study>/done.jsonl                 what became of each original of this study
    <identity>/incoming/.parts/                            files being written; what lies here at the start is swept away

All names are our own: the first 128 bits of SHA-256 of a UID or of the bytes, never text from the network. Since the content
stands in the name, the same bytes again are recognised, other bytes under the same UID too, and a file that a power failure
cut short can be told from a whole one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Condition
from typing import Any, Literal
from uuid import uuid4

from fl_client.intake.part10 import NotPart10, ends_with, look, mapped, split
from fl_client.intake.quarantine import Bytes, Quarantine, append_line, lines_of, sync_folder, write_whole
from fl_client.site import Site

Kept = Literal["stored", "again", "conflict"]

DONE, PARTS, PENDING = "done.jsonl", ".parts", "pending"
ORIGINAL = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.dcm")
STUDY = re.compile(r"[0-9a-f]{32}")  # the name of a study's folder
STUDIES_IN_MIND = 64  # whose names are remembered between two images


class NoRoom(OSError):
    """There is less room on the disk than the hospital wants to keep free."""

    def __init__(self, free: int) -> None:
        super().__init__(errno.ENOSPC, f"only {free / 2**30:.1f} GiB are free, which is less than arrivals.min_free_gib")


class InUse(RuntimeError):
    """Another process does this work already."""


@dataclass(frozen=True)
class Named:
    """Where an original belongs: digests of its study, its instance and its bytes, 32 hexadecimal digits each."""

    study: str
    instance: str
    content: str

    @property
    def file(self) -> str:
        """The name of the original's file within its study's folder."""
        return f"{self.instance}-{self.content}.dcm"


class Incoming:
    """The folder of originals. One process receives, and a pull writes beside it; `fsync=False` is for measurements only."""

    def __init__(self, identity: Path, *, clean: Path, min_free_bytes: int = 0, fsync: bool = True) -> None:
        """`clean` is the folder of the de-identified copies: an original whose copy has gone from there may come again."""
        self.folder = Path(identity) / "incoming"
        self._min_free, self._clean, self._fsync = min_free_bytes, clean, fsync
        self._turn = Condition()
        self._writing: set[tuple[str, str]] = set()  # study and instance
        self._in_mind: OrderedDict[str, dict[str, set[str]]] = OrderedDict()
        Path(identity).mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(identity).chmod(0o700)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._parts.mkdir(mode=0o700, exist_ok=True)
        self.quarantine = Quarantine(Path(identity) / "quarantine", fsync=fsync)

    @property
    def at_work(self) -> Path:
        """Where whoever works off what arrives writes which file it reads."""
        return self.folder / ".at-work"

    @property
    def _parts(self) -> Path:
        return self.folder / PARTS

    def sweep(self) -> int:
        """Remove what killed processes were writing; nobody was told that it is safe. Gives how many files."""
        left = list(self._parts.iterdir())
        for part in left:
            part.unlink()
        return len(left) + self.quarantine.sweep()

    def keep(self, header: Bytes, dataset: Bytes, *, transfer_syntax: str, instance: str) -> Kept:
        """Put one original on the disk. When this returns, it is there, whatever happens to this machine's power.

        `header` is the preamble and the file meta information, `dataset` what follows it, `instance` the SOP Instance UID by
        which the sender calls it. "again": the same bytes lie here or were worked off; "conflict": other bytes under this
        UID came before; these are kept, too, and go to the quarantine if they still say something else when both are
        de-identified. Raises `NoRoom`, and `OSError` for a disk that can't take it; then nothing of it is left.
        """
        self.require_room(len(dataset))
        named = name_of(dataset, transfer_syntax=transfer_syntax, instance=instance)
        one = (named.study, named.instance)
        with self._turn:
            self._turn.wait_for(lambda: one not in self._writing)  # two senders may bring the same image at once
            self._writing.add(one)
            known = self._known(named.study)
        try:
            return self._keep(named, header, dataset, known.get(named.instance, set()))
        except BaseException:
            with self._turn:
                self._in_mind.pop(named.study, None)
            raise
        finally:
            with self._turn:
                self._writing.discard(one)
                self._turn.notify_all()

    def _keep(self, named: Named, header: Bytes, dataset: Bytes, before: set[str]) -> Kept:
        if named.content in before and self._is_here(named, dataset):
            return "again"
        folder = self.folder / named.study
        conflict = any(self._counts(named, content) for content in before - {named.content})
        if not folder.exists():
            with self._turn:
                folder.mkdir(mode=0o700, exist_ok=True)
            if self._fsync:
                sync_folder(self.folder)
        write_whole(self._parts / uuid4().hex, folder / named.file, (header, dataset), fsync=self._fsync)
        before.add(named.content)
        with self._turn:
            self._in_mind.get(named.study, {})[named.instance] = before
        return "conflict" if conflict else "stored"

    def require_room(self, size: int = 0) -> None:
        """Return if so many bytes leave the room on the disk that the hospital wants to keep free. Raises `NoRoom`."""
        free = self.free_bytes()
        if free - size < self._min_free:
            raise NoRoom(free)

    def has(self, *, study: str, instance: str) -> bool:
        """Whether an image with these UIDs lies here, or was worked off to a copy or a quarantined original that is there."""
        folder = self.folder / _study(study.encode())
        with self._turn:
            contents = set(self._known(folder.name).get(_instance(instance.encode()), ()))
        files = [f"{_instance(instance.encode())}-{content}.dcm" for content in contents]
        return any((folder / file).exists() or self._worked_off(folder.name, file) for file in files)

    def again(self, file: str) -> None:
        """Back from the quarantine, to be judged anew. Raises `ValueError` for what can't be, `OSError`."""
        place = self.quarantine.folder / file
        if not ORIGINAL.fullmatch(file) or not place.exists():
            raise ValueError(f"{file} is no original that lies in the quarantine")
        try:
            with mapped(place) as data:
                start, syntax = split(data)
                named = name_of(data[start:], transfer_syntax=syntax, instance="")
        except NotPart10 as reason:
            raise ValueError(f"{file}: {reason}") from None
        if named.content != place.stem.partition("-")[2]:
            raise ValueError(f"{file}: its bytes are not those that arrived; it can only be dropped")
        folder = self.folder / named.study
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self.folder)
        place.rename(folder / file)  # a line in done.jsonl that says "quarantine" leaves it to do
        sync_folder(folder)
        self.quarantine.forget(files=[file])

    def free_bytes(self) -> int:
        """Room on the disk that the originals lie on."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def studies(self) -> list[Path]:
        """The folders of all studies that ever arrived. Whatever else somebody put here is not ours."""
        with os.scandir(self.folder) as found:
            names = sorted(entry.name for entry in found if STUDY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False))
        return [self.folder / name for name in names]

    def _known(self, study: str) -> dict[str, set[str]]:
        """Contents by instance, of all that has ever arrived of this study."""
        if study in self._in_mind:
            self._in_mind.move_to_end(study)
            return self._in_mind[study]
        known: dict[str, set[str]] = {}
        for name in [path.name for path in originals(self.folder / study)] + list(done(self.folder / study)):
            instance, _, content = name.removesuffix(".dcm").partition("-")
            known.setdefault(instance, set()).add(content)
        self._in_mind[study] = known
        if len(self._in_mind) > STUDIES_IN_MIND:
            self._in_mind.popitem(last=False)
        return known

    def _is_here(self, named: Named, dataset: Bytes) -> bool:
        """The same bytes are safe already. A file that a power failure cut short is not."""
        try:
            return ends_with(self.folder / named.study / named.file, dataset)
        except FileNotFoundError:
            return self._worked_off(named.study, named.file)

    def _counts(self, named: Named, content: str) -> bool:
        """Other bytes under the same UID are really there, not only remembered, and not in the quarantine."""
        file = f"{named.instance}-{content}.dcm"
        became = done(self.folder / named.study).get(file)
        copied = bool(became and became["clean"] and (self._clean / str(became["clean"])).exists())
        return copied or (self.folder / named.study / file).exists()

    def _worked_off(self, study: str, file: str) -> bool:
        became = done(self.folder / study).get(file)
        if became is None:
            return False
        if became["clean"]:
            return (self._clean / str(became["clean"])).exists()
        return (self.quarantine.folder / file).exists()


def name_of(dataset: Bytes, *, transfer_syntax: str, instance: str) -> Named:
    """The names under which these bytes are kept. Bytes that can't be understood get names, too."""
    seen = look(dataset, transfer_syntax)
    study = _study(seen.study) if seen.study else _digest(b"patient\0" + seen.patient)  # of no study: one folder per patient
    called = _instance(seen.instance or instance.encode("utf-8", "replace"))
    return Named(study, called, _content(dataset, transfer_syntax))


def _study(uid: bytes) -> str:
    return _digest(b"study\0" + uid)


def _instance(uid: bytes) -> str:
    return _digest(b"instance\0" + uid)


def originals(study: Path) -> list[Path]:
    """The originals that lie in a study's folder."""
    try:
        return sorted(path for path in study.iterdir() if path.suffix == ".dcm")
    except FileNotFoundError:
        return []


def done(study: Path) -> Mapping[str, dict[str, Any]]:
    """What became of the study's originals, by file name: `clean` is the copy's place, empty for the quarantine."""
    try:
        now = (study / DONE).stat()
    except FileNotFoundError:
        return {}
    return _done_at(study / DONE, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=16)  # asked for each image of a study that is sent again
def _done_at(path: Path, changed_ns: int, size: int) -> Mapping[str, dict[str, Any]]:
    kinds = {"file": str, "clean": str, "when": float | int}
    whole = (line for line in lines_of(path) if all(isinstance(line.get(name), kind) for name, kind in kinds.items()))
    return {line["file"]: line for line in whole}


def mark_done(study: Path, file: str, *, clean: str, when: float) -> None:
    """Write down what became of an original at this time (seconds since 1970); `sync_done` puts it on the disk.

    Without the line the original is worked off once more, to the same copy. Raises `OSError`.
    """
    append_line(study / DONE, {"file": file, "clean": clean, "when": when}, fsync=False)


def sync_done(study: Path) -> None:
    """All lines so far are on the disk."""
    if (study / DONE).exists():
        file = os.open(study / DONE, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(study)


def is_whole(original: Path, dataset: Bytes, transfer_syntax: str) -> bool:
    """Whether these are the bytes that the file's name promises."""
    return original.stem.partition("-")[2] == _content(dataset, transfer_syntax)


def mark_pending(identity: Path, pseudonym: str) -> None:
    """The patient is to be let in, or let in anew; on the disk. Raises `OSError`."""
    folder = identity / PENDING
    folder.mkdir(mode=0o700, exist_ok=True)
    if not (folder / pseudonym).exists():
        (folder / pseudonym).touch(mode=0o600)
        sync_folder(folder)


def clean_folder(site: Site) -> Path:
    """Where the de-identified files lie."""
    return site.folder / "clean"


@contextmanager
def only_one(path: Path, words: str) -> Iterator[None]:
    """Hold the lock at `path` until the end, which comes with the process at the latest. Raises `InUse` with `words`."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(words) from None
        yield
    finally:
        os.close(file)


def _content(dataset: Bytes, transfer_syntax: str) -> str:
    content = hashlib.sha256(transfer_syntax.encode("utf-8", "replace") + b"\0")
    content.update(dataset)
    return content.hexdigest()[:32]


def _digest(what: bytes) -> str:
    return hashlib.sha256(what).hexdigest()[:32]
