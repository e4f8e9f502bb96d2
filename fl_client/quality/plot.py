"""A picture of the cohort's quality: a strip of points for each parameter, over its reference range."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from conf.quality import METRICS
from fl_client.quality.reference import OUTLYING, Found, Reference, scores_of, values_of

BAND, POINT, FAR, ONE = "#cfe3d4", "#33658a", "#c1440e", "#f0a202"
GEOMETRY = ("slices", "pixel_mm", "slice_spacing_mm", "slice_gap_mm", "anisotropy")


def quality_plot(
    found: Found, series: str, *, reference: Reference | None = None, highlight: str = "", metrics: tuple[str, ...] = ()
) -> Figure:
    """One strip per parameter of `series`, patients as points; `highlight` is a pseudonym to show.

    Without `metrics`, every one that was measured, geometry left out. The band is the reference range (5th to 95th percentile),
    the bar the cohort's median. Save it with `figure.savefig(file, format="png")`. Raises `ValueError` if there is nothing to
    show.
    """
    wanted = metrics or tuple(metric for metric in METRICS if metric not in GEOMETRY)
    strips = {metric: values for metric in wanted if (values := values_of(found, series, metric))}
    if not strips:
        raise ValueError(f"of series {series} nothing was measured in this cohort")
    figure = Figure(figsize=(7.6, 0.7 * len(strips) + 0.9), layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    ranges = reference.ranges.get(series, {}) if reference else {}
    for axis, (metric, values) in zip(axes, strips.items(), strict=True):
        numbers = np.array(list(values.values()))
        far = np.abs(scores_of(metric, numbers)) > OUTLYING
        if metric in ranges:
            axis.axvspan(ranges[metric].low, ranges[metric].high, color=BAND, lw=0)
        heights = np.random.default_rng(0).uniform(-0.3, 0.3, len(numbers))  # so that equal values can be told apart
        axis.vlines(np.median(numbers), -0.45, 0.45, color=POINT, lw=1.5)
        axis.scatter(numbers[~far], heights[~far], s=14, color=POINT, alpha=0.65, lw=0)
        axis.scatter(numbers[far], heights[far], s=26, color=FAR, marker="D", lw=0)
        if highlight in values:
            axis.scatter(values[highlight], 0, s=70, facecolor="none", edgecolor=ONE, lw=2.2, zorder=3)
        unit = f" [{METRICS[metric].unit}]" if METRICS[metric].unit else ""
        better = {"high": " →", "low": " ←", "": ""}[METRICS[metric].better]
        axis.set_ylabel(f"{metric}{unit}{better}", rotation=0, ha="right", va="center", fontsize=9)
        axis.set(ylim=(-0.5, 0.5), yticks=[])
        axis.tick_params(axis="x", labelsize=8)
        axis.margins(x=0.08)
        axis.spines[["left", "right", "top"]].set_visible(False)
    said = f"{series}: {max(map(len, strips.values()))} patients"
    figure.suptitle(
        said + ("; band: reference range; arrow: the better side" if ranges else "; arrow: the better side"), fontsize=10
    )
    return figure
