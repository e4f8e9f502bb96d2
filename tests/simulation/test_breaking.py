"""Real processes over a real network, killed in turn: the study goes on by itself and ends where an undisturbed one does."""

import random
import sys
from pathlib import Path

import pytest

from fl_server.record import Record
from simulation.faults.accounting import account
from simulation.faults.plan import planned
from simulation.federation.__main__ import main
from simulation.federation.recipe import Town, federation

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_plan_for_real_processes_is_refused_in_words_if_they_cant_have_it(capsys):
    with pytest.raises(SystemExit):
        main(["--faults", "gremlin"])
    assert "no plan named gremlin; there are hospital_week, none, town_days" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--faults", "town_days", "--rounds", "3"])
    assert "corrupt_case is planned for round 4; the study has 3" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nan_update is made in the simulator only; real processes can have crash_in_training"):
        planned("hospital_week").model_copy(
            update={"plan": tuple(fault for fault in planned("hospital_week").plan if fault.fault == "nan_update")}
        ).require(sites=("isar",), rounds=3, processes=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_study_superlink_and_service_are_killed_and_the_model_is_the_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "faults", raising=False)
    import faults

    figures = faults.network_kills(tmp_path, 3, random.Random(1))
    assert (figures["kills"], figures["resumed_equal"], figures["ledger_undercounts"]) == (3, 3, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_bad_days_of_the_town_are_told_and_nobody_is_lost(tmp_path):
    town = Town(tmp_path / "town", patients=3, rounds=4, studies=("segmentation",), faults=planned("town_days"))
    record = federation(town)["segmentation"]
    assert (len(record.rounds), record.verdict in ("complete", "degraded")) == (4, True)
    assert account(record).silent == ()
    assert [fault["fault"] for fault in record.faults] == [fault.fault for fault in town.faults.plan]
    assert len(record.resumed) >= 2  # after the SuperLink, and after the study's own process
    assert Record.read(town.folder / "coordinator" / "runs" / "segmentation" / "record.json").faults == record.faults
    # what was done on purpose is told in words: a traceback is for what nobody expected
    logs = list(town.folder.rglob("*.log"))
    assert {"alster.log", "coordinator.log", "superlink.log"} <= {log.name for log in logs}
    assert [log.name for log in logs if "Traceback (most recent" in log.read_text(errors="replace")] == []
