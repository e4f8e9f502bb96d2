"""A study that filters, between real processes over TLS: its references go with it, and are found again after a kill."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from network import connected

from conf.study import Study
from fl_client.cohort import Cohort
from fl_server.live import Now
from fl_server.record import Record
from simulation.federation.programs import CommandFailed
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
    strategy = {"name": "fedwiener", "server_learning_rate": 0.1, "server_schedule": "cosine", "quorum": 3}
    training = {"steps": 1, "sample_rate": 1.0, "views": 2, "optimizer": "sgd", "learning_rate": 1.0}
    study = hospitals.study(name="filtered", rounds=6, privacy={"epsilon": 8}, training=training, strategy=strategy)
    (tmp_path / "study.json").write_text(study.model_dump_json())
    free = free_patients(hospitals, load(study.task))
    torch.save(free, tmp_path / "references.pt")
    with connected(tmp_path, {name: hospitals.sites[name] for name in NAMES}) as network:
        with pytest.raises(CommandFailed, match=r"--references FILE says where they are"):
            network.command("start", str(tmp_path / "study.json"))
        network.command("start", str(tmp_path / "study.json"), "--references", str(tmp_path / "references.pt"))
        folder = network.coordinator / "runs" / "filtered"
        until(lambda: rounds_in(folder) >= 1, network.serving)
        os.kill(pid_of(folder), signal.SIGKILL)
        until(lambda: finished(folder), network.serving)
        told = network.command("status", "filtered")
    record = Record.read(folder / "record.json")
    assert (record.verdict, len(record.rounds)) == ("complete", 6), record.reasons
    assert record.resumed
    assert "over: complete" in told
    assert Study.model_validate(record.study).strategy.references_sha256 == fingerprint(free)
    assert (network.coordinator / "models" / f"{fingerprint(free)}.pt").exists()
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
