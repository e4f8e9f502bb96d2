"""The parts of a radiomics report that look inside: bull's eyes, feature map, importance, single predictions, scanners."""

from __future__ import annotations

from math import isfinite, nan
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from simulation.report import feature_map, radiomics_bars
from simulation.report.bullseye import SEGMENTS, bullseye
from simulation.report.drawing import STYLE, svg
from simulation.report.lenient import mapping, mappings, number, numbers, text, texts
from simulation.report.radiomics_arms import estimate, spoken
from simulation.report.radiomics_charts import Chart
from simulation.report.radiomics_results import Findings
from simulation.report.radiomics_words import feature, quantity, shortened
from simulation.report.words import count
from simulation.report.words import number as said

MOST_COLUMNS, MOST_PARTS, MOST_PREDICTIONS, MOST_BOXES = 12, 8, 6, 6
"""Bars per chart, parts per prediction, predictions, and columns shown by scanner; the page says what it leaves out."""
PROBABILITY, UNCERTAINTY = "viridis", "cividis"
EYES = (
    ("truth", "Truth (1: positive)", 0, PROBABILITY),
    ("prediction", "Predicted probability, %", 0, PROBABILITY),
    ("uncertainty", "Uncertainty of the prediction", 2, UNCERTAINTY),
)
PERCENT = 100.0
"""Two digits stand larger in a segment than 0.98 would."""


def eyes(findings: Findings) -> list[dict[str, Any]]:
    """One block per patient, best first, and one of the means: title, charts, and what the reader said."""
    blocks = mappings(findings.data.get("bullseye"))
    order = {"best": 0, "median": 1, "worst": 2}
    blocks = sorted(blocks, key=lambda block: order.get(text(block.get("which")), 3))
    known = [v for block in blocks for v in _eye(block.get("uncertainty")) if isfinite(v)]
    top = max(known, default=1.0)
    found = []
    for block in blocks:
        which = text(block.get("which")) or "patient"
        who = " · ".join(filter(None, (text(block.get("hospital")), text(block.get("patient")))))
        charts = _row(block, f"{which} patient", top if top > 0 else 1.0)
        if charts:
            found.append(
                {"title": which.capitalize(), "who": who, "charts": charts, "reader": _reader(block, findings.certain_from)}
            )
    mean = mapping(findings.data.get("bullseye_mean"))
    if charts := _row(mean, "mean of all patients", 1.0):
        found.append({"title": "Mean of all patients", "who": "", "charts": charts, "reader": ""})
    return found


def _row(block: dict[str, Any], whose: str, top: float) -> list[Markup]:
    drawn = []
    for key, title, digits, colours in EYES:
        values = _eye(block.get(key))
        if any(map(isfinite, values)):
            if whose.startswith("mean") and key == "truth":
                title = "Patients positive, %"
            percent = title.endswith("%")
            values = [PERCENT * value for value in values] if percent else values
            high = PERCENT if percent else top if key == "uncertainty" else 1.0
            drawn.append(_bullseye(values, title, digits, colours, high, whose))
    return drawn


def _bullseye(values: list[float], title: str, digits: int, colours: str, top: float, whose: str) -> Markup:
    told = ", ".join(f"{k} {said(value, digits)}" for k, value in enumerate(values, start=1))
    with mpl.rc_context(STYLE):  # while it is written, too: ids are drawn from the salt in it
        figure = bullseye(values, title=title, limits=(0.0, top), digits=digits, colours=colours)
        return svg(figure, f"Bull's eye of the {whose}, {title.lower()} by segment: {told}.")


def _reader(block: dict[str, Any], certain_from: float) -> str:
    """Where the reader's call differs from the truth, and how certain the reader was."""
    truth, call, certainty = (_eye(block.get(key)) for key in ("truth", "call", "certainty"))
    parts = []
    both = [k for k in range(SEGMENTS) if isfinite(truth[k]) and isfinite(call[k])]
    if both:
        other = [str(k + 1) for k in both if truth[k] != call[k]]
        where = f"segment{'s' if len(other) > 1 else ''} {', '.join(other)} otherwise" if other else "every segment as it is"
        parts.append(f"The reader called {where}")
    graded = [(k, c) for k, c in enumerate(certainty, start=1) if isfinite(c)]
    if graded:
        low = [str(k) for k, c in graded if c < certain_from]
        grade = f"unsure (certainty below {certain_from:g})"
        unsure = f"{grade} about {', '.join(low)}" if low else f"nowhere {grade}"
        parts.append(f"was {unsure}" if parts else f"The reader was {unsure}")
    return " and ".join(parts) + "." if parts else ""


def _eye(values: object) -> list[float]:
    found = list(numbers(values))
    return found if len(found) == SEGMENTS else [nan] * SEGMENTS


def feature_maps(findings: Findings) -> dict[str, Any] | None:
    """The heat map, and how much of the table it shows."""
    shown = feature_map.feature_map(findings.data.get("feature_map"))
    if shown is None:
        return None
    clinical = set(findings.columns("clinical"))
    sites = list(dict.fromkeys([*findings.sites, *shown.hospitals]))
    rows = len(shown.values)
    alt = (
        f"Clustered heat map of {rows} {findings.unit}s and {len(shown.columns)} columns; z-scores from −3 (blue) to +3 (red)."
    )
    drawing = feature_map.drawn(
        shown,
        names=[shortened(feature(name), 40) for name in shown.columns],
        clinical=[name in clinical for name in shown.columns],
        sites=sites,
        alt=alt,
    )
    return {
        "chart": drawing,
        "shown": rows,
        "known": shown.rows_known,
        "columns": len(shown.columns),
        "empty": shown.columns_empty,
        "named": len(shown.columns) <= feature_map.MOST_NAMES,
        "hospitals": [(sites.index(name), name) for name in sites if name in shown.hospitals],
        "clinical": any(name in clinical for name in shown.columns),
        "missing": bool(np.isnan(shown.values).any()),
    }


