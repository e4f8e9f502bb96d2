"""The tables of a count: axes with cells that are public before anybody is counted.

An axis is a field that selections know, too (`conf/selection.py`), divided by edges, by values, or, for images and masks, into
no and yes. Every patient is in one cell of each table: beyond the declared values there is `other`, and `not known` for what
the hospital doesn't have of a patient, because a missing value is no value.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Self

from pydantic import Field, StrictFloat, StrictInt, StrictStr, model_validator

from conf.frozen import Frozen
from conf.selection import require_field

MOST_CELLS = 512
"""In all tables together; every cell has the same noise, so that many empty ones drown in it."""
NOT_KNOWN, OTHER = "not known", "other"

Edge = StrictInt | StrictFloat
Value = StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=64)]


class Axis(Frozen):
    """One field, divided into cells. Give `edges` (rising) or `values`; images and masks take neither.

    A number below the first edge is in the first cell, one that equals an edge in the cell above it. `not_known: false` leaves
    patients out of whom the value isn't known.
    """

    field: str
    edges: Annotated[tuple[Edge, ...], Field(max_length=32)] = ()
    values: Annotated[tuple[Value, ...], Field(max_length=32)] = ()
    not_known: bool = True

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        require_field(self.field)
        if self.field.startswith("quality."):
            raise ValueError(f"{self.field}: quality parameters select patients and are not counted")
        given = bool(self.edges) + bool(self.values)
        if given != (0 if self.is_presence else 1):
            raise ValueError(f"{self.field} needs " + ("neither edges nor values" if self.is_presence else "edges or values"))
        if {str(value) for value in self.values} & {OTHER, NOT_KNOWN}:
            raise ValueError(f"'{OTHER}' and '{NOT_KNOWN}' are cells of their own; they can't be values of {self.field}")
        if any(low >= high for low, high in itertools.pairwise(self.edges)):
            raise ValueError(f"the edges of {self.field} must rise, not {list(self.edges)}")
        if len({str(value) for value in self.values}) != len(self.values):
            raise ValueError(f"the values of {self.field} must differ, not {list(self.values)}")
        return self

    @property
    def is_presence(self) -> bool:
        """Whether it asks for an image or a mask."""
        return self.field.startswith(("image.", "mask."))

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of the cells, in order."""
        if self.is_presence:
            return ("no", "yes")
        more = (NOT_KNOWN,) if self.not_known else ()
        if self.values:
            return (*map(str, self.values), OTHER, *more)
        between = (f"{low:g} to below {high:g}" for low, high in itertools.pairwise(self.edges))
        return (f"below {self.edges[0]:g}", *between, f"{self.edges[-1]:g} or more", *more)


class Table(Frozen):
    """Up to three axes crossed. Without an axis it counts everybody."""

    axes: Annotated[tuple[Axis, ...], Field(max_length=3)] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(len(axis.cells) for axis in self.axes)

    @property
    def length(self) -> int:
        """Cells in all."""
        return math.prod(self.shape)


class Settings(Frozen):
    """Which tables; and below what number a count is told as "fewer than". All tables share one patient's length of 1."""

    tables: Annotated[tuple[Table, ...], Field(min_length=1, max_length=8)]
    suppress_below: Annotated[int, Field(ge=0, le=1000)] = 10

    @model_validator(mode="after")
    def _is_small(self) -> Self:
        if self.length > MOST_CELLS:
            raise ValueError(f"the tables have {self.length} cells; at most {MOST_CELLS} are counted")
        return self

    @property
    def length(self) -> int:
        """Cells of all tables."""
        return sum(table.length for table in self.tables)
