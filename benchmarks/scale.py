"""How far one coordinator goes: rounds of 10, 100 and 1,000 simulated hospitals, bytes on the wire, and what SuperLink bears.

    .venv/bin/python benchmarks/scale.py                                    # the whole, with a 2 MB model
    .venv/bin/python benchmarks/scale.py --sites 10 100 --rounds 2 --nodes 10 --strategies fedavg krum --compared 50

Four parts, each in a process of its own. `rounds`: konsil's own loop (enrolment, judging, spool, aggregation, checkpoint,
record) over the in-process grid; the sites take the model in and let an answer out through a hospital's own doors, but train
nothing and keep no books, so that what is measured is the coordinator. `strategy`: the end of one round, by strategy. `wire`:
what one hospital takes in and sends out in a round. `nodes`: konsil's coordinator as it is deployed, with TLS, the gate and
SuperLink's SQLite, before so many nodes, all of one process, that answer at once.
The last line is one JSON object; its keys and units are told in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parent))  # workers import the sites' app from this file

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from conf.study import Study
from fl_client import release
from fl_client.app import received
from fl_client.site import Site
from tasks.task import load, released

CHANNELS = {1: [40, 80, 128], 2: [56, 112, 184], 30: [204, 408, 816], 120: [408, 816, 1632]}
"""Widths of the U-Net that weighs so many megabytes."""

STRATEGIES = ("fedavg", "fedavgm", "fedadam", "fedmedian", "fedtrimmed", "krum")
LIMIT_S = 1800

app = ClientApp()
_models: dict[str, tuple[torch.nn.Module, list[str]]] = {}


@app.query("enroll")
def enroll(question: Message, context: Context) -> Message:
    """A hospital that takes part in everything."""
    return release.enrolment(question, _site(context), konsil=version("konsil"), refusal="", epsilon=0.0)


@app.train()
def train(question: Message, context: Context) -> Message:
    """Take the model in as a hospital does, add noise of this site's own, and let it out as a hospital does."""
    text = str(context.run_config["study"])
    if text not in _models:
        task = load(json.loads(text)["task"])
        _models[text] = task.model(), released(Study.from_json(text), task)
    model, names = _models[text]
    model.load_state_dict(received(question.content, model.state_dict()))
    rng = np.random.default_rng([context.node_id, int(str(question.content["config"]["server-round"]))])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                noise = rng.random(parameter.shape, dtype=np.float32)
                parameter += torch.from_numpy(noise).sub_(0.5).mul_(1e-3)
    return release.reply(question, model, names=names, declared_size=_site(context).declared_size, epsilon=0.0, steps=1)


def _site(context: Context) -> Site:
    return Site(name=str(context.node_config["name"]), folder=Path("/nowhere"), declared_size=5)


def study_of(megabytes: int, sites: int, rounds: int, **strategy: Any) -> Study:
    """A study without privacy of so many hospitals, with a model of so many megabytes."""
    net = {"channels": CHANNELS[megabytes], "strides": [2, 2], "groups": 2, "head_channels": 4}
    task = {"name": "segmentation", "voxels": 16, "field_mm": 80, "roi_mm": None, "working_mm": 4, **net}
    names = [f"h{number:04d}" for number in range(sites)]
    settings = {"name": "scale", "task": task, "rounds": rounds, "sites": names, "privacy": {"kind": "none"}}
    return Study.from_json(json.dumps({"konsil_version": version("konsil"), **settings, "strategy": strategy}))


# -- rounds ---------------------------------------------------------------------------------------------------------------


