"""Whether a model's sureness finds its errors: three kinds of members on patients of six generated hospitals, or real crops.

    .venv/bin/python benchmarks/uncertainty.py runs/week                                  # a rehearsal that has ended
    .venv/bin/python benchmarks/uncertainty.py runs/hippo --data hippocampus

The model is the run's private federation. Patients are test patients of benchmarks/utility.py's hospitals (`--cache`), whom
the run has not trained on. `views` is what konsil ships (tasks/uncertainty), calibrated by generated patients; `dropout`
leaves out 2 % of the channels after each norm; `rounds` are the run's last weights, its mean over rounds, and both of the round
before. All are judged by the mean Dice that a reader's masks give. Writes `uncertainty.json` and the report into a copy of the
run's folder (`--out`). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from utility_data import Data, people

from fl_client.cohort import Cohort
from fl_server.checkpoint import FILE, PREVIOUS
from simulation.clinical.dropout import dropout
from simulation.machine import executor, one_thread
from simulation.report import write_report
from simulation.scoring import restore
from simulation.settings import Simulation
from simulation.uncertainty import PATIENTS, Examinee, measure, require_masks
from tasks.segmentation import SegmentationTask
from tasks.task import gradient_task
from tasks.uncertainty import triage
from tasks.uncertainty.calibration import rank_correlation
from tasks.uncertainty.examine import examine, judge

SHARE, PASSES = 0.02, 8


def main() -> None:
    """Measure, and print tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", choices=["hearts", "hippocampus"], default="hearts")
    parser.add_argument("--cache", type=Path, default=Path("runs/utility"))
    parser.add_argument("--out", type=Path, default=Path("runs/unsure"))
    parser.add_argument("--tested", type=int, default=8, help="test patients of each hospital")
    parser.add_argument("--kinds", nargs="*", default=["dropout", "rounds"])
    options = parser.parse_args()
    one_thread()
    if lacking := [name for name in ("settings.json", "record.json") if not (options.run / name).is_file()]:
        parser.error(f"{options.run} is no folder of a run that has ended: it has no {' and no '.join(lacking)}")
    try:
        require_masks(options.run, _task(options.run))
    except ValueError as error:
        parser.error(f"{options.run}: {error}")
    if not options.out.exists():
        shutil.copytree(options.run, options.out, symlinks=True)
    settings = json.loads((options.run / "settings.json").read_text())
    simulation = Simulation.model_validate({**settings, "task": _task(options.run)})
    tested = _tested(options.cache, options.data, options.tested)
    begin = time.process_time()
    with executor(0) as here:
        found = measure(simulation, options.out, tested, cache=options.cache, pool=here, advance=_progress)
    if found is None:
        sys.exit("there is nothing to measure")
    result: dict[str, Any] = {"data": options.data, "views": found.figures.model_dump()}
    result["views_s_per_patient"] = (time.process_time() - begin) / (len(tested) + PATIENTS)
    if found.calibration:
        result |= {"temperature": found.calibration.temperature, "own_miss": found.calibration.miss}
    write_report(options.out)
    for kind in options.kinds:
        result[kind] = _kind(kind, options.run, tested)
        print(f"{kind}: {result[kind]}", flush=True)
    print(json.dumps(result))


def _task(run: Path) -> dict[str, Any]:
    task: dict[str, Any] = json.loads((run / "record.json").read_text())["study"]["task"]
    return task


def _tested(cache: Path, data: Data, each: int) -> list[Examinee]:
    found = people(cache, data, drawn=10, tested=each)
    return [Examinee("site", name, one.cohort.folder, patient) for name, one in found.items() for patient in one.test]


def _kind(kind: str, run: Path, tested: Sequence[Examinee]) -> dict[str, float | None]:
    """Rank correlation and the worst who are found, of members of this kind."""
    task = gradient_task(_task(run))
    if not isinstance(task, SegmentationTask):
        sys.exit("the run has no model that draws masks")
    plain = restore(task, [torch.load(run / "model.pt", weights_only=True)])
    others = _others(kind, run, task, plain)
    sure, error = list[float](), list[float]()
    for done, one in enumerate(tested, 1):
        values, dice = list[float](), list[float]()
        for volume in Cohort(one.cohort).case(one.patient).volumes:
            if volume.series not in task.settings.series or volume.mask is None:
                continue
            with dropout(others[0], probability=SHARE, seed=1) if kind == "dropout" else nullcontext():
                seen = examine([plain, *others], task.settings, volume)
            judged = judge(seen, one.patient, volume, task.settings)
            values += [sure.value for sure in [triage.sureness(judged.agreement, None)] if sure is not None]
            dice.append(sum(judged.dice.values()) / max(len(judged.dice), 1))
        if values:
            sure.append(min(values))
            error.append(1 - sum(dice) / len(dice))
        _progress(kind, done, len(tested))
    if not sure:
        sys.exit(f"none of the {len(tested)} test patients has a series that the model reads and a reader drew")
    caught, looked = triage.caught(sure, error)
    area = triage.area_under(triage.risk_coverage(sure, error))
    return {"rank": rank_correlation(sure, [-e for e in error]), "caught": caught, "looked": looked, "area": area}


def _others(kind: str, run: Path, task: SegmentationTask, plain: torch.nn.Module) -> list[torch.nn.Module]:
    """The members beside the plain model."""
    if kind == "dropout":
        return [copy.deepcopy(plain)] * (PASSES - 1)
    states = [state for name in (FILE, PREVIOUS) for state in _states(run / "arms" / "federation_private" / "0" / name)]
    return [restore(task, [state]) for state in states]


def _states(path: Path) -> list[dict[str, torch.Tensor]]:
    if not path.exists():
        return []
    data = path.read_bytes()
    saved = torch.load(io.BytesIO(data[data.index(b"\n") + 1 :]), weights_only=True)
    return [saved[name] for name in ("state", "mean") if saved[name] is not None]


def _progress(what: str, done: int, of: int) -> None:
    print(f"{what} {done} of {of}", file=sys.stderr, end="\r", flush=True)


if __name__ == "__main__":
    main()
