"""What Dice studies like this one have reached: measured rows of `utility.csv`, and nothing between or beyond them.

A row is one set of studies that were run with several seeds: the structures (joined by `+`), strategy and trainable parameters,
epsilon, patients per site, sites, whether their noise was shared by secure aggregation, mean Dice, its standard deviation over
seeds, how many seeds, the Dice of the same hospitals without privacy, and where it comes from. `benchmarks/utility.py --csv`
writes them. Where no row is near, that is the answer.
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

_WORDS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class Row(NamedTuple):
    """One line of the table."""

    structures: frozenset[str]
    strategy: str
    trainable: str
    epsilon: float  # infinite without privacy
    patients: int  # of each site
    sites: int
    secure: bool
    dice: float
    sd: float
    seeds: int
    without_privacy: float  # Dice of the same hospitals
    source: str

    @property
    def way(self) -> tuple[str, str]:
        """How it was learned."""
        return self.strategy, self.trainable


@dataclass(frozen=True)
class Learned:
    """What a study learns and how, as far as rows differ in it."""

    structures: frozenset[str]  # none: the task draws no contours
    strategy: str
    trainable: str


@dataclass(frozen=True)
class Nearest:
    """A measured row near to a plan, or none and why."""

    row: Row | None
    words: str


def table(lines: Iterable[str] | None = None) -> tuple[Row, ...]:
    """The rows of a CSV, by default those that konsil brings. Raises `ValueError` naming the line that isn't right."""
    given = (files("fl_server.plan") / "utility.csv").read_text().splitlines() if lines is None else list(lines)
    reader = csv.DictReader(given)
    if tuple(reader.fieldnames or ()) != Row._fields:
        raise ValueError(
            f"the table of utility has the columns {', '.join(Row._fields)}, not {', '.join(reader.fieldnames or ())}"
        )
    rows = []
    for number, line in enumerate(reader, start=2):
        try:
            rows.append(
                Row(
                    structures=frozenset(line["structures"].split("+")),
                    strategy=line["strategy"],
                    trainable=line["trainable"],
                    epsilon=math.inf if line["epsilon"].strip() == "none" else float(line["epsilon"]),
                    patients=int(line["patients"]),
                    sites=int(line["sites"]),
                    secure=_WORDS[line["secure"].strip().lower()],
                    dice=float(line["dice"]),
                    sd=float(line["sd"] or "nan"),
                    seeds=int(line["seeds"]),
                    without_privacy=float(line["without_privacy"] or "nan"),
                    source=line["source"],
                )
            )
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(
                f"line {number} of the table of utility can't be read: {','.join(map(str, line.values()))}"
            ) from None
    return tuple(rows)


def expected(
    rows: Iterable[Row], *, epsilon: float, patients: float, sites: int, secure: bool, learned: Learned | None = None
) -> tuple[Nearest, ...]:
    """Of each task and way to learn the measured row nearest to such a study, the best Dice first; `patients` per site.

    With what is `learned`, rows of other structures don't count, and rows of other ways only if there are none of its own.
    Where nothing is near, the one answer says so.
    """
    sums = "shared noise" if secure else "noise at each site"
    asked = f"epsilon {epsilon:g}, {patients:.0f} patients at each of {sites} sites and {sums}"
    measured = tuple(rows)
    if not measured:
        return (Nearest(None, f"no Dice is known for {asked}: nothing has been measured into the table of utility yet"),)
    if learned is not None:
        if not learned.structures:
            return (Nearest(None, "no Dice: the study draws no contours"),)
        measured = tuple(row for row in measured if row.structures == learned.structures)
        if not measured:
            names = ", ".join(sorted(learned.structures))
            return (Nearest(None, f"no Dice is known: nothing has been measured that learned {names} and nothing else"),)
    best: dict[tuple[frozenset[str], tuple[str, str]], tuple[float, Row]] = {}
    for row in measured:
        apart = _distance(row, epsilon=epsilon, patients=patients, sites=sites)
        key = row.structures, row.way
        if row.secure == secure and apart is not None and (key not in best or apart < best[key][0]):
            best[key] = apart, row
    if not best:
        return (Nearest(None, f"no Dice is known for {asked}: none of the {len(measured)} measured rows is near"),)
    near = sorted((row for _, row in best.values()), key=lambda row: (sorted(row.structures), -row.dice))
    as_asked = [row for row in near if learned is not None and row.way == (learned.strategy, learned.trainable)]
    other_way = learned is not None and not as_asked
    return tuple(Nearest(row, _said(row, sums=sums, other_way=other_way)) for row in as_asked or near)


def _said(row: Row, *, sums: str, other_way: bool) -> str:
    spread = f" ± {row.sd:.3f}" if math.isfinite(row.sd) else ""
    seeds = f"{row.seeds} {'seed' if row.seeds == 1 else 'seeds'}"
    without = f", {row.without_privacy:.3f} without privacy" if math.isfinite(row.without_privacy) else ""
    way = f"strategy {row.strategy} and trainable {row.trainable}"
    not_this = ", which isn't how this study learns" if other_way else ""
    return (
        f"Dice {row.dice:.3f}{spread} ({seeds}{without}) with {way}{not_this}; "
        f"epsilon {row.epsilon:g}, {row.patients} patients at each of {row.sites} sites, {sums}: {row.source}"
    )


def _distance(row: Row, *, epsilon: float, patients: float, sites: int) -> float | None:
    pairs = ((row.epsilon, epsilon, NEAR_EPSILON), (row.patients, patients, NEAR_PATIENTS), (row.sites, sites, NEAR_SITES))
    apart = [abs(math.log(one / other)) / math.log(near) for one, other, near in pairs]
    return math.hypot(*apart) if max(apart) <= 1 + 1e-9 else None
