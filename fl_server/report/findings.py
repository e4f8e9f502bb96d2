"""What a run folder knows, as the sections ask for it: the record, and where somebody measured them, single test patients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite, nan
from pathlib import Path

from fl_server.record import Record
from fl_server.report.measured import FILE, Measured, Patient, Role
from fl_server.report.statistics import Values

SITE: Role = "site"
AGE_BANDS = ((45.0, "under 45 years"), (65.0, "45 to 64 years"), (float("inf"), "65 years and over"))
NOT_RECORDED = "not recorded"
DISEASES = {
    "normal": "no heart disease",
    "infarct": "infarction",
    "hcm": "hypertrophic cardiomyopathy",
    "dcm": "dilated cardiomyopathy",
    "amyloid": "amyloidosis",
    "ph": "pulmonary hypertension",
    "arvc": "arrhythmogenic right-ventricular cardiomyopathy",
}
"""Words for what a case's `disease` may be; others are shown as they are."""
LEAST_PATIENTS, LEAST_ROUNDS, LEAST_SEEDS = 30, 10, 3
"""Test patients, rounds and seeds below which a rehearsal shows that the software works, and nothing else."""


class Findings:
    """One run folder, read once. Raises `FileNotFoundError` without record.json, `ValueError` for files of another schema."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = Record.read(folder / "record.json")
        self.measured = Measured.read(folder / FILE)
        self.stale = self.measured is not None and self.measured.study_hash != self.record.study_hash
        if self.stale:  # of another study: nothing of it belongs in this report
            self.measured = None

    @property
    def patients(self) -> list[Patient]:
        """Every test patient, in the order of the file; none from a real federation."""
        return self.measured.patients if self.measured else []

    @property
    def structures(self) -> list[str]:
        """What the model outlines: as it was measured, else as the study's task names it."""
        if self.measured and self.measured.structures:
            return self.measured.structures
        named = self.record.study.get("task", {}).get("structures")
        return list(named) if isinstance(named, dict) else []

    @property
    def task(self) -> str:
        """The task's name; empty if the study names none."""
        return str(self.record.study.get("task", {}).get("name", ""))

    @property
    def planned_rounds(self) -> int:
        """Rounds that the study asks for."""
        return int(self.record.study.get("rounds", len(self.record.rounds)))

    @property
    def hospitals(self) -> list[str]:
        """Hospitals that were asked to take part."""
        return list(self.record.sites)

    @property
    def rehearsal(self) -> bool:
        """Whether a simulation wrote the record: hospitals of one computer."""
        return bool(self.record.profile) or bool(self.measured and self.measured.generated)

    @property
    def seeds(self) -> int:
        """How many times the training was run, with other luck each time, for what was measured."""
        return max(len(self.measured.seeds) if self.measured else 0, len(self.record.seeds), 1)

    @property
    def private(self) -> bool:
        """Whether the study promises its patients anything."""
        return bool(self.record.study.get("privacy", {}).get("kind") != "none")

    @property
    def tested(self) -> int:
        """How many patients of the hospitals that trained the figures are about."""
        classifier = self.measured.classifier if self.measured else None
        return len(self.of(SITE)) or sum(area.patients or 0 for area in (classifier.by_hospital if classifier else {}).values())

    @property
    def small(self) -> bool:
        """Whether this rehearsal is too small for its figures to be evidence of anything."""
        few = self.tested < LEAST_PATIENTS or len(self.record.rounds) < LEAST_ROUNDS
        return few or self.seeds < LEAST_SEEDS or self.record.profile not in ("", "standard")

    def of(self, role: Role, keep: Callable[[Patient], bool] = lambda _: True) -> list[Patient]:
        """Test patients in this role for whom `keep` holds."""
        return [patient for patient in self.patients if patient.role == role and keep(patient)]

    def dice(self, patients: Iterable[Patient], structure: str | None = None) -> Values:
        """Dice by (seed, hospital, patient): of one structure, or the mean over those that are defined for the patient."""
        found: dict[tuple[int, str, str], float] = {}
        for patient in patients:
            tables = [patient.dice.get(structure, [])] if structure is not None else list(patient.dice.values())
            for seed in range(max(map(len, tables), default=0)):
                known = [table[seed] for table in tables if seed < len(table)]
                values = [value for value in known if value is not None]
                if values:
                    found[seed, patient.hospital, patient.patient] = sum(values) / len(values)
        return found

    def error(self, patient: Patient) -> float:
        """1 minus the first seed's mean Dice: how wrong the model in the folder was about this patient; NaN if unknown."""
        known = [table[0] for table in patient.dice.values() if table]
        values = [value for value in known if value is not None and isfinite(value)]
        return 1 - sum(values) / len(values) if values else nan

    def groups(self) -> dict[str, dict[str, list[Patient]]]:
        """The hospitals' test patients by scanner, sex, age band and disease, each group under its name."""
        kinds: dict[str, Callable[[Patient], str]] = {
            "By scanner": lambda one: one.scanner or NOT_RECORDED,
            "By sex": lambda one: {"F": "women", "M": "men"}.get(one.sex or "", one.sex or NOT_RECORDED),
            "By age": age_band,
            "By disease group": lambda one: disease(one.disease) if one.disease else NOT_RECORDED,
        }
        found: dict[str, dict[str, list[Patient]]] = {}
        for kind, name_of in kinds.items():
            parts: dict[str, list[Patient]] = {}
            for patient in self.of(SITE):
                parts.setdefault(name_of(patient), []).append(patient)
            order = [name for _, name in AGE_BANDS] if kind == "By age" else sorted(parts)
            named = {name: parts[name] for name in order if name in parts and name != NOT_RECORDED}
            if NOT_RECORDED in parts:
                named[NOT_RECORDED] = parts[NOT_RECORDED]
            found[kind] = named
        return found

    def answers(self) -> dict[str, list[str]]:
        """By hospital, what became of it in each round that was run."""
        return {
            name: [entry.sites[name].answer if name in entry.sites else "absent" for entry in self.record.rounds]
            for name in self.hospitals
        }


def disease(name: str) -> str:
    """A disease group in words."""
    return DISEASES.get(name, name)


def age_band(patient: Patient) -> str:
    """The band of the patient's age.

    >>> age_band(Patient(hospital="A", patient="p", age=64.9))
    '45 to 64 years'
    """
    if patient.age is None:
        return NOT_RECORDED
    return next(name for limit, name in AGE_BANDS if patient.age < limit)
