"""A site's mapping: which clinical variables it takes out of its FHIR resources, and how each of them is found.

A positive list, as everywhere at this door: what no variable names stays outside. A variable is found in one of a few ways, so
that a mapping can be read and checked; nothing here is a query language. Codes are written `system|code`, with short names for
the usual systems: `loinc|2093-3`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from conf.frozen import Frozen
from fl_client.intake.units import is_known

SYSTEMS = {
    "loinc": "http://loinc.org",
    "snomed": "http://snomed.info/sct",
    "rxnorm": "http://www.nlm.nih.gov/research/umls/rxnorm",
    "atc": "http://www.whocc.no/atc",
    "icd10": "http://hl7.org/fhir/sid/icd-10",
    "icd10gm": "http://fhir.de/CodeSystem/bfarm/icd-10-gm",
    "ops": "http://fhir.de/CodeSystem/bfarm/ops",
    "dicom": "http://dicom.nema.org/resources/ontology/DCM",
}
"""Short names of code systems."""


def _full(code: str) -> str:
    system, bar, rest = code.partition("|")
    if not (system and bar and rest) or code != code.strip() or "|" in rest:
        raise ValueError(f"a code is written system|code, such as loinc|2093-3, not {code!r}")
    return f"{SYSTEMS.get(system, system)}|{rest}"


Code = Annotated[str, AfterValidator(_full)]
Codes = Annotated[tuple[Code, ...], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_=-]{0,63}$")]
Resource = Literal["Observation", "Condition", "Procedure", "MedicationRequest", "Encounter", "ImagingStudy"]
Which = Literal["latest", "earliest"]


class Source(Frozen):
    """Resources of one type with one of these codes. An encounter's code is its type, an imaging study's its modality."""

    resource: Resource
    codes: Codes


class Index(Source):
    """The day from which a patient's times are counted: that of the latest or earliest of these resources."""

    which: Which = "latest"


class Number(Frozen):
    """A measurement: valueQuantity, or that of a component, in this unit. `factors`: times what, for this substance."""

    kind: Literal["number"]
    name: Name
    codes: Codes
    component: Code | None = None  # of a blood pressure, say
    unit: str
    factors: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    which: Literal["latest", "earliest", "max", "min"] = "latest"
    before_index: bool = False  # the index day itself counts

    @model_validator(mode="after")
    def _unit_is_known(self) -> Self:
        if not is_known(self.unit):
            raise ValueError(
                f"the unit of {self.name}, {self.unit!r}, is no UCUM code that konsil knows, such as mg/dL or mm[Hg]"
            )
        return self


class Category(Frozen):
    """A coded answer (valueCodeableConcept), in the site's own words."""

    kind: Literal["category"]
    name: Name
    codes: Codes
    values: Annotated[dict[Code, str], Field(min_length=1)]  # code of the answer: word
    which: Which = "latest"
    before_index: bool = False


class Present(Frozen):
    """1 if the patient has such a diagnosis, prescription or procedure. `if_none` says what it means that none is recorded."""

    kind: Literal["present"]
    name: Name
    resource: Literal["Condition", "MedicationRequest", "Procedure"]
    codes: Codes
    if_none: Literal[0, "missing"]  # no default: whether the hospital would know is for the hospital to say
    before_index: bool = False


class Age(Frozen):
    """Whole years at the index day; above 89 it is 89."""

    kind: Literal["age"]
    name: Name = "age"


class Sex(Frozen):
    """Administrative gender: F, M or O."""

    kind: Literal["sex"]
    name: Name = "sex"


class Days(Source):
    """Days from the index day to such a resource; negative before it."""

    kind: Literal["days"]
    name: Name
    which: Which = "earliest"


class Survival(Frozen):
    """Days from the index day to the event (1), or to when the patient was last seen (0). Dates stay outside."""

    kind: Literal["survival"]
    time: Name = "time_days"
    event: Name = "event"
    of: Literal["death"] | Source = "death"
    last_seen: Annotated[tuple[Resource, ...], Field(min_length=1)] = ("Encounter",)


Variable = Annotated[Number | Category | Present | Age | Sex | Days | Survival, Field(discriminator="kind")]


class ClinicalMapping(Frozen):
    """Which identifier is the PatientID of the DICOM headers, which day is the index day, and the variables."""

    identifier_system: Annotated[str, Field(min_length=1)]
    index: Index | None = None
    variables: Annotated[tuple[Variable, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [name for variable in self.variables for name in names_of(variable)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is given twice")
        if self.index is None:
            for variable in self.variables:
                if isinstance(variable, Age | Days | Survival) or getattr(variable, "before_index", False):
                    raise ValueError(f"{', '.join(names_of(variable))} needs an index day, and the mapping names none")
        return self

    def sources(self) -> Iterator[tuple[str, frozenset[str] | None]]:
        """Every type of resource that is read, with its codes; None: all of the type, because they tell when one was seen."""
        if self.index:
            yield self.index.resource, frozenset(self.index.codes)
        for variable in self.variables:
            if isinstance(variable, Number | Category):
                yield "Observation", frozenset(variable.codes)
            elif isinstance(variable, Present | Days):
                yield variable.resource, frozenset(variable.codes)
            elif isinstance(variable, Survival):
                if isinstance(variable.of, Source):
                    yield variable.of.resource, frozenset(variable.of.codes)
                for resource in variable.last_seen:
                    yield resource, None


def names_of(variable: Number | Category | Present | Age | Sex | Days | Survival) -> tuple[str, ...]:
    """The endpoints that the variable gives."""
    return (variable.time, variable.event) if isinstance(variable, Survival) else (variable.name,)
