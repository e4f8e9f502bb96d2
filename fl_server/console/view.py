"""The live view of a study: rounds, hospitals, who is awaited, scores, epsilon, time left and the verdict so far.

One picture becomes one screen that fits the terminal; of many hospitals those are shown that somebody would look for: whoever
is awaited, and whose latest answers were not used. In a terminal without Unicode, marks are letters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from fl_server.console.picture import LAST, RUNNING, Picture, SitePicture
from fl_server.console.words import ends, judged, scored, spoken

MARKS = {
    "used": ("●", "u", "green"),
    "declined": ("–", "d", "yellow"),
    "failed": ("✗", "f", "red"),
    "quarantined": ("!", "q", "red"),
    "late": ("…", "l", "yellow"),
    "absent": ("○", "a", "yellow"),
}
"""Answer -> mark, letter where there is no Unicode, colour."""

COLOUR = {"complete": "green", "degraded": "yellow", "failed": "red"}
BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
WIDEST_SPARK = 40
HEAD_LINES = 9
"""Lines of the view without hospitals, scores and reasons."""
SHOWN_REASONS = 3
FEWEST_SITES = 3
NARROW = 76
"""Columns below which the bar of epsilon is left out and fewer rounds are shown."""


class View:
    """One picture as rich draws it."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The screen."""
        plain = options.ascii_only
        picture, room = self.picture, (options.height or console.height or 24)
        scores = list(_scores(picture, plain=plain))[: max(1, room // 4)]
        reasons = list(_reasons(picture))
        left = room - HEAD_LINES - len(scores) - len(reasons)
        yield Group(
            _title(picture),
            _bar(picture, width=min(60, options.max_width), plain=plain),
            _where(picture),
            Text(),
            _sites(picture, most=max(FEWEST_SITES, left), narrow=options.max_width < NARROW, plain=plain),
            *scores,
            _verdict(picture),
            *reasons,
            _legend(picture, plain=plain),
        )


def spark(values: Sequence[float], *, plain: bool = False, width: int = WIDEST_SPARK) -> str:
    """Numbers as a row of blocks, the lowest as the lowest; of many the latest.

    >>> spark([0.0, 0.5, 1.0])
    '▁▅█'
    """
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    latest = list(values)[-width:]
    low, high = min(latest), max(latest)
    if high <= low:
        return blocks[len(blocks) // 2] * len(latest)
    return "".join(blocks[round((value - low) / (high - low) * (len(blocks) - 1))] for value in latest)


def _title(picture: Picture) -> Text:
    run = f"  run {picture.run}" if picture.run is not None else ""
    return Text.assemble((picture.name, "bold"), f"  {picture.study_hash[:12]}{run}", no_wrap=True, overflow="crop")


def _where(picture: Picture) -> Text:
    parts = [f"{picture.ended_rounds} of {picture.rounds} rounds"]
    if picture.left_s is not None and picture.state in RUNNING:
        parts.append(f"about {spoken(picture.left_s)} left")
    if picture.deadline_s is not None:
        parts.append(f"{ends(picture)} in {spoken(picture.deadline_s)} at the latest")
    if picture.interruptions:
        parts.append(f"went on after {picture.interruptions} interruption(s)")
    text = Text(", ".join(parts))
    return text.append(f"\n{picture.said}", style="" if picture.state in RUNNING else "bold")


def _bar(picture: Picture, *, width: int, plain: bool) -> Text:
    """The rounds that are over, out of all."""
    full, empty = ("#", ".") if plain else ("━", "╌")
    filled = round(width * picture.ended_rounds / max(1, picture.rounds))
    return Text().append(full * filled, style="cyan").append(empty * (width - filled), style="dim")


def _reasons(picture: Picture) -> Iterator[Text]:
    """Why somebody is waited for, if a person has to do something, and why the verdict is what it is."""
    reasons = [f"{name} does not take part: {why}" for name, why in picture.missing.items()] + picture.reasons
    shown = reasons if len(reasons) <= SHOWN_REASONS else reasons[: SHOWN_REASONS - 1]
    for reason in shown:
        yield Text(f"  {reason}", style="yellow", no_wrap=True, overflow="crop")
    if rest := len(reasons) - len(shown):
        yield Text(f"  and {rest} more: konsil-study status {picture.name}", style="dim", no_wrap=True, overflow="crop")


def _verdict(picture: Picture) -> Text:
    colour = COLOUR.get(picture.verdict or "", "")
    return Text.assemble("verdict: ", (judged(picture), f"bold {colour}".strip()))


def _legend(picture: Picture, *, plain: bool) -> Text:
    shown = [kind for kind in MARKS if kind == "used" or any(kind in site.last for site in picture.sites.values())]
    marks = "  ".join(f"{MARKS[kind][1 if plain else 0]} {kind}" for kind in shown)
    return Text(
        f"{marks}; epsilon is that of each hospital's whole ledger, as it last told", style="dim", no_wrap=True, overflow="crop"
    )


def _sites(picture: Picture, *, most: int, narrow: bool, plain: bool) -> Table:
    table = Table(box=None, pad_edge=False, expand=False, header_style="dim")
    price = "epsilon" if picture.promise is None else f"epsilon (promise {picture.promise:g})"
    for heading in ("hospital", "latest rounds", "now", price):
        table.add_column(heading, no_wrap=True, overflow="crop", min_width=16 if heading == "now" else None)
    shown = _worth_a_line(picture, most)
    for name in shown:
        site = picture.sites[name]
        marks = _marks(site, count=8 if narrow else LAST, plain=plain)
        table.add_row(Text(name), marks, _now(site), _epsilon(site, picture.promise, bar=not narrow, plain=plain))
    if rest := len(picture.sites) - len(shown):
        table.add_row(Text(f"and {rest} more", style="dim"), Text(), Text(), Text())
    return table


def _worth_a_line(picture: Picture, most: int) -> list[str]:
    """The hospitals that fit, in the study's order: who is awaited and who was missing before those of whom all is well."""
    names = list(picture.sites)
    if len(names) <= most:
        return names

    def rank(name: str) -> tuple[bool, bool, float]:
        site = picture.sites[name]
        return (site.awaited_s is None, not site.last or site.last[-1] == "used", -sum(a != "used" for a in site.last))

    kept = set(sorted(names, key=rank)[: most - 1])
    return [name for name in names if name in kept]


def _marks(site: SitePicture, *, count: int, plain: bool) -> Text:
    text = Text()
    for answer in site.last[-count:]:
        mark, letter, colour = MARKS[answer]
        text.append(letter if plain else mark, style=colour)
    return text


def _now(site: SitePicture) -> Text:
    if site.awaited_s is not None:
        return Text(f"awaited {spoken(site.awaited_s)}", style="bold cyan")
    return Text(f"took {spoken(site.seconds)}" if site.seconds is not None else "", style="dim")


def _epsilon(site: SitePicture, promise: float | None, *, bar: bool, plain: bool) -> Text:
    if promise is None:
        return Text("no privacy", style="dim")
    if site.epsilon is None:
        return Text("not told yet", style="dim")
    over = site.epsilon > promise
    text = Text(f"{site.epsilon:5.2f} ", style="yellow" if over else "")
    if bar:
        full, empty = ("#", ".") if plain else ("━", "╌")
        filled = max(0, min(12, round(12 * site.epsilon / promise)))
        text.append(full * filled, style="yellow" if over else "cyan").append(empty * (12 - filled), style="dim")
    return text


def _scores(picture: Picture, *, plain: bool) -> list[Text]:
    found = []
    widest = max(map(len, picture.scores), default=0)
    for name, values in picture.scores.items():
        numbers = [value for _, value in values]
        best = max(values, key=lambda pair: pair[1])
        row = Text(f"{name:<{widest}}  ", no_wrap=True, overflow="crop").append(spark(numbers, plain=plain), style="cyan")
        found.append(row.append(f"  {numbers[-1]:.3f}, best {best[1]:.3f} in round {best[0]}"))
    return [*found, *(Text(f"{line} in the end") for line in scored(picture.final_scores))]
