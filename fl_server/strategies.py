"""Flower's strategy for a study: which class, with which of the study's settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, Krum
from numpy.typing import NDArray

from conf.study import Study
from fl_server.combine import Sum
from fl_server.references import noise_of_mean
from fl_server.wiener import FedWiener, Gradients


def aggregator(study: Study, gradients: Gradients | None = None) -> FedAvg:
    """The strategy that the study names. None asks for evaluation: scores are konsil's own releases.

    `gradients` are those of free patients, for the one strategy that filters by them. Raises `ValueError` if the study's quorum
    lets rounds count in which its strategy protects from nobody, or if its strategy doesn't suit its training.
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
        "fedwiener": lambda: FedWiener(
            server_learning_rate=chosen.server_learning_rate,
            server_momentum=chosen.server_momentum,
            noise=partial(noise_of_mean, study),
            gradients=gradients or _nobody,
        ),
        "sum": Sum,
    }
    return kinds[chosen.name]()


def _nobody(*_: object) -> NDArray[np.float32]:
    raise ValueError("fedwiener filters by the gradients of free patients, and was given none")


def require_protection(study: Study) -> None:
    """Raise `ValueError` for a quorum below what the strategy's promise needs: Flower's classes go on without a word.

    So for a training whose noise the strategy can't know.
    """
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
    training = study.training
    if chosen.name == "fedwiener" and (training.steps != 1 or training.optimizer != "sgd" or training.work_s is not None):
        raise ValueError(
            "fedwiener takes noise out of the mean of single steps of sgd: training.steps must be 1, training.optimizer sgd "
            f"and training.work_s left out, not {training.steps}, {training.optimizer} and {training.work_s}"
        )
    if chosen.name != "fedwiener" and chosen.references_sha256 is not None:
        raise ValueError(f"strategy.references_sha256 names free patients for fedwiener; {chosen.name} has no use for them")
