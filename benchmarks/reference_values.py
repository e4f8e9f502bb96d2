"""How far private percentiles lie from those of all patients without noise, by epsilon, patients and kind of noise.

    .venv/bin/python benchmarks/reference_values.py [--seeds 3] [--out FILE.json]      # a few minutes on one core

Six hospitals, drawn patients without disease, measured by the parameters of their anatomy (no images): end-diastolic volume and
ejection fraction as drawn, mass as that of half an ellipsoid with this wall. Cells, weights, noise multipliers and curves are
the product's. The noise is a seeded Gaussian of the size that `calibrate` gives: at each hospital, or one for all as secure
sums with their defaults have it, where four hospitals' shares must do (one may be lost, and one may tell). Everything is told
by standard deviations between patients (those of 20,000 others of that age), over the ages told.
`coverage` is how often the 95 % interval holds the percentile of 20,000 other patients. A line for each federation;
the last line is one JSON object, means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from fl_client.privacy import calibrate
from simulation.patient import draw_patient
from simulation.physique import embodied, physique
from simulation.reference_values.recipe import exact
from tasks.provenance import Provenance
from tasks.reference_values.measures import GRAMS_PER_ML, Ventricle
from tasks.reference_values.task import ReferenceTask
from tasks.reference_values.values import ReferenceValues, Z, reference_values
from tasks.task import load

HOSPITALS, DELTA = 6, 1e-3
NOISES = {"one": HOSPITALS / 4, "each": HOSPITALS}  # variances of the sum's noise, in those of one hospital's
MANY = 20_000


def person(seed: int) -> Ventricle:
    """A drawn patient without disease, with body and age, by the anatomy's parameters."""
    patient = draw_patient(seed, {"normal": 1.0})
    body = physique(patient)
    patient = embodied(patient, body)
    radius = math.sqrt(3000 * patient.edv_ml / (2 * math.pi * patient.length_mm))
    outer = 2 / 3 * math.pi * (radius + patient.wall_mm) ** 2 * (patient.length_mm + patient.wall_mm) / 1000
    esv = patient.edv_ml * (1 - patient.ejection_fraction)
    mass = GRAMS_PER_ML * (outer - patient.edv_ml)
    return Ventricle(patient.edv_ml, esv, mass, float(patient.age), patient.sex, body.surface_m2)


def curves(task: ReferenceTask, patients: list[Ventricle], *, noise_sd: float, rng: np.random.Generator) -> ReferenceValues:
    """The reference values of these patients with this noise on each number of the sum."""
    state = exact(task, patients)
    state["total"] = state["total"] + torch.from_numpy(noise_sd * rng.standard_normal(task.length))
    state["noise_variance"] = torch.tensor([noise_sd**2], dtype=torch.float64)
    bare = Provenance(study="benchmark", study_hash="0" * 64, hospitals=("all",), epsilon=None, delta=None)
    return reference_values(task, state, bare)


def compared(found: ReferenceValues, pooled: ReferenceValues, others: ReferenceValues) -> dict[str, Any]:
    """Mean errors of each percentile over measures, sexes and ages told, in standard deviations; how much is told; coverage."""
    errors, inside, told, asked = [], [], 0, 0
    for curve in found.curves:
        plain, true = pooled.curve(curve.measure, curve.sex), others.curve(curve.measure, curve.sex)
        years = [year for year in range(20, 80) if year < found.settings.age_edges[-1]]
        told, asked = told + len(curve.ages), asked + len(years)
        if plain is None or true is None or not curve.ages:
            continue
        at = true.percentiles(curve.ages)
        sd = (at[:, 4] - at[:, 0]) / (Z[-1] - Z[0])
        errors.append(np.abs(curve.percentiles(curve.ages) - plain.percentiles(curve.ages)) / sd[:, None])
        low, high = curve.interval(curve.ages)
        inside.append((low <= at) & (at <= high))
    mean = np.concatenate(errors).mean(0).tolist() if errors else [None] * 5
    return {"told": told / asked, "error_sd": mean, "coverage": float(np.concatenate(inside).mean()) if inside else None}


def main() -> None:
    """Measure, print a line for each arm, and write all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patients", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Path(__file__).parent.parent / "conf" / "task" / "reference_values.yaml"
    task = load(yaml.safe_load(settings.read_text()))
    if not isinstance(task, ReferenceTask):
        raise ValueError(f"{settings} holds another task")
    others = curves(task, [person(900_000_000 + n) for n in range(MANY)], noise_sd=0.0, rng=np.random.default_rng(0))
    rows = []
    for each in options.patients:
        for seed in range(options.seeds):
            first = 800_000_000 + 1_000_000 * seed
            patients = [person(first + n) for n in range(HOSPITALS * each)]
            pooled = curves(task, patients, noise_sd=0.0, rng=np.random.default_rng(seed))
            rows.append({"patients": each, "seed": seed, "epsilon": None, **compared(pooled, pooled, others)})
            for epsilon in (1.0, 3.0):
                multiplier = calibrate(epsilon=epsilon, delta=DELTA, sample_rate=1.0, steps=1)
                for number, (noise, variances) in enumerate(NOISES.items()):
                    rng = np.random.default_rng([seed, each, int(epsilon), number])
                    found = curves(task, patients, noise_sd=multiplier * math.sqrt(variances), rng=rng)
                    rows.append(
                        {
                            "patients": each,
                            "seed": seed,
                            "epsilon": epsilon,
                            "noise": noise,
                            **compared(found, pooled, others),
                        }
                    )
            for row in rows[-5:]:
                print(json.dumps(row), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    print(json.dumps({"seeds": options.seeds, **means(rows)}))


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Over the seeds, by patients at each hospital, promise and noise: see `compared`."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        promise = "no noise" if row["epsilon"] is None else f"epsilon {row['epsilon']:g}, {row['noise']}"
        found.setdefault(f"{row['patients']} patients, {promise}", []).append(row)
    return {label: _mean(group) for label, group in found.items()}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the seeds in which something is told; None where that is none."""
    known = [row for row in rows if row["coverage"] is not None]
    return {
        "told": round(float(np.mean([row["told"] for row in rows])), 3),
        "error_sd": np.round(np.mean([row["error_sd"] for row in known], axis=0), 3).tolist() if known else None,
        "coverage": round(float(np.mean([row["coverage"] for row in known])), 3) if known else None,
    }


if __name__ == "__main__":
    main()
