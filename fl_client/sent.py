"""The last answer to each kind of question of a study, kept so that the same question gets the same bytes, unpaid.

    <site>/sent/<study hash>.<kind>    SHA-256 of the rest, a header in JSON, the arrays' bytes as they left

A coordinator that was killed asks again what was answered already. An answer that is out has its price in the ledger; to send
its bytes once more tells nobody anything new (post-processing), while working on the question again would be a second release.
The file is on the disk before the answer leaves. One that is torn or changed counts as absent: the question is then worked on
anew, and paid. Docs: docs/privacy.md, "The ledger".
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from conf.study import Study
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from tasks.weights import force_folder

KEPT_DAYS = 30
"""So long an answer is kept, if nothing takes it away before."""

_PART_S = 3600.0  # a half-written file that is older was left by a process that is gone

log = logging.getLogger("konsil.sent")


class Array(Protocol):
    """An array as a message carries it."""

    @property
    def dtype(self) -> str:
        """Of its numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""

    @property
    def data(self) -> bytes:
        """Its numbers as they travel."""


@dataclass(frozen=True)
class Asked:
    """A question, as far as its answer depends on it."""

    study: str  # hash
    kind: str  # train, evaluate, ...: of each kind the last answer is kept
    round: int
    digest: str  # of the above and of the arrays that came, 64 hexadecimal digits
    withdrawn: str  # who had withdrawn when the question came, as a digest: the answer is no good once somebody more has

    @classmethod
    def of(cls, site: Site, study: Study, *, kind: str, number: int, records: Mapping[str, Mapping[str, Array]]) -> Asked:
        """The question of round `number` with these records of arrays. Take it before a patient is looked at.

        The digest is SHA-256 over study, kind, round, and every array's record, name, dtype, shape and bytes, sorted by name.
        """
        digest = hashlib.sha256(json.dumps([study.hash, kind, number]).encode())
        for record, arrays in sorted(records.items()):
            for name in sorted(arrays):
                array = arrays[name]
                digest.update(json.dumps([record, name, array.dtype, list(array.shape), len(array.data)]).encode())
                digest.update(array.data)
        return cls(study.hash, kind, number, digest.hexdigest(), _withdrawn(site))


@dataclass(frozen=True)
class Piece:
    """One array of an answer, as it left."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


@dataclass(frozen=True)
class Kept:
    """An answer: its arrays and its metrics."""

    pieces: tuple[Piece, ...]
    metrics: Mapping[str, int | float]


def keep(site: Site, asked: Asked, answer: Kept) -> None:
    """Put the answer on the disk, whole or not at all, in place of the last one of its kind.

    Raises `OSError` where it can't be written; the last one then stays as it was.
    """
    tidy(site)
    listed = [(piece.name, piece.dtype, list(piece.shape), piece.stype, len(piece.data)) for piece in answer.pieces]
    told = _Header(asked.digest, asked.round, asked.withdrawn, dict(answer.metrics), listed)
    header = json.dumps(asdict(told)).encode()
    body = [len(header).to_bytes(8, "little"), header, *(piece.data for piece in answer.pieces)]
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    _write(_place(site, asked.study, asked.kind), [digest.digest(), *body])


def look(site: Site, asked: Asked) -> Kept | None:
    """The answer that this very question got; None if there is none, or none that is whole and still good."""
    found = _read(_place(site, asked.study, asked.kind), asked.digest)
    if found is None:
        return None
    header, data = found
    if header.question != asked.digest or header.withdrawn != asked.withdrawn:
        return None
    pieces, at = [], 0
    for name, dtype, shape, stype, size in header.arrays:
        pieces.append(Piece(name, dtype, tuple(shape), stype, data[at : at + size]))
        at += size
    return Kept(tuple(pieces), header.metrics)


def forget(site: Site, study: str = "") -> None:
    """Take away what is kept of one study (its hash), or everything: somebody has withdrawn."""
    for path in (site.folder / "sent").glob(f"{study}.*" if study else "*"):
        path.unlink(missing_ok=True)
    if (site.folder / "sent").exists():
        force_folder(site.folder / "sent")


def tidy(site: Site) -> None:
    """Take away what is old, or of studies that the hospital takes no part in any more."""
    folder = site.folder / "sent"
    if not folder.exists():
        return
    try:
        decisions = Approvals(site.folder).decisions
    except (OSError, ValueError):  # a person is told elsewhere, and no question is answered until it is mended
        decisions = {}
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    over = {
        key for key, said in decisions.items() if said.decision == "declined" or (said.until is not None and today > said.until)
    }
    for path in folder.iterdir():
        try:
            age = time.time() - path.stat().st_mtime
            old = age > (_PART_S if path.suffix == ".part" else KEPT_DAYS * 86400.0)
            if old or path.name.partition(".")[0] in over:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue


# -- inside --------------------------------------------------------------------------------------------------------------


def _place(site: Site, study: str, kind: str) -> Path:
    return site.folder / "sent" / f"{study}.{kind}"


def _withdrawn(site: Site) -> str:
    names = sorted(Cohort(site.cohort_folder).withdrawn)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


@dataclass(frozen=True)
class _Header:
    """What stands before the arrays' bytes."""

    question: str
    round: int
    withdrawn: str
    metrics: dict[str, int | float]
    arrays: list[tuple[str, str, list[int], str, int]]  # name, dtype, shape, stype, bytes


def _read(path: Path, question: str) -> tuple[_Header, bytes] | None:
    """Header and bytes of a kept answer; None where there is none that is whole. The SHA-256 vouches for the rest.

    What answers another question than the one of this digest is not read to its end.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(40)
            start += file.read(int.from_bytes(start[32:40], "little")) if len(start) == 40 else b""
            if question.encode() not in start:
                return None
            whole = start + file.read()
    except FileNotFoundError:
        return None
    except (OSError, MemoryError, OverflowError) as error:  # another user's, a broken disk; a length that isn't one
        log.warning("a kept answer can't be read, and counts as absent: %s", type(error).__name__)
        return None
    if hashlib.sha256(whole[32:]).digest() != whole[:32]:
        log.warning("the kept answer %s is not what was written, and counts as absent", path.name)
        return None
    end = 40 + int.from_bytes(whole[32:40], "little")
    try:
        return _Header(**json.loads(whole[40:end])), whole[end:]
    except TypeError:  # an older konsil's
        return None


def _write(path: Path, parts: Iterable[bytes]) -> None:
    make_folder(path.parent)
    part = path.with_name(f".{uuid4().hex}.part")
    mode = file_mode(path.parent)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    force_folder(path.parent)
