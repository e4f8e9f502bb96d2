"""What a hospital may give away to be helped: versions, settings, what happened, what failed. No name, no number of patients.

    about.json      versions of konsil and of what it stands on, the machine, the settings without addresses and places
    audit.jsonl     the audit log without the names of those who decided
    failures.jsonl  of each failure its number, its time, and where in the code it happened; never what the exception said

Everything is taken by name, so that what is added elsewhere stays at home until somebody lists it here.
"""

from __future__ import annotations

import json
import os
import platform
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fl_client import crashes
from fl_client.audit import AuditLog
from fl_client.chain import ChainBroken
from fl_client.failures import failures
from fl_client.site import Site
from fl_client.standing import standing

PACKAGES = (
    *("konsil", "flwr", "torch", "monai", "pydicom", "pynetdicom", "highdicom", "SimpleITK", "numpy", "pydantic"),
    "dp-accounting",
)
PARTS = ("dicom", "coordinator", "page", "archive", "dicomweb")
"""Sections of the settings of which it is told whether they are there."""

HAPPENINGS = ("daemon", "asked", "egress", "approved", "declined", "paused", "resumed", "stopped")
"""Lines of the audit log that may be given away. Others are about single patients (withdrawn, returned): no counting."""

AUDITED = (
    *("time", "happening", "run", "study", "round", "asked", "kind", "code", "tensors", "bytes", "sha256", "again"),
    *("epsilon", "until", "what", "roles", "konsil", "flower"),
)
"""Their facts that may be given away: neither who decided and why, nor the lines' numbers, whose gaps could be counted."""


def support_bundle(site: Site, place: Path) -> Path:
    """Write the bundle as a zip file of mode 0600, whole or not at all.

    Raises `FileExistsError` for a file that is there, and `OSError`.
    """
    if place.exists():
        raise FileExistsError(f"{place} stands already; name a new file")
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(file, "wb") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("about.json", json.dumps(_about(site), indent=1))
            bundle.writestr("audit.jsonl", "".join(json.dumps(line) + "\n" for line in _audit(site)))
            bundle.writestr("failures.jsonl", "".join(json.dumps(failure) + "\n" for failure in failures(site.folder / "log")))
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
    return place


def _about(site: Site) -> dict[str, Any]:
    now = standing(site)
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "missing"
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "site": site.name,
        "declared_size": site.declared_size,
        "versions": {**installed, "python": platform.python_version(), "system": platform.platform()},
        "settings": {
            "budget": site.budget.model_dump(),
            "test_fraction": site.test_fraction,
            "minimum_cohort": site.minimum_cohort,
            "device": site.device,
            "approve_all": site.approve_all,
            "accept_no_privacy": site.accept_no_privacy,
            "seeded": site.noise_seed is not None,
            "parts": {name: getattr(site, name) is not None for name in PARTS},
            "dicom_tls": site.dicom is not None and site.dicom.tls is not None,
            "peers": len(site.dicom.peers) if site.dicom else 0,
        },
        "state": {
            "halted": now.halted,
            "running": sorted(now.running),
            "ended_by_itself": crashes.counts(site),
            "anybody_inside": now.patients > 0,
            "studies_waiting": len(now.waiting),
            "studies_approved": len(now.approved),
            "releases": now.releases,
            "books_broken": len(now.wrong),
        },
    }


def _audit(site: Site) -> Iterator[dict[str, Any]]:
    try:
        for line in AuditLog(site.folder / "audit.jsonl").lines:
            if line["happening"] in HAPPENINGS:
                yield {key: line[key] for key in AUDITED if key in line}
    except ChainBroken:
        yield {"broken": True}
