"""The feature map: radiomic and clinical columns of many segments or patients as one clustered heat map.

Rows and columns that are alike stand together (hierarchical clustering, Ward 1963, as in Eisen et al. 1998, PNAS 95:14863),
so that a block of colour is a pattern, and the lanes beside it say whether that pattern is a disease or a hospital.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from scipy.cluster import hierarchy

from simulation.report.drawing import ACCENT, INK, MUTED, RULE, colour, svg
from simulation.report.lenient import Floats, mapping, number, numbers, text, texts
from simulation.report.radiomics_figures import PLAIN_TEXT

MOST_ROWS = 400
MOST_NAMES = 90
"""Columns whose names can still be read beside one another."""
LIMIT = 3.0
"""Standard deviations at the ends of the colours."""
COLOURS, MISSING = "RdBu_r", "#868d94"
"""Blue below and red above the mean, which all kinds of colour vision tell apart; grey is in neither half."""

TREE, LANE, LEFT, WIDTH = 0.7, 0.15, 1.15, 10.6  # inches


@dataclass(frozen=True)
class FeatureMap:
    """The rows that are shown, in the order given; NaN is a missing value."""

    columns: list[str]
    values: Floats  # (rows, columns) z-scores
    hospital: list[str]  # (rows,)
    positive: Floats  # (rows,) 0 or 1, NaN where unknown
    rows_known: int
    columns_empty: int

    @property
    def hospitals(self) -> list[str]:
        """Every hospital that has a row."""
        return list(dict.fromkeys(name for name in self.hospital if name))


def feature_map(data: object) -> FeatureMap | None:
    """What radiomics.json holds under `feature_map`, thinned evenly to `MOST_ROWS` rows; None with nothing to cluster."""
    entry = mapping(data)
    columns = texts(entry.get("columns"))
    given = entry.get("values")
    rows = [numbers(row) for row in given] if isinstance(given, list) else []
    if any(len(row) != len(columns) for row in rows):
        return None
    kept = np.unique(np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).astype(int)) if rows else np.zeros(0, int)
    values = np.array([rows[i] for i in kept]).reshape(len(kept), len(columns))
    filled = np.isfinite(values).any(axis=0)
    if len(kept) < 2 or filled.sum() < 2:
        return None
    hospital, positive = entry.get("row_hospital"), entry.get("row_positive")
    hospital = hospital if isinstance(hospital, list) and len(hospital) == len(rows) else [""] * len(rows)
    positive = positive if isinstance(positive, list) and len(positive) == len(rows) else [None] * len(rows)
    return FeatureMap(
        columns=[name for name, some in zip(columns, filled, strict=True) if some],
        values=values[:, filled],
        hospital=[text(hospital[i]) for i in kept],
        positive=np.array([number(positive[i]) for i in kept]),
        rows_known=len(rows),
        columns_empty=int((~filled).sum()),
    )


def drawn(shown: FeatureMap, *, names: Sequence[str], clinical: Sequence[bool], sites: Sequence[str], alt: str) -> Markup:
    """Trees, lanes and colours. `names` and `clinical` belong to the columns; a hospital's colour is its place in `sites`."""
    row_tree, rows = _tree(shown.values)
    column_tree, columns = _tree(shown.values.T)
    lanes = [name for name in sites if name in shown.hospitals]
    named = len(columns) <= MOST_NAMES
    foot = 0.3 + 0.075 * max((len(names[c]) for c in columns), default=0) if named else 0.9
    body = float(np.clip(len(rows) * 0.02, 2.6, 6.4))
    height = TREE + body + max(foot, 1.0) + 0.1
    side = LANE * (len(lanes) + 1) + 0.12
    main = (LEFT + side, max(foot, 1.0), WIDTH - LEFT - side - 0.1, body)
    with mpl.rc_context(PLAIN_TEXT):
        figure = Figure(figsize=(WIDTH, height))

        def place(left: float, bottom: float, width: float, tall: float) -> Axes:
            return figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, tall / height))

        axes = place(*main)
        colours = mpl.colormaps[COLOURS].with_extremes(bad=MISSING)
        scale = ScalarMappable(Normalize(-LIMIT, LIMIT, clip=True), colours)
        ordered = np.ma.masked_invalid(shown.values[np.ix_(rows, columns)])
        axes.imshow(scale.to_rgba(ordered, bytes=True), aspect="auto", interpolation="none")
        axes.set(xticks=range(len(columns)) if named else [], yticks=[])
        if named:
            size = 9.5 if len(columns) <= 45 else 7
            axes.set_xticklabels([("◆ " if clinical[c] else "") + names[c] for c in columns], rotation=90, fontsize=size)
            for label, c in zip(axes.get_xticklabels(), columns, strict=True):
                label.set_color(ACCENT if clinical[c] else INK)
        _bare(axes)
        above = place(main[0], main[1] + body + 0.04, main[2], TREE - 0.06)
        _branches(above, column_tree, len(columns), sideways=False)
        left = place(0.02, main[1], LEFT - 0.08, body)
        _branches(left, row_tree, len(rows), sideways=True)
        lane = place(LEFT, main[1], side - 0.08, body)
        _lanes(lane, shown, rows, lanes, sites)
        bar = figure.colorbar(
            scale, cax=place(0.06, 0.62, LEFT - 0.2, 0.12), orientation="horizontal", ticks=[-LIMIT, 0, LIMIT]
        )
        bar.outline.set_visible(False)
        bar.ax.set_xticklabels([f"−{LIMIT:g}", "0", f"+{LIMIT:g}"], fontsize=9, color=MUTED)
        bar.ax.set_title("z-score", fontsize=9, fontweight="normal", color=MUTED, pad=4)
        return svg(figure, alt)


