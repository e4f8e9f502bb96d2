"""A drawing of lines, boxes, circles, words and grey pictures, which becomes SVG in the page and vectors in the PDF.

Units are points, y grows downwards. Colours are names: the page gives them its own shades, for light and dark screens, the PDF
those of `PRINTED`. Hospitals and structures are told apart by marks and the colour-blind safe palette of Okabe and Ito (2008).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, TypeAlias

from fl_server.report.words import printable

PRINTED = {
    "ink": "#17212b",
    "muted": "#55626f",
    "rule": "#d5dce3",
    "panel": "#f5f7f9",
    "paper": "#ffffff",
    "accent": "#0b5c9e",
    "good": "#0f6b58",
    "warn": "#8a5a00",
    "bad": "#a83a10",
    "good-soft": "#e3f1ed",
    "warn-soft": "#fcf1d9",
    "bad-soft": "#fae6dc",
    "reader": "#ffb000",
    "model": "#3fb8ff",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#009e73",
    "series-4": "#b8860b",
    "series-5": "#a9508a",
    "series-6": "#3a9bd1",
    "series-7": "#6b6b6b",
    "series-8": "#7a4a1f",
}
"""Colours by name, as they are on paper."""
SERIES = 8

Anchor = Literal["start", "middle", "end"]
Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Straight pieces through these points; `closed` joins the last to the first, `fill` fills it."""

    points: tuple[Point, ...]
    colour: str | None = "ink"
    width: float = 1.0
    dashed: bool = False
    closed: bool = False
    fill: str | None = None


@dataclass(frozen=True)
class Circle:
    """A filled circle around a centre."""

    x: float
    y: float
    radius: float
    fill: str


@dataclass(frozen=True)
class Word:
    """A line of words whose baseline is at y; `turned` reads upwards."""

    x: float
    y: float
    text: str
    size: float = 9.0
    colour: str = "ink"
    anchor: Anchor = "start"
    bold: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG stretched over a box."""

    x: float
    y: float
    width: float
    height: float
    png: bytes


Shape: TypeAlias = Line | Circle | Word | Picture


class Drawing:
    """A sheet of this size (points) with shapes in the order in which they were drawn."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.shapes: list[Shape] = []

    def line(self, *points: Point, colour: str = "ink", width: float = 1.0, dashed: bool = False) -> None:
        """Straight pieces through these points."""
        self.shapes.append(Line(points, colour, width, dashed))

    def area(self, *points: Point, fill: str | None, edge: str | None = None, width: float = 1.0) -> None:
        """A closed, filled area."""
        self.shapes.append(Line(points, edge, width, closed=True, fill=fill))

    def box(self, x: float, y: float, width: float, height: float, *, fill: str | None, edge: str | None = None) -> None:
        """A rectangle with this upper left corner."""
        self.area((x, y), (x + width, y), (x + width, y + height), (x, y + height), fill=fill, edge=edge)

    def dot(self, x: float, y: float, radius: float, *, fill: str) -> None:
        """A filled circle."""
        self.shapes.append(Circle(x, y, radius, fill))

    def word(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 9.0,
        colour: str = "ink",
        anchor: Anchor = "start",
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """A line of words."""
        self.shapes.append(Word(x, y, text, size, colour, anchor, bold, turned))

    def picture(self, x: float, y: float, width: float, height: float, png: bytes) -> None:
        """A PNG stretched over a box."""
        self.shapes.append(Picture(x, y, width, height, png))

    def mark(self, x: float, y: float, index: int, *, size: float = 2.6) -> None:
        """The mark of the series with this number: shape and colour."""
        fill, s = series(index), size
        if index % 4 == 0:
            self.dot(x, y, s, fill=fill)
        elif index % 4 == 1:
            self.box(x - 0.87 * s, y - 0.87 * s, 1.74 * s, 1.74 * s, fill=fill)
        elif index % 4 == 2:
            self.area((x, y - 1.15 * s), (x + 1.1 * s, y + 0.85 * s), (x - 1.1 * s, y + 0.85 * s), fill=fill)
        else:
            self.area((x, y - 1.3 * s), (x + 1.3 * s, y), (x, y + 1.3 * s), (x - 1.3 * s, y), fill=fill)

    def svg(self, alt: str) -> str:
        """The drawing as an `<svg>` element without ids, namespaces or outside resources."""
        inner = "".join(_svg(shape) for shape in self.shapes)
        box = f"0 0 {self.width:g} {self.height:g}"
        size = f"max-width:{self.width:g}pt"
        return f'<svg viewBox="{box}" role="img" aria-label="{escape(printable(alt))}" style="{size}">{inner}</svg>'


def series(index: int) -> str:
    """Name of the colour of the series with this number."""
    return f"series-{index % SERIES + 1}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within low..high, at most `most` + 1, evenly apart.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = max(high - low, 1e-9)
    power = 10.0
    while power > span:
        power /= 10
    while power * 10 <= span:
        power *= 10
    for part in (0.1, 0.2, 0.5, 1.0, 2.0):
        step = power * part
        if span / step <= most + 1e-9:
            break
    first = int(-(-low // step)) if abs(low / step - round(low / step)) > 1e-9 else round(low / step)
    found = []
    while first * step <= high + 1e-9 * span:
        found.append(round(first * step, 10) + 0.0)
        first += 1
    return found


def place(value: float, domain: Sequence[float], span: Sequence[float]) -> float:
    """Where a value of `domain` lies in `span`, on a straight scale."""
    share = (value - domain[0]) / ((domain[1] - domain[0]) or 1.0)
    return span[0] + share * (span[1] - span[0])


def _colour(name: str | None) -> str:
    return "none" if name is None else f"var(--{name})"


def _svg(shape: Shape) -> str:
    if isinstance(shape, Line):
        path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in shape.points) + ("Z" if shape.closed else "")
        stroke = f' stroke="{_colour(shape.colour)}" stroke-width="{shape.width:g}"' if shape.colour else ""
        dash = ' stroke-dasharray="3.5 2.5"' if shape.dashed else ""
        return f'<path d="{path}" fill="{_colour(shape.fill)}"{stroke}{dash}/>'
    if isinstance(shape, Circle):
        return f'<circle cx="{shape.x:.2f}" cy="{shape.y:.2f}" r="{shape.radius:g}" fill="{_colour(shape.fill)}"/>'
    if isinstance(shape, Picture):
        data = base64.b64encode(shape.png).decode()
        where = f'x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.width:.2f}" height="{shape.height:.2f}"'
        return f'<image {where} preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    turn = f' transform="rotate(-90 {shape.x:.2f} {shape.y:.2f})"' if shape.turned else ""
    bold = ' font-weight="600"' if shape.bold else ""
    return (
        f'<text x="{shape.x:.2f}" y="{shape.y:.2f}" font-size="{shape.size:g}" fill="{_colour(shape.colour)}" '
        f'text-anchor="{shape.anchor}"{bold}{turn}>{escape(printable(shape.text))}</text>'
    )
