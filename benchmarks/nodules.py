"""Drawn lung nodules: what a crop costs, and whether a small 3D U-Net that learns from some finds others that it has not seen.

All crops are drawn (docs/generated_patients.md); no real CT takes part, so the Dice says that there is something to learn in
the crops and nothing about patients. The last line is one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from finished_run import command_line, rounded_mean

from simulation import pretraining
from simulation.__main__ import REFUSALS, in_words, settings_of
from simulation.lung_scan import nodule_case
from simulation.machine import executor
from simulation.scoring import restore
from tasks.task import load

FIRST_TEST_SEED = 60_000_000
"""Seeds from here on are in no pre-training."""
TIMED = 10


def main() -> None:
    """Draw, learn, and print mean Dice on drawn nodules that were not learned from, by kind."""
    parser = command_line(__doc__)
    parser.add_argument("--test", type=int, default=40, help="how many other nodules are segmented")
    options = parser.parse_args()
    try:
        simulation = settings_of(["hospitals=nodules", "task.trainable=all", *options.overrides])
    except REFUSALS as error:
        parser.error(in_words(error))
    settings = simulation.pretraining
    if settings is None:
        parser.error("there is nothing to measure without pre-training")
    begin = time.process_time()
    for seed in range(TIMED):
        nodule_case(seed, oversampling=settings.oversampling)
    crop_s = (time.process_time() - begin) / TIMED
    begin = time.monotonic()
    with executor(simulation.workers) as pool:
        cache = Path(options.runs) / "cache"
        start = pretraining.pretrain(simulation.task, settings, ("ct",), cache=cache, pool=pool, advance=lambda *_: None)
    run_s = time.monotonic() - begin
    task = load(simulation.task)
    model = restore(task, [start])
    dice: dict[str, list[float]] = {}
    for seed in range(FIRST_TEST_SEED, FIRST_TEST_SEED + options.test):
        case = nodule_case(seed, oversampling=settings.oversampling)
        dice.setdefault(str(case.endpoints["nodule_type"]), []).append(task.score(model, case, full=False)["dice/nodule"])
    together = [value for values in dice.values() for value in values]
    result = {
        "crop_cpu_s": round(crop_s, 3),
        "dice": rounded_mean(together),
        "dice_sd": round(float(np.std(together)), 4),
        "dice_lowest": round(min(together), 4),
        **{f"dice_{kind.replace('-', '_')}": rounded_mean(values) for kind, values in sorted(dice.items())},
        "test_nodules": len(together),
        "training_nodules": settings.patients,
        "steps": settings.steps,
        "run_s": round(run_s, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
