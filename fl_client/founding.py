"""A hospital's first day: settings and keys, from flags or from a few questions. Called by `konsil-site init`."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from conf.study import words
from fl_client.intake.listening import ip_address, out_of_reach
from fl_client.keys import make_key
from fl_client.sharing import is_shared, replaceable
from fl_client.site import Site

_SETTINGS = """\
# This hospital's own settings for konsil. The coordinator never sends or sees this file.
name: {name}
folder: {folder}  # gets clean/, cohort/, the books (ledger.jsonl, audit.jsonl, approvals.jsonl), studies/ and log/
key_file: {key_file}  # makes the pseudonyms; whoever has it can test whether a known patient is in the cohort
identity_folder: {identity}  # originals, quarantine and the way back to patients: the intake's alone
declared_size: {declared_size}  # public: a round number near the number of patients, never the exact count
test_fraction: 0.2  # share of the patients that no training ever sees
validation_fraction: 0.15  # of the others: who choose among a study's models where it validates, and don't train in it
minimum_cohort: 10  # with fewer usable patients nobody here can approve a study
budget:  # the most that patients' data may cost, over all studies, for ever
  epsilon: {epsilon}
  delta: {delta}  # well below one over the number of patients
approve_all: false  # a person says yes to each study
accept_no_privacy: false  # nothing leaves without noise
device: auto  # auto, cpu, cuda, cuda:1
"""

_DICOM = """\
dicom:  # the port at which the archive delivers images
  ae_title: {ae_title}
  host: {host}  # the address of this machine that it listens on
  port: {port}
  peers:  # who may send; nobody else is let in
    - {{ae_title: {peer_title}, address: {peer_address}}}
arrivals:
  quiet_s: 60  # a study is complete when nothing of it has come for so long
  min_free_gib: 5  # with less room on the disk nothing is accepted
  keep_originals_days: 0  # how long originals stay after they were de-identified
"""


@dataclass(frozen=True)
class Founding:
    """What a hospital has to say about itself. `peer` is TITLE@ADDRESS of the archive (an IP address), or empty: no DICOM port.

    `folder` and `identity` are places, relative to the settings file's folder; the key for pseudonyms lies in `identity`, if
    that is named.
    """

    name: str
    declared_size: int
    epsilon: float = 10.0
    delta: float = 1e-3
    ae_title: str = "KONSIL"
    listen: str = "127.0.0.1:11112"
    peer: str = ""
    folder: str = "."
    identity: str = ""


def archive_named(text: str) -> str:
    """The text, if it is TITLE@ADDRESS. Raises `ValueError` in words; a host name would let in whoever forges it."""
    title, at, address = text.partition("@")
    if not (title and at and address):
        raise ValueError(f"the archive is named as TITLE@ADDRESS, such as PACS@10.0.0.5, not {text!r}")
    ip_address(address, "the archive's address")
    return text


def place_named(text: str) -> str:
    """The text, if it is ADDRESS:PORT. Raises `ValueError` in words."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ValueError(f"a place to listen is named as ADDRESS:PORT, such as 10.0.0.7:11112, not {text!r}")
    ip_address(host.strip("[]"), "the place to listen")
    return text


QUESTIONS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("name", "What do studies call this hospital", str),
    ("declared_size", "About how many patients (public; a round number, never the exact count)", int),
    ("epsilon", "The most that patients' data may cost, over all studies, for ever: epsilon", float),
    ("delta", "... and delta, well below one over the number of patients", float),
    (
        "peer",
        "The archive that sends images here, as TITLE@ADDRESS, a number such as 10.0.0.5 (empty: no DICOM port)",
        archive_named,
    ),
    ("ae_title", "How the archive calls us", str),
    ("listen", "Where we listen for it, ADDRESS:PORT; the archive has to reach this address", place_named),
)
"""Setting, question, and what the answer is."""


