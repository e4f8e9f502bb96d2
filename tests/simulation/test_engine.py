import pytest
import torch
from flwr.app import Context, RecordDict

from fl_client.approval import Declined
from fl_client.cohort import Cohort
from fl_client.site import Site
from fl_server.rounds import initial_state, run
from simulation.engine import generated, in_folder, run_ray
from simulation.grid import InProcessGrid


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


@pytest.mark.slow
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
