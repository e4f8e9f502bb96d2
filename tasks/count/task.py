"""The count: a patient adds one to a cell of each table, all tables together a vector of length 1 at most.

With m tables a patient adds to a cell 2^-30 times the whole part of 2^30/sqrt(m), and is in m cells at most: the squares add up
to 1 at most, in whole numbers, and sums of such multiples are exact in float64. Who reads the sum divides by that weight.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.case import Case
from tasks.count.settings import NOT_KNOWN, OTHER, Axis, Settings, Table
from tasks.task import Arrays

_ONE = 1 << 30


class CountTask:
    """See `tasks.task.CountingTask` for what each method promises."""

    counted = "patients in the cells of a table"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def hash(self) -> str:
        """Identity of the cells."""
        tables = [table.model_dump_json() for table in self.settings.tables]
        return hashlib.sha256("\n".join(["count/1", *tables]).encode()).hexdigest()[:32]

    @property
    def length(self) -> int:
        """Cells of all tables, one after the other, each in C order."""
        return self.settings.length

    @property
    def weight(self) -> float:
        """What one patient adds to a cell."""
        return math.isqrt(_ONE * _ONE // len(self.settings.tables)) / _ONE

    def prepare(self, case: Case) -> Arrays:
        """`rows` (tables the patient is in,) int64: the index of the patient's cell in each."""
        found, first = [], 0
        for table in self.settings.tables:
            cell = cell_of(case, table)
            if cell is not None:
                found.append(first + cell)
            first += table.length
        if not found:
            unknown = sorted(
                {axis.field for table in self.settings.tables for axis in table.axes if _index(case, axis) is None}
            )
            raise ValueError(f"case {case.patient} is in no cell of the study's tables: {', '.join(unknown)} not known")
        return {"rows": np.array(found, np.int64)}

    def contribution(self, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """`weight` in the patient's cells, (length,)."""
        vector = np.zeros(self.length)
        vector[np.asarray(arrays["rows"])] = self.weight
        return vector


def cell_of(case: Case, table: Table) -> int | None:
    """The patient's cell in this table, in C order; None if a value that has no cell isn't known."""
    cell = 0
    for axis in table.axes:
        index = _index(case, axis)
        if index is None:
            return None
        cell = cell * len(axis.cells) + index
    return cell


def _index(case: Case, axis: Axis) -> int | None:
    kind, _, name = axis.field.partition(".")
    if axis.is_presence:
        volume = case.volume(name)
        return int(volume is not None and (kind == "image" or volume.mask is not None))
    value = (case.endpoints if kind == "endpoint" else case.scanner).get(name)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return axis.cells.index(NOT_KNOWN) if axis.not_known else None
    if axis.values:
        return next((n for n, one in enumerate(axis.values) if one == value), axis.cells.index(OTHER))
    if isinstance(value, str):  # a word where a number was declared
        return axis.cells.index(NOT_KNOWN) if axis.not_known else None
    return bisect_right(axis.edges, value)
