"""The label map: which label of a source means which structure of the task.

Hospitals name the same structure in many ways: by text in a DICOM SEG, by a SNOMED code, by a number in a NIfTI file. One
YAML per source says what each means. A label that stands nowhere in it is an error and never silently background.
"""

from __future__ import annotations

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

    @model_validator(mode="after")
    def _unknown_is_255(self) -> Self:
        if (self.role == "unknown") != (self.value == UNKNOWN):
            raise ValueError(f"value {UNKNOWN} and role unknown belong together, not value {self.value} and role {self.role}")
        return self


class LabelMap(Frozen):
    """Source label (text, number or code) → value in a mask."""

    structures: dict[str, Structure]
    ignored: tuple[int | str, ...] = ()  # known labels that count as background

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
