import hashlib
import math

import numpy as np
import pytest
import torch

from conf.study import LocalTraining, Privacy, Strategy
from fl_client.privacy import dp_sgd
from simulation.__main__ import settings_of
from simulation.arms import Arm, train
from simulation.hospital import drawn
from simulation.machine import Immediately
from simulation.settings import MaskedSums
from simulation.trial import Place, federate, sum_noise
from tasks.fingerprint import fingerprint
from tasks.task import gradient_task


@pytest.fixture(scope="module")
def hospitals(tiny):
    every = settings_of(tiny.overrides).hospitals
    cache = tiny.folder.parent / "cache"
    return {
        name: drawn(name, index, profile, every, cache=cache, pool=Immediately(), advance=lambda *_: None)
        for index, (name, profile) in enumerate(every.sites.items())
    }


@pytest.fixture
def start(tiny):
    return torch.load(tiny.folder / "start.pt", weights_only=True)


def study_of(tiny, hospitals, start, *, private, **changes):
    study = settings_of(tiny.overrides).study(
        seed=0, private=private, sites=tuple(hospitals), initial=fingerprint(start), name="trial"
    )
    training = LocalTraining(steps=1, sample_rate=1.0, views=2, learning_rate=1.0)
    return study.model_copy(update={"training": training, "rounds": 3, **changes})


def places_of(study, hospitals):
    task = gradient_task(study.task)
    return {
        name: Place(task, {one: h.cohort.prepared(task, one) for one in h.training_patients}, h.declared_size)
        for name, h in hospitals.items()
    }


ADAM = {"name": "fedadam", "server_learning_rate": 0.01, "server_schedule": "cosine", "ema_decay": 0.9}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("strategy", [ADAM, {"name": "fedavgm"}])
def test_a_trial_ends_at_the_model_of_the_products_own_run(tiny, hospitals, start, tmp_path, monkeypatch, private, strategy):
    """With the noise left out on both sides, and the same views drawn."""
    privacy = Privacy(epsilon=3.0, max_grad_norm=0.05) if private else Privacy(kind="none")
    study = study_of(tiny, hospitals, start, private=private, privacy=privacy, strategy=Strategy.model_validate(strategy))
    asked, drawn_with = {}, {}
    monkeypatch.setattr("fl_client.privacy.dp_sgd.noised", lambda total, std, noise: total.double())

    def randomness(site, question):
        seed = [len(asked.setdefault(site.name, [])), *hashlib.sha256(site.name.encode()).digest()[:4]]
        asked[site.name].append(question)
        drawn_with[site.name, len(asked[site.name])] = seed
        return dp_sgd, np.random.default_rng(seed)

    monkeypatch.setattr("fl_client.app.randomness", randomness)
    arm = Arm("trial", study, hospitals, tmp_path / "arm")
    train(arm, tiny.folder / "start.pt")
    mine = federate(
        study,
        places_of(study, hospitals),
        start,
        noise=np.random.default_rng(0),
        sampling=lambda site, number, state: np.random.default_rng(drawn_with[site, number]),
        noise_share=0.0,
    )
    theirs = arm.state()
    apart = math.hypot(*(float((mine[name] - theirs[name]).norm()) for name in theirs))
    moved = math.hypot(*(float((theirs[name] - start[name]).norm()) for name in theirs))
    assert moved > 1e-3
    assert apart < 0.01 * moved  # hospitals round to single precision what they send, and Adam looks at small numbers closely


def test_noise_of_all_hospitals_adds_up_or_is_shared(tiny, hospitals, start):
    """Six hospitals, of whom five must be left and one may tell its own: four shares are the promise, six are added."""
    sites = ("a", "b", "c", "d", "e", "f")
    alone = study_of(tiny, hospitals, start, private=True, sites=sites, privacy=Privacy(epsilon=3.0, max_grad_norm=0.3))
    secure = MaskedSums(patients=240).among(sites)
    shared = alone.model_copy(update={"privacy": Privacy(epsilon=3.0, max_grad_norm=0.3, secure=secure)})
    task = gradient_task(alone.task)
    assert sum_noise(alone, task, 6) / sum_noise(shared, task, 6) == pytest.approx(math.sqrt(4), rel=3e-3)
    free = alone.model_copy(update={"privacy": Privacy(kind="none")})
    assert sum_noise(free, task, 6) == 0


def test_a_hospitals_response_changes_images_and_nothing_else(tiny, hospitals, start):
    study = study_of(tiny, hospitals, start, private=False)
    place = next(iter(places_of(study, hospitals).values()))
    dark = Place(place.task, place.prepared, place.declared, lambda image: image**2)
    patient = place.patients[0]
    image, target = place.example(patient, 2, np.random.default_rng(5))
    darker, same = dark.example(patient, 2, np.random.default_rng(5))
    assert torch.equal(darker, image**2)
    assert torch.equal(target, same)


def test_a_study_with_other_rounds_is_refused(tiny, hospitals, start):
    study = study_of(tiny, hospitals, start, private=False, training=LocalTraining(steps=2))
    with pytest.raises(ValueError, match="one step of sgd"):
        federate(study, {}, start, noise=np.random.default_rng(0), sampling=lambda *_: np.random.default_rng(0))