def rounds(sites: int, number: int, *, workers: int) -> dict[str, float]:
    """Seconds of a round and peaks of memory, of all processes and of the coordinator's own."""
    from fl_server.rounds import run
    from fl_server.weights import initial_state
    from simulation.grid import InProcessGrid
    from simulation.machine import Meter

    study = study_of(2, sites, number)
    nodes = [{"name": name} for name in study.sites]
    with tempfile.TemporaryDirectory(prefix="konsil-scale-", dir=_disk()) as place:
        folder = Path(place)
        start = initial_state(study)
        with (
            InProcessGrid("scale:app", nodes, {"study": study.to_json()}, workers=workers) as grid,
            Meter(folder / "meter.json", interval_s=0.25) as meter,
        ):
            begin, busy = time.monotonic(), _cpu_s()
            _, record = run(grid, study, start, folder=folder / "run")
            total, busy = time.monotonic() - begin, _cpu_s() - busy
        written = sum(file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file())
    if record.verdict != "complete":
        raise RuntimeError(f"{record.verdict}: {record.reasons[:3]}")
    seconds = [entry.seconds for entry in record.rounds]
    return {
        "first_round_s": round(seconds[0], 2),  # the workers start in it
        "round_s": round(statistics.median(seconds[1:] or seconds), 2),
        "round_max_s": round(max(seconds[1:] or seconds), 2),
        "beside_rounds_s": round(total - sum(seconds), 2),
        "coordinator_cpu_s_per_round": round(busy / number, 2),
        "peak_mb": round(meter.peak_memory_mb),
        "coordinator_peak_mb": _peak_mb(),
        "run_folder_mb": round(written / 1e6, 1),
    }


# -- strategies -----------------------------------------------------------------------------------------------------------


