"""The report's comparisons: arm against arm, seed against seed, and every model on every hospital."""

from __future__ import annotations

from math import isfinite, nan
from typing import Any

import numpy as np
from markupsafe import Markup

from fl_server.record import Matrix
from fl_server.report.statistics import difference, mean, seed_means, spread
from simulation.report import figures, words
from simulation.report.results import ALONE_ELSEWHERE, ROLES, Run


def forests(run: Run) -> dict[str, list[Markup]]:
    """By role: one chart per structure that compares the arms."""
    drawn: dict[str, list[Markup]] = {}
    for role, where in ROLES.items():
        for name in run.structures:
            rows, told = {}, []
            for arm in run.arms(role):
                values = run.values(f"dice/{name}", arm, role)
                label = _label(run, arm, role)
                if estimate := mean(values):
                    rows[label] = (estimate, seed_means(values))
                    told.append(f"{label} {estimate.value:.3f} ({words.interval(estimate) or 'no interval'})")
            if len(rows) > 1:
                alt = f"{words.structure(name)} Dice by arm, {where.lower()}: {'; '.join(told)}."
                chart = figures.forest(
                    words.structure(name), rows, headline=_label(run, run.headline, role), unit="Dice", alt=alt
                )
                drawn.setdefault(role, []).append(chart)
    return drawn


def comparisons(run: Run) -> dict[str, list[dict[str, Any]]]:
    """By role: paired differences of the headline arm to every other, by structure."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for role in ROLES:
        for arm in run.arms(role):
            if arm == run.headline:
                continue
            gaps = [
                difference(
                    run.values(f"dice/{s}", run.headline, role), run.values(f"dice/{s}", arm, role), fixed=run.fixed(arm)
                )
                for s in run.structures
            ]
            if any(gaps):
                told = [(gap, words.comparison(gap), words.why_not(gap) if gap else "") for gap in gaps]
                rows.setdefault(role, []).append({"arm": _label(run, arm, role), "gaps": told})
    return rows


def spreads(run: Run) -> dict[str, Any] | None:
    """Bias and variance of each arm on the sites, over the mean Dice of a patient; None with a single seed."""
    table = {run.words_of(arm): spread(run.dice(arm, "site")) for arm in run.arms("site")}
    table = {arm: s for arm, s in table.items() if isfinite(s.between_seeds)}
    if not table:
        return None
    told = [f"{arm}: mean {s.mean:.3f}, SD {s.between_seeds:.4f}" for arm, s in table.items()]
    alt = f"Mean Dice against the standard deviation across seeds. {'; '.join(told)}."
    return {"rows": table, "chart": figures.scatter("Sites, mean over the structures", table, alt=alt)}


def heat(run: Run, structure: str) -> dict[str, Any]:
    """Which model on which hospital: mean Dice, with a background from white (lowest in the table) to blue (highest)."""
    columns = [(role, name) for role in ROLES for name in run.hospitals(role)]
    cells = {
        model: [mean(run.values(f"dice/{structure}", model, role, hospital), resamples=1).value for role, hospital in columns]
        for model in run.models
    }
    known = [value for row in cells.values() for value in row if isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    rows = []
    for model, row in cells.items():
        own = model.removeprefix("alone/") if model.startswith("alone/") else None
        shaded = [(value, _shade(value, low, high), own == name) for value, (_, name) in zip(row, columns, strict=True)]
        rows.append((f"Alone: {own}" if own else run.words_of(model), shaded))
    return {"structure": structure, "columns": columns, "rows": rows}


def crossed(matrix: Matrix) -> dict[str, Any]:
    """The study's own matrix: each hospital's last model and the study's, judged by every hospital's validation patients."""
    columns = list(matrix.sites)
    known = [value for row in matrix.scores.values() for value in row.values() if isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    rows = []
    for model, row in matrix.scores.items():
        values = [row.get(site, nan) for site in columns]
        noise = [matrix.noise_sd.get(model, {}).get(site, 0.0) for site in columns]
        cells = [(v, _shade(v, low, high), model == site, sd) for v, sd, site in zip(values, noise, columns, strict=True)]
        rows.append(("All together" if model == "global" else model, cells))
    noisy = any(sd for row in matrix.noise_sd.values() for sd in row.values())
    told = {"metric": matrix.metric, "silent": matrix.silent, "note": matrix.note}
    return {**told, "columns": columns, "rows": rows, "noisy": noisy}


def _label(run: Run, arm: str, role: str) -> str:
    if role != "site" and arm == ALONE_ELSEWHERE:
        return "Average hospital alone"
    return run.words_of(arm)


def _shade(value: float, low: float, high: float) -> str:
    """CSS colours of a heat map cell: a single hue from light to dark, with text that stays readable on it."""
    if not isfinite(value):
        return ""
    part = (value - low) / (high - low) if high > low else 1.0
    light, dark = np.array([236, 243, 250]), np.array([18, 82, 140])
    r, g, b = np.round(light + part * (dark - light)).astype(int)
    return f"background:rgb({r},{g},{b});color:{'#fff' if part > 0.7 else '#14202b'}"
