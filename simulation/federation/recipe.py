"""The whole of konsil on one machine, as hospitals will run it: nothing here calls the code that it starts.

    coordinator: init, serve          hospital: init, join, check, start
    archive --C-STORE--> hospital     person: show, approve          coordinator: start study, wait, verdict

Everything goes over the loopback interface: DICOM from the archives, TLS to the coordinator. Every step is a command that a
person could type; `commands.log` in the folder has them all with what they said.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_server.record import Record
from simulation.faults.accounting import account
from simulation.faults.plan import NO_FAULTS, Plan
from simulation.federation.archive import APART, FIRST_SEED, SERIES, generate, profiles, send, sunnybrook
from simulation.federation.breaking import READY, Breaking, Supervised
from simulation.federation.programs import CommandFailed, Daemon, free_port, konsil_site, konsil_study, require_ended, run

SUNNYBROOK = Path(__file__).parents[2] / "tests" / "data" / "sunnybrook"
ARRIVAL_S = 300.0
"""Seconds that the images sent may take until they are cases."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Town:
    """What is built: how many patients, which studies, with how much privacy."""

    folder: Path
    patients: int = 5  # of each generated hospital
    generated: tuple[str, ...] = ("alster", "isar")  # profiles of conf/hospitals/six_myocarditis.yaml
    real: bool = True  # a third hospital with the Sunnybrook patients
    studies: tuple[str, ...] = ("segmentation", "radiomics")
    epsilon: float | None = 8.0  # of each study; None: without noise, to compare
    rounds: int = 3
    faults: Plan = NO_FAULTS  # of the study of masks
    oversampling: int = 1
    subslices: int = 1


@dataclass
class House:
    """One hospital of the town."""

    name: str
    settings: Path
    dicom_port: int
    sent: int  # patients that its archive sends
    daemon: Daemon | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """Where its settings, cohort and books lie."""
        return self.settings.parent

    def switch_on(self) -> Daemon:
        """Start its daemon."""
        log = self.folder.parent / f"{self.name}.log"
        self.daemon = Daemon(self.name, konsil_site(self.settings, "start"), log=log)
        return self.daemon

    def switch_off(self) -> None:
        """Stop the daemon that it has now."""
        if self.daemon is not None:
            self.daemon.stop()


def federation(town: Town, *, tell: Tell = print) -> dict[str, Record]:
    """Build the town, run its studies, end it; the studies' records by name.

    Raises `CommandFailed` if a command doesn't do what it was asked. All processes have ended when this returns.
    """
    everybody = (*town.generated, *(["sunnybrook"] if town.real else []))
    town.faults.require(sites=everybody, rounds=town.rounds, processes=True)
    shutil.rmtree(town.folder, ignore_errors=True)
    town.folder.mkdir(parents=True)
    log = town.folder / "commands.log"
    port = free_port()
    coordinator = town.folder / "coordinator"
    with ExitStack() as alive:
        run(konsil_study("init", str(coordinator), "--host", "localhost", "--port", str(port)), log=log)
        serving = alive.enter_context(Supervised(coordinator, log=town.folder / "coordinator.log"))
        houses = [_build(town, name, log=log) for name in everybody]
        serving.daemon.wait_for(READY)
        tell(f"the coordinator serves at localhost:{port}, over TLS; hospitals reach Flower's fleet API and nothing else")
        for house in houses:
            _join(house, coordinator, port, log=log)
            alive.callback(house.switch_off)
            house.switch_on()
        for house in houses:
            _fill(town, house, log=log, tell=tell)
        records = {}
        for study in _studies(town, houses):
            faults = town.faults if study["name"] == "segmentation" else NO_FAULTS
            records[study["name"]] = _study(town, study, houses, serving, faults, log=log, tell=tell)
        for house in houses:
            tell(_books(house, log=log))
    require_ended(town.folder)
    tell("all processes have ended")
    return records