def _tree(values: Floats) -> tuple[dict[str, Any], npt.NDArray[np.intp]]:
    """Ward's tree over the rows, a missing value counting as the mean, and the order of its leaves."""
    linked = hierarchy.linkage(np.nan_to_num(values), method="ward")
    tree = hierarchy.dendrogram(linked, no_plot=True)
    return tree, np.array(tree["leaves"], dtype=np.intp)


def _branches(axes: Axes, tree: dict[str, Any], leaves: int, *, sideways: bool) -> None:
    """The tree's lines; scipy puts leaf k at 5 + 10 k. Heights as square roots, or the last joins would hide all others."""
    corners = []
    for along, up in zip(tree["icoord"], tree["dcoord"], strict=True):
        points = np.column_stack([along, np.sqrt(up)])
        corners.append(Path(points[:, ::-1] if sideways else points))
    axes.add_patch(
        PathPatch(Path.make_compound_path(*corners), facecolor="none", edgecolor=MUTED, linewidth=0.3 if leaves > 100 else 0.7)
    )
    top = np.sqrt(max(max(up) for up in tree["dcoord"])) * 1.03 or 1.0
    if sideways:
        axes.set(xlim=(top, 0), ylim=(10 * leaves, 0))
    else:
        axes.set(xlim=(0, 10 * leaves), ylim=(0, top))
    axes.set_axis_off()


def _lanes(axes: Axes, shown: FeatureMap, rows: npt.NDArray[np.intp], lanes: list[str], sites: Sequence[str]) -> None:
    """One lane per hospital, so that place tells as much as colour, and one in which positive rows are dark."""
    for i, name in enumerate(lanes):
        _fields(axes, i, [shown.hospital[r] == name for r in rows], colour(list(sites).index(name)))
    _fields(axes, len(lanes) + 0.25, [shown.positive[r] == 1 for r in rows], INK)
    _fields(axes, len(lanes) + 0.25, [shown.positive[r] == 0 for r in rows], RULE)
    axes.set(xlim=(0, len(lanes) + 1.25), ylim=(len(rows), 0), yticks=[])
    axes.set_xticks([i + 0.5 for i in range(len(lanes))] + [len(lanes) + 0.75], [*lanes, "positive"], rotation=90, fontsize=9.5)
    _bare(axes)


def _fields(axes: Axes, left: float, present: Sequence[bool], fill: str) -> None:
    boxes = [
        Path([(left + 0.06, y), (left + 0.94, y), (left + 0.94, y + 1), (left + 0.06, y + 1), (left + 0.06, y)], closed=True)
        for y, here in enumerate(present)
        if here
    ]
    if boxes:
        axes.add_patch(PathPatch(Path.make_compound_path(*boxes), facecolor=fill, edgecolor="none"))


def _bare(axes: Axes) -> None:
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
