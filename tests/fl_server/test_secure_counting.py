"""Counting tasks under secure aggregation: the forest of all hospitals with one noise, and no hospital's own counts."""

import numpy as np
import pytest
from table_hospitals import counting_study, fill

from fl_client.keys import make_key, public_key
from fl_client.site import Budget
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid


@pytest.fixture
def tables(new_hospitals):
    small = new_hospitals("tables")
    for name, patients in (("a", 12), ("b", 20), ("c", 30), ("d", 16)):
        site = small.add(name, patients=0, declared_size=20, test_fraction=0.2, budget=Budget(epsilon=10.0, delta=1e-3))
        fill(site, patients)
        make_key(site.folder / "node.key", comment=name)
    return small


def study_of(tables, **privacy):
    keys = {name: public_key(tables.site(name).folder / "node.key") for name in tables.sites}
    secure = {"keys": keys, "patients": 100, "threshold": 3, "colluding": 0}
    return counting_study(tables, privacy={"epsilon": 3.0, "secure": secure, **privacy})


def over(tables, study):
    for name in tables.sites:
        for book in tables.site(name).folder.glob("ledger.jsonl*"):
            book.unlink()
    grid = InProcessGrid("fl_client.app:app", tables.nodes, {"study": study.to_json()})
    return run(grid, study, initial_state(study), folder=tables.folder / "run")


def test_the_counts_are_those_of_all_patients_to_the_grid(tables, monkeypatch):
    monkeypatch.setattr("tasks.secure.grid.discrete_gaussian", lambda count, **how: np.zeros(count, dtype=np.int64))
    masked, record = over(tables, study_of(tables))
    assert record.verdict == "complete", record.reasons
    monkeypatch.undo()
    for name in tables.sites:
        tables.save(tables.site(name).model_copy(update={"accept_no_privacy": True}))
    plain, _ = over(tables, counting_study(tables, privacy={"kind": "none"}))
    assert float(plain["total"].abs().sum()) > 10
    np.testing.assert_allclose(masked["total"].numpy(), plain["total"].numpy(), atol=4 * 2**-22)


def test_one_noise_lies_on_the_sum_where_each_hospital_would_add_its_own(tables):
    state, record = over(tables, study_of(tables))
    alone = 1.0386  # noise multiplier of epsilon 3 at delta 1e-3 (Balle and Wang 2018), to three digits
    # four answered, three had to: a third of the promise at each, four of them in the sum
    assert float(state["noise_variance"][0]) == pytest.approx(4 / 3 * alone**2, rel=0.01)
    assert all(2.9 < site.epsilon <= 3 for site in record.sites.values())


def test_scores_are_asked_for_as_ever_with_a_noise_of_their_own(tables):
    state, record = over(tables, study_of(tables, evaluation_share=0.3))
    assert record.evaluation is not None
    assert {entry.answer for entry in record.evaluation.sites.values()} == {"used"}
    assert all(2.9 < site.epsilon <= 3 for site in record.sites.values())
    assert float(state["noise_variance"][0]) > 4 / 3 * 1.0386**2
