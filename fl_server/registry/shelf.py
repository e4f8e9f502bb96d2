"""The shelf: `registry/<name>/<version>/` in the coordinator's folder, and one signed log of what was registered and withdrawn.

A version is a sealed folder, written under another name and then renamed, so that it is there whole or not at all, and never
written again. Every line of `log.jsonl` carries the hash of the line before and the coordinator's signature: a version that
is removed by hand, or a withdrawal that is, leaves a gap. What is cut off at the log's end leaves none but the versions there.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fl_server.registry import card, seal
from fl_server.registry.learned import Learned, of_run
from tasks.count.task import CountTask
from tasks.weights import force_folder, save

Standing = Literal["registered", "deprecated", "withdrawn"]
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
LOG, KEY = "log.jsonl", "registry.key"


@dataclass(frozen=True)
class Version:
    """A registered version, and what the log says of it last."""

    name: str
    number: int
    folder: Path
    standing: Standing = "registered"
    reason: str = ""
    when: str = ""  # ISO 8601, UTC: of the registration

    @property
    def label(self) -> str:
        """name:number, as commands take it."""
        return f"{self.name}:{self.number}"


class Shelf:
    """The registry in a coordinator's folder; it and its key are made at the first registration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "registry"
        self._key_path = folder / KEY

    @property
    def public(self) -> Ed25519PublicKey:
        """The key that versions are checked by. Raises `ValueError` before the first registration."""
        path = self.folder / seal.PUBLIC
        if not path.exists():
            raise ValueError(f"{self.folder} holds no model yet: konsil-study models register RUN")
        return seal.read_public(path)

    def key(self) -> Ed25519PrivateKey:
        """The signing key. Raises `ValueError` if it is gone, or is not the one whose public half the registry has."""
        if not self._key_path.exists():
            raise ValueError(f"{self._key_path}, which signs models, is not there; bring it back from where you keep it")
        key = seal.read_key(self._key_path)
        if seal.fingerprint(key.public_key()) != seal.fingerprint(self.public):
            raise ValueError(f"{self._key_path} is another key than {self.folder / seal.PUBLIC}, which signed the models there")
        return key

    # -- looking ------------------------------------------------------------------------------------------------------

    def versions(self) -> list[Version]:
        """All versions that are there, by name and number, with what the log says of each."""
        said: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for line in self._log():
            said.setdefault((line["name"], line["version"]), []).append(line)
        found = []
        for folder in self.folder.glob("*/*"):
            if folder.name.isdigit() and folder.is_dir():
                lines = said.get((folder.parent.name, int(folder.name)), [])
                last = lines[-1] if lines else {}
                standing: Standing = last.get("standing", "registered")
                when = lines[0]["when"] if lines else ""
                found.append(Version(folder.parent.name, int(folder.name), folder, standing, last.get("reason", ""), when))
        return sorted(found, key=lambda version: (version.name, version.number))

    def find(self, label: str) -> Version:
        """NAME:NUMBER, or the latest of NAME that stands. Raises `ValueError` naming what there is."""
        name, _, number = label.partition(":")
        known = self.versions()
        mine = [version for version in known if version.name == name]
        if number:
            mine = [version for version in mine if str(version.number) == number]
        else:
            mine = [version for version in mine if version.standing == "registered"] or mine
        if not mine:
            raise ValueError(f"no model '{label}'; there are {', '.join(v.label for v in known) or 'none'}")
        return mine[-1]

    def open(self, label: str) -> Learned:
        """A registered model, after its seal was checked. Raises `ValueError` for one that was changed or withdrawn."""
        version = self.find(label)
        if found := self.problems(version):
            raise ValueError(f"{version.label} is not as it was registered: {'; '.join(found)}")
        if version.standing == "withdrawn":
            raise ValueError(f"{version.label} was withdrawn: {version.reason}")
        return of_run(version.folder)

    def problems(self, version: Version) -> list[str]:
        """What is wrong with one version, a sentence each."""
        found = seal.problems(version.folder, self.public)
        with contextlib.suppress(ValueError):
            facts = seal.facts_of(version.folder)
            if (facts.get("name"), facts.get("version")) != (version.name, version.number):
                found.append(f"its manifest is that of {facts.get('name')}:{facts.get('version')}")
        lines = [line for line in self._log() if (line["name"], line["version"]) == (version.name, version.number)]
        if not lines:
            found.append(f"{LOG} doesn't know it")
        elif (version.folder / seal.MANIFEST).exists() and lines[0]["manifest_sha256"] != _manifest_sha256(version.folder):
            found.append(f"{seal.MANIFEST} is another one than was registered")
        return found

    def gaps(self) -> list[str]:
        """What is wrong with the log, and versions of which only it knows, a sentence each."""
        found, before, key = [], "", self.public
        lines = self._log()
        for number, line in enumerate(lines, start=1):
            content = {name: value for name, value in line.items() if name != "signature"}
            if line["previous"] != before:
                found.append(f"{LOG}, line {number}: a line before it was changed or removed")
            if not seal.signed(_canonical(content), str(line.get("signature")), key):
                found.append(f"{LOG}, line {number}: not signed by {seal.fingerprint(key)[:16]}")
            before = hashlib.sha256(_canonical(line)).hexdigest()
        there = {(version.name, version.number) for version in self.versions()}
        for line in lines:
            if line["standing"] == "registered" and (line["name"], line["version"]) not in there:
                found.append(f"{line['name']}:{line['version']} was registered on {line['when'][:10]} and is not there")
        return found

    # -- writing ------------------------------------------------------------------------------------------------------

    def register(self, learned: Learned, *, name: str = "", even_failed: bool = False, remark: str = "") -> Version:
        """Keep a model as the next version of `name` (default: the study's).

        Raises `ValueError` for a name that can't be a folder, for a study that failed unless `even_failed`, and for counts,
        which are no model.
        """
        name = name or learned.record.name
        if not _NAME.match(name):
            raise ValueError(f"a model can't be called {name!r}: letters, digits, _ . - and at most 64 of them")
        if isinstance(learned.task, CountTask):
            raise ValueError(f"{learned.record.name} counted patients; a table of counts is no model")
        if learned.record.verdict == "failed" and not even_failed:
            why = "; ".join(learned.record.reasons[-3:]) or "no reason stands in its record"
            raise ValueError(
                f"{learned.record.name} failed ({why}); --even-failed registers it all the same, and its card says so"
            )
        with self._alone():
            key = self._made_key()
            self._catch_up(key)
            taken = [line["version"] for line in self._log() if line["name"] == name]
            taken += [version.number for version in self.versions() if version.name == name]
            number = max(taken, default=0) + 1
            place = self.folder / name / str(number)
            place.parent.mkdir(exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=self.folder))
            try:
                _fill(part, learned, name, number, remark, key)
                part.chmod(0o755)
                part.rename(place)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            for folder in (place.parent, self.folder):
                force_folder(folder)
            self._tell(name, number, "registered", remark, key)
        return self.find(f"{name}:{number}")

    def set_standing(self, label: str, standing: Standing, reason: str) -> Version:
        """Say that a version is withdrawn (not to be used) or deprecated (a better one is there), and why."""
        if not reason.strip():
            raise ValueError(f"{label}: a reason is needed; whoever used the model will read it")
        with self._alone():
            version = self.find(label)
            self._catch_up(self.key())
            self._tell(version.name, version.number, standing, reason, self.key())
        return self.find(version.label)

    def _tell(self, name: str, number: int, standing: Standing, reason: str, key: Ed25519PrivateKey) -> None:
        lines = self._log()
        content: dict[str, Any] = {
            "name": name,
            "version": number,
            "standing": standing,
            "reason": reason,
            "when": now(),
            "manifest_sha256": _manifest_sha256(self.folder / name / str(number)),
            "previous": hashlib.sha256(_canonical(lines[-1])).hexdigest() if lines else "",
        }
        lines.append({**content, "signature": seal.sign(_canonical(content), key)})
        part = self.folder / f"{LOG}.part"
        with open(part, "w") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / LOG)
        force_folder(self.folder)

    def _catch_up(self, key: Ed25519PrivateKey) -> None:
        """Log the versions that a crash left without a line, if they are sealed; and remove what was half written."""
        for part in self.folder.glob(".part-*"):
            shutil.rmtree(part)
        known = {(line["name"], line["version"]) for line in self._log()}
        for version in self.versions():
            if (version.name, version.number) not in known and not seal.problems(version.folder, key.public_key()):
                self._tell(version.name, version.number, "registered", "", key)

    def _made_key(self) -> Ed25519PrivateKey:
        """The key; both halves are made if there is neither, and the public one if a crash left the other alone."""
        public = self.folder / seal.PUBLIC
        if not public.exists():
            key = seal.read_key(self._key_path) if self._key_path.exists() else seal.make_key(self._key_path)
            part = public.with_suffix(".part")
            part.write_bytes(seal.public_pem(key.public_key()))
            part.replace(public)
        return self.key()

    def _log(self) -> list[dict[str, Any]]:
        path = self.folder / LOG
        try:
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        except ValueError:
            raise ValueError(f"{path} can't be read; a person has to look") from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _fill(folder: Path, learned: Learned, name: str, number: int, remark: str, key: Ed25519PrivateKey) -> None:
    told = card.card_of(learned, name=name, version=number, remark=remark)
    save(learned.state, folder / "model.pt")
    (folder / "task.json").write_text(json.dumps(learned.settings, indent=1))
    (folder / "card.json").write_text(told.model_dump_json(indent=1))
    (folder / "card.md").write_text(card.page(told))
    learned.record.write(folder / "record.json")
    if learned.start is not None:
        (folder / "start.json").write_text(json.dumps(learned.start, indent=1))
    facts = {"name": name, "version": number, "registered": now()}
    seal.seal(folder, {**facts, "study_hash": learned.record.study_hash, "model_sha256": learned.sha256}, key)


def _manifest_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / seal.MANIFEST).read_bytes()).hexdigest()


def _canonical(line: dict[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
