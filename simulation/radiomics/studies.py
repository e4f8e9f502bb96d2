"""The studies of a radiomics rehearsal: how the promise is divided, and what each learner is asked under it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from conf.study import LocalTraining, Privacy, Strategy, Study
from fl_client.privacy import Event, calibrate, epsilon
from simulation.radiomics.settings import Classifier, Descent
from simulation.settings import Simulation
from tasks.task import settled

Task = dict[str, Any]


@dataclass(frozen=True)
class Promise:
    """The study's epsilon, divided: `masks` for the model that draws masks, `classifier` for the rest; together `whole`.

    Their noise composes: epsilons don't add up, but squared ratios of sensitivity to noise do.
    """

    whole: float
    masks: float
    classifier: float

    @classmethod
    def of(cls, privacy: Privacy, classifier: Classifier) -> Promise:
        """What the settings say. Without predicted masks the classifier has all of it."""
        if "unet" not in classifier.masks:
            return cls(privacy.epsilon, 0.0, privacy.epsilon)
        alone = calibrate(epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=1.0, steps=1)
        parts = [
            epsilon([Event(noise_multiplier=alone / math.sqrt(share))], delta=privacy.delta)
            for share in (1 - classifier.share, classifier.share)
        ]
        return cls(privacy.epsilon, *parts)


def masks_study(
    simulation: Simulation, promise: Promise, *, seed: int, sites: tuple[str, ...], initial: str, name: str
) -> Study:
    """The study of the model that draws masks, under its part of the promise."""
    privacy = simulation.privacy.model_copy(update={"epsilon": promise.masks})
    study = simulation.study(seed=seed, private=True, sites=sites, initial=initial, name=name)
    return study.model_copy(update={"privacy": privacy})


def classifier_studies(
    simulation: Simulation,
    classifier: Classifier,
    promise: Promise,
    *,
    seed: int,
    sites: tuple[str, ...],
    task: Task,
    suffix: str = "",
    plain: bool = True,
) -> dict[str, Study]:
    """By arm: the private and the plain study of every learner. `suffix` tells where the rows come from."""
    learners: dict[str, Descent | None] = {"forest": None}
    if not suffix:  # masks are compared under one learner
        learners |= {"logistic": classifier.logistic} if classifier.logistic else {}
        learners |= {"mlp": classifier.mlp} if classifier.mlp else {}
    found = {}
    for learner, descent in learners.items():
        for kind in ("private", "plain") if plain else ("private",):
            privacy = Privacy(kind="none")
            if kind == "private":
                privacy = simulation.privacy.model_copy(update={"epsilon": promise.classifier, "evaluation_share": 0.0})
            found[f"{learner}{suffix}_{kind}"] = study_of(
                f"{simulation.name}-{learner}{suffix}-{kind}", task, descent, privacy, seed=seed, sites=sites
            )
    return found


def study_of(
    name: str, task: Mapping[str, Any], descent: Descent | None, privacy: Privacy, *, seed: int, sites: tuple[str, ...]
) -> Study:
    """One study: the forest's sum, or so many steps of a perceptron."""
    settings = dict(task)
    if descent is None:
        rounds, training, strategy = 1, LocalTraining(), Strategy(name="sum")
        settings["learner"] = {**settings["learner"], "seed": seed}
    else:
        rounds, strategy = descent.rounds, Strategy(name="fedavg")
        training = LocalTraining(views=descent.views, learning_rate=descent.learning_rate)
        settings["learner"] = {"kind": "perceptron", "hidden": list(descent.hidden)}
        privacy = privacy.model_copy(update={"max_grad_norm": descent.max_grad_norm})
    return Study(
        name=name[:64],
        konsil_version=version("konsil"),
        task=settled(settings),
        rounds=rounds,
        sites=sites,
        seed=seed,
        privacy=privacy,
        training=training,
        strategy=strategy,
    )
