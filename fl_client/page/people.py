"""The cohort as the page shows it: who is where, what is known of one patient, and where their images' quality stands.

Pseudonyms only. What takes long for thousands of patients (reading every case, measuring) is a job, made anew when somebody
has been let in or has withdrawn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from conf.quality import METRICS
from fl_client.accounting import Reckoning, reckoning
from fl_client.approval import Approvals
from fl_client.cohort import Cohort, is_test
from fl_client.page.jobs import Job, Jobs
from fl_client.page.pictures import View, legend, opposite, view_of
from fl_client.page.pictures import direction as direction_of
from fl_client.quality.measure import Quality
from fl_client.quality.reference import Range, Reference, Standing, found_in, ranges_of, standings
from fl_client.site import Site
from tasks.case import Case, Volume

if TYPE_CHECKING:
    from tasks.reference_values.place import Place as PlaceByAge

WORDS = {
    "cine_ed": "cine, end-diastole (heart filled)",
    "cine_es": "cine, end-systole (heart contracted)",
    "lge": "late gadolinium enhancement",
}
"""What the cardiac series' names stand for."""
PER_PAGE = 25
SHOWN_SLICES = 18
LOG_BYTES = 16 << 20
"""So much of the end of the training log is read for one patient."""

drawing = Lock()  # matplotlib's fonts are shared between threads


@dataclass(frozen=True)
class Compared:
    """One patient among the hospital's reference values, or why not."""

    places: tuple[PlaceByAge, ...] = ()
    source: str = ""
    trouble: str = ""


def compared(site: Site, case: Case) -> Compared | None:
    """Where a patient stands, by the masks in the cohort; None where the hospital has no reference values."""
    if not site.reference_values_path.exists():
        return None
    from fl_client.reference_values import kept, placed  # here: tasks import torch
    from tasks.reference_values.place import source

    try:
        values = kept(site)
        if values is None:
            return None
        return Compared(tuple(placed(case, values)), source(values))
    except (OSError, ValueError) as error:
        return Compared(trouble=str(error))


def compared_picture(site: Site, patient: str) -> bytes:
    """The percentile curves of the patient's sex with the patient's dots (PNG). Raises `KeyError` where there is nothing to
    draw.
    """
    from fl_client.reference_chart import figure_of  # here: matplotlib takes a second to import
    from fl_client.reference_values import kept, placed

    case = Cohort(site.cohort_folder).case(patient)
    try:
        values = kept(site)
        found = placed(case, values) if values is not None else []
    except (OSError, ValueError):
        values, found = None, []
    if values is None or not found:
        raise KeyError(patient)
    out = BytesIO()
    with drawing:
        figure_of(values, found[0].sex, found).savefig(out, format="png", dpi=130)
    return out.getvalue()


