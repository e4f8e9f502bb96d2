"""Under masks, synthetic cases add to a sum that has room for the declared patients alone."""

import pytest

from conf.study import LocalTraining, Privacy, SecureAggregation, Strategy
from fl_client import app as hospital
from fl_client.keys import make_key, public_key
from fl_client.site import Budget
from fl_client.synthetic import add
from fl_server.rounds import run
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid

NAMES = ("a", "b", "c")


@pytest.mark.parametrize("shortened", [True, False])
def test_a_sum_with_synthetic_cases_is_no_false_sum(new_hospitals, monkeypatch, shortened):
    """With hardly any noise, and gradients that point one way and are cut to the bound, only the shortening keeps it."""
    house = new_hospitals("sites")
    elsewhere = new_hospitals("elsewhere")
    made = [elsewhere.add(name, patients=4).cohort_folder for name in "stuv"][-1]
    for name in NAMES:
        site = house.add(name, declared_size=4, patients=4, budget=Budget(epsilon=1e6, delta=1e-3))
        make_key(site.folder / "node.key", comment=name)
        add(site, made, origin="drawn from seeds", who="Dr. Alpha")
    keys = {name: public_key(house.site(name).folder / "node.key") for name in NAMES}
    study = house.study(
        rounds=1,
        privacy=Privacy(epsilon=1e5, delta=1e-3, max_grad_norm=1e-3, secure=SecureAggregation(keys=keys, patients=12)),
        training=LocalTraining(views=1),
        strategy=Strategy(name="fedavg"),
    )
    if not shortened:
        monkeypatch.setattr(hospital, "as_declared", lambda sums, longest: sums)
    grid = InProcessGrid("fl_client.app:app", house.nodes, {"study": study.to_json()})
    _, record = run(grid, study, initial_state(study), folder=house.folder / "run")
    assert (record.verdict == "complete") is shortened
