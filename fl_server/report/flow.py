"""The cohort flow chart: whom the hospitals expected, let in, refused and lost, and who was trained on and tested.

Boxes below one another with losses at the side, as CONSORT and STARD draw them. A number that nobody told is not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_server.report.charts import FULL
from fl_server.report.drawing import Drawing

LINE = 10.5
STEP, SIDE = 262.0, 200.0  # points: how wide a step's box is, and one at the side
MOST_LINES = 9


@dataclass(frozen=True)
class Step:
    """A box: its heading, lines of detail, and what was lost on the way to the next (heading and lines)."""

    heading: str
    lines: tuple[str, ...] = ()
    lost: str = ""
    lost_lines: tuple[str, ...] = ()


def flow(steps: Sequence[Step], ends: Sequence[Step] = ()) -> Drawing:
    """Steps from top to bottom; `ends` stand side by side below the last."""
    width, side, gap = STEP, SIDE, 24.0
    heights = [_height(step.heading, step.lines) for step in steps]
    losses = [_height(step.lost, step.lost_lines) if step.lost else 0.0 for step in steps]
    gaps = [max(gap, loss + 14) if loss else gap for loss in losses]
    tail = max((_height(end.heading, end.lines) for end in ends), default=0.0)
    drawn = Drawing(FULL, sum(heights) + sum(gaps[: len(steps) - (0 if ends else 1)]) + tail + 2)
    y = 1.0
    for i, step in enumerate(steps):
        _box(drawn, 0, y, width, heights[i], step.heading, step.lines)
        y += heights[i]
        last = i == len(steps) - 1
        if last and not ends:
            break
        middle = y + gaps[i] / 2
        _arrow(drawn, width / 2, y, y + gaps[i])
        if step.lost:
            drawn.line((width / 2, middle), (FULL - side - 5, middle), colour="muted", width=0.9)
            _head(drawn, FULL - side, middle, sideways=True)
            _box(drawn, FULL - side, middle - losses[i] / 2, side, losses[i], step.lost, step.lost_lines, pale=True)
        y += gaps[i]
    if ends:
        each = (FULL - 12.0 * (len(ends) - 1)) / len(ends)
        if len(ends) > 1:
            centres = [each * (i + 0.5) + 12.0 * i for i in range(len(ends))]
            bar = y - 12
            drawn.line((min(*centres, width / 2), bar), (max(*centres, width / 2), bar), colour="muted", width=0.9)
            for centre in centres:
                _arrow(drawn, centre, bar, y)
        for i, end in enumerate(ends):
            _box(drawn, (each + 12.0) * i, y, each, tail, end.heading, end.lines)
    return drawn


def _height(heading: str, lines: Sequence[str]) -> float:
    return 12 + LINE * (1 + len(_shown(lines)))


def _shown(lines: Sequence[str]) -> list[str]:
    """No more lines than a box may have."""
    if len(lines) <= MOST_LINES:
        return list(lines)
    return [*lines[: MOST_LINES - 1], f"and {len(lines) - MOST_LINES + 1} more, in the table"]


def packed(names: Sequence[str], width: float) -> tuple[str, ...]:
    """Words one after another in as few lines as fit a box of this width, with commas between them.

    >>> packed(["north 10", "south 12"], 200.0)
    ('north 10, south 12',)
    """
    most, lines = int((width - 12) / 4.4), [""]
    for i, name in enumerate(names):
        text = name + ("," if i < len(names) - 1 else "")
        if lines[-1] and len(lines[-1]) + 1 + len(text) > most:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + text
    return tuple(line for line in lines if line)


def _box(
    drawn: Drawing, x: float, y: float, width: float, height: float, heading: str, lines: Sequence[str], *, pale: bool = False
) -> None:
    drawn.box(x, y, width, height, fill="paper" if pale else "panel", edge="muted")
    drawn.word(x + 7, y + 14, _cut(heading, width, 5.2), size=8.5, bold=True)
    for i, line in enumerate(_shown(lines)):
        drawn.word(x + 7, y + 14 + LINE * (i + 1), _cut(line, width, 4.4), size=7.8, colour="muted")


def _cut(text: str, width: float, letter: float) -> str:
    most = int((width - 12) / letter)
    return text if len(text) <= most else text[: most - 1] + "…"


def _arrow(drawn: Drawing, x: float, top: float, bottom: float) -> None:
    drawn.line((x, top), (x, bottom - 5), colour="muted", width=0.9)
    _head(drawn, x, bottom, sideways=False)


def _head(drawn: Drawing, x: float, y: float, *, sideways: bool) -> None:
    if sideways:
        drawn.area((x, y), (x - 5, y - 3), (x - 5, y + 3), fill="muted")
    else:
        drawn.area((x, y), (x - 3, y - 5), (x + 3, y - 5), fill="muted")
