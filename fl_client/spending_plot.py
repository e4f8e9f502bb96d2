"""The account of a ledger as a picture: how epsilon rose, and how much of the budget each study has taken.

Above, epsilon over time, against the line that it may not cross. Below, the whole budget as one bar in the measure that adds
up: what each study took, by kind, what a proposed one would take, and what is left.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fl_client.spending import Spending

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = ("#0b5c9e", "#c26a12", "#2f8f72", "#8a4f9e", "#a83a10", "#5b7f1e", "#b03a6f")
_OTHERS, _INK, _MUTED, _RULE = "#7b8794", "#17212b", "#55626f", "#d5dce3"
_LONGEST = 22  # letters of a study's name


def spending_plot(account: Spending) -> Figure:
    """The figure."""
    from matplotlib.figure import Figure  # here: matplotlib takes a second to import

    rows = _rows(account)
    height = 4.6 + 0.27 * len(rows)
    figure = Figure(figsize=(9.0, height), layout="constrained", facecolor="white")
    above, bar, below = figure.subplots(3, 1, height_ratios=[3.0, 0.42, 0.35 + 0.27 * len(rows)])
    figure.get_layout_engine().set(h_pad=0.09, w_pad=0.12)  # type: ignore[union-attr, call-arg]
    figure.suptitle(
        f"What the patients' data of {account.hospital} have cost",
        x=0.012,
        ha="left",
        fontsize=13,
        fontweight="bold",
        color=_INK,
    )
    _draw_course(above, account)
    _draw_bar(bar, account, rows)
    _draw_legend(below, rows)
    return figure


def _rows(account: Spending) -> list[tuple[str, str, float, str]]:
    """Color, name, share of the budget and a remark: the largest studies, the others as one, the proposed one, what is left."""
    largest = sorted(account.studies, key=lambda one: -one.share)[: len(_COLORS)]
    shown = [one for one in account.studies if one in largest]
    rows = []
    for color, one in zip(_COLORS, shown, strict=False):
        kinds = ", ".join(f"{_named(kind.kind, kind.releases)} {_percent(kind.share)}" for kind in one.kinds)
        remark = kinds if len(one.kinds) > 1 else _named(one.kinds[0].kind, one.kinds[0].releases)
        rows.append((color, _short(one.name), one.share, f"{remark}; alone epsilon {_number(one.epsilon)}"))
    others = [one for one in account.studies if one not in largest]
    if others:
        rows.append((_OTHERS, f"{len(others)} more", sum(one.share for one in others), "konsil-site ledger names them"))
    if account.proposed is not None:
        plan = account.proposed
        verdict = "the ledger would refuse it" if plan.refused else f"epsilon would stand at {_number(plan.after)}"
        rows.append(
            ("proposed", f"{_short(plan.name)} (proposed)", plan.share, f"{verdict}; alone epsilon {_number(plan.alone)}")
        )
    taken = account.used + (account.proposed.share if account.proposed else 0.0)
    rows.append(("left", "left", max(0.0, 1 - taken), "for studies to come"))
    return rows


def _draw_course(axes: Any, account: Spending) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    color = {row_name: row_color for row_color, row_name, _, _ in _rows(account)}
    of_study = {one.study or one.name: color.get(_short(one.name), _OTHERS) for one in account.studies}
    times = [datetime.fromisoformat(time) for time, _, _ in account.course]
    heights = [height for _, _, height in account.course]
    start = times[0] if times else datetime.now(UTC)
    span = max((times[-1] - start) if times else timedelta(0), timedelta(minutes=10))
    end = (times[-1] if times else start) + 0.06 * span
    before = 0.0
    for number, (_, of, height) in enumerate(account.course):
        until = times[number + 1] if number + 1 < len(times) else end
        shade = of_study.get(of, _OTHERS)
        axes.fill_between([times[number], end], [before] * 2, [height] * 2, color=shade, alpha=0.22, linewidth=0)
        axes.plot([times[number], until], [height] * 2, color=_MUTED, linewidth=1.2, solid_capstyle="butt")
        axes.plot([times[number]] * 2, [before, height], color=shade, linewidth=3, solid_capstyle="butt")
        before = height
    top = max([account.budget, *heights, *([account.proposed.after] if account.proposed else [])])
    top = account.budget if not math.isfinite(top) else top
    axes.axhline(account.budget, color=_INK, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.annotate(
        f"the hospital's budget: {account.budget:g}", (0, account.budget), xycoords=("axes fraction", "data"),
        xytext=(4, 4), textcoords="offset points", fontsize=9, color=_INK,
    )  # fmt: skip
    if heights:
        axes.annotate(
            f"now {_number(account.epsilon if not account.bare else heights[-1])}", (end, heights[-1]), xytext=(-2, 5),
            textcoords="offset points", fontsize=10, fontweight="bold", color=_INK, ha="right",
        )  # fmt: skip
    if account.proposed is not None and math.isfinite(account.proposed.after) and not account.bare:
        after = account.proposed.after
        axes.plot([end, end + 0.08 * span], [heights[-1] if heights else 0.0, after], color=_INK, linewidth=1.4, linestyle=":")
        axes.plot([end + 0.08 * span], [after], marker="o", color=_INK, markersize=4)
        axes.annotate(
            f"with {_short(account.proposed.name)} {_number(after)}", (end + 0.08 * span, after), xytext=(-6, 5),
            textcoords="offset points", fontsize=9, color=_INK, ha="right",
        )  # fmt: skip
        end = end + 0.1 * span
    axes.set_xlim(start - 0.02 * span, end)
    axes.set_ylim(0, 1.14 * top)
    if not account.course:
        axes.text(0.5, 0.4, "nothing has been released", transform=axes.transAxes, ha="center", color=_MUTED)
        axes.set_xticks([])
    else:
        locator: Any = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_ylabel(f"epsilon, at delta {account.delta:g}", color=_MUTED, fontsize=9)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_RULE)


def _draw_bar(axes: Any, account: Spending, rows: list[tuple[str, str, float, str]]) -> None:
    begin = 0.0
    for color, _, share, _ in rows:
        share = min(share, max(0.0, 1.0 - begin)) if math.isfinite(share) else 1.0 - begin
        style = _style(color)
        axes.barh([0], [share], left=[begin], height=1.0, **style)
        if share > 0.06:
            dark = color not in ("left", "proposed")
            text = axes.text(begin + share / 2, 0, _percent(share), ha="center", va="center", fontsize=9)
            text.set_color("white" if dark else _INK)
            if color == "proposed":
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        begin += share
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(
        "The budget, in the measure that adds up (squares of sensitivity over noise)", loc="left", fontsize=9, color=_MUTED
    )


def _draw_legend(axes: Any, rows: list[tuple[str, str, float, str]]) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows), -0.2)
    axes.axis("off")
    for number, (color, name, share, remark) in enumerate(rows):
        axes.barh([number + 0.45], [0.016], height=0.55, **_style(color))
        axes.text(0.026, number + 0.45, name, va="center", fontsize=9, color=_INK, fontweight="bold")
        axes.text(0.325, number + 0.45, _percent(share), va="center", ha="right", fontsize=9, color=_INK)
        axes.text(0.345, number + 0.45, remark, va="center", fontsize=9, color=_MUTED)


def _style(color: str) -> dict[str, Any]:
    if color == "left":
        return {"color": "#eef1f4", "edgecolor": _RULE, "linewidth": 0.8}
    if color == "proposed":
        return {"color": "white", "edgecolor": _INK, "hatch": "////", "linewidth": 0.8}
    return {"color": color, "edgecolor": "white", "linewidth": 0.8}


def _named(kind: str, releases: int) -> str:
    """`12 rounds` for the commonest kind, which the ledger calls gradient."""
    if kind == "gradient":
        return f"{releases} {'round' if releases == 1 else 'rounds'}"
    return f"{releases} x {kind}" if releases > 1 else kind


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "all"
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _number(epsilon: float) -> str:
    return "infinite" if math.isinf(epsilon) else f"{epsilon:.3g}"


def _short(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST // 2]}…{name[-(_LONGEST // 2 - 1) :]}"
