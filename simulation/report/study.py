"""What stands where on the report's page: the tables and charts of one run, ready for the template.

Nothing is computed here that `results` or `statistics` could compute; nothing is worded here that `words` could word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from fl_server.report.statistics import Estimate, Values, agreement, difference, mean
from simulation.report import comparison, figures, pictures, words
from simulation.report.layout import rendered
from simulation.report.results import ARMS, PLAIN, ROLES, Run
from simulation.report.uncertainty import sureness

VOLUME_ERRORS = ("volume_error_ml", "volume_ml_error")
POINTS = 100.0
"""`ef_error` is a fraction of 1; readers think in percentage points."""


def page(folder: Path) -> str:
    """The whole report as one HTML text. Raises `FileNotFoundError` for a folder without a record."""
    run = Run(folder)
    record = run.record
    contents = {
        "run": run,
        "seeds": run.seeds,
        "faults": words.faults(run),
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
        "one_epsilon": len(run.sites) > 1 and len({tuple(run.epsilon_by_round(site).items()) for site in run.sites}) == 1,
        "forests": comparison.forests(run),
        "comparisons": comparison.comparisons(run),
        "spreads": comparison.spreads(run),
        "crossed": comparison.crossed(record.matrix) if record.matrix else None,
        "heat": [comparison.heat(run, structure) for structure in run.structures],
        "dots": dots(run),
        "real": hospital_rows(run, role="real"),
        "real_patients": words.real_patients(run),
        "refused": words.refused(record, "real"),
        "examples": list(pictures.examples(run.overlays, cardiac="myocardium" in run.structures)),
        "scanners": pictures.scanners(run.overlays / "scanners.npz"),
        "sureness": sureness(run.folder, cardiac="myocardium" in run.structures),
        "agreements": agreements(run),
        "headline": run.words_of(run.headline),
        "roles": ROLES,
        "arms": {arm: run.words_of(arm) for arm in ARMS},
    }
    return rendered("study.html", record, contents)


def summary_lines(folder: Path) -> list[str]:
    """The verdict, Dice and epsilon by hospital."""
    run = Run(folder)
    lines = words.opening(run.record) + words.chosen(run.record)
    if made := words.faults(run):
        lines.append(f"  {len(made)} faults were made on purpose; the report names them")
    if banner := words.rehearsal_banner(run):
        lines.append(banner)
    width = max((len(name) for role in ("site", "held_out", "real") for name in run.hospitals(role)), default=0)
    width = max([width, *map(len, run.sites)])
    shown = [(name, "site", "") for name in run.sites]
    shown += [(name, "held_out", "  held out") for name in run.hospitals("held_out")]
    shown += [(name, "real", "  real patients") for name in run.hospitals("real")]
    for name, role, note in shown:
        means = {s: mean(run.values(f"dice/{s}", run.headline, role, name)).value for s in run.structures}
        dice = [f"{structure.replace('_', ' ')} {words.number(value)}" for structure, value in means.items()]
        spent = f"  ε {words.epsilon(run.epsilon(name))}" if role == "site" and run.epsilon(name) is not None else ""
        lines.append(f"  {name:<{width}}  Dice {', '.join(dice) or '–'}{spent}{note}")
    return lines


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """The key figures: (what, number, what goes with it)."""
    arm = run.headline
    found = []
    for name in run.structures:
        estimate = mean(run.values(f"dice/{name}", arm, "site"))
        found.append((f"{words.structure(name)} Dice", words.number(estimate.value), _ci(estimate) or "sites"))
    lowest = min(
        (
            (e.value, site, name)
            for site in run.sites
            for name in run.structures
            if (e := mean(run.values(f"dice/{name}", arm, "site", site)))
        ),
        default=None,
    )
    if lowest:
        found.append(("Worst hospital", words.number(lowest[0]), f"{lowest[1]}, {words.structure(lowest[2]).lower()} Dice"))
    spent = [value for value in map(run.epsilon, run.sites) if value is not None]
    if spent:
        found.append(
            ("Highest ε spent", words.epsilon(max(spent)), f"at δ = {run.record.study['privacy']['delta']:g}, per patient")
        )
    if arm != PLAIN:
        gap = difference(run.dice(arm, "site"), run.dice(PLAIN, "site"))
        if gap:
            found.append(
                (
                    "Dice change by privacy",
                    words.number(gap.value, sign=True),
                    f"{words.comparison(gap)}, {_ci(gap, sign=True) or 'mean over the structures'}",
                )
            )
    elsewhere = mean(run.dice(arm, "held_out"))
    if elsewhere:
        found.append(("Dice at held-out hospital", words.number(elsewhere.value), _ci(elsewhere) or "mean over the structures"))
    return found


def hospital_rows(run: Run, role: str = "site") -> list[dict[str, Any]]:
    """One row per hospital with everything that is known of it; Dice and distances of the headline arm."""
    rows = []
    for name in run.sites if role == "site" else run.hospitals(role):
        keys = {
            structure: (
                mean(run.values(f"dice/{structure}", run.headline, role, name)),
                mean(run.values(f"hd95_mm/{structure}", run.headline, role, name)),
                run.missed(structure, run.headline, role, name),
            )
            for structure in run.structures
        }
        volumes = {
            s: mean(
                {w: v for prefix in VOLUME_ERRORS for w, v in run.values(f"{prefix}/{s}", run.headline, role, name).items()}
            )
            for s in run.structures
        }
        ejection = {where: POINTS * abs(value) for where, value in run.values("ef_error", run.headline, role, name).items()}
        tested = {s.patient for s in run.scores if (s.arm, s.role, s.hospital) == (run.headline, role, name)}
        site = run.record.sites.get(name)
        rows.append(
            {
                "name": name,
                "site": site,
                "dice": keys,
                "volumes": volumes,
                "ef": mean(ejection),
                "tested": len(tested),
                "epsilon": run.epsilon(name),
            }
        )
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


def dots(run: Run) -> list[Markup]:
    """Dice of every test patient under the headline arm, by hospital."""
    drawn = []
    for name in run.structures:
        by_hospital = {
            hospital: _by_patient(run.values(f"dice/{name}", run.headline, role, hospital))
            for role in ROLES
            for hospital in (run.sites if role == "site" else run.hospitals(role))
        }
        # a site without a test patient keeps its column, so that every hospital keeps its colour in all charts
        by_hospital = {hospital: values for hospital, values in by_hospital.items() if len(values) or hospital in run.sites}
        if any(map(len, by_hospital.values())):
            told = [
                f"{hospital} {np.median(values):.2f} (n = {len(values)})"
                for hospital, values in by_hospital.items()
                if len(values)
            ]
            alt = f"{words.structure(name)} Dice of each patient. Median by hospital: {', '.join(told)}."
            drawn.append(figures.patients(words.structure(name), by_hospital, unit="Dice", alt=alt))
    return drawn


def agreements(run: Run) -> list[Markup]:
    """Bland-Altman charts of volumes and ejection fraction on the sites, of one seed: a mean of models would agree too well."""
    charts = {f"{prefix}/{s}": (f"{words.structure(s)} volume", "ml", 1.0) for s in run.structures for prefix in VOLUME_ERRORS}
    charts["ef_error"] = ("Ejection fraction", "points", POINTS)
    drawn = []
    for key, (title, unit, factor) in charts.items():
        by_hospital = {}
        for hospital in run.sites:
            errors = run.values(key, run.headline, "site", hospital)
            by_hospital[hospital] = factor * _by_patient({where: e for where, e in errors.items() if where[0] == run.seeds[0]})
        differences = np.concatenate([np.zeros(0), *by_hospital.values()])
        if len(differences) < 2:
            continue
        limits = agreement(differences)
        alt = f"{title}, model minus reader in {unit}: bias {limits.bias:.1f}, limits of agreement "
        alt += f"{limits.low:.1f} to {limits.high:.1f}, {limits.patients} patients."
        drawn.append(figures.bland_altman(title, by_hospital, limits, unit=unit, alt=alt))
    return drawn


def _ci(estimate: Estimate, *, sign: bool = False) -> str:
    text = words.interval(estimate, sign=sign)
    return f"95% CI {text}" if text else ""


def _promise(run: Run) -> float | None:
    settings = run.record.study.get("privacy", {})
    return None if settings.get("kind") == "none" else settings.get("epsilon")


def _by_patient(values: Values) -> npt.NDArray[np.float64]:
    """Patients' means over seeds, in sorted order."""
    collected: dict[tuple[str, str], list[float]] = {}
    for (_, hospital, patient), value in sorted(values.items()):
        collected.setdefault((hospital, patient), []).append(value)
    return np.array([np.mean(several) for several in collected.values()])


def _mean_by_round(several: list[dict[int, list[float]]]) -> Mapping[int, list[float]]:
    rounds = sorted({number for one in several for number in one})
    return {number: [value for one in several for value in one.get(number, [])] for number in rounds}
