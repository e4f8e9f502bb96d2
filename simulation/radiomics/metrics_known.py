"""What is known of a radiomics study when its checklist is filled in, and how its numbers are said in words.

An answer is whole if nothing is left for a person to write. Any fact may be missing: then it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fl_server.record import Record
from simulation.settings import GeneratedHospitals
from tasks.radiomics.features import Extractor
from tasks.radiomics.settings import Image, Settings

if TYPE_CHECKING:
    from simulation.radiomics.report_facts import World

Json = Mapping[str, Any]

NO_IMAGES = "Does not apply: the study learns from clinical columns, without images."


@dataclass(frozen=True)
class Answer:
    """What is known of an item; `whole` if nothing is left for a person to write."""

    whole: bool
    text: str = ""


@dataclass(frozen=True)
class Known:
    """The study, its record, and the facts of its report so far."""

    world: World
    record: Record
    facts: Json

    @cached_property
    def settings(self) -> Settings:
        """Of the classifier's task."""
        return Settings.model_validate({k: v for k, v in self.world.classifier.task.items() if k != "name"})

    @property
    def image(self) -> Image | None:
        """Where features come from; None: clinical columns alone."""
        return self.settings.image

    @cached_property
    def extractor(self) -> Extractor | None:
        """The extraction of these features."""
        return Extractor.of(self.image.parameters) if self.image else None

    @property
    def generated(self) -> GeneratedHospitals | None:
        """How patients were drawn; None where they are real."""
        hospitals = self.world.simulation.hospitals
        return hospitals if isinstance(hospitals, GeneratedHospitals) else None

    @property
    def hospitals(self) -> Json:
        """Counts by hospital."""
        found: Json = self.facts.get("hospitals") or {}
        return found

    def total(self, what: str) -> int:
        """Patients, rows or positive rows of all hospitals."""
        return sum(int(entry.get(what) or 0) for entry in self.hospitals.values())

    @property
    def predicted(self) -> bool:
        """Whether a model draws masks."""
        return "unet" in self.world.classifier.masks

    @property
    def headline(self) -> tuple[str, Json] | None:
        """The arm that the report is about: the private forest, on experts' masks if there are such."""
        arms: Json = self.facts.get("arms") or {}
        for name in ("forest_private", "forest_unet_private", *arms):
            if name in arms and estimate(arms[name].get("auc")):
                return name, arms[name]
        return None

    @property
    def rows(self) -> str:
        """What one row of the table is."""
        return "segments" if self.image and self.image.regions == "aha" else "regions" if self.image else "rows"


def _unknown(known: Known) -> Answer:
    return Answer(False)


def extraction_of(record: Record) -> str:
    """The hash of the extraction, as the study has settled it; empty without one."""
    image = (record.study.get("task") or {}).get("image") or {}
    return str(image.get("extraction") or "")


def estimate(found: Json | None) -> str:
    """0.791 (95 % interval 0.742 to 0.836); empty without a value."""
    if not found or not isinstance(found.get("value"), int | float):
        return ""
    low, high = found.get("low"), found.get("high")
    interval = f" (95 % interval {low:.3f} to {high:.3f})" if has_interval(found) else ""
    return f"{found['value']:.3f}{interval}"


def has_interval(found: Json | None) -> bool:
    """Whether both ends are known."""
    return bool(found) and all(isinstance((found or {}).get(end), int | float) for end in ("low", "high"))


def spread(values: Sequence[float]) -> str:
    """8 to 12; 8 where all are equal."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def mean(shares: Json | None) -> float | None:
    """Of the numbers among the values."""
    values = [v for v in (shares or {}).values() if isinstance(v, int | float)]
    return sum(values) / len(values) if values else None


def counted(count: int, what: str) -> str:
    """1 hospital, 2 hospitals."""
    return f"{count} {what}" + ("" if count == 1 else "s")
