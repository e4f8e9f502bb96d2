"""From drawn patients to real ones: a U-Net that has seen generated scans only, on the Sunnybrook patients at end-diastole.

It is the start that every arm of the standard study begins with (from the cache of --runs, or trained now). The patients
come in through the intake; the one whose contours are displaced has to be refused there, for that reason.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from finished_run import command_line, rounded_mean
from kept_results import told

from fl_client.intake.deidentify import Deidentifier
from simulation import hospital, pretraining
from simulation.__main__ import REFUSALS, in_words, settings_of
from simulation.machine import executor
from simulation.scoring import restore
from simulation.settings import GeneratedHospitals, require_data
from tasks.case import Case
from tasks.task import load

UNTOUCHED = ("SCD0000301", "SCD0000401")
"""Patients whom nobody looked at to choose a number; `simulation/pretraining.py` names the two who were looked at."""

DISPLACED = "contours are displaced against each other"
"""What the intake says of a mask whose contours don't fit together (`fl_client/intake/mask.py`)."""


def main() -> None:
    """Train or fetch the model, let the patients in, and print mean Dice over the admitted ones."""
    parser = command_line(f"{__doc__}\nThe last line is one JSON object; benchmarks/README.md names its keys.")
    options = parser.parse_args()
    try:
        simulation = settings_of(["size=standard", *options.overrides])
        require_data(simulation)
        if (
            simulation.pretraining is None
            or simulation.real is None
            or not isinstance(simulation.hospitals, GeneratedHospitals)
        ):
            parser.error("sim_to_real needs generated hospitals, pre-training and a real hospital")
        cache = Path(options.runs) / "cache"
        begin = time.monotonic()
        real = hospital.real(simulation.real, cache=cache)
    except REFUSALS as error:
        parser.error(in_words(error))
    with executor(simulation.workers) as pool:
        start = pretraining.pretrain(
            simulation.task,
            simulation.pretraining,
            simulation.hospitals.series,
            cache=cache,
            pool=pool,
            advance=told,
        )
    task = load({**simulation.task, "test_time_rotations": 4})
    model = restore(task, [start])
    scores = {}
    for case in real.cohort:
        ed = Case(case.patient, tuple(volume for volume in case.volumes if volume.series == "cine_ed"))
        scores[case.patient] = task.score(model, ed)
        print(case.patient, {key: round(value, 3) for key, value in scores[case.patient].items()})
    for patient, reason in real.refused.items():
        print(f"{patient} refused: {reason}")
    deidentifier = Deidentifier(hospital.KEY)
    untouched = [scores[name] for name in map(deidentifier.pseudonym, UNTOUCHED) if name in scores]
    result = {
        "sunnybrook_blood_pool_dice": rounded_mean([row["dice/blood_pool"] for row in scores.values()]),
        "sunnybrook_myocardium_dice": rounded_mean([row["dice/myocardium"] for row in scores.values()]),
        "untouched_blood_pool_dice": rounded_mean([row["dice/blood_pool"] for row in untouched]),
        "untouched_myocardium_dice": rounded_mean([row["dice/myocardium"] for row in untouched]),
        "patients": len(scores),
        "defect_found": real.cases_expected == 5 and [DISPLACED in reason for reason in real.refused.values()] == [True],
        "generated_patients": simulation.pretraining.patients,
        "steps": simulation.pretraining.steps,
        "run_s": round(time.monotonic() - begin, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
