"""Faults on purpose, counted: what a bad week loses, and what kill -9 at random instants costs.

    .venv/bin/python benchmarks/faults.py                          # the week, 60 kills of one process, 3 over the network
    .venv/bin/python benchmarks/faults.py --kills 500 --network 0 --seed 7

The week: conf/faults/hospital_week.yaml over five small hospitals. The kills: a process that is coordinator and hospitals at
once, under privacy with repeatable noise, is killed at an instant drawn by chance (of the clock, or of what it does to files),
started again, killed again, until its study is over. The model must then be that of a run that nobody disturbed, bit for bit,
and every hospital's ledger must hold an event for each answer that ever left it. Over the network: konsil's own programs with
TLS, of which the study's process, the SuperLink and the coordinator's service are killed in turn.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from conf.study import LocalTraining, Privacy, Strategy, Study
from fl_client.app import ledger_of
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.site import Budget, Site
from fl_server.record import Record
from fl_server.rounds import run
from fl_server.weights import State, initial_state
from simulation.__main__ import settings_of
from simulation.faults.accounting import account
from simulation.faults.grid import federate
from simulation.faults.plan import KNOWN
from simulation.grid import FIRST_NODE, InProcessGrid
from tasks.case import Case, Volume

TASK: dict[str, Any] = {
    **{"name": "segmentation", "voxels": 16, "field_mm": 80, "roi_mm": None, "working_mm": 4},
    **{"channels": [4, 8], "strides": [2], "groups": 2, "head_channels": 4},
}
NAMES = ("alster", "isar", "donau")
OVER, RESUMABLE = 0, 9


def main() -> int:
    """Run all of it; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="of the one process (default 60)")
    parser.add_argument("--network", type=int, default=3, help="of konsil's programs over the network (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("konsil").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="konsil faults ") as folder:
        place = Path(folder)
        figures = kills(place / "kills", options.kills, random.Random(options.seed))
        for key, value in week(place / "week").items():
            figures[key] = figures[key] + value if key in figures else value
        if options.network:
            figures["faults"] += int(options.network > 1)  # the SuperLink's
            for key, value in network_kills(place / "network", options.network, random.Random(options.seed)).items():
                figures[key] = figures[key] + value if key in figures else value
    figures |= {"seed": options.seed, "cores": os.cpu_count()}
    print(json.dumps(figures))
    return 0 if figures["silent_losses"] == figures["ledger_undercounts"] == 0 else 1


# -- the week ------------------------------------------------------------------------------------------------------------


def week(folder: Path) -> dict[str, Any]:
    """The bad week of the rehearsal, over hospitals of three patients each."""
    settings = settings_of(["faults=hospital_week"])
    sites = hospitals(folder, tuple(settings.hospitals.sites), patients=3, epsilon=12.0)
    study = small_study(tuple(sites), rounds=settings.rounds, strategy=settings.strategy)
    started = time.monotonic()
    _, record = federate(settings.faults, study, sites, initial_state(study), folder / "run")
    found = account(record)
    kinds = Counter(answer.answer for entry in record.rounds for answer in entry.sites.values())
    short = undercounts(sites, study)
    print(f"the week: {record.verdict}, {dict(kinds)}, {len(record.resumed)} resumed, {time.monotonic() - started:.0f} s")
    return {
        "faults": len({fault.fault for fault in settings.faults.plan}),
        "faults_known": len(KNOWN),
        "site_rounds_planned": found.planned,
        "site_rounds_accounted": found.accounted,
        "silent_losses": len(found.silent),
        "ledger_undercounts": short,
        "week_verdict": record.verdict,
        "week_answers": dict(kinds),
    }


# -- kill -9 of one process ------------------------------------------------------------------------------------------------


def kills(folder: Path, wanted: int, chance: random.Random) -> dict[str, Any]:
    """Kill a process until it was killed so often; each study is resumed, and killed again, until it is over."""
    sites = hospitals(folder / "before", NAMES, patients=2, epsilon=1000.0)  # what is worked on twice is paid for twice
    study = small_study(NAMES, rounds=4)
    undisturbed, took, operations = _undisturbed(folder, study)
    print(f"a run that nobody disturbs takes {took:.2f} s of a processor and touches files {operations} times", flush=True)
    done = equal = short = studies = worked_again = 0
    seconds = 0.0
    while done < wanted:
        place = _fresh(folder, f"study {studies}")
        studies += 1
        here = 0
        while True:
            last = done + here >= wanted
            by_clock = chance.random() < 0.5
            start = time.monotonic()
            if last:
                status = _run(place, study)
            elif by_clock:
                status = _run(place, study, kill_after_s=chance.uniform(0, took / 2))
            else:
                status = _run(place, study, kill_at=chance.randrange(1, max(2, operations // 2)))
            seconds += time.monotonic() - start
            if status == OVER:
                break
            if status != -signal.SIGKILL:
                raise RuntimeError(f"the study in {place} ended with {status}, and nobody had killed it")
            here += 1
        sites = {name: place / name / "site.yaml" for name in NAMES}
        model = torch.load(place / "run" / "model.pt", weights_only=True)
        same = all(torch.equal(model[name], undisturbed[name]) for name in undisturbed)
        record = Record.read(place / "run" / "record.json")
        same = same and record.verdict == "complete" and not account(record).silent
        equal += here * same
        short += undercounts(sites, study) + _unpaid(place, sites, study)
        worked_again += sum(len(ledger_of(Site.load(path)).events) for path in sites.values()) - study.rounds * len(NAMES)
        if not same:
            print(f"study {studies}: {record.verdict}, not the undisturbed model; {record.reasons}", flush=True)
            shutil.copytree(place, Path(tempfile.gettempdir()) / f"konsil-unequal-{os.getpid()}-{studies}")
        done += here
        shutil.rmtree(place)
    print(f"{done} kills in {studies} studies, {seconds / max(1, done):.2f} s for each", flush=True)
    return {
        "kills": done,
        "resumed_equal": equal,
        "ledger_undercounts": short,
        "studies_killed": studies,
        "paid_twice": worked_again,
        "s_per_kill": round(seconds / max(1, done), 2),
    }


def _undisturbed(folder: Path, study: Study) -> tuple[State, float, int]:
    """The model, the seconds of work that it takes, and how often the process touches a file."""
    _study(_fresh(folder, "warm"), study)  # in this process: what is imported on the way, its children find there
    place = _fresh(folder, "undisturbed")
    _run(place, study, count=True)
    operations = int((place / "operations").read_text())
    state: State = torch.load(place / "run" / "model.pt", weights_only=True)
    place = _fresh(folder, "timed")
    before = os.times()
    _run(place, study)
    after = os.times()
    took = after.children_user + after.children_system - before.children_user - before.children_system
    return state, took, operations


def _fresh(folder: Path, name: str) -> Path:
    """Hospitals as they were before the study."""
    place = folder / name
    shutil.copytree(folder / "before", place)
    for site in NAMES:
        path = place / site / "site.yaml"
        path.write_text(path.read_text().replace(str((folder / "before").resolve()), str(place.resolve())))
    return place


def _run(
    place: Path, study: Study, *, kill_after_s: float | None = None, kill_at: int | None = None, count: bool = False
) -> int:
    """Run the study in a process of its own, or go on with it; its exit status, negative for a signal.

    It is killed after so many seconds of work, or when it touches a file for the `kill_at`-th time.
    """
    sys.stdout.flush()
    child = os.fork()  # with everything imported: a new interpreter would need most of a run's time for that
    if child == 0:
        status = 1
        try:
            touched = _count_files(kill_at)
            _study(place, study)
            if count:
                (place / "operations").write_text(str(touched()))
            status = OVER
        except BaseException:
            logging.exception("the study ended by itself")
        finally:
            os._exit(status)
    if kill_after_s is not None:
        while _worked_s(child) < kill_after_s and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _worked_s(child: int) -> float:
    """Seconds that a process has had of a processor: on a busy machine the clock on the wall says nothing."""
    told = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def _count_files(kill_at: int | None) -> Callable[[], int]:
    """Count what this process does to files from now on; die at the `kill_at`-th."""
    touched = 0

    def look(event: str, told: tuple[object, ...]) -> None:
        nonlocal touched
        written = event == "open" and len(told) > 2 and isinstance(told[2], int) and told[2] & (os.O_WRONLY | os.O_RDWR)
        if written or event in ("os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir", "fcntl.flock"):
            touched += 1
            if touched == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return lambda: touched


def _study(place: Path, study: Study) -> None:
    """Coordinator and hospitals in this process: begin, or go on."""
    path = place / "run" / "record.json"
    if path.exists() and Record.read(path).finished:  # killed when there was nothing left to do
        return
    nodes = [{"site": str(place / name / "site.yaml")} for name in NAMES]
    grid = Listening("fl_client.app:app", nodes, {"study": study.to_json()})
    grid.told = place / "arrived.jsonl"
    run(grid, study, initial_state(study), folder=place / "run", engine="inprocess", resume=True)


class Listening(InProcessGrid):
    """A wire that writes down at once what has arrived from whom, so that it stands there after a kill."""

    told: Path

    def pull_messages(self, message_ids: Any) -> Any:
        """The answers, noted."""
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if not reply.has_error() and reply.content.array_records:
                asked = self.asked.get(reply.metadata.reply_to_message_id)
                name = NAMES[reply.metadata.src_node_id - FIRST_NODE]
                with open(self.told, "a") as file:
                    file.write(json.dumps([name, asked]) + "\n")
        return replies

    def push_messages(self, messages: Any) -> Any:
        """Remember which round each question is of."""
        messages = list(messages)
        ids = list(super().push_messages(messages))
        self.asked: dict[str, int] = getattr(self, "asked", {})
        for message in messages:
            config = message.content.config_records.get("config")
            if config is not None and isinstance(number := config.get("server-round"), int):
                self.asked[message.metadata.message_id] = number
        return ids


# -- kill -9 over the network ------------------------------------------------------------------------------------------------


def network_kills(folder: Path, wanted: int, chance: random.Random) -> dict[str, Any]:
    """Kill the study's process, the SuperLink and the service in turn, every other round of one study of real processes."""
    from simulation.federation.breaking import READY, Supervised
    from simulation.federation.programs import Daemon, free_port, konsil_site, konsil_study
    from simulation.federation.programs import run as do

    names = NAMES[:2]
    study = small_study(names, rounds=2 * wanted + 1)
    twins = hospitals(folder / "twins", names, patients=2, epsilon=1000.0)
    grid = InProcessGrid("fl_client.app:app", [{"site": str(path)} for path in twins.values()], {"study": study.to_json()})
    undisturbed, _ = run(grid, study, initial_state(study), folder=folder / "twins" / "run")
    sites = hospitals(folder, names, patients=2, epsilon=1000.0)
    house, log, port = folder / "coordinator", folder / "commands.log", free_port()
    do(konsil_study("init", str(house), "--host", "localhost", "--port", str(port)), log=log)
    (folder / "study.json").write_text(study.model_dump_json())
    start = time.monotonic()
    daemons = []
    with Supervised(house, log=folder / "serve.log") as coordinator:
        coordinator.daemon.wait_for(READY)
        try:
            for name, path in sites.items():
                token = do(konsil_study("join-token", name, "--folder", str(house)), log=log).strip()
                words = ("join", token, "--coordinator", f"localhost:{port}", "--root-certificates", str(house / "ca.crt"))
                do(konsil_site(path, *words), log=log)
                daemons.append(Daemon(name, konsil_site(path, "start"), log=folder / f"{name}.log"))
            do(konsil_study("start", str(folder / "study.json"), "--folder", str(house)), log=log)
            for number in range(wanted):
                wait = f"round {2 * number + 2} of the study over the network"
                coordinator.until(lambda n=number: coordinator.in_round(study.name, 2 * n + 2), what=wait, timeout_s=300)  # type: ignore[misc]
                time.sleep(chance.uniform(0.0, 1.5))
                kind = ("study", "superlink", "service")[number % 3]
                _kill(coordinator, kind, study.name)
                print(f"round {2 * number + 2}: {kind} killed after {time.monotonic() - start:.0f} s", flush=True)
            coordinator.until(lambda: coordinator.finished(study.name), what="the end of the study", timeout_s=600)
        finally:
            for daemon in daemons:
                daemon.stop()
        record = coordinator.record(study.name)
    model = torch.load(house / "runs" / study.name / "model.pt", weights_only=True)
    same = all(torch.equal(model[name], undisturbed[name]) for name in undisturbed)
    far = max(float((model[name] - undisturbed[name]).abs().max()) for name in undisturbed)
    whole = record is not None and record.verdict == "complete" and not account(record).silent
    resumed = 0 if record is None else len(record.resumed)
    print(f"over the network: {record and record.verdict}, resumed {resumed} times, equal: {same} (to {far:.2g})", flush=True)
    return {
        "kills": wanted,
        "resumed_equal": wanted * (same and whole),
        "ledger_undercounts": undercounts(sites, study),
        "network_kills": wanted,
        "network_s": round(time.monotonic() - start, 1),
    }


def _kill(coordinator: Any, kind: str, study: str) -> None:
    if kind == "study":
        coordinator.kill_study(study)
    elif kind == "superlink":
        coordinator.kill_superlink()
    else:
        coordinator.kill()


# -- the books ---------------------------------------------------------------------------------------------------------


def undercounts(sites: dict[str, Path], study: Study) -> int:
    """Answers that left a hospital freshly worked on, for which its ledger has no event of their own."""
    short = 0
    for path in sites.values():
        site = Site.load(path)
        paid = Counter(event.round for event in ledger_of(site).events if event.study == study.hash)
        lines = [line for line in AuditLog(site.folder / "audit.jsonl").lines if line.get("study") == study.hash]
        left = Counter(
            line["round"]
            for line in lines
            if line["happening"] == "egress" and line["kind"] == "arrays" and not line.get("again")
        )
        short += sum(max(0, left[number] - paid[number]) for number in left)
    return short


def _unpaid(place: Path, sites: dict[str, Path], study: Study) -> int:
    """Rounds of a hospital that the coordinator has an answer to, and the ledger no event."""
    arrived = {tuple(json.loads(line)) for line in (place / "arrived.jsonl").read_text().splitlines()}
    paid = {(name, event.round) for name, path in sites.items() for event in ledger_of(Site.load(path)).events}
    return len(arrived - paid)


# -- small hospitals -----------------------------------------------------------------------------------------------------


def small_study(names: tuple[str, ...], *, rounds: int, strategy: Strategy | None = None) -> Study:
    """A study of seconds, under privacy, with a strategy that carries something from round to round."""
    chosen = strategy or Strategy(name="fedadam", server_learning_rate=0.01, ema_decay=0.5)
    return Study(
        name="faults",
        konsil_version=version("konsil"),
        task={**TASK},
        rounds=rounds,
        sites=names,
        privacy=Privacy(epsilon=8.0),
        training=LocalTraining(views=1),
        strategy=chosen,
    )


def hospitals(folder: Path, names: tuple[str, ...], *, patients: int, epsilon: float) -> dict[str, Path]:
    """Hospitals with a few drawn patients: a disc in a ring. Their settings files, by name."""
    sites = {}
    for number, name in enumerate(names):
        cohort = Cohort(folder / name / "cohort")
        for patient in range(patients):
            cohort.admit(_case(f"p{number}-{patient}", 100 * number + patient))
        site = Site(
            name=name,
            folder=folder / name,
            declared_size=5,
            approve_all=True,
            noise_seed=number,
            test_fraction=0.0,
            minimum_cohort=1,
            budget=Budget(epsilon=epsilon),
        )
        site.save(folder / name / "site.yaml")
        sites[name] = folder / name / "site.yaml"
    return sites


def _case(patient: str, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    radius = np.hypot(rows - 16 - rng.normal(), columns - 16 - rng.normal())
    mask = np.stack([np.where(radius < 5, 1, np.where(radius < 8, 2, 0)).astype(np.uint8)] * 3)
    image = 100 + 100.0 * (mask == 1) - 50.0 * (mask == 2) + 10 * rng.normal(size=mask.shape)
    affine = np.diag([8.0, 3.0, 3.0, 1.0])
    return Case(patient, tuple(Volume(series, image.astype(np.float32), affine, mask) for series in ("cine_ed", "cine_es")))


if __name__ == "__main__":
    sys.exit(main())
