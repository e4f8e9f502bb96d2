"""How long a round takes beyond the training: konsil's warm worker against Flower's subprocess mode, in one run.

    .venv/bin/python benchmarks/round_overhead.py                         # 2 MB and 30 MB, 2 hospitals, 4 rounds
    .venv/bin/python benchmarks/round_overhead.py --megabytes 2 --sites 3 --rounds 6

Both sides do the same next to nothing: every hospital adds a number of its own to the weights and sends them back. konsil's
side is the whole of it: its coordinator with the gate, TLS and signed requests, a SuperNode per hospital, the warm worker, the
enrolment and `Rounds`. Flower's side is plain: no TLS, no keys, FedAvg, an app that imports no torch, a new process for every
message.
A round lasts from its start at the coordinator to its end; of all hospitals, the slowest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
CHANNELS = {2: [56, 112, 184], 30: [204, 408, 816]}
"""Widths of the U-Net that weighs so many megabytes."""

PLAIN_PROJECT = """\
[project]
name = "nothing"
version = "1.0.0"
[tool.flwr.app]
publisher = "plain"
[tool.flwr.app.components]
serverapp = "plain:server"
clientapp = "plain:client"
[tool.flwr.app.config]
numbers = 0
rounds = 0
sites = 0
told = ""
"""

PLAIN_APP = """\
import json, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()

@client.train()
def train(question, context):
    own = np.float32(context.node_id % 1000 / 1e6)
    arrays = ArrayRecord({name: Array(array.numpy() + own) for name, array in question.content["arrays"].items()})
    metrics = MetricRecord({"num-examples": 5})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=question)

@server.main()
def main(grid, context):
    run = context.run_config
    rng = np.random.default_rng(0)
    parts = np.array_split(rng.normal(size=run["numbers"]).astype(np.float32), 40)
    arrays = ArrayRecord({f"part{i}": Array(part) for i, part in enumerate(parts)})
    times = []
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=run["sites"], min_available_nodes=run["sites"])
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=run["rounds"], timeout=1200,
                   evaluate_fn=lambda number, arrays: times.append(time.monotonic()) or MetricRecord({"n": number}))
    Path(run["told"]).write_text(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def main() -> int:
    """Measure both, for every size; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[2, 30], choices=sorted(CHANNELS))
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4, help="the first of them counts apart")
    parser.add_argument("--only", choices=("konsil", "flower"), default="", help="one side alone")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # this program as a hospital's worker
    options = parser.parse_args()
    if options.worker:
        return _work(options.worker)
    figures: dict[str, Any] = {"sites": options.sites, "rounds": options.rounds, "cores": os.cpu_count()}
    sides = {"konsil": konsil_rounds, "flower": flower_rounds}
    with tempfile.TemporaryDirectory(prefix="konsil overhead ") as folder:
        for megabytes in options.megabytes:
            for side in [options.only] if options.only else sides:
                place = Path(folder) / f"{side} {megabytes}"
                place.mkdir()
                figures[f"load_before_{side}_{megabytes}mb"] = round(os.getloadavg()[0], 2)
                rounds = sides[side](place, megabytes, sites=options.sites, rounds=options.rounds)
                print(f"{side}, {megabytes} MB: {', '.join(f'{seconds:.2f}' for seconds in rounds)} s", flush=True)
                figures[f"{side}_{megabytes}mb_first_round_s"] = round(rounds[0], 3)
                figures[f"{side}_{megabytes}mb_round_s"] = round(statistics.median(rounds[1:] or rounds), 3)
                figures[f"{side}_{megabytes}mb_round_max_s"] = round(max(rounds[1:] or rounds), 3)
    print(json.dumps(figures))
    return 0


def konsil_rounds(folder: Path, megabytes: int, *, sites: int, rounds: int) -> list[float]:
    """Seconds of each round with konsil's coordinator and hospitals."""
    from conf.study import Study

    port = _free_port()
    house = folder / "coordinator"
    konsil = str(BIN / "konsil-study")
    _do([konsil, "init", str(house), "--host", "127.0.0.1", "--port", str(port)])
    names = [f"site{number}" for number in range(sites)]
    with ExitStack() as stack:
        serving = folder / "serve.log"
        stack.enter_context(_process([konsil, "serve", "--folder", str(house)], serving))
        _until(lambda: "up after" in serving.read_text(), "the coordinator", serving)
        for name in names:
            own = str(folder / name / "site.yaml")
            site = [str(BIN / "konsil-site"), "--site", own]
            _do([*site, "init", "--name", name, "--declared-size", "5"])
            token = _do([konsil, "join-token", name, "--folder", str(house)]).splitlines()[0]
            _do([*site, "join", token, "--coordinator", f"127.0.0.1:{port}", "--root-certificates", str(house / "ca.crt")])
            told = folder / f"{name}.log"
            supernode = [sys.executable, "-m", "fl_client.supernode", "--site", own]
            stack.enter_context(_process(supernode, folder / f"{name}.supernode.log"))
            stack.enter_context(_process([sys.executable, __file__, "--worker", own], told))
            _until(lambda told=told: "is ready" in told.read_text(), name, told)  # type: ignore[misc]
        net = {"channels": CHANNELS[megabytes], "strides": [2, 2], "groups": 2, "head_channels": 4}
        task = {"name": "segmentation", "voxels": 16, "field_mm": 80, "roi_mm": None, "working_mm": 4, **net}
        settings = {"name": "nothing", "task": task, "rounds": rounds, "sites": names, "privacy": {"kind": "none"}}
        study = Study.from_json(json.dumps({"konsil_version": version("konsil"), **settings}))
        (folder / "study.json").write_text(study.to_json())
        _do([konsil, "start", str(folder / "study.json"), "--folder", str(house), "--wait"], within_s=1800)
        record = json.loads((house / "runs" / "nothing" / "record.json").read_text())
    if record["verdict"] != "complete":
        raise RuntimeError(f"{record['verdict']}: {record['reasons']}")
    return [one["seconds"] for one in record["rounds"]]


def flower_rounds(folder: Path, megabytes: int, *, sites: int, rounds: int) -> list[float]:
    """Seconds of each round with Flower's SuperLink and SuperNodes as they come."""
    port, told = _free_port(), folder / "rounds.json"
    app = folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PLAIN_PROJECT)
    (app / "plain.py").write_text(PLAIN_APP)
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    given = {"FLWR_HOME": str(folder / "home")}
    with ExitStack() as stack:
        link = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        link += ["--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"]
        log = folder / "superlink.log"
        stack.enter_context(_process(link, log, given))
        _until(lambda: _listens(port), "the SuperLink", log)
        for number in range(sites):
            node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
            told_by = folder / f"supernode{number}.log"
            own = {"FLWR_HOME": str(folder / f"home{number}")}
            stack.enter_context(_process([*node, "--port", str(_free_port())], told_by, own))
            _until(lambda told_by=told_by: "SuperNode ID" in told_by.read_text(), "a SuperNode", told_by)  # type: ignore[misc]
        numbers = megabytes * 250_000
        config = f'numbers={numbers} rounds={rounds} sites={sites} told="{told}"'
        _do([str(BIN / "flwr"), "run", str(app), "here", "--run-config", config], given)
        _until(told.exists, "Flower's rounds", log, within_s=1800)
        time.sleep(0.2)
        found: list[float] = json.loads(told.read_text())
    return found


