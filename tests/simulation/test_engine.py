import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_client import release
from fl_client.approval import Declined
from fl_client.cohort import Cohort
from fl_client.site import Site
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.engine import generated, in_folder, run_ray
from simulation.grid import FIRST_NODE, InProcessGrid

FLOWER = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
CLIENT_APP = FLOWER["components"]["clientapp"]
"""The import path that Flower finds in this repository."""


def node(study, index, **config):
    return Context(1, 2, {"partition-id": index, **config}, RecordDict(), {"study": study.to_json()})


def test_node_i_is_the_studys_site_i(hospitals, monkeypatch):
    monkeypatch.setenv("KONSIL_HOSPITALS", str(hospitals.folder))
    study = hospitals.study(sites=("c", "a", "missing"))
    assert in_folder(node(study, 0)).node_config["site"] == str(hospitals.sites["c"])
    assert in_folder(node(study, 1)).node_config["site"] == str(hospitals.sites["a"])
    with pytest.raises(Declined, match=r"no settings file missing/site\.yaml"):
        in_folder(node(study, 2))
    with pytest.raises(Declined, match="node 3 is not needed"):
        in_folder(node(study, 3))


def test_a_real_node_keeps_the_hospital_it_was_started_for(hospitals):
    context = node(hospitals.study(), 0, site="/hospital/site.yaml")
    assert in_folder(context) is context


def test_a_generated_hospital_is_made_once_and_can_be_trained_on(tmp_path):
    path = generated("north", 0, tmp_path / "hospitals")
    site = Site.load(path)
    assert (site.name, len(Cohort(site.cohort_folder))) == ("north", 5)
    before = path.stat().st_mtime_ns
    assert generated("north", 0, tmp_path / "hospitals") == path
    assert path.stat().st_mtime_ns == before


def said(grid, node, kind):
    """The answer of the app that `flwr run .` starts at a node, to an enrolment question or to a round."""
    content = RecordDict({"config": ConfigRecord({"study-hash": "of another study", "server-round": 1})})
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    return reply


def test_the_app_that_flower_starts_at_real_nodes_trains_as_the_hospitals_own_does(hospitals, new_hospitals):
    twins = new_hospitals("twins")
    for site in map(hospitals.site, "abc"):
        twins.add(site.name, declared_size=site.declared_size, noise_seed=site.noise_seed)
    study = hospitals.study()
    ends = []
    for app, small in (("fl_client.app:app", hospitals), (CLIENT_APP, twins)):
        grid = InProcessGrid(app, small.nodes, {"study": study.to_json()})
        state, record = run(grid, study, initial_state(study), folder=small.folder / "run")
        assert record.verdict == "complete"
        ends.append(state)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("kind", ["query.enroll", "train"])
def test_a_node_that_is_not_needed_or_has_no_settings_declines_in_words(hospitals, monkeypatch, kind):
    monkeypatch.setenv("KONSIL_HOSPITALS", str(hospitals.folder))
    study = hospitals.study(sites=("a", "missing"))
    grid = InProcessGrid(CLIENT_APP, [{"partition-id": i} for i in range(3)], {"study": study.to_json()})
    without, unneeded = said(grid, FIRST_NODE + 1, kind), said(grid, FIRST_NODE + 2, kind)
    assert {without.error.code, unneeded.error.code} == {release.DECLINED}
    assert without.error.reason == "KONSIL_HOSPITALS has no settings file missing/site.yaml"
    assert unneeded.error.reason == "study rehearsal has 2 sites; node 2 is not needed"


@pytest.mark.parametrize("kind", ["query.enroll", "train"])
@pytest.mark.parametrize(
    ("node", "study"),
    [
        ({}, None),  # started by hand, without node configuration
        ({"partition-id": "p0-Mueller"}, None),
        ({"site": "/no/such/hospital/site.yaml"}, None),
        ({"partition-id": 0}, "{no study"),
    ],
)
def test_no_text_of_an_exception_leaves_a_node_that_was_started_wrongly(hospitals, caplog, node, study, kind):
    grid = InProcessGrid(CLIENT_APP, [node], {"study": hospitals.study().to_json() if study is None else study})
    reply = said(grid, FIRST_NODE, kind)
    assert reply.error.code == release.FAILED
    assert re.fullmatch(release.FAILED_WORDS + r" \(reason: work, number [0-9a-f]{8}\)", reply.error.reason)
    assert not reply.has_content()
    assert "Traceback" in caplog.text  # it stays here


def test_what_breaks_at_a_real_site_stays_in_its_log(hospitals):
    site = hospitals.site("a")
    shutil.rmtree(site.cohort_folder)
    site.cohort_folder.write_text("no folder, but the name Mueller")
    study = hospitals.study(sites=("a", "b"))
    grid = InProcessGrid(CLIENT_APP, hospitals.nodes, {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=hospitals.folder / "run")
    assert [e.sites["a"].answer for e in record.rounds] == ["failed", "failed"]
    assert all(e.sites["a"].reason.startswith(release.FAILED_WORDS) for e in record.rounds)
    assert [e.sites["b"].answer for e in record.rounds] == ["used", "used"]
    assert "NotADirectoryError" in (site.folder / "log" / "failures.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # Ray starts anew for every federation: minutes on a busy machine
@pytest.mark.filterwarnings("default")  # Ray's own
def test_flowers_engine_gives_the_same_bits_as_the_grid_in_process(hospitals, new_hospitals):
    twins = new_hospitals("twins")
    for site in map(hospitals.site, "abc"):
        twins.add(site.name, declared_size=site.declared_size, noise_seed=site.noise_seed)
    study = hospitals.study()
    start = initial_state(study)
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    expected, _ = run(grid, study, start, folder=hospitals.folder / "run")
    found, record = run_ray(study, twins.sites, start, folder=twins.folder / "run")
    assert (record.verdict, record.engine) == ("complete", "ray")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