def importances(findings: Findings) -> list[Markup]:
    """Permutation importance by arm, the largest first."""
    drawn = []
    for key, given in mapping(findings.data.get("importance")).items():
        rows = [(text(r.get("column")), number(r.get("mean")), number(r.get("sd"))) for r in mappings(given)]
        rows = sorted((row for row in rows if isfinite(row[1])), key=lambda row: -row[1])[:MOST_COLUMNS]
        if rows:
            label = findings.arms[key].label if key in findings.arms else spoken(key)
            told = "; ".join(f"{feature(name)} {said(mean, 4)}" for name, mean, _ in rows)
            drawn.append(
                radiomics_bars.importance(
                    shortened(label, 44),
                    [(shortened(feature(name)), mean, sd) for name, mean, sd in rows],
                    unit="loss of AUC when shuffled (bar: 1 SD)",
                    alt=f"Permutation importance, {label}: {told}.",
                )
            )
    return drawn


def predictions(findings: Findings) -> tuple[list[tuple[Markup, str]], int]:
    """Single predictions in parts (chart, whose), and how many more there are."""
    drawn: list[tuple[Markup, str]] = []
    left_out = 0
    for entry in mappings(findings.data.get("shapley")):
        base, prediction = number(entry.get("base")), number(entry.get("prediction"))
        parts = [
            (text(v.get("column")), number(v.get("value")), number(v.get("shapley"))) for v in mappings(entry.get("values"))
        ]
        parts = sorted((part for part in parts if isfinite(part[2])), key=lambda part: -abs(part[2]))
        if not (isfinite(base) and isfinite(prediction) and parts):
            continue
        if len(drawn) == MOST_PREDICTIONS:
            left_out += 1
            continue
        largest = parts[:MOST_PARTS]
        rows = [(shortened(f"{feature(name)} = {quantity(value)}", 42), part) for name, value, part in largest]
        rest = prediction - base - sum(part for _, _, part in largest)
        if abs(rest) >= 0.0005:
            rows.append((f"the other {len(parts) - len(largest)} columns" if len(parts) > len(largest) else "not told", rest))
        segment = entry.get("segment")
        whose = [text(entry.get("hospital")), text(entry.get("patient")), f"segment {segment}" if segment is not None else ""]
        who = " · ".join(filter(None, whose))
        told = "; ".join(f"{name} {said(part, sign=True)}" for name, part in rows)
        alt = f"Prediction {prediction:.3f} for {who or 'one row'}, from the average {base:.3f}: {told}."
        drawn.append((radiomics_bars.waterfall(f"Predicted {prediction:.2f}", base, rows, prediction, alt=alt), who))
    return drawn, left_out


def harmonisation(findings: Findings) -> dict[str, Any] | None:
    """Columns by scanner before and after ComBat, what the scanner explains of them, and the AUC."""
    entry = mapping(findings.data.get("harmonisation"))
    before, after = mapping(entry.get("before")), mapping(entry.get("after"))
    scanners = list(dict.fromkeys([*before, *after]))
    charts: list[Markup] = []
    columns = texts(entry.get("columns"))
    for column in columns:
        boxes = [_boxes(side, column, scanners) for side in (before, after)]
        if all(boxes) and len(charts) < MOST_BOXES:
            told = "; ".join(f"{scanners[i]} {said(b[2], 2)} before" for i, b in boxes[0].items())
            alt = f"{feature(column)} by scanner before and after harmonisation. Medians: {told}; "
            alt += "; ".join(f"{scanners[i]} {said(b[2], 2)} after" for i, b in boxes[1].items()) + "."
            charts.append(radiomics_bars.by_scanner(shortened(feature(column), 42), *boxes, alt=alt))
    shares = [mapping(entry.get(f"scanner_share_{when}")) for when in ("before", "after")]
    named = list(dict.fromkeys([*columns, *shares[0], *shares[1]]))
    rows = [(feature(name), number(shares[0].get(name)), number(shares[1].get(name))) for name in named]
    rows = [row for row in rows if isfinite(row[1]) or isfinite(row[2])]
    aucs = (estimate(entry.get("auc_before")), estimate(entry.get("auc_after")))
    if not charts and not rows and not any(aucs):
        return None
    chart = Chart(Markup(""), [(i, name, "") for i, name in enumerate(scanners)])
    more = count(len(columns) - len(charts), "more column") if charts and len(columns) > len(charts) else ""
    return {"charts": charts, "legend": chart.legend, "rows": rows, "before": aucs[0], "after": aucs[1], "more": more}


def _boxes(by_scanner: dict[str, Any], column: str, scanners: list[str]) -> dict[int, npt.NDArray[np.float64]]:
    found = {i: numbers(mapping(by_scanner.get(name)).get(column)) for i, name in enumerate(scanners)}
    return {i: box for i, box in found.items() if len(box) == 5 and np.isfinite(box).all()}