def asked(given: Mapping[str, Any], *, ask: Callable[[str], str] = input) -> Founding:
    """What the flags gave, and the answers of the person at the terminal to the rest. An empty answer takes the default."""
    answers: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for key, question, kind in QUESTIONS:
        if key in answers or (key in ("ae_title", "listen") and not answers.get("peer")):
            continue
        default = getattr(Founding, key, None)
        while key not in answers:
            said = ask(f"{question}{'' if default in (None, '') else f' [{default}]'}: ").strip()
            if not said and default is not None:
                answers[key] = default
                continue
            try:
                answers[key] = kind(said)
            except ValueError as error:
                number = "whole number" if kind is int else "number" if kind is float else ""
                print(f"{said!r} is no {number}" if number else error, file=sys.stderr)
            if kind is str and not said:
                answers.pop(key, None)
    return Founding(**answers)


def found(path: Path, new: Founding) -> int:
    """Write `site.yaml`, a random key for pseudonyms and the hospital's own key (0600), in a folder of mode 0700.

    Prints the public key. Where the group shares `folder` (`chmod 2770`), intake and trainer are two users: this is run by the
    intake's, the group may read the settings, and the hospital's own key is left to the trainer, who makes it when it joins.
    Raises `ValueError` for values that can't be right, and `FileExistsError` where settings, a key or a cohort stand already: a
    new key would give the same patients new pseudonyms, and count each of them as two people.
    """
    text = _text(new)
    home = path.parent
    try:
        site = Site.model_validate({**yaml.safe_load(text), "folder": home / new.folder})
    except ValidationError as error:
        raise ValueError(words(error)) from None
    key, own = home / site.key_file, home / "node.key"
    for present in (path, key, own, site.cohort_folder):
        if present.exists():
            raise FileExistsError(f"{present} stands already; a hospital is set up once, in a folder of its own")
    for folder in (home, key.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    two_users = is_shared(site.folder)
    if two_users and (wrong := replaceable(path, key)):
        raise ValueError(wrong[0])
    if site.dicom is not None and (far := out_of_reach(site.dicom)):
        listen = "mend dicom.host in it, the address of this machine in the archive's network, before you start"
        print(
            f"{new.listen} can be reached from this machine alone, and not by the archive {far[0]}: {listen}", file=sys.stderr
        )
    _write(key, secrets.token_hex(32))
    if two_users:
        _write(path, text, group=site.folder.stat().st_gid)
        print(f"wrote {path}, which the group may read, and {key}, which only you may; keep a copy of it, away from the cohort")
        print(
            "next: konsil-site join --coordinator ... as this user, then konsil-site join - as the trainer's, who gets the key"
        )
        return 0
    line = make_key(own, comment=new.name)
    _write(path, text)
    print(f"wrote {path}, {key} and {own} (readable by you alone); keep a copy of pseudonym.key, away from the cohort")
    print(f"this hospital's public key, which the coordinator registers (konsil-site join does it with a token):\n{line}")
    return 0


def _text(new: Founding) -> str:
    text = _SETTINGS.format(
        name=new.name,
        declared_size=new.declared_size,
        epsilon=new.epsilon,
        delta=new.delta,
        folder=_quoted(new.folder) if new.folder != "." else ".",
        key_file=_quoted(f"{new.identity}/pseudonym.key") if new.identity else "pseudonym.key",
        identity=_quoted(new.identity) if new.identity else "identity",
    )
    if not new.peer:
        return text
    title, _, address = archive_named(new.peer).partition("@")
    host, _, port = place_named(new.listen).rpartition(":")
    return text + _DICOM.format(
        ae_title=_quoted(new.ae_title),
        host=_quoted(host.strip("[]")),
        port=int(port),
        peer_title=_quoted(title),
        peer_address=_quoted(address),
    )


def _quoted(word: str) -> str:
    """As a YAML text, so that no title is read as a number or a flag."""
    return "'" + word.replace("'", "''") + "'"


def _write(path: Path, text: str, *, group: int | None = None) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w") as out:
        if group is not None:
            os.fchown(file, -1, group)
            os.fchmod(file, 0o640)
        out.write(text)
        out.flush()
        os.fsync(file)
