"""What stands where on the page of a radiomics study: tables and charts of one run folder, ready for its template.

The same look, words and rules as the report of a segmentation study: one HTML file that holds everything itself. A part of
radiomics.json that is not there takes its section with it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from fl_server.report.statistics import Estimate
from simulation.report import radiomics_bars, radiomics_charts, radiomics_explained, radiomics_words, words
from simulation.report.layout import rendered
from simulation.report.lenient import mapping, mappings, number, text
from simulation.report.radiomics_arms import PLAIN, PRIVATE, UNET, Arm
from simulation.report.radiomics_results import Findings

ICC_ROBUST = 0.75
"""Good reliability from here on (Koo and Li 2016, J Chiropr Med 15:155)."""
MOST_ROBUST = 30
FILTERS: dict[str, Callable[..., str]] = {
    "cut": radiomics_words.cut,
    "threshold": radiomics_words.threshold,
    "learner": radiomics_words.learner,
}


def page(folder: Path) -> str:
    """The whole report as one HTML text.

    Raises `FileNotFoundError` for a folder without a record, `ValueError` where radiomics.json holds no JSON object.
    """
    findings = Findings(folder)
    record = findings.record
    main, charts = radiomics_charts.rocs(findings)
    predictions, more_predictions = radiomics_explained.predictions(findings)
    contents = {
        "arm": findings.headline,
        "unit": findings.unit,
        "seeds": record.seeds or [record.seed],
        "banner": radiomics_words.banner(findings),
        "result": radiomics_words.result(findings),
        "tiles": tiles(findings),
        "hospitals": hospital_rows(findings),
        "asked": radiomics_words.asked(findings),
        "masks": radiomics_words.masks(findings),
        "explained": radiomics_words.explained(findings),
        "roc": main,
        "banded": findings.headline is not None and radiomics_charts.banded(findings.headline),
        "rocs": charts,
        "federated": radiomics_charts.federated(findings),
        "calibrations": radiomics_charts.calibrations(findings),
        "arms": [arm for arm in findings.arms.values() if arm.auc or arm.auc_certain or isfinite(arm.brier) or arm.words],
        "arms_forest": radiomics_charts.arms_forest(findings),
        "hospitals_forest": radiomics_charts.hospitals_forest(findings),
        "eyes": radiomics_explained.eyes(findings),
        "feature_map": radiomics_explained.feature_maps(findings),
        "importances": radiomics_explained.importances(findings),
        "most_columns": radiomics_explained.MOST_COLUMNS,
        "predictions": predictions,
        "more_predictions": more_predictions,
        "harmonisation": radiomics_explained.harmonisation(findings),
        "robustness": robustness(findings),
        "icc_robust": ICC_ROBUST,
        "most_robust": MOST_ROBUST,
        "checklist": checklist(findings),
        "privacy": radiomics_words.privacy(findings),
        "limits": radiomics_words.limits(findings),
        "share": radiomics_bars.share,
    }
    return rendered("radiomics.html", record, contents, styles=("radiomics.css",), filters=FILTERS)


def summary_lines(folder: Path) -> list[str]:
    """The verdict, AUC and epsilon by arm and by hospital."""
    findings = Findings(folder)
    lines = words.opening(findings.record) + words.chosen(findings.record)
    if banner := radiomics_words.banner(findings):
        lines.append(banner)
    width = max((len(arm.label) for arm in findings.arms.values()), default=0)
    for arm in findings.arms.values():
        certain = f", certain {findings.unit}s {words.number(arm.auc_certain.value)}" if arm.auc_certain else ""
        promised = "no ε" if arm.epsilon is None else f"ε {words.epsilon(arm.epsilon)}"
        lines.append(f"  {arm.label:<{width}}  AUC {words.number(arm.auc.value)}{certain}  {promised}")
    if findings.headline and findings.headline.by_hospital:
        lines.append(f"{findings.headline.label}, by hospital:")
    width = max(map(len, findings.sites), default=0)
    for row in hospital_rows(findings):
        auc = words.number(row["auc"].value) if row["auc"] else "–"
        spent = "" if row["epsilon"] is None else f"  ε {words.epsilon(row['epsilon'])}"
        lines.append(f"  {row['name']:<{width}}  AUC {auc}{spent}")
    return lines


def tiles(findings: Findings) -> list[tuple[str, str, str]]:
    """The key figures: (what, number, what goes with it)."""
    arm, unit = findings.headline, findings.unit
    if arm is None:
        return []
    found = []
    if arm.auc_certain:
        found.append((f"AUC, certain {unit}s", words.number(arm.auc_certain.value), _ci(arm.auc_certain)))
    if arm.auc:
        found.append((f"AUC, all {unit}s", words.number(arm.auc.value), _ci(arm.auc)))
    delta = findings.record.study.get("privacy", {}).get("delta")
    spent = {name: e for name in findings.record.sites if (e := findings.spent(name)) is not None}
    if spent and findings.private:
        note = "every hospital" if len(set(spent.values())) == 1 else f"highest of {words.count(len(spent), 'hospital')}"
        note += ", per patient" + (f", δ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{delta:g}" if delta else "")
        found.append(("ε spent", words.epsilon(max(spent.values())), note))
    if arm.youden:
        at = f"at the Youden threshold, {words.number(arm.youden.threshold, 2)}"
        found.append(("Sensitivity / specificity", radiomics_words.cut(arm.youden), at.removesuffix(", –")))
    if arm.key == PRIVATE:
        for key, what, against in (
            (PLAIN, "AUC change by privacy", "against the same forest without privacy"),
            (UNET, "AUC change by U-Net's masks", "against the expert's masks"),
        ):
            other = findings.arms.get(key)
            gap = None if other is None else _gap(other, arm) if key == PLAIN else _gap(arm, other)
            if gap is not None:
                found.append((what, words.number(gap[0], sign=True), f"{against}, {gap[1]} {unit}s; not tested"))
    if isfinite(arm.brier):
        found.append(("Brier score", words.number(arm.brier), "0 is perfect; lower is better"))
    return found


def _gap(first: Arm, second: Arm) -> tuple[float, str] | None:
    """AUC of the second minus that of the first, over the certain rows where both know it."""
    if first.auc_certain and second.auc_certain:
        return second.auc_certain.value - first.auc_certain.value, "certain"
    return (second.auc.value - first.auc.value, "all") if first.auc and second.auc else None


def hospital_rows(findings: Findings) -> list[dict[str, Any]]:
    """One row per hospital: scanner, patients, rows of the table, how many are positive, epsilon, AUC."""
    told = mapping(findings.data.get("hospitals"))
    part = mapping(findings.data.get("feature_map"))
    names, positive = part.get("row_hospital"), part.get("row_positive")
    names = names if isinstance(names, list) else []
    positive = positive if isinstance(positive, list) and len(positive) == len(names) else [None] * len(names)
    rows = []
    for name in findings.sites:
        site, entry = findings.record.sites.get(name), mapping(told.get(name))
        here = [number(p) for n, p in zip(names, positive, strict=True) if n == name]
        tested = [arm.by_hospital[name].patients for arm in findings.arms.values() if name in arm.by_hospital]
        patients = number(entry.get("patients"))
        known = [p for p in here if isfinite(p)]
        rows.append(
            {
                "name": name,
                "scanner": text(entry.get("scanner")) or (site.scanner if site else ""),
                "patients": int(patients)
                if isfinite(patients)
                else (site.cases_used if site and site.cases_used is not None else max(tested, default=0) or None),
                "rows": _whole(entry.get("rows"), len(here)),
                "positive": _whole(entry.get("positive"), int(sum(known)) if known else None),
                "epsilon": findings.spent(name),
                "auc": findings.headline.by_hospital.get(name) if findings.headline else None,
            }
        )
    return rows


def _whole(value: object, otherwise: int | None) -> int | None:
    n = number(value)
    return int(n) if isfinite(n) else otherwise or None


def robustness(findings: Findings) -> list[tuple[str, str, float, float]]:
    """(name in words, column, ICC on rescanning, ICC under mask changes), the least of the two falling."""
    rows = [
        (text(r.get("column")), number(r.get("icc_rescan")), number(r.get("icc_mask")))
        for r in mappings(findings.data.get("robustness"))
    ]
    known = [row for row in rows if isfinite(row[1]) or isfinite(row[2])]
    known.sort(key=lambda row: -min(v for v in row[1:] if isfinite(v)))
    return [(radiomics_words.feature(name), name, rescan, mask) for name, rescan, mask in known]


def checklist(findings: Findings) -> dict[str, Any] | None:
    """Items by section, and how many are filled."""
    items = [
        {
            "number": text(entry.get("number")),
            "section": text(entry.get("section")),
            "item": text(entry.get("item")),
            "filled": entry.get("filled") is True,
            "text": text(entry.get("text")),
        }
        for entry in mappings(findings.data.get("checklist"))
    ]
    if not items:
        return None
    sections: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        sections.setdefault(str(item["section"]), []).append(item)
    return {"sections": sections, "filled": sum(bool(item["filled"]) for item in items), "items": len(items)}


def _ci(estimate: Estimate) -> str:
    return f"95% CI {words.interval(estimate)}" if words.interval(estimate) else "no interval"