def _build(town: Town, name: str, *, log: Path) -> House:
    """A hospital's first day, and what its archive holds."""
    settings = town.folder / name / "site.yaml"
    archive = town.folder / "archives" / name
    if name == "sunnybrook":
        sunnybrook(SUNNYBROOK, archive, scratch=town.folder / "scratch")
    else:
        known = profiles()
        first = FIRST_SEED + APART * sorted(known).index(name)
        generate(
            known[name],
            range(first, first + town.patients),
            archive,
            series=SERIES,
            oversampling=town.oversampling,
            subslices=town.subslices,
        )
    sent = sum(path.is_dir() for path in archive.iterdir())
    run(konsil_site(settings, "init", "--name", name, "--declared-size", "10", "--epsilon", "20"), log=log)
    house = House(name, settings, free_port(), sent)
    more: dict[str, Any] = {
        "dicom": {"ae_title": name.upper(), "port": house.dicom_port, "peers": [{"ae_title": "PACS", "address": "127.0.0.1"}]},
        "arrivals": {"quiet_s": 2.0, "min_free_gib": 0.1},
        "minimum_cohort": 2,
        "test_fraction": 0.0,  # who would be held back depends on the hospital's new key: of five patients, sometimes four
    }
    if town.epsilon is None:
        more |= {"accept_no_privacy": True, "noise_seed": 1}
    text = settings.read_text()
    for key in more:
        text = re.sub(rf"^{key}:.*\n", "", text, flags=re.MULTILINE)
    settings.write_text(text + yaml.safe_dump(more, sort_keys=False))
    return house


def _join(house: House, coordinator: Path, port: int, *, log: Path) -> None:
    token = run(konsil_study("join-token", house.name, "--folder", str(coordinator)), log=log).strip()
    words = ("join", token, "--coordinator", f"localhost:{port}", "--root-certificates", str(coordinator / "ca.crt"))
    run(konsil_site(house.settings, *words), log=log)


def _fill(town: Town, house: House, *, log: Path, tell: Tell) -> None:
    """The archive sends; the hospital takes in. Segments that a reader called come as a table of the ward."""
    archive = town.folder / "archives" / house.name
    _until(lambda: _answers(house, log), 60.0, f"{house.name} opens no DICOM port")
    begun = time.monotonic()
    how = send(archive, port=house.dicom_port, called=house.name.upper(), calling="PACS", log=log)
    cohort = Cohort(house.folder / "cohort")
    _until(lambda: len(cohort) >= house.sent, ARRIVAL_S, f"{house.name} has not let in the {house.sent} patients sent")
    if (archive / "endpoints.csv").exists():
        columns = house.folder / "columns.yaml"
        names = (archive / "endpoints.csv").read_text().splitlines()[0].split(",")
        numbers = [name for name in names if name.startswith(("call_", "certainty_"))]
        columns.write_text(yaml.safe_dump({"patient_id": "patient_id", "numbers": numbers}))
        run(konsil_site(house.settings, "admit", str(archive / "endpoints.csv"), "--columns", str(columns)), log=log)
    run(konsil_site(house.settings, "check"), log=log)
    files = sum(1 for path in archive.rglob("*.dcm"))
    tell(f"{house.name}: {files} DICOM files by {how}, {len(cohort)} patients inside after {time.monotonic() - begun:.0f} s")


def _answers(house: House, log: Path) -> bool:
    import socket

    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", house.dicom_port)) == 0


def _until(done: Callable[[], bool], timeout_s: float, words: str) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise CommandFailed(f"{words} within {timeout_s:g} s")
        time.sleep(0.2)


