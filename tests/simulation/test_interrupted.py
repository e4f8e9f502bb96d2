"""A study over a real network whose process, and then whose coordinator, is killed: it goes on by itself, and ends the same."""

import contextlib
import os
import signal
import time

import psutil
import pytest
import torch
from test_federation import same, twin

from conf.study import Privacy
from fl_client.privacy import Ledger
from fl_server.app import run as run_in_process
from fl_server.live import Now
from fl_server.runs import Standing, record_of
from fl_server.weights import initial_state
from simulation.federation.programs import Daemon, free_port, konsil_site, konsil_study, run
from simulation.grid import InProcessGrid

PATIENCE_S = 150.0


def until(what, said):
    end = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < end, said
        time.sleep(0.05)
    return found


def in_round(folder, number):
    now = Now.read(folder)
    return now if now is not None and now.phase == "round" and now.round >= number and now.alive else None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_outlives_its_process_and_its_coordinator(hospitals, tmp_path):
    study = hospitals.study(sites=("a", "b"), rounds=6, privacy=Privacy(kind="none"))
    coordinator, log, port = tmp_path / "coordinator", tmp_path / "commands.log", free_port()
    run(konsil_study("init", str(coordinator), "--host", "localhost", "--port", str(port)), log=log)
    for name in study.sites:
        hospitals.save(hospitals.site(name).model_copy(update={"accept_no_privacy": True}))
    before = [twin(hospitals.site(name), tmp_path / "before" / name) for name in study.sites]
    (tmp_path / "study.json").write_text(study.model_dump_json())
    folder = coordinator / "runs" / study.name
    serve = konsil_study("serve", "--folder", str(coordinator))
    daemons = []
    try:
        with Daemon("serve", serve, log=tmp_path / "serve.log") as serving:
            serving.wait_for("certificate valid until")
            for name in study.sites:
                token = run(konsil_study("join-token", name, "--folder", str(coordinator)), log=log).strip()
                where = ("--coordinator", f"localhost:{port}", "--root-certificates", str(coordinator / "ca.crt"))
                run(konsil_site(hospitals.sites[name], "join", token, *where), log=log)
                daemons.append(Daemon(name, konsil_site(hospitals.sites[name], "start"), log=tmp_path / f"{name}.log"))
            run(konsil_study("start", str(tmp_path / "study.json"), "--folder", str(coordinator)), log=log)
            now = until(lambda: in_round(folder, 2), "the second round did not begin")
            first = Standing.read(folder)
            os.kill(now.pid, signal.SIGKILL)  # the study's process
            until(lambda: in_round(folder, 3), "the study did not go on after its process was killed")
            assert Standing.read(folder).run not in (None, first.run)
            family = [psutil.Process(serving.pid), *psutil.Process(serving.pid).children(recursive=True)]
            for process in family:  # the machine
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=30)
        with Daemon("serve", serve, log=tmp_path / "serve_again.log"):
            until(lambda: (record := record_of(folder)) is not None and record.finished, "the study did not end")
            until(lambda: Standing.read(folder).wanted == "ended", "nobody noted that the study is over")
    finally:
        for daemon in daemons:
            daemon.stop()
    record = record_of(folder)
    assert (record.verdict, len(record.rounds)) == ("complete", study.rounds), record.reasons
    assert len(record.resumed) >= 2
    grid = InProcessGrid("fl_client.app:app", before, {"study": study.to_json()})
    state, _ = run_in_process(grid, study, initial_state(study), folder=tmp_path / "twin")
    assert same(torch.load(folder / "model.pt", weights_only=True), state)
    for name in study.sites:
        book = Ledger(hospitals.site(name).ledger_path, epsilon=1, delta=1e-3, accept_no_privacy=True)
        assert len(book.events) == study.rounds  # asked again, and paid once