def _work(settings: Path) -> int:
    """A hospital's worker whose app trains nothing and takes part in everything."""
    import logging

    import numpy as np
    from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    from conf.study import Study
    from fl_client import release
    from fl_client.packed import packed_mod
    from fl_client.worker import Worker, obey_signals
    from tasks.task import load, released

    logging.basicConfig(level=logging.INFO)
    app, wanted = ClientApp(mods=[packed_mod]), {}

    @app.query("enroll")
    def enroll(question: Message, context: Context) -> Message:
        return release.enrolment(question, worker.site, konsil=version("konsil"), refusal="", epsilon=0.0)

    @app.train()
    def train(question: Message, context: Context) -> Message:
        text = str(context.run_config["study"])
        if text not in wanted:
            study = Study.from_json(text)
            wanted[text] = released(study, load(study.task))
        sent = question.content.array_records["arrays"]
        own = np.float32(context.node_id % 1000 / 1e6)  # else one hospital's parts would be another's
        arrays = ArrayRecord({name: Array(sent[name].numpy() + own) for name in wanted[text]})
        metrics = MetricRecord({"num-examples": worker.site.declared_size, "epsilon": 0.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=question)

    worker = Worker(settings, app)
    logging.info("%s is ready", worker.site.name)
    return obey_signals(worker.run)


@contextmanager
def _process(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A process that runs meanwhile, with its output in `log`."""
    with open(log, "wb") as out:
        running = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=_environment(environment), cwd=log.parent, start_new_session=True
        )
    try:
        yield
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def _do(command: Sequence[str], environment: dict[str, str] | None = None, *, within_s: float = 120) -> str:
    """Run a command to its end; what it printed. Raises `RuntimeError` with its words if it fails."""
    done = subprocess.run(command, env=_environment(environment), capture_output=True, text=True, timeout=within_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} {command[1]}: {done.stdout}{done.stderr}")
    return done.stdout


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **quiet, **path, **(more or {})}


def _until(true: Callable[[], bool], what: str, log: Path, *, within_s: float = 120) -> None:
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            said = re.sub(r"\x1b\[[0-9]*m", "", log.read_text())[-2000:]
            raise TimeoutError(f"{what} did not come within {within_s:g} s; the end of its log:\n{said}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    sys.exit(main())