def _studies(town: Town, houses: list[House]) -> list[dict[str, Any]]:
    """The settings of the studies, as a coordinator would write them."""
    privacy = {"kind": "none"} if town.epsilon is None else {"kind": "patient", "epsilon": town.epsilon, "delta": 1e-3}
    segmentation: dict[str, Any] = {
        "name": "segmentation",
        "sites": [house.name for house in houses],
        "rounds": town.rounds,
        "task": {
            **{"name": "segmentation", "series": ["cine_ed"], "voxels": 48, "roi_mm": None, "field_mm": 192, "working_mm": 4},
            **{"channels": [8, 16], "strides": [2]},
        },
        "training": {"views": 2},
        "strategy": {
            **{"name": "fedadam", "server_learning_rate": 0.01},
            **({"quorum": 1, "round_timeout_s": 90} if town.faults else {"quorum": len(houses), "round_timeout_s": 300}),
        },
        "privacy": privacy,
    }
    conf = Path(__file__).parents[2] / "conf"
    radiomics: dict[str, Any] = {
        "name": "radiomics",
        "sites": list(town.generated),
        "rounds": 1,
        "task": yaml.safe_load((conf / "task" / "radiomics.yaml").read_text()),
        "strategy": {"name": "sum", "quorum": len(town.generated), "round_timeout_s": 300},
        "privacy": privacy,
    }
    return [study for study in (segmentation, radiomics) if study["name"] in town.studies]


def _study(
    town: Town, settings: Mapping[str, Any], houses: list[House], serving: Supervised, faults: Plan, *, log: Path, tell: Tell
) -> Record:
    """Persons approve; the coordinator starts the study and waits for its verdict."""
    from conf.study import Study
    from tasks.task import settled

    study = Study.from_json(json.dumps({"konsil_version": version("konsil"), **settings}))
    study = study.model_copy(update={"task": settled(study.task)})
    file = town.folder / f"{study.name}.json"
    file.write_text(study.model_dump_json(indent=1))
    for house in houses:
        if house.name in study.sites:
            said = run(konsil_site(house.settings, "approve", str(file), "--who", f"Dr. {house.name.title()}"), log=log)
            tell(f"{house.name}: {said.strip().splitlines()[-1]}")
    begun = time.monotonic()
    command = konsil_study("start", str(file), "--folder", str(serving.folder), *([] if faults else ["--wait"]))
    run(command, log=log, expect=(0, 3, 4), timeout_s=1800.0)
    path = serving.folder / "runs" / study.name / "record.json"
    if faults:
        _break(faults, study.name, houses, serving)
        record = Record.read(path)
        record.faults = faults.told()
        record.write(path)
    record = Record.read(path)
    tell(f"study {study.name}: {record.verdict}, {len(record.rounds)} rounds in {time.monotonic() - begun:.0f} s")
    for reason in record.reasons:
        tell(f"  {reason}")
    found = account(record)
    tell(f"  the record tells what became of {found.accounted} of {found.planned} answers that were planned")
    if found.silent:
        raise CommandFailed("nobody knows what became of these:\n" + "\n".join(found.silent))
    return record


def _break(faults: Plan, study: str, houses: list[House], serving: Supervised) -> None:
    """Make the faults while the study runs, and wait for its end."""
    by_name = {house.name: house for house in houses}
    daemons = {house.name: house.daemon for house in houses if house.daemon is not None}

    breaking = Breaking(
        faults,
        serving,
        study,
        {name: house.settings for name, house in by_name.items()},
        daemons,
        lambda name: by_name[name].switch_on(),
    )

    def over() -> bool:
        breaking.step()
        return serving.finished(study)

    try:
        serving.until(over, what=f"the end of study {study}", timeout_s=1800.0)
    finally:
        breaking.close()


def _books(house: House, *, log: Path) -> str:
    """What the hospital's own books say in the end."""
    ledger = run(konsil_site(house.settings, "ledger"), log=log).strip().splitlines()[-1]
    left = sum(line["happening"] == "egress" for line in AuditLog(house.folder / "audit.jsonl").lines)
    return f"{house.name}: {ledger}; {left} messages left the house"
