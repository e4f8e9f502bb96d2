"""From cine to late enhancement: the same study from random weights, from what cine taught, and with a frozen encoder.

    .venv/bin/python benchmarks/transfer.py                     # one seed
    .venv/bin/python benchmarks/transfer.py --seeds 2 --runs /tmp/transfer

Every step is a command that a researcher would give: five generated hospitals learn cine (`konsil-simulate name=cine`), their
model is registered (`konsil-study models register`), and five hospitals with other patients learn late enhancement from it
(`konsil-simulate start_from=cine`). All starts share hospitals, patients, steps, optimizer and budget; each is trained with
privacy (epsilon 8 for every patient) and without. Under privacy the norms and the last layer are trained, as in all of konsil's
studies of the heart; from random weights that may be too little, so that start is also tried with all layers. The size is
that of the small rehearsal, 10 patients per hospital.

Dice is the mean over blood pool and myocardium of each hospital's two test patients, then over hospitals, then over seeds. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fl_server.__main__ import main as konsil_study
from simulation import pretraining
from simulation.__main__ import main as konsil_simulate

ENCODER = "body.model.0.*,body.model.1.submodule.0.*,body.model.1.submodule.1.submodule.0.*"
STARTS: dict[str, tuple[str, ...]] = {
    "scratch": ("pretraining=null",),
    "scratch, all layers": ("pretraining=null", "task.trainable=all", "arms=[federation_private]"),
    "cine": ("start_from={source: cine, coordinator: COORDINATOR}",),
    "cine, encoder frozen": ("start_from={source: cine, coordinator: COORDINATOR}", f"training.frozen=[{ENCODER}]"),
}
"""What tells the studies apart. The encoder: every convolution and norm of the way down, before the deepest layer."""
COMMON = ("real=null", "~hospitals.held_out.limmat", "workers=0", "evaluate_every=1000", "full_scores=none")
LGE = (
    *("hospitals.series=[lge]", "task.series=[lge]", "hospitals.first_seed=3000000"),
    *("arms=[federation_private,federation_plain]", "rounds=16", "strategy.server_learning_rate=0.003"),
    *(
        "plain_training={steps: 5, sample_rate: 0.5, learning_rate: 0.1}",
        "plain_strategy={name: fedavg, server_learning_rate: 1.0}",
    ),
)
"""Other patients than cine's, so that no patient pays twice."""
PARTS = ("blood_pool", "myocardium")


def main() -> int:
    """Train cine, register it, train late enhancement three ways; the last line is one JSON object."""
    options = _options()
    began, runs = time.monotonic(), options.runs
    runs.mkdir(parents=True, exist_ok=True)
    house = runs / "coordinator"
    pretraining.THREADS = 1  # one core is what the figures are about
    _simulate(runs, "name=cine", "arms=[federation_private]")
    if not house.exists():
        _study("init", str(house), "--host", "localhost")
        _study("models", "register", str(runs / "cine"), "--name", "cine", "--folder", str(house))
    found: dict[str, dict[str, Any]] = {}
    for start, settings in STARTS.items():
        own = [setting.replace("COORDINATOR", str(house)) for setting in settings]
        scores = []
        for seed in range(options.seeds):
            name = f"lge-{start.replace(', ', '-').replace(' ', '-')}-{seed}"
            _simulate(runs, f"name={name}", f"seed={seed}", *LGE, *own, *options.settings)
            scores.append(_scores(runs / name))
        found[start] = {
            key: {"mean": round(statistics.fmean(score[key] for score in scores), 4), "seeds": [score[key] for score in scores]}
            for key in scores[0]
        }
        print(start, json.dumps(found[start]), file=sys.stderr)
    said = {"epsilon": _epsilon(runs), "delta": 1e-3, "seeds": options.seeds, "dice": found}
    print(json.dumps({**said, "cpu_s": round(time.process_time()), "run_s": round(time.monotonic() - began)}))
    return 0


def _simulate(runs: Path, *overrides: str) -> None:
    _command(konsil_simulate, *COMMON, f"runs_folder={runs}", *overrides)


def _study(*arguments: str) -> None:
    _command(konsil_study, *arguments)


def _command(program: Callable[[Sequence[str]], int], *arguments: str) -> None:
    """Run one of konsil's commands in this process, which has its libraries. Raises `SystemExit` where it doesn't end well."""
    with contextlib.redirect_stdout(sys.stderr):
        if status := program(arguments):
            raise SystemExit(f"{program.__module__} {' '.join(arguments)} ended with {status}")


def _scores(folder: Path) -> dict[str, float]:
    """Mean Dice of the start and of the federations that there are, on the sites' test patients."""
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    names = {"start": "pretrained", "private": "federation_private", "plain": "federation_plain"}
    tested = {key: [row for row in rows if row["arm"] == arm and row["role"] == "site"] for key, arm in names.items()}
    return {key: round(_dice(found), 4) for key, found in tested.items() if found}


def _dice(rows: list[dict[str, Any]]) -> float:
    hospitals: dict[str, list[float]] = {}
    for row in rows:
        values = [row["scores"][f"dice/{part}"] for part in PARTS if f"dice/{part}" in row["scores"]]
        hospitals.setdefault(row["hospital"], []).append(statistics.fmean(values))
    return statistics.fmean(statistics.fmean(values) for values in hospitals.values())


def _epsilon(runs: Path) -> float:
    """The largest in any ledger of the private federations."""
    records = [json.loads(path.read_text()) for path in runs.glob("lge-*/record.json")]
    return round(max(float(site["epsilon"]) for record in records for site in record["sites"].values()), 3)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="where runs and drawn hospitals are kept")
    parser.add_argument("--seeds", type=int, default=1, help="of the late enhancement studies (default: 1)")
    parser.add_argument("settings", nargs="*", help="further key=value for the late enhancement studies")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
