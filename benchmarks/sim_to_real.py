"""From drawn patients to real ones: a U-Net that has seen generated scans only, on the Sunnybrook patients at end-diastole.

It is the start that every arm of the standard study begins with (from the cache of --runs, or trained now). The patients
come in through the intake; the one whose contours are displaced has to be refused there.
The last line is one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from simulation import hospital, pretraining
from simulation.__main__ import settings_of
from simulation.machine import executor
from simulation.scoring import restore
from simulation.settings import GeneratedHospitals
from tasks.case import Case
from tasks.task import load


def main() -> None:
    """Train or fetch the model, let the patients in, and print mean Dice over the admitted ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("overrides", nargs="*", help="further settings, key=value")
    options = parser.parse_args()
    simulation = settings_of(["size=standard", *options.overrides])
    if simulation.pretraining is None or simulation.real is None or not isinstance(simulation.hospitals, GeneratedHospitals):
        parser.error("sim_to_real needs generated hospitals, pre-training and a real hospital")
    cache = Path(options.runs) / "cache"
    begin = time.monotonic()
    with executor(simulation.workers) as pool:
        start = pretraining.pretrain(
            simulation.task,
            simulation.pretraining,
            simulation.hospitals.series,
            cache=cache,
            pool=pool,
            advance=lambda *_: None,
        )
    real = hospital.real(simulation.real, cache=cache)
    task = load({**simulation.task, "test_time_rotations": 4})
    model = restore(task, [start])
    scores = []
    for case in real.cohort:
        ed = Case(case.patient, tuple(volume for volume in case.volumes if volume.series == "cine_ed"))
        scores.append(task.score(model, ed))
        print(case.patient, {key: round(value, 3) for key, value in scores[-1].items()})
    for patient, reason in real.refused.items():
        print(f"{patient} refused: {reason}")
    result = {
        "sunnybrook_blood_pool_dice": round(float(np.mean([row["dice/blood_pool"] for row in scores])), 4),
        "sunnybrook_myocardium_dice": round(float(np.mean([row["dice/myocardium"] for row in scores])), 4),
        "patients": len(scores),
        "defect_found": len(real.refused) == 1 and real.cases_expected == 5,
        "generated_patients": simulation.pretraining.patients,
        "steps": simulation.pretraining.steps,
        "run_s": round(time.monotonic() - begin, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
