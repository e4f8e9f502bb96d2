"""What a report consists of, before it is a page: sections of sentences, tables and drawings.

It is composed once and rendered twice, as HTML (`html`) and as PDF (`pdf`), so that both say the same. Texts are plain words;
whatever they hold is shown as it is and never as markup.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fl_server.record import Outcome
from fl_server.report.drawing import Drawing

Kind = Literal["plain", "lead", "fine", "missing", "warning"]
"""How a paragraph is set: `lead` large, `fine` small, `missing` for what can't be told, `warning` for what must be seen."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str
    kind: Kind = "plain"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of words under a head. `shares` are the columns' relative widths; the first `words` columns are set left, and so
    are those in `also`.

    A row of one cell is a heading over those that follow.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    words: int = 1
    also: tuple[int, ...] = ()
    caption: str = ""

    def __post_init__(self) -> None:
        if len(self.head) != len(self.shares) or any(len(row) not in (1, len(self.head)) for row in self.rows):
            raise ValueError(f"the table {self.caption!r} has rows or widths that don't fit its head of {len(self.head)}")


@dataclass(frozen=True)
class Figure:
    """A drawing with a sentence below it; `alt` says to who can't see it what it shows."""

    drawing: Drawing
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """Drawings side by side, as many as there is room for."""

    several: tuple[Figure, ...]


Block: TypeAlias = Text | Bullets | Table | Figure | Figures


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """The whole report. `verdict` and `reasons` are its first lines."""

    title: str
    kicker: str
    outcome: Outcome
    verdict: str
    reasons: tuple[str, ...]
    sections: tuple[Section, ...] = field(default=())