def strategy(name: str, sites: int) -> dict[str, float]:
    """Seconds to take an answer and to end a round in which so many came, and the peak of memory."""
    from fl_server.strategies import aggregator
    from fl_server.strategy import Rounds
    from fl_server.weights import initial_state
    from simulation.grid import InProcessGrid

    study = study_of(2, sites, 1, name=name, quorum=min(sites, 5))
    state = initial_state(study)
    names = released(study, load(study.task))
    rng = np.random.default_rng(0)
    before = _peak_mb()
    with tempfile.TemporaryDirectory(prefix="konsil-scale-", dir=_disk()) as place:
        nodes = {2 + i: site for i, site in enumerate(study.sites)}
        asking = Rounds(aggregator(study), nodes=nodes, trainable=names, outlier_factor=10.0, folder=Path(place))
        grid = InProcessGrid(ClientApp(), [])
        taken = 0.0
        for i, question in enumerate(asking.configure_train(1, ArrayRecord(dict(state)), ConfigRecord(), grid)):
            question.metadata.__dict__["_message_id"] = f"question {i}"
            arrays = {n: state[n].numpy() + 1e-3 * rng.random(state[n].shape, dtype=np.float32) for n in names}
            content = {"arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()})}
            reply = Message(RecordDict({**content, "metrics": MetricRecord({"num-examples": 5})}), reply_to=question)
            begin = _cpu_s()
            asking.take(reply)
            taken += _cpu_s() - begin
        begin, busy = time.monotonic(), _cpu_s()
        result, _ = asking.finish(1)
        ended, busy = time.monotonic() - begin, _cpu_s() - busy
    if result is None:
        raise RuntimeError(f"{name} made nothing of {sites} answers: {asking.answers[1]['h0000'].reason}")
    found = {"take_cpu_ms": 1000 * taken / sites, "finish_s": ended, "finish_cpu_s": busy}
    return {**{key: round(value, 2) for key, value in found.items()}, "peak_mb": _peak_mb(), "before_mb": before}


# -- the wire -------------------------------------------------------------------------------------------------------------


def wire(megabytes: int) -> dict[str, float]:
    """Bytes of one hospital's round as Flower's objects, and what compression would make of them."""
    from fl_server.prompt_grid import BLOCK
    from simulation.grid import InProcessGrid
    from tasks.packing import pack

    study = study_of(megabytes, 1, 1)
    InProcessGrid(ClientApp(), [])  # without a grid no message can be made
    task = load(study.task)
    state = {name: tensor.detach().numpy() for name, tensor in task.model().state_dict().items()}
    names = released(study, task)
    rng = np.random.default_rng(0)
    answer = {n: state[n] + 1e-3 * rng.normal(size=state[n].shape).astype(np.float32) for n in names}
    found: dict[str, float] = {}
    for way, arrays in (("down", state), ("up", answer)):
        block = pack(arrays)
        record = ArrayRecord({BLOCK: Array("uint8", (len(block),), BLOCK, block)})
        more = (
            ConfigRecord({"study-hash": study.hash, "server-round": 1}) if way == "down" else MetricRecord({"num-examples": 5})
        )
        message = Message(RecordDict({"arrays": record, "more": more}), 2, "train", ttl=3600)
        sizes = _object_sizes(message)
        found |= {f"{way}_bytes": sum(sizes), f"{way}_objects": len(sizes)}
    numbers = np.concatenate([array.ravel() for array in answer.values()])
    found["numbers_bytes"] = numbers.nbytes
    sample = numbers[: 2**20].tobytes()
    shuffled = np.frombuffer(sample, np.uint8).reshape(-1, 4).T.tobytes()
    for kind, data in (("zlib", sample), ("shuffled_zlib", shuffled)):
        begin = time.perf_counter()
        found[f"{kind}_share"] = round(len(zlib.compress(data, 6)) / len(data), 3)
        found[f"{kind}_mb_per_s"] = round(len(data) / 1e6 / (time.perf_counter() - begin), 1)
    half = numbers.astype(np.float16).astype(np.float32)
    found["float16_update_error"] = round(float(np.linalg.norm(half - numbers) / (1e-3 * np.sqrt(numbers.size))), 3)
    return found


def _object_sizes(message: Message) -> list[int]:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    return [len(one.deflate()) for one in get_all_nested_objects(message).values()]


# -- together -------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Measure the parts that are asked for; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1, help="processes in which sites work, beside the coordinator's")
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--compared", type=int, default=200, help="answers of a round in which strategies are compared")
    parser.add_argument("--megabytes", type=int, nargs="*", default=[1, 30, 120], choices=sorted(CHANNELS))
    parser.add_argument("--nodes", type=int, nargs="*", default=[10, 50])
    parser.add_argument("--node-rounds", type=int, default=3)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # this program as one part
    options = parser.parse_args()
    if options.part:
        return _part(options.part[0], options.part[1], options)
    figures: dict[str, Any] = {"rounds": options.rounds, "model_mb": 2, "cores": os.cpu_count(), "workers": options.workers}
    figures["load_before"] = round(os.getloadavg()[0], 2)
    begin = time.monotonic()
    parts = [("rounds", str(sites)) for sites in options.sites]
    parts += [("strategy", name) for name in options.strategies]
    parts += [("wire", str(megabytes)) for megabytes in options.megabytes]
    parts += [("nodes", str(nodes)) for nodes in options.nodes]
    for part, value in parts:
        found = _measured(part, value, options)
        print(f"{part} {value}: {found}", flush=True)
        figures |= {f"{part}_{value}_{key}": number for key, number in found.items()}
    figures["run_s"] = round(time.monotonic() - begin, 1)
    print(json.dumps(figures))
    return 0


def _part(part: str, value: str, options: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    if part == "rounds":
        found = rounds(int(value), options.rounds, workers=options.workers)
    elif part == "strategy":
        found = strategy(value, options.compared)
    elif part == "wire":
        found = wire(int(value))
    else:
        from scale_nodes import nodes

        found = nodes(study_of(2, int(value), options.node_rounds), app)
    print(json.dumps(found))
    return 0


def _measured(part: str, value: str, options: argparse.Namespace) -> dict[str, Any]:
    """One part in a process of its own: a peak of memory is one of a process's whole life."""
    given = ["--rounds", str(options.rounds), "--workers", str(options.workers), "--compared", str(options.compared)]
    given += ["--node-rounds", str(options.node_rounds)]
    command = [sys.executable, __file__, "--part", part, value, *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{part} {value}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _disk() -> str | None:
    """A folder on a disk: temporary files may lie in memory."""
    return os.environ.get("KONSIL_SCRATCH")


if __name__ == "__main__":
    sys.exit(main())
