"""What radiomics.json of a run folder says of the whole study, beside its record.

A part that is missing is empty here; the page then leaves its section out.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from fl_server.record import Record
from simulation.report.lenient import mapping, mappings, number, text
from simulation.report.radiomics_arms import ARMS, BOOSTING, PLAIN, POOLED, PRIVATE, UNET, Arm, arm_of, federated_of

FILE = "radiomics.json"
CERTAIN_FROM = 3.0
"""Of 1 (guess) to 5 (certain), where the study doesn't say."""


class Findings:
    """One radiomics run folder, read once.

    Raises `FileNotFoundError` without a record, `ValueError` where radiomics.json holds no JSON object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = Record.read(folder / "record.json")
        try:
            data = json.loads((folder / FILE).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / FILE} is no JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{folder / FILE} must hold a JSON object, not {type(data).__name__}")
        self.data: dict[str, Any] = data
        arms = {key: arm_of(key, entry) for key, entry in mapping(data.get("arms")).items()}
        self.arms = {key: arms[key] for key in [*(k for k in ARMS if k in arms), *(k for k in arms if k not in ARMS)]}
        self.federated = {key: federated_of(key, entry, self.arms) for key, entry in mapping(data.get("federated")).items()}
        known = [arm for arm in self.arms.values() if arm.auc or arm.curve or arm.auc_certain]
        private = [arm for arm in known if arm.epsilon is not None and arm.key != UNET]
        first = [arm for arm in known if arm.key == PRIVATE] + private + [arm for arm in known if arm.key == PLAIN] + known
        self.headline: Arm | None = first[0] if first else None

    @property
    def pooled(self) -> Arm | None:
        """What all data in one place would give."""
        return self.arms.get(POOLED) or self.arms.get(BOOSTING)

    @property
    def sites(self) -> list[str]:
        """Hospitals in the record's order, then those that only results name."""
        named = [name for arm in self.arms.values() for name in arm.by_hospital]
        return list(dict.fromkeys([*self.record.sites, *named]))

    @property
    def unit(self) -> str:
        """What a row of the table is: a segment of the left ventricle, or a patient."""
        predictions = mappings(self.data.get("shapley"))
        by_segment = bool(mappings(self.data.get("bullseye"))) or any(p.get("segment") is not None for p in predictions)
        return "segment" if by_segment or any(arm.masks for arm in self.arms.values()) else "patient"

    @property
    def certain_from(self) -> float:
        """The certainty from which on a label counts as certain."""
        least = number(mapping(mapping(self.record.study.get("task")).get("certainty")).get("least"))
        return least if isfinite(least) else CERTAIN_FROM

    def columns(self, kind: str) -> list[str]:
        """Names of the columns of this kind, radiomic or clinical."""
        return [text(c.get("name")) for c in mappings(self.data.get("columns")) if c.get("kind") == kind]

    def spent(self, hospital: str) -> float | None:
        """Epsilon on this hospital's ledger, or None where no privacy was promised."""
        site = self.record.sites.get(hospital)
        return site.epsilon if site and site.epsilon is not None and isfinite(site.epsilon) else None

    @property
    def highest_epsilon(self) -> float | None:
        """The most that any hospital's ledger says."""
        spent = [value for value in map(self.spent, self.record.sites) if value is not None]
        return max(spent, default=None)

    @property
    def private(self) -> bool:
        """Whether patients were promised anything."""
        return bool(self.record.study.get("privacy", {}).get("kind", "none") != "none")
