from importlib.metadata import version

import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, Krum
from small import SMALL_TASK

from conf.study import Study
from fl_server.combine import Sum
from fl_server.strategies import aggregator


def study(**strategy):
    sites = [f"s{i}" for i in range(7)]
    fields = {"konsil_version": version("konsil"), "task": SMALL_TASK, "rounds": 2, "sites": tuple(sites)}
    return Study.model_validate({**fields, "strategy": strategy})


@pytest.mark.parametrize(
    ("settings", "kind", "fields"),
    [
        ({}, FedAvg, {}),
        ({"name": "fedprox", "proximal_mu": 0.3}, FedProx, {"proximal_mu": 0.3}),
        ({"name": "fedadam", "server_learning_rate": 0.02, "server_tau": 1e-4}, FedAdam, {"eta": 0.02, "tau": 1e-4}),
        (
            {"name": "fedavgm", "server_learning_rate": 0.2, "server_momentum": 0.8},
            FedAvgM,
            {"server_learning_rate": 0.2, "server_momentum": 0.8, "server_opt": True},
        ),
        ({"name": "fedmedian"}, FedMedian, {}),
        ({"name": "fedtrimmed", "trim": 0.25, "quorum": 4}, FedTrimmedAvg, {"beta": 0.25}),
        ({"name": "krum", "malicious": 2, "quorum": 7}, Krum, {"num_malicious_nodes": 2, "num_nodes_to_select": 1}),
        ({"name": "sum"}, Sum, {}),
    ],
)
def test_a_study_gets_the_strategy_that_it_names_with_its_settings(settings, kind, fields):
    made = aggregator(study(**settings))
    assert type(made) is kind
    assert {name: getattr(made, name) for name in fields} == fields


def test_krum_needs_twice_as_many_and_three_as_may_be_wrong():
    with pytest.raises(ValueError, match=r"quorum is 4; krum tells 1 wrong .* only among 5 or more"):
        aggregator(study(name="krum", malicious=1, quorum=4))


def test_a_share_of_nobody_is_not_trimmed():
    with pytest.raises(ValueError, match=r"quorum is 4; .* 0.2 at either end .* is nobody; of 5 it is one"):
        aggregator(study(name="fedtrimmed", trim=0.2, quorum=4))
    assert aggregator(study(name="fedtrimmed", trim=0.0)).beta == 0.0
