"""METRICS items 14 to 30, from the choice of columns to what others can have: what the software knows of them."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

import conf
from simulation.radiomics.metrics_known import NO_IMAGES, Answer, Json, Known, estimate, extraction_of, has_interval, mean

ROBUST = 0.75
"""An intraclass correlation from here on is called good (Koo and Li 2016, J Chiropr Med 15:155)."""


# -- feature processing ----------------------------------------------------------------------------------------------------


def _robust(known: Known) -> Answer:
    used = {feature.name for feature in known.settings.radiomic}
    if not used:
        return Answer(True, "Does not apply: no column is a radiomic feature.")
    found = {}
    for entry in known.facts.get("robustness") or ():
        values = [entry.get("icc_rescan"), entry.get("icc_mask")]
        if entry.get("column") in used and all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            found[str(entry["column"])] = min(values)
    if len(found) < len(used):
        return Answer(False, f"Robustness is known of {len(found)} of {len(used)} radiomic columns." if found else "")
    good = sum(value >= ROBUST for value in found.values())
    worst = min(found, key=lambda name: found[name])
    return Answer(
        True,
        f"{good} of {len(used)} radiomic columns keep an intraclass correlation of {ROBUST} or more when generated patients "
        f"are scanned again and when their masks are disturbed; the least is {found[worst]:.2f} ({worst}). No column was "
        "removed after the study began.",
    )


def _redundant(known: Known) -> Answer:
    if known.extractor is None:
        return Answer(True, "Does not apply: no column is a radiomic feature.")
    used, all_ = len(known.settings.radiomic), len(known.extractor.names)
    said = (
        f"{used} columns of the {all_} features that the parameters give, fixed in the study before any patient was asked for"
    )
    if alike := _most_alike(known.facts.get("feature_map") or {}):
        said += f"; the two most alike in these patients are {alike[1]} and {alike[2]} (correlation {alike[0]:.2f})"
    chosen = [feature.name for feature in known.settings.radiomic] == _signature()
    how = " They are konsil's own for this question, chosen on generated scans of no hospital's patients." if chosen else ""
    return Answer(chosen, f"{said}.{how}")


def _signature() -> list[str]:
    """The radiomic columns that come with konsil."""
    settings = yaml.safe_load((Path(next(iter(conf.__path__))) / "task" / "radiomics.yaml").read_text())
    return [str(feature["name"]) for feature in settings["radiomic"]]


def _most_alike(feature_map: Json) -> tuple[float, str, str] | None:
    """The greatest correlation (by size) of two columns over the rows where both are known, and which they are."""
    import pandas  # here: half a second

    names: list[str] = list(feature_map.get("columns") or [])
    table = pandas.DataFrame(feature_map.get("values") or [], columns=names, dtype=float)
    r = np.abs(np.tril(table.corr(min_periods=3).to_numpy(), -1))
    if not (r > 0).any():
        return None
    second, first = np.unravel_index(np.nanargmax(r), r.shape)
    return float(table.corr().iloc[first, second]), names[first], names[second]


def _dimension(known: Known) -> Answer:
    columns, positive = len(known.settings.columns), known.total("positive")
    rows, patients = known.total("rows"), known.total("patients")
    if not rows:
        return Answer(False)
    fewer = min(positive, rows - positive)
    return Answer(
        True,
        f"{columns} columns; {positive} of {rows} labelled {known.rows} positive, in {patients} patients. Per column these are "
        f"{fewer / columns:.1f} {known.rows} of the rarer class, and {patients / columns:.1f} patients, who are independent.",
    )


def _end_to_end(known: Known) -> Answer:
    what = "hand-crafted features" if known.image else "clinical columns"
    network = "; the network only draws masks" if known.predicted else ""
    return Answer(True, f"Does not apply: what is classified are {what}{network}.")


# -- preparation for modeling ------------------------------------------------------------------------------------------------


def _partition(known: Known) -> Answer:
    split, share = len(known.world.split), known.world.simulation.hospitals.test_fraction
    said = (
        f"{split} folds by patient, dealt out at every hospital so that each has its share of patients with a positive row; "
        "each patient is tested in one fold and trains in the others, and in every fold it was checked that nobody stands on "
        "both sides. Columns have public bounds, and nothing is fitted on test patients"
    )
    said += "; a model of masks is trained in each fold by itself" if known.predicted else ""
    said += "; harmonisation comes from scans of generated volunteers" if known.facts.get("harmonisation") else ""
    return Answer(
        True, f"{said}. The federation itself holds back {share:.0%} of the patients, whom the pseudonym alone decides."
    )


def _confounders(known: Known) -> Answer:
    found: Json = known.facts.get("harmonisation") or {}
    before, after = (mean(found.get(f"scanner_share_{when}")) for when in ("before", "after"))
    said = []
    if before is not None and after is not None:
        said.append(
            f"The scanner explains {before:.0%} of a column's variance on average, {after:.0%} after harmonisation (ComBat)"
        )
    name = known.headline
    by_hospital = [e.get("value") for e in (name[1].get("by_hospital") or {}).values()] if name else []
    values = [value for value in by_hospital if isinstance(value, int | float)]
    if len(values) > 1:
        said.append(f"AUC of single hospitals from {min(values):.3f} to {max(values):.3f}")
    said.append("factors other than the scanner were not analysed")
    return Answer(False, f"{'; '.join(said)}.")


# -- metrics and comparison --------------------------------------------------------------------------------------------------


def _performance(known: Known) -> Answer:
    if known.headline is None:
        return Answer(False)
    name, arm = known.headline
    said = [f"{arm.get('label') or name}: AUC {estimate(arm['auc'])}"]
    if certain := estimate(arm.get("auc_certain")):
        said.append(f"AUC of certain labels {certain}")
    wanted = f"where {known.world.classifier.sensitivity:g} is asked for,"
    for key, what in (("youden", "at Youden's threshold"), ("at_sensitivity", wanted)):
        cut: Json = arm.get(key) or {}
        if isinstance(cut.get("sensitivity"), int | float) and isinstance(cut.get("specificity"), int | float):
            said.append(f"{what} sensitivity {cut['sensitivity']:.2f}, specificity {cut['specificity']:.2f}")
    rows, positive = known.total("rows"), known.total("positive")
    counts = f" These are of {positive} positive and {rows - positive} negative {known.rows}." if rows else ""
    return Answer(True, f"{'; '.join(said)}.{counts}")


def _uncertainty(known: Known) -> Answer:
    if known.headline is None or not has_interval(known.headline[1].get("auc")):
        return Answer(False)
    said = f"AUC {estimate(known.headline[1]['auc'])}; intervals are over patients, not {known.rows}"
    seeds = [v for v in known.headline[1].get("auc_seeds") or () if isinstance(v, int | float)]
    if len(seeds) > 1:
        said += f"; {len(seeds)} seeds gave {min(seeds):.3f} to {max(seeds):.3f}"
    for entry in (known.facts.get("federated") or {}).values():
        if isinstance(entry.get("auc"), int | float) and isinstance(entry.get("auc_noise_sd"), int | float):
            said += (
                f"; the hospitals' own answer under privacy is {entry['auc']:.3f}, on which the noise has a standard "
                f"deviation of {entry['auc_noise_sd']:.3f}"
            )
            break
    return Answer(True, f"{said}.")


def _calibration(known: Known) -> Answer:
    arm = known.headline[1] if known.headline else {}
    bins, brier = arm.get("calibration") or [], arm.get("brier")
    if not bins or not isinstance(brier, int | float):
        return Answer(False)
    error = arm.get("ece")
    off = f", mean distance of predicted and observed {error:.3f}" if isinstance(error, int | float) else ""
    return Answer(True, f"Brier score {brier:.3f}{off}, and a curve of {len(bins)} bins with intervals.")


def _uniparametric(known: Known) -> Answer:
    return Answer(True, f"Yes: features are taken of one series, {known.image.series}." if known.image else NO_IMAGES)


def _non_radiomic(known: Known) -> Answer:
    if known.image is None:
        return Answer(True, "The study itself is one: it learns from clinical columns alone.")
    return Answer(False)


def _simple(known: Known) -> Answer:
    arms: Json = known.facts.get("arms") or {}
    simple = next((n for n in ("logistic_private", "logistic_plain") if estimate((arms.get(n) or {}).get("auc"))), None)
    if simple is None or known.headline is None:
        return Answer(False)
    name, arm = known.headline
    return Answer(
        True,
        f"{arms[simple].get('label') or simple}: AUC {estimate(arms[simple]['auc'])}, beside {estimate(arm['auc'])} of "
        f"{arm.get('label') or name}, on the same patients. The difference was not tested.",
    )


# -- testing, open science -----------------------------------------------------------------------------------------------------


def _internal(known: Known) -> Answer:
    if known.headline is None:
        return Answer(False)
    auc = estimate(known.headline[1]["auc"])
    return Answer(
        True, f"AUC {auc} over {len(known.world.split)} folds by patient: the hospitals are the same, the patients are not."
    )


def _external(known: Known) -> Answer:
    return Answer(
        False,
        f"None: patients of each of the {len(known.hospitals)} hospitals took part in training." if known.hospitals else "",
    )


def _data(known: Known) -> Answer:
    privacy = known.world.simulation.privacy
    spent = [site.epsilon for site in known.record.sites.values() if site.epsilon is not None]
    said = "Patients' data stay where they are"
    if privacy.kind == "patient" and spent:
        said += (
            f"; what left a hospital is noisy sums over whole patients, epsilon {max(spent):.3g} at delta {privacy.delta:g} by "
            "the hospitals' ledgers"
        )
    if privacy.kind == "none":
        said += "; what left a hospital was not protected by noise"
    if known.generated:
        said += (
            f". The patients are generated: konsil {version('konsil')} draws the same ones for anybody "
            "who has the settings in the run's folder"
        )
    return Answer(known.generated is not None, f"{said}.")


def _code(known: Known) -> Answer:
    extraction = extraction_of(known.record)
    said = (
        f"konsil {known.record.versions.get('konsil') or version('konsil')} (Apache-2.0), study {known.record.study_hash[:16]}"
    )
    said += f", extraction {extraction[:16]}" if extraction else ""
    return Answer(False, f"{said}; every setting stands in record.json.")


def _model(known: Known) -> Answer:
    if not known.record.rounds:
        return Answer(False)
    sha = known.record.rounds[(known.record.selected_round or 0) - 1].arrays_sha256  # of the last round, unless one was chosen
    private = known.world.simulation.privacy.kind == "patient"
    free = "; made of noisy sums, it can be given away without further cost in privacy" if private else ""
    return Answer(False, f"The federation's model is model.pt in the run's folder, fingerprint {sha[:16]}{free}.")


ANSWERS = (
    *(_robust, _redundant, _dimension, _end_to_end),
    *(_partition, _confounders),
    *(_performance, _uncertainty, _calibration, _uniparametric, _non_radiomic, _simple),
    *(_internal, _external),
    *(_data, _code, _model),
)
"""Items 14 to 30, in order."""
