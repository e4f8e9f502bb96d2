"""What stands where on the report's page: the tables and charts of one run, ready for the template.

Nothing is computed here that `results` or `statistics` could compute; nothing is worded here that `words` could word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simulation.report import figures, pictures, words
from simulation.report.results import ALONE_ELSEWHERE, ALONE_OWN, ARMS, PLAIN, Run
from simulation.report.statistics import NOTHING, Estimate, Values, agreement, difference, mean, spread

HERE = Path(__file__).parent
ROLES = {"site": "on the hospitals that trained", "held_out": "on the hospital that took no part", "real": "on real patients"}


def page(run: Run) -> str:
    """The whole report as one HTML text."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": words.number, "interval": words.interval, "structure": words.structure, "epsilon": words.epsilon}
    record = run.record
    contents = {
        "css": Markup((HERE / "style.css").read_text()),
        "record": record,
        "run": run,
        "verdict": words.VERDICTS[record.verdict],
        "banner": words.rehearsal_banner(run),
        "result": words.result(run),
        "privacy": words.privacy(run),
        "private": record.study.get("privacy", {}).get("kind") != "none",
        "promise": _promise(run),
        "limits": words.limits(run),
        "tiles": tiles(run),
        "hospitals": hospital_rows(run),
        "answers": answers(run),
        "curves": curves(run),
        "reference_curve": any(run.rounds(PLAIN, site, f"dice/{s}") for site in run.sites for s in run.structures)
        and run.headline != PLAIN,
        "epsilon_curve": epsilon_curve(run),
        "forests": forests(run),
        "comparisons": comparisons(run),
        "spreads": spreads(run),
        "heat": [heat(run, structure) for structure in run.structures],
        "dots": dots(run),
        "real": hospital_rows(run, role="real"),
        "refused": words.refused(record, "real"),
        "examples": list(pictures.examples(run.overlays, cardiac="myocardium" in run.structures)),
        "scanners": pictures.scanners(run.overlays / "scanners.npz"),
        "agreements": agreements(run),
        "settings": json.dumps(record.study, indent=2),
        "markers": "●■▲◆▼▶◀⬟"[:8],
    }
    return environment.get_template("template.html").render(contents)


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """The key figures: (what, number, what goes with it)."""
    arm = run.headline
    found = []
    for name in run.structures:
        estimate = mean(run.values(f"dice/{name}", arm, "site"))
        found.append((f"{words.structure(name)} Dice", words.number(estimate.value), _ci(estimate) or "sites"))
    lowest = min(
        ((e.value, site, name) for site in run.sites for name in run.structures if (e := mean(run.values(f"dice/{name}", arm, "site", site)))),
        default=None,
    )
    if lowest:
        found.append(("Worst hospital", words.number(lowest[0]), f"{lowest[1]}, {words.structure(lowest[2]).lower()} Dice"))
    spent = [value for value in map(run.epsilon, run.sites) if value is not None]
    if spent:
        found.append(("Highest ε spent", words.epsilon(max(spent)), f"at δ = {run.record.study['privacy']['delta']:g}, per patient"))
    if arm != PLAIN:
        gap = difference(run.dice(arm, "site"), run.dice(PLAIN, "site"))
        if gap:
            found.append(("Change by privacy", words.number(gap.value, sign=True), f"mean Dice; {_ci(gap, sign=True)}".removesuffix("; ")))
    elsewhere = mean(run.dice(arm, "held_out"))
    if elsewhere:
        found.append(("Held-out hospital", words.number(elsewhere.value), f"mean Dice; {_ci(elsewhere)}".removesuffix("; ")))
    return found


def hospital_rows(run: Run, role: str = "site") -> list[dict[str, Any]]:
    """One row per hospital with everything that is known of it; Dice and distances of the headline arm."""
    rows = []
    for name in run.sites if role == "site" else run.hospitals(role):
        keys = {
            structure: (
                mean(run.values(f"dice/{structure}", run.headline, role, name)),
                mean(run.values(f"hd95_mm/{structure}", run.headline, role, name)),
            )
            for structure in run.structures
        }
        ejection = {where: abs(value) for where, value in run.values("ef_error", run.headline, role, name).items()}
        tested = {s.patient for s in run.scores if (s.arm, s.role, s.hospital) == (run.headline, role, name)}
        site = run.record.sites.get(name)
        rows.append({"name": name, "site": site, "dice": keys, "ef": mean(ejection), "tested": len(tested), "epsilon": run.epsilon(name)})
    return rows


