"""The filter that tells updates from noise, as arithmetic and as a strategy of the rounds."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from conf.study import LocalTraining, Strategy
from fl_client.cohort import Cohort
from fl_client.privacy.clip import clipped_sum
from fl_server.combine import carried, carry
from fl_server.references import References, noise_of_mean
from fl_server.rounds import run
from fl_server.strategies import aggregator
from fl_server.strategy import Rounds
from fl_server.weights import initial_state
from fl_server.wiener import FedWiener, filtered
from simulation.grid import InProcessGrid
from simulation.settings import MaskedSums
from tasks.fingerprint import fingerprint
from tasks.task import load

SIZES = (600, 400)


def drawn(seed, *, patients=20, dimension=1000, rank=6):
    """Gradients of free patients in few directions, and an update that lies in the same."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dimension, rank)))[0].T
    strengths = 2.0 ** -np.arange(rank)
    gradients = (rng.standard_normal((patients, rank)) * strengths) @ basis
    return gradients.astype(np.float32), (rng.standard_normal(rank) * strengths) @ basis


def error(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_what_lies_in_the_span_is_found_under_noise_ten_times_as_long():
    errors, raw = [], []
    for seed in range(20):
        gradients, update = drawn(seed)
        std = 10 * np.linalg.norm(update) / math.sqrt(1000)
        noisy = update + std * np.random.default_rng([seed, 1]).standard_normal(1000)
        found = filtered(noisy, std, gradients, SIZES)
        errors.append(error(found, update))
        raw.append(error(noisy, update))
    assert np.mean(raw) > 9
    assert np.mean(errors) < 1.0  # nothing at all would have an error of 1


def test_without_noise_an_update_stays_as_it_is():
    gradients, update = drawn(0)
    outside = update + np.random.default_rng(3).standard_normal(1000)
    found = filtered(outside, 0.0, gradients, SIZES)
    np.testing.assert_array_equal(found, outside)


def test_noise_alone_is_all_but_removed():
    gradients, _ = drawn(1)
    noise = np.random.default_rng(5).standard_normal(1000)
    found = filtered(noise, 1.0, gradients, SIZES)
    assert np.linalg.norm(found) < 0.25 * np.linalg.norm(noise)


def test_a_signal_outside_the_span_is_kept_in_the_array_that_has_it():
    gradients, _ = drawn(2)
    rng = np.random.default_rng(6)
    signal = np.zeros(1000)
    signal[600:] = 3 * rng.standard_normal(400)
    found = filtered(signal + rng.standard_normal(1000), 1.0, gradients, SIZES)
    assert np.linalg.norm(found[:600]) < 8  # 24.5 before
    assert error(found[600:], signal[600:]) < 0.4


def test_gradients_are_not_copied_whole():
    """Of 20 patients with a million numbers each, 80 MB: a copy in double precision would be 160 MB more."""
    gradients = np.random.default_rng(7).standard_normal((20, 1_000_000), dtype=np.float32)
    update = gradients.sum(axis=0).astype(np.float64)
    tracemalloc.start()
    found = filtered(update, 1e-3, gradients, (600_000, 400_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error(found, update) < 0.01
    assert peak < gradients.nbytes


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_or_equal_gradients_do_no_harm(rows):
    gradients = np.ones((rows, 1000), np.float32)
    update = np.full(1000, 2.0)
    found = filtered(update, 0.1, gradients, SIZES)
    assert error(found, update) < 0.01


def rounds_of(gradients, *, std=0.1, **changes):
    settings = {"server_learning_rate": 0.5, "server_momentum": 0.5, "noise": lambda sizes: std, "gradients": gradients}
    return Rounds(FedWiener(**{**settings, **changes}))


def one_round(strategy, answers, *, sent, number=1, weights=None):
    strategy.nodes = {i + 2: f"s{i}" for i in range(len(answers))}
    arrays = ArrayRecord({"w": Array(np.array(sent, np.float32)), "kept": Array(np.ones(2, np.float32))})
    strategy.trainable = ["w"]
    grid = InProcessGrid(ClientApp(), [{}] * len(answers))
    for i, question in enumerate(strategy.configure_train(number, arrays, ConfigRecord(), grid)):
        question.metadata.__dict__["_message_id"] = f"question {i}"
        metrics = MetricRecord({"num-examples": 1 if weights is None else weights[i]})
        content = {"arrays": ArrayRecord({"w": Array(np.array(answers[i], np.float32))}), "metrics": metrics}
        strategy.take(Message(RecordDict(content), reply_to=question))
    result, _ = strategy.finish(number)
    assert result["kept"].numpy().tolist() == [1, 1]
    return result["w"].numpy()


def test_without_noise_a_step_has_the_given_length_along_the_momentum():
    strategy = rounds_of(lambda *_: pytest.fail("nothing to filter"), std=0.0)
    first = one_round(strategy, [[-3, 0], [-3, -8]], sent=[0, 0])
    np.testing.assert_allclose(first, [-0.3, -0.4], rtol=1e-6)  # along the mean (-3, -4)
    second = one_round(strategy, [[-4.3, -0.4]], sent=[-0.3, -0.4], number=2)
    momentum = np.array([0.25 * -3 + 0.5 * -4, 0.25 * -4])
    np.testing.assert_allclose(second, first + 0.5 * momentum / np.linalg.norm(momentum), rtol=1e-6)


def test_the_filter_is_asked_at_the_weights_that_were_sent_and_for_what_is_trained():
    asked = []

    def gradients(arrays, number):
        asked.append(({name: array.tolist() for name, array in arrays.items()}, number))
        return np.array([[1.0, 0.0]], np.float32)

    strategy = rounds_of(gradients, std=1e-3)
    moved = one_round(strategy, [[-1, 0.0]], sent=[0, 0], number=1)
    assert asked == [({"w": [0.0, 0.0]}, 1)]
    np.testing.assert_allclose(moved, [-0.5, 0], atol=1e-5)


def test_declared_sizes_of_those_who_answered_decide_the_noise():
    told = []
    strategy = rounds_of(lambda *_: np.zeros((1, 2), np.float32), noise=lambda sizes: told.append(list(sizes)) or 0.1)
    one_round(strategy, [[1, 0], [0, 1]], sent=[0, 0], weights=[30, 50])
    sent = {"w": np.zeros(2, np.float32)}
    strategy.move(2, sent, {"w": np.ones(2)}, sizes=[10, 20, 40])
    assert told == [[30, 50], [10, 20, 40]]


def test_it_goes_on_from_what_it_remembers_as_if_nothing_had_been():
    def gradients(arrays, number):
        return np.random.default_rng(number).standard_normal((3, 2)).astype(np.float32)

    undisturbed, other = rounds_of(gradients), rounds_of(gradients)
    first = one_round(undisturbed, [[-3, 1]], sent=[0, 0])
    one_round(other, [[-3, 1]], sent=[0, 0])
    fresh = rounds_of(gradients)
    fresh.restore(other.state())
    assert set(carried(fresh.aggregator)) == {"mean/w", "noise/variance", "noise/weight"}
    answers = [first + np.array([-0.2, 0.1])]
    wanted = one_round(undisturbed, answers, sent=first, number=2)
    np.testing.assert_array_equal(one_round(fresh, answers, sent=first, number=2), wanted)
    with pytest.raises(ValueError, match="another strategy's"):
        carry(fresh.aggregator, {"m_t/w": np.zeros(2)})


# -- with a study ---------------------------------------------------------------------------------------------------------


FILTERED = {"name": "fedwiener", "server_learning_rate": 0.1, "server_schedule": "cosine", "ema_decay": 0.5}
ONE_STEP = {"steps": 1, "sample_rate": 1.0, "views": 2, "optimizer": "sgd", "learning_rate": 1.0}


def free_patients(hospitals, task):
    """Prepared arrays of hospital a's patients, in the place of generated ones."""
    cohort = hospitals.site("a").cohort_folder
    found = Cohort(cohort)
    return {
        f"{patient}/{name}": torch.from_numpy(np.array(array))
        for patient in found.patients
        for name, array in found.prepared(task, patient).items()
    }


@pytest.fixture
def town(hospitals):
    """Three hospitals, a study of theirs that filters, and the free patients that it filters by."""
    free = free_patients(hospitals, load(hospitals.study().task))
    strategy = FILTERED | {"references_sha256": fingerprint(free)}
    study = hospitals.study(rounds=3, training=ONE_STEP, strategy=strategy, privacy={"epsilon": 8, "max_grad_norm": 0.5})
    return hospitals, study, free


def over(hospitals, study, folder, **settings):
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    return run(grid, study, initial_state(study), folder=folder, **settings)


def test_a_reference_has_the_gradient_that_a_hospitals_patient_would_have(town):
    _, study, free = town
    start = initial_state(study)
    references = References(study, free, start)
    task = load(study.task)
    model = task.model()
    model.load_state_dict(start)
    names = task.trainable(model)
    rows = references.gradients({name: start[name].numpy() for name in names}, 2)
    assert rows.shape == (len(references.patients), sum(start[name].numel() for name in names))
    known = dict(model.named_parameters())
    for index, arrays in enumerate(references.patients.values()):
        drawn = task.example(arrays, 2, np.random.default_rng([study.seed, 2, index]))
        total = clipped_sum(model, [known[name] for name in names], [drawn], task.loss, max_grad_norm=0.5, engine="loop")
        wanted = torch.cat([part.flatten() for part in total.gradients])
        np.testing.assert_allclose(rows[index], wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_noise_that_the_filter_counts_on_is_what_hospitals_add(town, monkeypatch, rate):
    """Nobody's gradient: what comes back is the noise of three hospitals, in one number of some thousands."""
    hospitals, study, _ = town
    training = LocalTraining(**{**ONE_STEP, "sample_rate": rate})
    study = study.model_copy(update={"training": training, "strategy": Strategy(), "rounds": 1})
    monkeypatch.setattr("fl_client.privacy.dp_sgd._draw", lambda *_, **__: iter(()))
    start = initial_state(study)
    state, record = over(hospitals, study, hospitals.folder / "run")
    assert record.verdict == "complete"
    moved = torch.cat([(state[name] - start[name]).flatten() for name in load(study.task).trainable(load(study.task).model())])
    found, wanted = float(moved.double().pow(2).mean().sqrt()), noise_of_mean(study, [5, 10, 25])
    assert found == pytest.approx(wanted, rel=6 / math.sqrt(2 * len(moved)))


def test_a_study_filters_and_says_what_it_costs_as_ever(town, tmp_path):
    hospitals, study, free = town
    state, record = over(hospitals, study, tmp_path / "filtered", references=free)
    assert record.verdict == "complete"
    start = initial_state(study)
    length = math.hypot(*(float((state[name] - start[name]).norm()) for name in state))
    assert 0 < length <= 0.1 * (1 + 0.75 + 0.25)  # each step no longer than the schedule's
    assert all(site.epsilon == pytest.approx(8, rel=0.01) for site in record.sites.values())


def test_one_that_is_killed_goes_on_as_if_nothing_had_been(new_hospitals, town):
    _, study, free = town
    towns = []
    for name in ("one", "other"):
        made = new_hospitals(name)
        for index, (site, size) in enumerate((("a", 5), ("b", 10), ("c", 25))):
            made.add(site, declared_size=size, noise_seed=index)
        towns.append(made)
    undisturbed, interrupted = towns
    wanted, _ = over(undisturbed, study, undisturbed.folder / "run", references=free)

    class Crash(BaseException):
        pass

    def crash(entry, model):
        raise Crash

    folder = interrupted.folder / "run"
    with pytest.raises(Crash):
        over(interrupted, study, folder, observer=crash, references=free)
    found, record = over(interrupted, study, folder, resume=True, references=free)
    assert [entry.after_round for entry in record.resumed] == [1]
    assert fingerprint(found) == fingerprint(wanted)


def test_under_masks_the_noise_is_that_of_the_shares(town):
    _, study, _ = town
    secure = MaskedSums(patients=100).among(("a", "b", "c"))
    masked = study.model_copy(update={"privacy": study.privacy.model_copy(update={"secure": secure})})
    apart, together = noise_of_mean(study, [5, 10, 25]), noise_of_mean(masked, [5, 10, 25])
    assert together < 0.8 * apart  # two shares of three are the promise, three are added: sqrt(3 / 2) against sqrt(3)


def test_other_free_patients_than_the_study_names_are_refused(town, tmp_path):
    hospitals, study, free = town
    other = {name: array + 1 for name, array in free.items()}
    for given in (other, None):
        with pytest.raises(ValueError, match=r"filters by references .* but was given"):
            over(hospitals, study, tmp_path / "run", references=given)
    assert not (tmp_path / "run").exists()


def test_arrays_that_name_no_patient_are_refused(town):
    _, study, _ = town
    odd = {"image": torch.zeros(3)}
    strategy = study.strategy.model_copy(update={"references_sha256": fingerprint(odd)})
    with pytest.raises(ValueError, match="each array is called PATIENT/ARRAY"):
        References(study.model_copy(update={"strategy": strategy}), odd, initial_state(study))


def test_patients_who_were_prepared_for_another_task_are_refused(town):
    _, study, free = town
    small = {name: array[:, :8, :8] if name.endswith("/image") else array for name, array in free.items()}
    few = {name: array for name, array in free.items() if not name.endswith("/labelled")}
    for odd, words in ((small, r"prepared for another task: its image is \(8, 8\)"), (few, "has no labelled")):
        strategy = study.strategy.model_copy(update={"references_sha256": fingerprint(odd)})
        with pytest.raises(ValueError, match=words):
            References(study.model_copy(update={"strategy": strategy}), odd, initial_state(study))


def test_gradients_that_would_not_fit_in_memory_are_refused_in_words(town, monkeypatch):
    _, study, free = town
    monkeypatch.setattr("fl_server.references.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="fewer references or trained parameters do"):
        References(study, free, initial_state(study))


@pytest.mark.parametrize("change", [{"steps": 2}, {"optimizer": "adam"}, {"work_s": 5.0}])
def test_what_the_filter_can_not_know_the_noise_of_is_refused(town, change):
    _, study, _ = town
    training = LocalTraining(**{**ONE_STEP, **change})
    with pytest.raises(ValueError, match="mean of single steps of sgd"):
        aggregator(study.model_copy(update={"training": training}))


def test_references_without_use_are_refused(town):
    _, study, _ = town
    with pytest.raises(ValueError, match="fedavg has no use for them"):
        aggregator(study.model_copy(update={"strategy": Strategy(references_sha256="0" * 64)}))
