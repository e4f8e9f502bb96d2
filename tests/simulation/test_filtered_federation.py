"""A study that filters, between real processes over TLS: its references go with it, and are found again after a kill."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from conf.study import Study
from fl_client.cohort import Cohort
from fl_server.live import Now
from fl_server.record import Record
from simulation.federation.programs import CommandFailed, Daemon, free_port, konsil_site, konsil_study, run
from tasks.fingerprint import fingerprint
from tasks.task import load

NAMES = ("a", "b", "c")


def free_patients(hospitals, task):
    """Prepared arrays of hospital a's patients, in the place of generated ones."""
    found = Cohort(hospitals.site("a").cohort_folder)
    return {
        f"{patient}/{name}": torch.from_numpy(np.array(array))
        for patient in found.patients
        for name, array in found.prepared(task, patient).items()
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_daemons_and_a_coordinator_filter_and_go_on_after_a_kill(hospitals, tmp_path):
    coordinator, log, port = tmp_path / "coordinator", tmp_path / "commands.log", free_port()
    strategy = {"name": "fedwiener", "server_learning_rate": 0.1, "server_schedule": "cosine", "quorum": 3}
    training = {"steps": 1, "sample_rate": 1.0, "views": 2, "optimizer": "sgd", "learning_rate": 1.0}
    study = hospitals.study(name="filtered", rounds=6, privacy={"epsilon": 8}, training=training, strategy=strategy)
    (tmp_path / "study.json").write_text(study.model_dump_json())
    free = free_patients(hospitals, load(study.task))
    torch.save(free, tmp_path / "references.pt")
    begin = konsil_study("start", str(tmp_path / "study.json"), "--folder", str(coordinator))
    run(konsil_study("init", str(coordinator), "--host", "localhost", "--port", str(port)), log=log)
    with Daemon("serve", konsil_study("serve", "--folder", str(coordinator)), log=tmp_path / "serve.log") as serving:
        serving.wait_for("certificate valid until")
        daemons = []
        try:
            for name in NAMES:
                path = hospitals.sites[name]
                token = run(konsil_study("join-token", name, "--folder", str(coordinator)), log=log).strip()
                authority = ("--root-certificates", str(coordinator / "ca.crt"))
                run(konsil_site(path, "join", token, "--coordinator", f"localhost:{port}", *authority), log=log)
                daemons.append(Daemon(name, konsil_site(path, "start"), log=tmp_path / f"{name}.log"))
            with pytest.raises(CommandFailed, match=r"--references FILE says where they are"):
                run(begin, log=log)
            run([*begin, "--references", str(tmp_path / "references.pt")], log=log)
            folder = coordinator / "runs" / "filtered"
            until(lambda: rounds_in(folder) >= 1, serving)
            os.kill(pid_of(folder), signal.SIGKILL)
            until(lambda: finished(folder), serving)
            told = run(konsil_study("status", "filtered", "--folder", str(coordinator)), log=log)
        finally:
            stopped = [daemon.stop() for daemon in daemons]
    assert stopped == [0] * 3
    record = Record.read(folder / "record.json")
    assert (record.verdict, len(record.rounds)) == ("complete", 6), record.reasons
    assert record.resumed
    assert "over: complete" in told
    assert Study.model_validate(record.study).strategy.references_sha256 == fingerprint(free)
    assert (coordinator / "models" / f"{fingerprint(free)}.pt").exists()
    assert all(site.epsilon == pytest.approx(8, rel=0.01) for site in record.sites.values())


def rounds_in(folder):
    path = folder / "record.json"
    return len(Record.read(path).rounds) if path.exists() else 0


def finished(folder):
    return Record.read(folder / "record.json").finished


def pid_of(folder):
    """Of the process in which the study runs, as it says itself."""
    return Now.read(folder).pid


def until(done, serving, *, timeout_s=600.0):
    end = time.monotonic() + timeout_s
    while not done():
        assert not serving.ended
        assert time.monotonic() < end
        time.sleep(0.2)
