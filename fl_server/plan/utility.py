"""What Dice studies like this one have reached: measured rows of `utility.csv`, and nothing between or beyond them.

A row is one set of studies that were run with several seeds: epsilon (`none` for no privacy), patients per site, sites, whether
their noise was shared by secure aggregation, mean Dice, its standard deviation over seeds, how many seeds, and where it comes
from. Where no row is near, that is the answer.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

NEAR_EPSILON, NEAR_PATIENTS, NEAR_SITES = 1.5, 1.5, 2.0
"""A row is near if its figures differ by no more than these factors."""

_COLUMNS = ("epsilon", "patients", "sites", "secure", "dice", "sd", "seeds", "source")
_WORDS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class Row(NamedTuple):
    """One line of the table."""

    epsilon: float  # infinite without privacy
    patients: int  # of each site
    sites: int
    secure: bool
    dice: float
    sd: float
    seeds: int
    source: str


@dataclass(frozen=True)
class Nearest:
    """The measured row nearest to a plan, or none and why."""

    row: Row | None
    words: str


def table(lines: Iterable[str] | None = None) -> tuple[Row, ...]:
    """The rows of a CSV, by default those that konsil brings. Raises `ValueError` naming the line that isn't right."""
    given = (files("fl_server.plan") / "utility.csv").read_text().splitlines() if lines is None else list(lines)
    reader = csv.DictReader(given)
    if tuple(reader.fieldnames or ()) != _COLUMNS:
        raise ValueError(
            f"the table of utility has the columns {', '.join(_COLUMNS)}, not {', '.join(reader.fieldnames or ())}"
        )
    rows = []
    for number, line in enumerate(reader, start=2):
        try:
            epsilon = math.inf if line["epsilon"].strip() == "none" else float(line["epsilon"])
            patients, sites, seeds = int(line["patients"]), int(line["sites"]), int(line["seeds"])
            secure, dice, sd = _WORDS[line["secure"].strip().lower()], float(line["dice"]), float(line["sd"] or "nan")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(
                f"line {number} of the table of utility can't be read: {','.join(map(str, line.values()))}"
            ) from None
        rows.append(Row(epsilon, patients, sites, secure, dice, sd, seeds, line["source"]))
    return tuple(rows)


def nearest(rows: Iterable[Row], *, epsilon: float, patients: float, sites: int, secure: bool) -> Nearest:
    """The measured row that is nearest to such a study, if one is near at all; `patients` per site."""
    sums = "shared noise" if secure else "noise at each site"
    asked = f"epsilon {epsilon:g}, {patients:.0f} patients at each of {sites} sites and {sums}"
    measured = tuple(rows)
    if not measured:
        return Nearest(None, f"no Dice is known for {asked}: nothing has been measured into the table of utility yet")
    near = [
        (distance, row)
        for row in measured
        if row.secure == secure and (distance := _distance(row, epsilon=epsilon, patients=patients, sites=sites)) is not None
    ]
    if not near:
        return Nearest(None, f"no Dice is known for {asked}: none of the {len(measured)} measured rows is near")
    row = min(near)[1]
    spread = f" ± {row.sd:.2f}" if math.isfinite(row.sd) else ""
    said = (
        f"Dice {row.dice:.2f}{spread} ({row.seeds} seeds) was measured at epsilon {row.epsilon:g}, {row.patients} patients at "
    )
    return Nearest(row, f"{said}each of {row.sites} sites and {sums}: {row.source}")


def _distance(row: Row, *, epsilon: float, patients: float, sites: int) -> float | None:
    pairs = ((row.epsilon, epsilon, NEAR_EPSILON), (row.patients, patients, NEAR_PATIENTS), (row.sites, sites, NEAR_SITES))
    apart = [abs(math.log(one / other)) / math.log(near) for one, other, near in pairs]
    return math.hypot(*apart) if max(apart) <= 1 + 1e-9 else None
