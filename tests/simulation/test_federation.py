"""Real processes over a real network give the model that the same study gives in this process.

To the rounding of float32: how many threads torch has in a process decides in which order it adds.
"""

import json
import shutil
import subprocess
import sys

import pydicom
import pytest
import torch
from network import connected
from planted import Search, dates, screens

from conf.study import Privacy, Study
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.metrics import metrics
from fl_client.privacy import Ledger
from fl_client.site import Site
from fl_server.app import run as run_in_process
from fl_server.record import Record
from fl_server.weights import initial_state
from simulation.federation.programs import CommandFailed, Daemon, konsil_site, require_ended, run
from simulation.federation.recipe import Town, federation
from simulation.grid import InProcessGrid


def twin(site, folder):
    """The same hospital before the study: its settings and its cohort, no books."""
    copy = site.model_copy(update={"folder": folder, "coordinator": None, "approve_all": True})
    shutil.copytree(site.cohort_folder / "cases", folder / "cohort" / "cases")
    copy.save(folder / "site.yaml")
    return {"site": str(folder / "site.yaml")}


def in_process(study, sites, folder):
    """The study with the hospitals' twins in this process: the record and the model."""
    nodes = [twin(site, folder / site.name) for site in sites]
    grid = InProcessGrid("fl_client.app:app", nodes, {"study": study.to_json()})
    return run_in_process(grid, study, initial_state(study), folder=folder / "run")


def same(one, other):
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in one)


def test_two_daemons_and_a_coordinator_learn_what_the_grid_in_process_learns(hospitals, tmp_path):
    study = hospitals.study(sites=("a", "b"), privacy=Privacy(kind="none"))
    settings = {}
    for name in study.sites:
        site = hospitals.site(name).model_copy(update={"accept_no_privacy": True})
        hospitals.save(site)
        settings[name] = hospitals.sites[name]
    before = {name: twin(hospitals.site(name), tmp_path / "before" / name) for name in study.sites}
    (tmp_path / "study.json").write_text(study.model_dump_json())
    with connected(tmp_path, settings) as network:
        network.command("start", str(tmp_path / "study.json"), "--wait")
    record = Record.read(network.coordinator / "runs" / study.name / "record.json")
    assert (record.verdict, len(record.rounds)) == ("complete", study.rounds)
    over_network = torch.load(network.coordinator / "runs" / study.name / "model.pt", weights_only=True)
    grid = InProcessGrid("fl_client.app:app", list(before.values()), {"study": study.to_json()})
    state, _ = run_in_process(grid, study, initial_state(study), folder=tmp_path / "twin")
    assert same(over_network, state)
    for name in study.sites:
        lines = [line for line in AuditLog(hospitals.site(name).folder / "audit.jsonl").lines if line["happening"] == "egress"]
        assert [line["asked"] for line in lines if line["kind"] == "arrays"] == ["train"] * study.rounds
        assert (
            len(Ledger(hospitals.site(name).ledger_path, epsilon=1, delta=1e-3, accept_no_privacy=True).events) == study.rounds
        )


def test_a_command_that_fails_is_told_with_its_own_words(tmp_path):
    with pytest.raises(CommandFailed, match=r"no/such/site\.yaml"):
        run(konsil_site(tmp_path / "no" / "such" / "site.yaml", "status"), log=tmp_path / "log")
    with (
        Daemon("the daemon", konsil_site(tmp_path / "site.yaml", "start"), log=tmp_path / "daemon.log") as daemon,
        pytest.raises(CommandFailed, match="the daemon ended with 1"),
    ):
        daemon.wait_for("anything")


def test_a_process_that_has_not_ended_is_named(tmp_path):
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()", "fl_client.worker", str(tmp_path / "alster" / "site.yaml")]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as left:
        with pytest.raises(CommandFailed, match=r"have not ended:\n.*fl_client\.worker .*alster/site\.yaml"):
            require_ended(tmp_path, timeout_s=0)
        require_ended(tmp_path / "alster" / "site", timeout_s=0)  # another folder
        left.terminate()
    require_ended(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # minutes on a busy machine
def test_a_town_from_dicom_to_models_equals_the_same_studies_in_this_process(tmp_path):
    town = Town(tmp_path / "town", patients=3, rounds=2, epsilon=None)
    records = federation(town)
    assert {name: record.verdict for name, record in records.items()} == {"segmentation": "complete", "radiomics": "complete"}
    for name in records:
        study = Study.from_json(json.dumps(json.loads((town.folder / f"{name}.json").read_text())))
        sites = [Site.load(town.folder / site / "site.yaml") for site in study.sites]
        state, _ = in_process(study, sites, tmp_path / name)
        assert same(torch.load(town.folder / "coordinator" / "runs" / name / "model.pt", weights_only=True), state)


def archived(archive, *, named):
    """What names the people of an archive; of those with public names, who are real, the numbers alone."""
    marks = {}
    for folder in sorted(path for path in archive.iterdir() if path.is_dir()):
        marks[f"number of {folder.name}"] = folder.name
        if named:
            file = pydicom.dcmread(next(folder.rglob("IM*.dcm")), stop_before_pixels=True)
            facts = {"accession": file.AccessionNumber, "serial": file.DeviceSerialNumber, "address": file.InstitutionAddress}
            facts |= {f"name {n}": part for n, part in enumerate(str(file.PatientName).split("^"))}
            facts |= {f"born {n}": text for n, text in enumerate(sorted(dates(file.PatientBirthDate)))}
            marks |= {f"{what} of {folder.name}": text for what, text in facts.items()}
    return marks


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the town is minutes on a busy machine, and every byte that it left is searched
def test_a_town_under_privacy_keeps_its_promises(tmp_path):
    town = Town(tmp_path / "town", patients=3, rounds=2, epsilon=8.0)
    records = federation(town)
    assert {record.verdict for record in records.values()} == {"complete"}
    everybody = {}
    for name in (*town.generated, "sunnybrook"):
        site = Site.load(town.folder / name / "site.yaml")
        book = Ledger(site.ledger_path, epsilon=site.budget.epsilon, delta=site.budget.delta)
        assert 0 < book.epsilon <= (16.0 if name != "sunnybrook" else 8.0) + 0.01
        assert all(event.noise == "os" for event in book.events)
        marks = archived(town.folder / "archives" / name, named=name != "sunnybrook")
        search, everybody = Search(marks), everybody | marks
        (town.folder / f"{name}-metrics.log").write_bytes(metrics(site))
        run(
            konsil_site(town.folder / name / "site.yaml", "support-bundle", str(site.folder / "help.zip")), log=tmp_path / "log"
        )
        assert search.below(site.folder, but=(site.identity_folder,)) == set()
        for log in (f"{name}.log", f"{name}-metrics.log"):
            assert search.of((town.folder / log).read_bytes(), log) == set()
        assert {found for place, html in screens(site) for found in search.of(html.encode(), place)} == set()
        inside = {what.partition(" of ")[0] for what, _ in search.below(site.identity_folder)}
        wanted = {"number"} | ({"name 0", "name 1", "accession"} if name != "sunnybrook" else set())
        assert wanted <= inside  # so the search can find
    assert Search(everybody).below(town.folder / "coordinator") == set()
    assert Search(everybody).of((town.folder / "coordinator.log").read_bytes(), "coordinator.log") == set()
    cases = list(Cohort(town.folder / "sunnybrook" / "cohort"))  # one's contours are displaced: it came without a mask
    assert sorted(any(volume.mask is not None for volume in case.volumes) for case in cases) == [False, True, True, True, True]
