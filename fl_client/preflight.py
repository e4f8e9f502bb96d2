"""`konsil-site check`: whether a hospital can work, one line per thing, with what to do about what is wrong.

Everything is looked at as the hospital itself would find it, and nothing is changed. What is printed names files, ports and
numbers, never a patient.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from fl_client import crashes
from fl_client.daemon import ROLES, elsewhere, running
from fl_client.finding import Finding
from fl_client.halt import halted
from fl_client.ports import archive, dicom, page
from fl_client.sharing import is_shared, is_trainers, replaceable
from fl_client.site import Site

GIB = 2**30

Look = Callable[[Site, Path], Iterator[Finding]]


def check(site: Site, settings: Path) -> int:
    """Print every finding; 1 if something has to be mended before the hospital can work, else 0."""
    levels = []
    for finding in findings(site, settings):
        print(f"{finding.level:4}  {finding.what:12}  {finding.text}", flush=True)
        levels.append(finding.level)
    mend, warn = levels.count("mend"), levels.count("warn")
    print(f"{mend} to mend, {warn} to look at, {levels.count('ok')} in order")
    return 1 if mend else 0


def findings(site: Site, settings: Path) -> Iterator[Finding]:
    """All findings, from the inside of the house to the outside."""
    from fl_client.reach import coordinator  # here: it imports what a start doesn't need

    looks: tuple[Look, ...] = (
        *(rules, keys, disk, meanings, arrivals, books, cohort, device),
        *(dicom, archive, page, coordinator),
    )
    for look in looks:
        try:
            yield from look(site, settings)
        except PermissionError as error:
            yield Finding("warn", look.__name__, f"this user may not look at {error.filename}; ask the one who runs that role")
        except OSError as error:
            yield Finding("mend", look.__name__, f"{error.filename or ''} {error.strerror or error}".strip())


def rules(site: Site, settings: Path) -> Iterator[Finding]:
    """The settings file, who can change it, and the switch."""
    mode = settings.stat().st_mode & 0o777
    if mode & 0o022:
        yield Finding("mend", "settings", f"{settings} has mode {mode:04o}, so others may change it; do: chmod 600 {settings}")
    else:
        yield Finding("ok", "settings", f"{settings}: {site.name}, {', '.join(_has(site)) or 'no role yet'}")
    if is_shared(site.folder) and site.identity_folder.exists() and site.identity_folder.stat().st_uid == os.geteuid():
        for text in replaceable(settings, site.key_file, site.identity_folder):  # two users, and this is the intake's
            yield Finding("mend", "settings", text)
    loose = {
        "approve_all: nobody is asked": site.approve_all,
        "accept_no_privacy: updates may leave without noise": site.accept_no_privacy,
        "noise_seed: the noise can be repeated and protects nobody": site.noise_seed is not None,
    }
    for text in (text for text, is_set in loose.items() if is_set):
        yield Finding("warn", "settings", f"for rehearsals only: {text}")
    if site.page is not None and site.page.host not in ("127.0.0.1", "::1", "localhost"):
        yield Finding("warn", "settings", f"page.host {site.page.host}: other machines reach the page, without TLS")
    state = halted(site.folder)
    if state:
        level: Literal["warn", "mend"] = "mend" if state == "stopped" else "warn"
        yield Finding(level, "switch", f"this hospital has {state}; konsil-site resume takes the switch away")
    now, ended = running(site), crashes.told(site)
    for role in ROLES:
        wrong = [ended[part] for part in crashes.PARTS[role] if part in ended]
        for text in wrong:
            yield Finding("mend", "running", text)
        if role in now and not wrong:
            yield Finding("ok", "running", f"{role}, process {now[role]}")
    for role, words in elsewhere(site).items():
        yield Finding("ok", "running", f"{role} {words}")


def keys(site: Site, settings: Path) -> Iterator[Finding]:
    """Secrets: there, and closed to other users."""
    trainers = is_trainers(site.folder, settings)
    secret = {} if trainers else {"pseudonym key": site.key_file}
    for name, tls in (
        ("dicom", site.dicom.tls if site.dicom else None),
        ("archive", site.archive.tls if site.archive else None),
    ):
        if tls is not None:
            secret[f"{name} key"] = tls.key
    if site.dicomweb is not None and not trainers:
        web = {"dicomweb credentials": site.dicomweb.credentials, "dicomweb key": site.dicomweb.key}
        secret |= {name: path for name, path in web.items() if path is not None}
    if site.archive is not None and site.archive.tls is not None:  # the door's are tried with the door
        for name, path in (("certificate", site.archive.tls.certificate), ("authority", site.archive.tls.authority)):
            if not path.is_file():
                yield Finding("mend", "keys", f"archive.tls.{name} {path} is missing")
    for name, path in secret.items():
        if not path.exists():
            yield Finding("mend", "keys", f"the {name} {path} is missing")
            continue
        mode = path.stat().st_mode & 0o777
        closed = not mode & 0o077
        text = f"{name} {path}" if closed else f"the {name} {path} has mode {mode:04o}; do: chmod 600 {path}"
        yield Finding("ok" if closed else "mend", "keys", text)
    if site.identity_folder.exists() and (mode := site.identity_folder.stat().st_mode & 0o777) & 0o077:
        text = f"{site.identity_folder} holds identities and has mode {mode:04o}; do: chmod 700 {site.identity_folder}"
        yield Finding("mend", "keys", text)


def disk(site: Site, settings: Path) -> Iterator[Finding]:
    """Room for what arrives and what is made of it."""
    least = site.arrivals.min_free_gib
    for path in dict.fromkeys((site.folder, site.identity_folder)):
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(there).free / GIB
        text = f"{free:.1f} GiB free for {path}; below arrivals.min_free_gib {least:g} nothing is accepted"
        yield Finding("mend" if free < least else "warn" if free < 2 * least else "ok", "disk", text)
    watch = site.arrivals.watch
    if watch is not None and not watch.is_dir():
        yield Finding("mend", "disk", f"arrivals.watch {watch} is no folder")
    if site.quality_reference is not None:
        from fl_client.quality.reference import Reference  # here: image filters take time to import

        try:
            Reference.load(site.quality_reference)
        except ValueError as error:
            yield Finding("mend", "settings", f"quality_reference: {error}")
        except FileNotFoundError as error:
            yield Finding("mend", "settings", f"quality_reference: {error}; take the line out, or put the file there")


def meanings(site: Site, settings: Path) -> Iterator[Finding]:
    """Series rules, label map and the key for pseudonyms, read as whoever reads images reads them."""
    from fl_client.admission import key_of, label_map, series_rules
    from fl_client.intake.pseudonyms import Pseudonyms

    given: dict[str, Callable[[], object]] = {
        "series_rules": lambda: series_rules(site.arrivals.series_rules),
        "labels": lambda: label_map(site.arrivals.labels or "cardiac"),
    }
    for name, load in given.items():
        try:
            load()
        except FileNotFoundError as error:
            told = f"{error.filename} is missing" if error.filename else str(error)
            yield Finding("mend", "arrivals", f"arrivals.{name}: {told}")
        except ValueError as error:
            yield Finding("mend", "arrivals", f"arrivals.{name}: {error}")
    if is_trainers(site.folder, settings):  # the key is the intake's
        return
    if site.key_file.exists() and os.access(site.key_file, os.R_OK) and not site.key_file.stat().st_mode & 0o077:
        try:
            Pseudonyms(key_of(site))
        except ValueError as error:
            yield Finding("mend", "keys", f"{site.key_file}: {error}")


def arrivals(site: Site, settings: Path) -> Iterator[Finding]:
    """What waits to be worked off and what lies in quarantine: both take room until somebody looks."""
    from fl_client.intake.waiting import waiting

    try:
        now = waiting(site)
    except PermissionError:  # the trainer's eyes
        return
    level: Literal["warn", "ok"] = "warn" if now.is_long(quiet_s=site.arrivals.quiet_s) else "ok"
    for text in now.told():
        yield Finding("ok" if "quarantine" in text else level, "arrivals", text)


def books(site: Site, settings: Path) -> Iterator[Finding]:
    """The ledger, the audit log and the decisions: whole, as they were written."""
    from fl_client.approval import Approvals
    from fl_client.audit import AuditLog
    from fl_client.chain import ChainBroken
    from fl_client.privacy import Ledger

    budget = site.budget
    try:
        book = Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)
        spent, releases = book.epsilon, len(book.events)
        text = f"ledger unbroken, {releases} releases, epsilon {spent:.4g} of {budget.epsilon:g} (delta {budget.delta:g})"
        yield Finding("warn" if spent > 0.9 * budget.epsilon else "ok", "books", text)
        yield Finding("ok", "books", f"audit log unbroken, {len(AuditLog(site.folder / 'audit.jsonl').lines)} lines")
        decided, asked = Approvals(site.folder).decisions, Approvals(site.folder).studies
        for path in sorted(Approvals(site.folder).studies_folder.glob("*.json")):
            if path.stem not in asked:
                yield Finding("warn", "books", f"{path} is no study that this konsil can read; take it away or mend it")
        waiting = len(set(asked) - set(decided))
        yield Finding(
            "warn" if waiting else "ok", "books", f"{len(decided)} studies decided, {waiting} waiting (konsil-site studies)"
        )
    except (ValueError, ChainBroken) as error:
        yield Finding("mend", "books", str(error))


def cohort(site: Site, settings: Path) -> Iterator[Finding]:
    """How many patients there are, against what the settings say."""
    from fl_client.cohort import Cohort

    if not site.cohort_folder.exists():
        yield Finding("warn", "cohort", "nobody has been let in yet (konsil-site admit, or the DICOM port)")
        return
    count, declared, least = len(Cohort(site.cohort_folder)), site.declared_size, site.minimum_cohort
    if count < least:
        yield Finding("warn", "cohort", f"{count} patients; with fewer than minimum_cohort {least} no study can be approved")
    else:
        yield Finding("ok", "cohort", f"{count} patients, at least minimum_cohort {least}")
    if not declared / 2 <= count <= declared * 2:
        text = f"declared_size is {declared} in public, and {count} are inside: noise and weights are made for about {declared}"
        yield Finding("warn", "cohort", text)


def device(site: Site, settings: Path) -> Iterator[Finding]:
    """Where the training would run."""
    import torch

    from fl_client.device import device_of

    try:
        chosen = device_of(site)
    except (ValueError, RuntimeError) as error:
        yield Finding("mend", "device", f"{error}")
        return
    if chosen.type == "cuda" and not torch.cuda.is_available():
        yield Finding("mend", "device", f"device is {site.device}, but torch finds no GPU here; auto takes one if there is one")
    elif chosen.type == "cuda":
        free, total = torch.cuda.mem_get_info(chosen)
        text = f"{torch.cuda.get_device_name(chosen)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        yield Finding("ok", "device", text)
    else:
        yield Finding("ok", "device", f"CPU with {torch.get_num_threads()} threads (device: {site.device}); a GPU is faster")


def _has(site: Site) -> list[str]:
    has = {"dicom": site.dicom, "watch": site.arrivals.watch, "coordinator": site.coordinator, "page": site.page}
    return [name for name, setting in has.items() if setting is not None]
