"""The charts of a radiomics report that judge classifiers: which arm stands beside which, with legend and alternative text."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from markupsafe import Markup

from fl_server.report.statistics import Estimate
from simulation.report import radiomics_figures
from simulation.report.radiomics_arms import ALONE, PLAIN, PRIVATE, UNET, Arm, Federated, Judged
from simulation.report.radiomics_results import Findings
from simulation.report.radiomics_words import cut, threshold
from simulation.report.words import interval, number


@dataclass(frozen=True)
class Chart:
    """A drawing with what its legend says: (place among the marks, name, number)."""

    drawing: Markup
    legend: list[tuple[int, str, str]]


def compared(findings: Findings) -> list[tuple[int, Arm]]:
    """Arms that charts show together, each with the mark it has in all of them."""
    arms = (findings.headline, findings.arms.get(PLAIN), findings.pooled, findings.arms.get(ALONE))
    seen: dict[str, tuple[int, Arm]] = {}
    for place, arm in enumerate(arms):
        if arm is not None:
            seen.setdefault(arm.key, (place, arm))
    return list(seen.values())


def rocs(findings: Findings) -> tuple[Markup | None, list[Chart]]:
    """The headline arm with its folds, and the comparisons: between arms, and between masks."""
    arm = findings.headline
    main = None
    if arm and (arm.curve or arm.folds):
        alt = f"ROC curve of {arm.label}: AUC {number(arm.auc.value)}, {len(arm.folds)} folds."
        if arm.youden:
            alt += f" At the Youden threshold sensitivity {arm.youden.sensitivity:.2f}, "
            alt += f"specificity {arm.youden.specificity:.2f}."
        main = radiomics_figures.roc("Mean over the folds" if banded(arm) else "All predictions", arm, alt=alt)
    charts = []
    lines = [(i, a) for i, a in compared(findings) if a.curve]
    if len(lines) > 1:
        charts.append(_lines("With and without sharing", lines, band=False))
    masks = [(i, findings.arms[key]) for i, key in ((0, PRIVATE), (4, UNET)) if key in findings.arms]
    if len(masks) > 1 and all(a.curve for _, a in masks):
        charts.append(_lines("Expert's and U-Net's masks", masks, band=True))
    return main, charts


def banded(arm: Arm) -> bool:
    """Whether folds are known, so that there is a spread to draw."""
    return bool(arm.folds or np.isfinite(arm.curve.sd).any())


def _lines(title: str, lines: list[tuple[int, Arm]], *, band: bool) -> Chart:
    told = "; ".join(f"{arm.label} {number(arm.auc.value)}" for _, arm in lines)
    drawing = radiomics_figures.roc_lines(
        title, {i: arm.curve for i, arm in lines}, band=band, alt=f"ROC curves, AUC of each: {told}."
    )
    return Chart(drawing, [(i, arm.label, number(arm.auc.value)) for i, arm in lines])


@dataclass(frozen=True)
class FederatedView:
    """One arm through noisy histograms: charts, and rows of (measure, what of it, with noise, error of the noise, exact)."""

    arm: Federated
    sentence: str
    roc: Markup | None
    calibration: Markup | None
    rows: list[tuple[str, str, str, str, str]]


def federated(findings: Findings) -> list[FederatedView]:
    """What a federation of real hospitals would see of each arm."""
    return [view for arm in findings.federated.values() if (view := _view(arm, findings.arms.get(arm.key)))]


def _view(arm: Federated, exact: Arm | None) -> FederatedView | None:
    roc = shown = None
    if arm.curve:
        alt = f"ROC curve from noisy histograms, AUC {number(arm.auc.value)}, on the exact one, {number(arm.exact)}."
        beneath = exact.curve if exact else arm.curve
        roc = radiomics_figures.roc_noisy("ROC from noisy histograms", beneath, arm.curve, alt=alt)
    if arm.calibration:
        alt = f"Calibration from noisy histograms, {len(arm.calibration)} bins, beside the exact one."
        bins = exact.calibration if exact else []
        shown = radiomics_figures.calibration("Calibration from noisy histograms", bins, noisy=arm.calibration, alt=alt)
    rows = _measures(arm, exact)
    sentence = _noise(arm)
    return FederatedView(arm, sentence, roc, shown, rows) if sentence or roc or shown or rows else None


def _noise(arm: Federated) -> str:
    if not arm.auc:
        return arm.words[:1].upper() + arm.words[1:] + ("" if not arm.words or arm.words.endswith(".") else ".")
    text = f"From noisy histograms alone the AUC is read as {number(arm.auc.value)}"
    text += f" (95% CI {interval(arm.auc)})." if interval(arm.auc) else "."
    if isfinite(arm.exact):
        gap = arm.auc.value - arm.exact
        text += f" Without the noise it would be {number(arm.exact)}: the noise moved it by {number(gap, sign=True)}."
    if isfinite(arm.auc_noise_sd):
        text += f" Noise of this size alone moves it by {number(arm.auc_noise_sd)} (one standard deviation)."
    return text


def _measures(arm: Federated, exact: Arm | None) -> list[tuple[str, str, str, str, str]]:
    rows = []
    if arm.auc:
        rows.append(("AUC", "", number(arm.auc.value), _error(arm.auc_noise_sd), number(arm.exact)))
    if isfinite(arm.brier):
        error = _error(arm.brier_noise_sd)
        rows.append(("Brier score", "", number(arm.brier), error, number(exact.brier if exact else None)))
    for name, noisy, sharp in (
        ("Youden threshold", arm.youden, exact.youden if exact else None),
        (threshold(arm.at_sensitivity).capitalize(), arm.at_sensitivity, exact.at_sensitivity if exact else None),
    ):
        if noisy:
            errors = [_error(noisy.sensitivity_noise_sd, 2), _error(noisy.specificity_noise_sd, 2)]
            error = " / ".join(errors) if all(errors) else ""
            rows.append((name, "sens. / spec.", cut(noisy), error, cut(sharp) if sharp else "–"))
    return rows


def _error(sd: float, digits: int = 3) -> str:
    return f"± {number(sd, digits)}" if isfinite(sd) else ""


def calibrations(findings: Findings) -> list[tuple[Markup, Judged]]:
    """(chart, arm) of the headline arm, the same without privacy, and that on the U-Net's masks."""
    shown: list[Judged | None] = [findings.headline, findings.arms.get(PLAIN), findings.arms.get(UNET)]
    drawn = {}
    for arm in shown:
        if arm is not None and arm.calibration:
            worst = max(abs(b.observed - b.predicted) for b in arm.calibration)
            alt = f"Calibration of {arm.label}: {len(arm.calibration)} bins, furthest from the diagonal by {worst:.2f}."
            title = {PLAIN: "Without privacy", UNET: "U-Net's masks"}.get(
                arm.key, "With privacy" if arm.epsilon is not None else "All predictions"
            )
            drawn[arm.key] = (radiomics_figures.calibration(title, arm.calibration, alt=alt), arm)
    return list(drawn.values())