def answers(run: Run) -> dict[str, list[tuple[int, str, str]]]:
    """By hospital: (round, answer, reason) in order; a hospital that a round doesn't name is absent."""
    table: dict[str, list[tuple[int, str, str]]] = {}
    for site in run.sites:
        table[site] = [
            (r.round, r.sites[site].answer if site in r.sites else "absent", r.sites[site].reason if site in r.sites else "")
            for r in run.record.rounds
        ]
    return table


def curves(run: Run) -> list[Markup]:
    """Dice by round, one chart per structure."""
    drawn = []
    for name in run.structures:
        key = f"dice/{name}"
        by_site = {site: run.rounds(run.headline, site, key) for site in run.sites}
        if not any(by_site.values()):
            continue
        reference = {} if run.headline == PLAIN else _mean_by_round([run.rounds(PLAIN, site, key) for site in run.sites])
        last = [f"{site} {np.mean(rounds[max(rounds)]):.2f}" for site, rounds in by_site.items() if rounds]
        alt = f"{words.structure(name)} Dice by round. After the last round: {', '.join(last)}."
        drawn.append(figures.curves(words.structure(name), by_site, reference=reference, alt=alt))
    return drawn


def epsilon_curve(run: Run) -> Markup | None:
    """Epsilon by round; None where no privacy was spent."""
    by_site = {site: run.epsilon_by_round(site) for site in run.sites}
    if not any(by_site.values()):
        return None
    last = [f"{site} {words.epsilon(rounds[max(rounds)])}" for site, rounds in by_site.items() if rounds]
    alt = f"Epsilon by round and hospital. After the last round: {', '.join(last)}."
    return figures.epsilons("ε by round", by_site, promise=_promise(run), alt=alt)


def forests(run: Run) -> dict[str, list[Markup]]:
    """By role: one chart per structure that compares the arms."""
    drawn: dict[str, list[Markup]] = {}
    for role, where in ROLES.items():
        for name in run.structures:
            rows, told = {}, []
            for arm in run.arms(role):
                values = run.values(f"dice/{name}", arm, role)
                label = _label(arm, role)
                if estimate := mean(values):
                    rows[label] = (estimate, _by_seed(values))
                    told.append(f"{label} {estimate.value:.3f} ({words.interval(estimate) or 'no interval'})")
            if len(rows) > 1:
                alt = f"{words.structure(name)} Dice {where}, by arm: {'; '.join(told)}."
                chart = figures.forest(words.structure(name), rows, headline=_label(run.headline, role), unit="Dice", alt=alt)
                drawn.setdefault(role, []).append(chart)
    return drawn


def comparisons(run: Run) -> list[dict[str, Any]]:
    """Paired differences of the headline arm to every other, by role and structure."""
    rows = []
    for role in ROLES:
        for arm in run.arms(role):
            if arm == run.headline:
                continue
            gaps = [difference(run.values(f"dice/{s}", run.headline, role), run.values(f"dice/{s}", arm, role)) for s in run.structures]
            if any(gaps):
                told = [(gap, words.comparison(gap), words.why_not(gap) if gap else "") for gap in gaps]
                rows.append({"role": role, "arm": _label(arm, role), "gaps": told})
    return rows


def spreads(run: Run) -> dict[str, Any] | None:
    """Bias and variance of each arm on the sites, over the mean Dice of a patient; None with a single seed."""
    table = {ARMS[arm]: spread(run.dice(arm, "site")) for arm in run.arms("site")}
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
        rows.append((f"Alone: {own}" if own else ARMS.get(model, model), shaded))
    return {"structure": structure, "columns": columns, "rows": rows}


