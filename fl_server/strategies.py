"""Flower's strategy for a study: which class, with which of the study's settings."""

from __future__ import annotations

from collections.abc import Callable

from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, Krum

from conf.study import Study
from fl_server.combine import Sum


def aggregator(study: Study) -> FedAvg:
    """The strategy that the study names. None asks for evaluation: scores are konsil's own releases.

    Raises `ValueError` if the study's quorum lets rounds count in which its strategy protects from nobody.
    """
    chosen = study.strategy
    require_protection(study)
    kinds: dict[str, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "fedprox": lambda: FedProx(proximal_mu=chosen.proximal_mu),
        "fedadam": lambda: FedAdam(eta=chosen.server_learning_rate, tau=chosen.server_tau),
        "fedavgm": lambda: FedAvgM(server_learning_rate=chosen.server_learning_rate, server_momentum=chosen.server_momentum),
        "fedmedian": FedMedian,
        "fedtrimmed": lambda: FedTrimmedAvg(beta=chosen.trim),
        "krum": lambda: Krum(num_malicious_nodes=chosen.malicious),
        "sum": Sum,
    }
    return kinds[chosen.name]()


def require_protection(study: Study) -> None:
    """Raise `ValueError` for a quorum below what the strategy's promise needs: Flower's classes go on without a word."""
    chosen, quorum = study.strategy, study.strategy.quorum
    if chosen.name == "krum" and quorum < (needed := 2 * chosen.malicious + 3):  # Blanchard et al. 2017, proposition 4.2
        raise ValueError(
            f"strategy.quorum is {quorum}; krum tells {chosen.malicious} wrong of the answers (strategy.malicious) from the "
            f"right ones only among {needed} or more"
        )
    if chosen.name == "fedtrimmed" and chosen.trim and int(chosen.trim * quorum) < 1:
        needed = next(count for count in range(1, 10_000) if int(chosen.trim * count) >= 1)
        raise ValueError(
            f"strategy.quorum is {quorum}; of so few answers a share of {chosen.trim:g} at either end (strategy.trim) is "
            f"nobody; of {needed} it is one"
        )