def arms_forest(findings: Findings) -> Chart | None:
    """AUC by arm, over all rows and over the certain ones."""
    both = {arm.label: {i: e for i, e in enumerate((arm.auc, arm.auc_certain)) if e} for arm in findings.arms.values()}
    rows = {label: row for label, row in both.items() if row}
    if len(rows) < 2:
        return None
    kinds = sorted({i for row in rows.values() for i in row})
    legend = [(i, f"{('all', 'certain')[i]} {findings.unit}s", "") for i in kinds]
    told = "; ".join(f"{label} " + ", ".join(map(_told, row.values())) for label, row in rows.items())
    return Chart(radiomics_figures.forest("AUC by arm", rows, alt=f"AUC by arm: {told}."), legend)


def hospitals_forest(findings: Findings) -> Chart | None:
    """AUC by hospital of the arms that charts show together."""
    arms = [(i, arm) for i, arm in compared(findings) if arm.by_hospital]
    rows: dict[str, dict[int, Estimate]] = {}
    for name in findings.sites:
        row = {i: arm.by_hospital[name] for i, arm in arms if name in arm.by_hospital}
        if row:
            n = int(np.max([e.patients for e in row.values()]))
            rows[f"{name} (n = {n})" if n else name] = row
    if not rows:
        return None
    told = "; ".join(f"{name} " + ", ".join(_told(e) for e in row.values()) for name, row in rows.items())
    alt = f"AUC by hospital, in the order {', '.join(arm.label for _, arm in arms)}: {told}."
    legend = [(i, arm.label, "") for i, arm in arms]
    return Chart(radiomics_figures.forest("AUC by hospital (n: patients)", rows, alt=alt), legend)


def _told(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({interval(estimate) or 'no interval'})"
