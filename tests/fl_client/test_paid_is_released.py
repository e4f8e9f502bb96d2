"""What a hospital pays for is what leaves it: the ledger's event against the training, and against the numbers released."""

import math

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from scipy import stats

from fl_client import app as hospital
from fl_client.device import device_of
from fl_client.privacy import epsilon
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load

PATIENTS = 4  # in each of the hospitals; they declare 5, 10 and 25


def answers(hospitals, study):
    """One round of the study, by hospital."""
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    arrays = ArrayRecord(dict(initial_state(study)))
    config = ConfigRecord({"study-hash": study.hash, "server-round": 1})
    content = RecordDict({"arrays": arrays, "config": config})
    replies = grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
    return dict(zip(hospitals.sites, replies, strict=True))


def spied(monkeypatch):
    """Every call of the training loop, with what it was handed; the loop itself is the real one."""
    calls = []
    real = hospital.dp_sgd

    def spy(model, examples, **handed):
        sent = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        calls.append(
            {"model": model, "sent": sent, "examples": examples, "draw": str(handed["sampling_rng"].bit_generator.state)}
        )
        calls[-1] |= handed
        return real(model, examples, **handed)

    monkeypatch.setattr(hospital, "dp_sgd", spy)
    return calls


def test_training_is_handed_exactly_what_the_ledger_was_charged_for_and_what_the_study_says(hospitals, monkeypatch):
    hospitals.save(hospitals.site("b").model_copy(update={"noise_seed": None}))  # one with noise as in production
    study = hospitals.study(
        task={**hospitals.study().task, "trainable": "head"},
        privacy={"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 0.7},
        training={
            "steps": 2,
            "sample_rate": 0.25,
            "views": 3,
            "optimizer": "adam",
            "learning_rate": 0.02,
            "weight_decay": 0.01,
        },
        strategy={"name": "fedprox", "proximal_mu": 0.3},
    )
    calls = spied(monkeypatch)
    replies = answers(hospitals, study)
    task = load(study.task)
    assert [reply.has_content() for reply in replies.values()] == [True] * 3
    assert len({call.pop("draw") for call in calls}) == 3  # who is drawn at one hospital tells nothing about another
    for (name, reply), call, source in zip(replies.items(), calls, ("seeded", "os", "seeded"), strict=True):
        site = hospitals.site(name)
        (event,) = hospital.ledger_of(site).events  # as it stands on the disk
        model = call.pop("model")
        named = {id(parameter): key for key, parameter in model.named_parameters()}
        assert [named[id(parameter)] for parameter in call.pop("parameters")] == task.trainable(model)
        assert all((call["sent"][key] == tensor).all() for key, tensor in initial_state(study).items())
        assert len(call["examples"].patients) == PATIENTS != site.declared_size
        assert (call.pop("noise").source, event.noise) == (source, source)
        loss = call.pop("loss")
        assert (loss.__func__, loss.__self__.settings) == (type(task).loss, task.settings)
        assert isinstance(call.pop("sampling_rng"), np.random.Generator)
        assert str(call.pop("device")) == str(device_of(site))
        del call["sent"], call["examples"]
        assert call == {
            "steps": event.steps,
            "sample_rate": event.sample_rate,
            "noise_multiplier": event.noise_multiplier,
            "declared_size": site.declared_size,
            "max_grad_norm": 0.7,
            "views": 3,
            "optimizer": "adam",
            "learning_rate": 0.02,
            "weight_decay": 0.01,
            "proximal_mu": 0.3,
        }
        assert (event.steps, event.sample_rate, event.study, event.round) == (2, 0.25, study.hash, 1)
        assert 7.9 < epsilon([event] * 2, delta=1e-3) <= 8  # the study has two rounds
        assert reply.content["metrics"]["num-examples"] == site.declared_size


def test_a_study_without_privacy_is_charged_as_such_and_trains_without_bound_and_noise(hospitals, monkeypatch):
    hospitals.save(hospitals.site("a").model_copy(update={"accept_no_privacy": True}))
    calls = spied(monkeypatch)
    answers(hospitals, hospitals.study(privacy={"kind": "none"}))
    (event,) = hospital.ledger_of(hospitals.site("a")).events
    (call,) = calls  # b and c declined
    assert (event.noise_multiplier, call["noise_multiplier"], call["max_grad_norm"]) == (0.0, 0.0, math.inf)


@pytest.mark.parametrize(("steps", "sample_rate"), [(2, 0.25), (1, 1.0)])
def test_what_comes_back_has_the_noise_that_was_paid_for(hospitals, steps, sample_rate):
    """Patients move the sum by at most one bound each, so that its thousands of coordinates are noise and little else.

    One step of plain SGD moves a coordinate by learning rate * noise / (sample rate * declared size), with a noise standard
    deviation of multiplier * bound. The squares, over the variance that follows, are a chi-square with as many degrees of
    freedom as there are coordinates; patients shift it by no more than the square of their sum's length over the noise's.
    """
    bound, rate = 1e-9, 1e8
    study = hospitals.study(
        task={**hospitals.study().task, "channels": [16, 32]},
        privacy={"max_grad_norm": bound},
        training={"steps": steps, "sample_rate": sample_rate, "learning_rate": rate, "views": 1},
    )
    sent = initial_state(study)
    for name, reply in answers(hospitals, study).items():
        site = hospitals.site(name)
        (event,) = hospital.ledger_of(site).events
        back = reply.content["arrays"]
        moved = np.concatenate([(array.numpy() - sent[key].numpy()).ravel() for key, array in back.items()]).astype(float)
        std = rate * event.noise_multiplier * bound / (event.sample_rate * site.declared_size) * math.sqrt(event.steps)
        found = float(np.sum((moved / std) ** 2))
        patients = steps * (PATIENTS / event.noise_multiplier) ** 2
        low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], len(moved))
        assert high / low < 1.2  # a standard deviation that is wrong by 1.1 would move it by 1.21
        assert low <= found <= high + patients + 2 * math.sqrt(high * patients)
