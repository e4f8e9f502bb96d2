"""Which generator draws a series: every series belongs to one family of patients that don't exist.

A family names the source files that its patients depend on, so that their images are not mistaken for another version's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulation.hospital import GENERATOR


@dataclass(frozen=True)
class Family:
    """Patients of one part of the body: the series that can be made of them, and the source text that makes them."""

    name: str
    series: tuple[str, ...]
    sources: tuple[str, ...]


HEARTS = Family("hearts", ("cine_ed", "cine_es", "lge"), GENERATOR)
BRAINS = Family("brains", ("t1",), ("simulation/brain.py", "simulation/brain_tissue.py", "simulation/brain_scan.py"))
LUNGS = Family(
    "lungs",
    ("ct",),
    ("simulation/lung.py", "simulation/lung_tree.py", "simulation/lung_tissue.py", "simulation/lung_scan.py"),
)
FAMILIES = (HEARTS, BRAINS, LUNGS)


def family_of(series: Sequence[str]) -> Family:
    """The family that all of these series are made of. Raises `ValueError` where there is none, or more than one.

    >>> family_of(["t1"]).name
    'brains'
    """
    for family in FAMILIES:
        if series and set(series) <= set(family.series):
            return family
    there = "; ".join(f"{family.name} ({', '.join(family.series)})" for family in FAMILIES)
    raise ValueError(f"nothing generates patients with the series {', '.join(series) or 'none at all'}; there are {there}")