def dots(run: Run) -> list[Markup]:
    """Dice of every test patient under the headline arm, by hospital."""
    drawn = []
    for name in run.structures:
        by_hospital = {
            hospital: _by_patient(run.values(f"dice/{name}", run.headline, role, hospital))
            for role in ROLES
            for hospital in run.hospitals(role)
        }
        by_hospital = {hospital: values for hospital, values in by_hospital.items() if len(values)}
        if by_hospital:
            told = [f"{hospital} {np.median(values):.2f} (n = {len(values)})" for hospital, values in by_hospital.items()]
            alt = f"{words.structure(name)} Dice of each patient. Median by hospital: {', '.join(told)}."
            drawn.append(figures.patients(words.structure(name), by_hospital, unit="Dice", alt=alt))
    return drawn


def agreements(run: Run) -> list[Markup]:
    """Bland-Altman charts of volumes and ejection fraction over the sites, from `..._error` scores."""
    drawn = []
    names = {name for score in run.scores if score.arm == run.headline for name in score.scores}
    keys = [f"volume_ml_error/{s}" for s in run.structures if f"volume_ml_error/{s}" in names]
    for key in keys + [key for key in ("ef_error",) if key in names]:
        measured = key.replace("_error", "")  # the model's own value, where the scores hold it
        points: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
        means = measured in names
        for hospital in run.hospitals("site"):
            errors = run.values(key, run.headline, "site", hospital)
            if means:
                level = run.values(measured, run.headline, "site", hospital)
                errors = {where: error for where, error in errors.items() if where in level}
                x = _by_patient({where: level[where] - errors[where] / 2 for where in errors})
            else:
                x = np.zeros(len(_by_patient(errors)))
            points[hospital] = (x, _by_patient(errors))
        differences = np.concatenate([y for _, y in points.values()])
        if len(differences) < 2:
            continue
        limits = agreement(differences)
        unit = "ml" if key.startswith("volume") else "percentage points"
        title = f"{words.structure(key.split('/')[1])} volume" if "/" in key else "Ejection fraction"
        alt = f"{title}, model minus reader in {unit}: bias {limits.bias:.1f}, limits of agreement {limits.low:.1f} to {limits.high:.1f}, "
        alt += f"{limits.patients} patients."
        drawn.append(figures.bland_altman(title, points, limits, unit=unit, means=means, alt=alt))
    return drawn


def _label(arm: str, role: str) -> str:
    if role != "site" and arm == ALONE_ELSEWHERE:
        return "Average hospital alone"
    return ARMS[arm] if arm != ALONE_OWN else "Each hospital alone, own patients"


def _ci(estimate: Estimate, *, sign: bool = False) -> str:
    text = words.interval(estimate, sign=sign)
    return f"95% CI {text}" if text else ""


def _promise(run: Run) -> float | None:
    settings = run.record.study.get("privacy", {})
    return None if settings.get("kind") == "none" else settings.get("epsilon")


def _by_seed(values: Values) -> list[float]:
    seeds = sorted({key[0] for key in values})
    return [mean({key: v for key, v in values.items() if key[0] == s}, resamples=1).value for s in seeds]


def _by_patient(values: Values) -> npt.NDArray[np.float64]:
    """Patients' means over seeds, in sorted order."""
    collected: dict[tuple[str, str], list[float]] = {}
    for (_, hospital, patient), value in sorted(values.items()):
        collected.setdefault((hospital, patient), []).append(value)
    return np.array([np.mean(several) for several in collected.values()])


def _mean_by_round(several: list[dict[int, list[float]]]) -> Mapping[int, list[float]]:
    rounds = sorted({number for one in several for number in one})
    return {number: [value for one in several for value in one.get(number, [])] for number in rounds}


def _shade(value: float, low: float, high: float) -> str:
    """CSS colours of a heat map cell: a single hue from light to dark, with text that stays readable on it."""
    if not isfinite(value):
        return ""
    part = (value - low) / (high - low) if high > low else 1.0
    light, dark = np.array([236, 243, 250]), np.array([18, 82, 140])
    r, g, b = np.round(light + part * (dark - light)).astype(int)
    return f"background:rgb({r},{g},{b});color:{'#fff' if part > 0.5 else '#14202b'}"
