"""Quality beside the cohort: `cohort/quality/<pseudonym>.json`, written at the door and read by limits, tables and plots.

    {"volumes": {series: {parameter: number or null}}, "why": {series: {parameter: reason}}, "definitions": 3, "case": digest,
     ...notes of the door, such as "mask_resampled/<series>" and "slice_thickness_mm/<series>"}

A record of another state of the case, of other definitions, or none at all (generated patients have none) is made anew when
somebody asks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from fl_client.cohort import Cohort
from fl_client.quality.measure import DEFINITIONS, Quality, measure, modality
from tasks.case import Case

Note = float | bool | str
_OURS = ("volumes", "why", "definitions", "case")


def record(folder: Path, case: Case, more: Mapping[str, Note] = {}, *, measured: bool = True) -> dict[str, Quality]:
    """Measure every volume and write the record of cohort `folder`, whole or not at all (`OSError`). Returns what was measured.

    Notes of series that this walk through the door did not bring stay. Not `measured`, notes alone are written, and whoever
    asks first measures.
    """
    notes = {**_kept(_read(_place(folder, case.patient)), case, more), **more}
    found = {volume.series: _measured(case, volume.series, notes) for volume in case.volumes if measured}
    text = {
        **notes,
        "volumes": {series: dict(quality.values) for series, quality in found.items()},
        "why": {series: dict(quality.why) for series, quality in found.items() if quality.why},
        "definitions": DEFINITIONS if measured else 0,
        "case": _state(folder, case.patient),
    }
    place = _place(folder, case.patient)
    place.parent.mkdir(exist_ok=True)
    part = place.with_name(f".{uuid4().hex}.part")
    try:
        part.write_text(json.dumps(text, indent=1, sort_keys=True))
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
    return found


def of(cohort: Cohort, patient: str) -> dict[str, Quality]:
    """The patient's quality by series: as recorded, else measured now and recorded where the disk lets us.

    Raises `KeyError` for an unknown patient and `CaseUnreadable`, which is one too, for a damaged case.
    """
    text = _read(_place(cohort.folder, patient))
    if text.get("definitions") == DEFINITIONS and text.get("case") == _state(cohort.folder, patient):
        try:
            why = text.get("why", {})
            return {series: Quality(values, why.get(series, {})) for series, values in text["volumes"].items()}
        except (AttributeError, KeyError, TypeError):
            pass  # not a record after all
    case = cohort.case(patient)
    try:
        return record(cohort.folder, case)
    except OSError:  # a trainer that may not write here
        notes = _kept(text, case, {})
        return {volume.series: _measured(case, volume.series, notes) for volume in case.volumes}


def _measured(case: Case, series: str, notes: Mapping[str, Any]) -> Quality:
    volume = case.volume(series)
    if volume is None:
        raise KeyError(series)
    thickness = notes.get(f"slice_thickness_mm/{series}")
    return measure(
        volume,
        modality(case, volume),
        thickness_mm=float(thickness) if isinstance(thickness, int | float) else None,
        parallel_imaging=notes.get(f"parallel_imaging/{series}") is True,
    )


def _kept(before: Mapping[str, Any], case: Case, more: Mapping[str, Note]) -> dict[str, Any]:
    """Notes of the record before, about series that are still there and of which nothing new is said."""
    new = {name.rpartition("/")[2] for name in more}
    there = {volume.series for volume in case.volumes} - new
    return {name: value for name, value in before.items() if name not in _OURS and name.rpartition("/")[2] in there}


def _read(place: Path) -> dict[str, Any]:
    try:
        text = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return text if isinstance(text, dict) else {}


def _place(folder: Path, patient: str) -> Path:
    return folder / "quality" / f"{patient}.json"


def _state(folder: Path, patient: str) -> str:
    """A digest of the stored case; empty if there is none."""
    try:
        return hashlib.sha256((folder / "cases" / patient / "case.json").read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
