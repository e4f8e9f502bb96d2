"""Secure aggregation between real processes over TLS: the sum is the one that hospitals in one process have."""

import json
import shutil

import pytest
import torch
from network import connected

from conf.study import LocalTraining, Privacy, SecureAggregation, Study
from fl_client.audit import AuditLog
from fl_client.privacy import Ledger
from fl_client.site import Budget
from fl_server.app import run as run_in_process
from fl_server.record import Record
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid

NAMES = ("a", "b", "c", "d")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_daemons_and_a_coordinator_sum_under_masks(hospitals, tmp_path):
    hospitals.add("d", declared_size=5)
    for name in NAMES:
        hospitals.save(hospitals.site(name).model_copy(update={"budget": Budget(epsilon=10.0, delta=1e-3)}))
        shutil.copytree(hospitals.site(name).cohort_folder / "cases", tmp_path / "twins" / name / "cohort" / "cases")
    plan = hospitals.study(
        sites=NAMES,
        rounds=2,
        privacy=Privacy(
            epsilon=8.0, delta=1e-3, secure=SecureAggregation(keys=dict.fromkeys(NAMES, "x"), patients=100, threshold=3)
        ),
        training=LocalTraining(views=2, learning_rate=0.5),
        strategy={"name": "fedavg", "quorum": 3, "round_timeout_s": 240.0},
    ).model_dump(mode="json")
    plan["privacy"]["secure"]["keys"] = {}  # the coordinator knows them from the register
    (tmp_path / "study.json").write_text(json.dumps(plan))
    with connected(tmp_path, {name: hospitals.sites[name] for name in NAMES}) as network:
        network.command("start", str(tmp_path / "study.json"), "--wait")
    record = Record.read(network.coordinator / "runs" / plan["name"] / "record.json")
    assert record.verdict == "complete", record.reasons
    study = Study.model_validate(record.study)
    assert sorted(study.privacy.secure.keys) == list(NAMES)
    nodes = []
    for name in NAMES:
        site = hospitals.site(name)
        twin = site.model_copy(update={"folder": tmp_path / "twins" / name, "coordinator": None})
        shutil.copy(site.coordinator.key, twin.folder / "node.key")
        twin.save(twin.folder / "site.yaml")
        nodes.append({"site": str(twin.folder / "site.yaml")})
        (first, second) = Ledger(site.ledger_path, epsilon=10.0, delta=1e-3).events
        assert (first.mechanism, first.round, second.round) == ("discrete_gaussian", 1, 2)
        kinds = [line["kind"] for line in AuditLog(site.folder / "audit.jsonl").lines if line.get("asked") == "train"]
        assert kinds == ["arrays", "arrays"]
    grid = InProcessGrid("fl_client.app:app", nodes, {"study": study.to_json()})
    here, _ = run_in_process(grid, study, initial_state(study), folder=tmp_path / "here")
    there = torch.load(network.coordinator / "runs" / study.name / "model.pt", weights_only=True)
    assert here.keys() == there.keys()
    # the same noise in whole numbers: what differs is the order in which torch adds
    assert all(torch.allclose(here[name], there[name], rtol=1e-4, atol=1e-5) for name in here)
