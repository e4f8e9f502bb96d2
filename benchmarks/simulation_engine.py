"""What a simulation engine costs: the same eight sites and three rounds in process and under Flower's Ray engine.

The sites add one to every weight and send them back, so that only the engine is measured: starting it, copying and
serialising the weights, aggregating. Two sizes of model: 10 KB and 30 MB. Both engines run in one go on the same machine.
The last line is a JSON object; its keys and units are told in README.md beside this file.

    python benchmarks/simulation_engine.py
"""

from __future__ import annotations

import itertools
import json
import os
import time
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from fl_server.strategy import Rounds
from simulation.grid import InProcessGrid

SITES, ROUNDS = 8, 3
SIZES = {"10kb": 2_560, "30mb": 7_864_320}  # float32 weights

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add one to every weight."""
    arrays = ArrayRecord({name: Array(array.numpy() + 1) for name, array in message.content.array_records["arrays"].items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def federate(grid: Grid, weights: int) -> list[float]:
    """Seconds of each round; checks that every site took part in each."""
    strategy = Rounds(FedAvg(fraction_evaluate=0.0, min_train_nodes=SITES), quorum=SITES)
    marks: list[float] = []
    start = ArrayRecord({"weights": Array(np.zeros(weights, np.float32))})
    result = strategy.start(grid, start, num_rounds=ROUNDS, evaluate_fn=lambda *_: marks.append(time.perf_counter()))
    if float(result.arrays["weights"].numpy()[0]) != ROUNDS:
        raise RuntimeError(f"after {ROUNDS} rounds of adding one the weights are {result.arrays['weights'].numpy()[:3]}")
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def in_process(weights: int) -> tuple[float, list[float]]:
    """Seconds altogether, and by round."""
    start = time.perf_counter()
    rounds = federate(InProcessGrid(app, [{}] * SITES), weights)
    return time.perf_counter() - start, rounds


def ray(weights: int) -> tuple[float, list[float]]:
    """Seconds altogether, and by round; starting and stopping Ray is in the first number."""
    server = ServerApp()
    rounds: list[float] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        rounds.extend(federate(grid, weights))

    start = time.perf_counter()
    backend: Any = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": os.cpu_count() or 1}}
    run_simulation(server, app, SITES, backend_config=backend)
    return time.perf_counter() - start, rounds


def main() -> None:
    """Run everything and print the figures."""
    figures: dict[str, float] = {"sites": SITES, "rounds": ROUNDS, "cpus": os.cpu_count() or 1}
    for size, weights in SIZES.items():
        for name, engine in (("in_process", in_process), ("ray", ray)):
            total, rounds = engine(weights)
            figures[f"{name}_{size}_s"] = round(total, 3)
            figures[f"{name}_{size}_later_round_s"] = round(sum(rounds[1:]) / len(rounds[1:]), 3)
        figures[f"ray_over_in_process_{size}"] = round(figures[f"ray_{size}_s"] / figures[f"in_process_{size}_s"], 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
