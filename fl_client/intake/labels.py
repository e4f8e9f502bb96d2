"""The label map: which label of a source means which structure of the task.

Hospitals name the same structure in many ways: by text in a DICOM SEG, by a SNOMED code, by a number in a NIfTI file. One
YAML per source says what each means. A label that stands nowhere in it is an error and never silently background. The map
also says what can't be read off a mask: which structures a reader looked for, which one has a voxel that two were drawn on,
and where in the body a structure lies.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

import conf
from conf.study import Frozen
from fl_client.yaml_file import read_yaml
from tasks.case import UNKNOWN

Role = Literal["cavity", "wall", "organ", "unknown"]
"""What the mask check may expect: a cavity lies inside its wall, an organ hangs together, unknown voxels are not checked."""


class UnmappedLabel(ValueError):
    """A source label that the label map doesn't name. The text says which, as far as it can't be a person's name."""


class Code(Frozen):
    """A coded concept as DICOM writes it. Values are unique within a map, so that a SEG can be read back by code alone."""

    scheme: Annotated[str, Field(pattern=r"^[0-9A-Z_]{1,16}$")]
    value: Annotated[str, Field(pattern=r"^[0-9A-Z.-]{1,16}$")]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]


class Structure(Frozen):
    """One structure of the task: its value in a mask, its role, and what sources call it."""

    value: Annotated[int, Field(ge=1, le=255)]
    role: Role = "organ"
    code: Code
    sources: tuple[int | str, ...]
    may_be_absent: bool = False  # a mask without it says that there is none, as of a scar; else that nobody drew it
    right_of: str | None = None  # it lies on the patient's right of this structure, unless the mask is mirrored
    tapers_left: bool = False  # cut across its long axis it gets smaller to the patient's left, as a left ventricle does
    volume_ml: tuple[float, float] | None = None  # least and most that a whole one can have

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.role == "unknown") != (self.value == UNKNOWN):
            raise ValueError(f"value {UNKNOWN} and role unknown belong together, not value {self.value} and role {self.role}")
        if self.volume_ml is not None and not 0 <= self.volume_ml[0] < self.volume_ml[1]:
            raise ValueError(f"volume_ml is the least and the most in millilitres, not {list(self.volume_ml)}")
        return self