def _changed(*paths: Path) -> Hashable:
    """What differs once one of these has been written."""
    found = []
    for path in paths:
        try:
            found.append((path.stat().st_mtime_ns, path.stat().st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def _state(site: Site) -> dict[str, Hashable]:
    """What the cohort's numbers are made of: after a withdrawal they are made anew at once, after an arrival soon."""
    folder = site.cohort_folder
    arrivals = _changed(folder / "cases", folder / "refused.jsonl", site.identity_folder / "quarantine")
    return {"of": arrivals, "strictly_of": _changed(folder / "withdrawn")}


def counted(site: Site, jobs: Jobs, *, wait_s: float = 1.5) -> Job:
    """The job that says what became of everybody; its value is `Counted`."""
    return jobs.ask("counted", lambda: count(site), wait_s=wait_s, **_state(site))


@dataclass(frozen=True)
class Counted:
    """Everybody, and how many images and masks of each series there are."""

    everybody: Reckoning
    train: int
    series: tuple[tuple[str, int, int], ...]  # series, images, masks


def count(site: Site) -> Counted:
    """Look at everybody."""
    everybody = reckoning(site)
    cohort = Cohort(site.cohort_folder)
    images: Counter[str] = Counter()
    masks: Counter[str] = Counter()
    for patient in everybody.inside:
        try:
            case = cohort.case(patient)
        except KeyError:
            continue  # withdrawn since
        for volume in case.volumes:
            images[volume.series] += 1
            masks[volume.series] += volume.mask is not None
    train = sum(not is_test(patient, site.test_fraction) for patient in everybody.inside)
    return Counted(everybody, train, tuple((series, images[series], masks[series]) for series in sorted(images)))


@dataclass(frozen=True)
class Measured:
    """Quality of the whole cohort, and the reference range that it is compared with."""

    found: Mapping[str, Mapping[str, Quality]]
    places: Mapping[str, tuple[Standing, ...]]  # by patient
    ranges: Mapping[str, Mapping[str, Range]]  # of this cohort, by series and parameter
    unreadable: Mapping[str, str]
    reference: Reference | None
    trouble: str = ""  # why there is none

    @property
    def series(self) -> tuple[str, ...]:
        """The series that were measured."""
        return tuple(self.ranges)

    def outliers(self, series: str) -> list[Standing]:
        """Values far from the rest, the farthest first."""
        far = [place for places in self.places.values() for place in places if place.series == series and place.outlying]
        return sorted(far, key=lambda place: -abs(place.z))


def measured(site: Site, jobs: Jobs, *, wait_s: float = 1.5) -> Job:
    """The job that measures the cohort; its value is `Measured`."""
    state = _state(site)
    if site.quality_reference is not None:
        state["of"] = (state["of"], _changed(site.quality_reference))
    return jobs.ask("measured", lambda: _measure(site), wait_s=wait_s, **state)


def _measure(site: Site) -> Measured:
    reference, trouble = None, ""
    try:
        reference = Reference.load(site.quality_reference)
    except (OSError, ValueError) as error:  # the cohort stands without it
        trouble = str(error)
    found, unreadable = found_in(Cohort(site.cohort_folder))
    places: dict[str, list[Standing]] = {}
    for place in standings(found, reference):
        places.setdefault(place.patient, []).append(place)
    kept = {patient: tuple(of_patient) for patient, of_patient in places.items()}
    return Measured(found, kept, ranges_of(found), unreadable, reference, trouble)


def plot(known: Measured, series: str, *, highlight: str = "") -> bytes:
    """The cohort's quality as a picture (PNG). Raises `ValueError` if nothing of the series was measured."""
    from fl_client.quality.plot import quality_plot  # here: matplotlib takes a second to import

    out = BytesIO()
    with drawing:
        quality_plot(known.found, series, reference=known.reference, highlight=highlight).savefig(out, format="png", dpi=160)
    return out.getvalue()


@dataclass(frozen=True)
class Row:
    """One patient in the table."""

    patient: str
    side: str = ""
    scanner: str = ""
    images: tuple[tuple[str, int, bool], ...] = ()  # series, slices, with a mask
    values: int = 0  # clinical values that are known
    outside: int | None = None  # parameters outside the reference range, not on the better side; None: not known
    far: int = 0  # parameters far from the rest of the cohort
    trouble: str = ""


def rows(site: Site, patients: list[str], known: Measured | None) -> list[Row]:
    """What the table says of these patients."""
    cohort = Cohort(site.cohort_folder)
    found = []
    for patient in patients:
        side = "held back" if is_test(patient, site.test_fraction) else "training"
        try:
            case = cohort.case(patient)
        except KeyError as error:
            found.append(Row(patient, side=side, trouble=str(getattr(error, "reason", "withdrawn meanwhile"))))
            continue
        places = known.places.get(patient, ()) if known else ()
        found.append(
            Row(
                patient,
                side=side,
                scanner=scanner_of(case),
                images=tuple((volume.series, len(volume.image), volume.mask is not None) for volume in case.volumes),
                values=sum(value is not None for value in case.endpoints.values()),
                outside=sum(place.concerns for place in places) if known else None,
                far=sum(place.outlying for place in places),
            )
        )
    return found


def scanner_of(case: Case) -> str:
    """What made the images, as far as it is known."""
    strength = case.scanner.get("field_strength_t")
    said = [str(case.scanner.get("manufacturer", "")), f"{strength:g} T" if isinstance(strength, int | float) else ""]
    return " ".join(part for part in said if part)


@dataclass(frozen=True)
class Place:
    """Where one value stands, with what is needed to draw it on a strip from 0 to 100."""

    name: str
    words: str
    unit: str
    value: float
    percentile: float
    far: bool
    side: str
    concerns: bool
    low: float | None
    high: float | None
    drawn: Mapping[str, float]  # value, low, high, median of the cohort


@dataclass(frozen=True)
class Series:
    """One volume on the patient's page."""

    name: str
    slices: tuple[int, ...]  # those shown
    all: int
    spacing: str
    shape: str
    sides: str
    legend: tuple[tuple[str, str], ...]
    places: tuple[Place, ...]
    missing: tuple[tuple[str, str], ...]  # parameter, why it isn't measured


def series_of(cohort: Cohort, case: Case, known: Measured | None, *, every: bool = False) -> list[Series]:
    """The patient's volumes; of many slices only some, evenly spread, unless `every`."""
    found = []
    for volume in case.volumes:
        view = view_of(cohort, case, volume)
        own = [place for place in known.places.get(case.patient, ()) if place.series == volume.series] if known else []
        quality = known.found.get(case.patient, {}).get(volume.series) if known else None
        z, y, x = volume.spacing_mm
        count, rows, columns = volume.image.shape
        found.append(
            Series(
                volume.series,
                tuple(range(count)) if every else spread(count, SHOWN_SLICES),
                count,
                f"{y:.3g} × {x:.3g} mm, {z:.3g} mm from slice to slice",
                f"{count} slices of {rows} × {columns}",
                sides_of(volume),
                tuple(legend(volume, view)),
                tuple(_place(place, known.ranges[volume.series][place.metric]) for place in own) if known else (),
                tuple(sorted(quality.why.items())) if quality else (),
            )
        )
    return found


def sides_of(volume: Volume) -> str:
    """Which side of the patient the rims are, in words."""
    lower, right = direction_of(volume.affine[:3, 1]), direction_of(volume.affine[:3, 2])
    return f"Left rim {opposite(right)}, right rim {right}, upper rim {opposite(lower)}, lower rim {lower}"


def spread(count: int, most: int) -> tuple[int, ...]:
    """At most `most` of 0..count-1, evenly spread, with both ends."""
    if count <= most:
        return tuple(range(count))
    return tuple(sorted({round(step * (count - 1) / (most - 1)) for step in range(most)}))


def _place(place: Standing, here: Range) -> Place:
    metric, known = METRICS[place.metric], place.range
    numbers = [place.value, here.low, here.high, *((known.low, known.high) if known else ())]
    low, high = min(numbers), max(numbers)
    room = (high - low) or abs(high) or 1.0

    def at(value: float) -> float:
        return float(round(6 + 88 * (value - low) / room, 2))

    drawn = {"value": at(place.value), "median": at(here.median)}
    drawn |= {"low": at(known.low), "high": at(known.high)} if known else {}
    return Place(
        place.metric,
        metric.words,
        metric.unit,
        place.value,
        place.percentile,
        place.outlying,
        place.side,
        place.concerns,
        known.low if known else None,
        known.high if known else None,
        drawn,
    )


def left_out(site: Site, patient: str) -> list[tuple[str, str]]:
    """Of which studies this patient was left out, and why: the last word of each, from the hospital's own training log."""
    names = {key: study.name for key, study in Approvals(site.folder).studies.items()}
    found: dict[str, str] = {}
    reason = ""
    for line in _tail(site.folder / "log" / "training.jsonl"):
        if "left_out" in line:
            reason = str(line["left_out"]) if line.get("patient") == patient else reason
        elif "patients" in line and "study" in line:
            key = str(line["study"])
            found.pop(key, None)
            if reason:
                found[key] = reason
            reason = ""
        elif "scored" in line:
            reason = ""
    return [(f"{names[key]} ({key[:12]})" if key in names else key[:12], why) for key, why in found.items()]


def _tail(path: Path) -> list[dict[str, Any]]:
    """The lines of the log's end."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        text = file.read().decode(errors="replace")
    found = []
    for line in text.splitlines():
        try:
            facts = json.loads(line)
        except ValueError:  # the first one, and one that a power failure cut short
            continue
        if isinstance(facts, dict):
            found.append(facts)
    return found


def picture_of(site: Site, patient: str, series: str) -> tuple[Volume, View]:
    """A volume and how it is shown. Raises `KeyError` for a patient or series that isn't there."""
    cohort = Cohort(site.cohort_folder)
    if patient not in cohort.patients:
        raise KeyError(patient)
    case = cohort.case(patient)
    volume = case.volume(series)
    if volume is None:
        raise KeyError(series)
    return volume, view_of(cohort, case, volume)