class LabelMap(Frozen):
    """Source label (text, number or code) → value in a mask."""

    structures: dict[str, Structure]
    ignored: tuple[int | str, ...] = ()  # known labels that count as background
    annotated: dict[str, tuple[str, ...]] = Field({})  # series: what its readers draw. Others: what a mask holds was drawn
    priority: tuple[str, ...] = ()  # these may be drawn over each other; the first has the voxel

    @model_validator(mode="after")
    def _nothing_stands_twice(self) -> Self:
        structures = self.structures.values()
        sources = [_plain(source) for structure in structures for source in structure.sources]
        stands: dict[str, list[object]] = {
            "value": [structure.value for structure in structures],
            "source": [*sources, *map(_plain, self.ignored)],
            "code": [(structure.code.scheme, structure.code.value) for structure in structures],
        }
        for what, entries in stands.items():
            twice = sorted({str(entry) for entry in entries if entries.count(entry) > 1})
            if twice:
                raise ValueError(f"each {what} may stand for one structure only; {', '.join(twice)} stands for two")
        return self

    @model_validator(mode="after")
    def _names_its_own_structures(self) -> Self:
        sided = [structure.right_of for structure in self.structures.values() if structure.right_of]
        named = {
            "right_of": sided,
            "priority": self.priority,
            "annotated": [n for some in self.annotated.values() for n in some],
        }
        known = [name for name, structure in self.structures.items() if structure.role != "unknown"]
        for where, names in named.items():
            strangers = sorted(set(names) - set(known))
            if strangers:
                raise ValueError(f"{where} names {', '.join(strangers)}; the structures are {', '.join(known)}")
        return self

    @classmethod
    def load(cls, path: Path | str) -> LabelMap:
        """Read a label map: a path to a YAML file, or the bare name of one of `conf/labels`.

        Raises `FileNotFoundError` naming the maps there are, `pydantic.ValidationError` for wrong contents, `ValueError`
        for what is no YAML.
        """
        folder = Path(conf.__file__).parent / "labels"
        file = folder / f"{path}.yaml" if Path(path).suffix == "" else Path(path)
        if not file.exists():
            names = ", ".join(sorted(entry.stem for entry in folder.glob("*.yaml")))
            raise FileNotFoundError(f"no label map {path}; conf/labels holds {names}")
        return cls.model_validate(read_yaml(file))

    @property
    def words(self) -> frozenset[str]:
        """Texts and codes of the map in lower case: the only text of a mask that de-identification lets through."""
        words = {name.lower() for name in self.structures} | {
            source.lower() for source in self.ignored if isinstance(source, str)
        }
        for structure in self.structures.values():
            words |= {source.lower() for source in structure.sources if isinstance(source, str)}
            words |= {text.lower() for text in (structure.code.scheme, structure.code.value, structure.code.meaning)}
        return frozenset(words)

    def role(self, role: Role) -> tuple[int, ...]:
        """Mask values of the structures that have this role."""
        return tuple(structure.value for structure in self.structures.values() if structure.role == role)

    def name(self, value: int) -> str:
        """The structure's name; raises `KeyError` for a value that is no structure of this map."""
        for name, structure in self.structures.items():
            if structure.value == value:
                return name
        raise KeyError(f"no structure has value {value}; there are {sorted(s.value for s in self.structures.values())}")

    def of_source(self, source: int | str) -> int:
        """Mask value of a number or text of a source; 0 for an ignored one. Raises `UnmappedLabel`."""
        wanted = _plain(source)
        if wanted in [_plain(ignored) for ignored in self.ignored]:
            return 0
        for name, structure in self.structures.items():
            if wanted in [_plain(known) for known in structure.sources] or wanted == name.lower():
                return structure.value
        raise UnmappedLabel(f"label {source!r} stands nowhere in the label map, which knows {self._known()}")

    def of_code(self, scheme: str, value: str) -> int | None:
        """Mask value of a coded concept, or None if no structure has this code."""
        for structure in self.structures.values():
            if (structure.code.scheme, structure.code.value) == (scheme, value):
                return structure.value
        return None

    def of_segment(self, what: str, text: str, codes: Collection[tuple[str, str]]) -> int:
        """Mask value of something drawn, by the name that a reader gave it and its coded concepts (scheme, value).

        Raises `UnmappedLabel` if neither stands in the map, or if they contradict each other. `what` is a number such as
        "segment 2": the text itself isn't repeated, since whatever a reader typed may hold a name.
        """
        by_text: int | None = None
        with suppress(UnmappedLabel):
            by_text = self.of_source(text) if text.strip() else None
        by_code = next((value for code in codes if (value := self.of_code(*code)) is not None), None)
        if by_text is not None and by_code is not None and by_text not in (0, UNKNOWN, by_code):
            raise UnmappedLabel(f"{what} is {self.name(by_text)} by its label and {self.name(by_code)} by its code")
        value = by_text if by_text is not None else by_code
        if value is None:
            raise UnmappedLabel(
                f"{what} has a label and a code that stand nowhere in the label map, which knows {', '.join(self.structures)}"
            )
        return value

    def looked_for(self, series: str, present: Collection[int]) -> tuple[int, ...]:
        """Mask values that the reader of this mask looked for, given those that it holds.

        What the map says of the series counts; if it says nothing, a structure that the mask doesn't hold was not drawn,
        unless it may be absent.
        """
        structures = {name: item for name, item in self.structures.items() if item.role != "unknown"}
        if series in self.annotated:
            values = {structures[name].value for name in self.annotated[series]}
        else:
            values = {item.value for item in structures.values() if item.value in present or item.may_be_absent}
        return tuple(sorted(values))

    def translate(self, mask: npt.NDArray[np.integer] | npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """A source's label volume in the task's values; 0 stays background. Raises `UnmappedLabel` (also for 1.5)."""
        canonical = np.zeros(mask.shape, np.uint8)
        for value in np.unique(mask):
            if value == 0:
                continue
            if not float(value).is_integer():
                raise UnmappedLabel(
                    f"label {value} is no whole number; a mask holds the numbers of the label map, {self._known()}"
                )
            canonical[mask == value] = self.of_source(int(value))
        return canonical

    def _known(self) -> str:
        sources = [source for structure in self.structures.values() for source in structure.sources]
        return ", ".join(str(source) for source in [*sources, *self.ignored])


def _plain(source: int | str) -> int | str:
    return source.strip().lower() if isinstance(source, str) else source
