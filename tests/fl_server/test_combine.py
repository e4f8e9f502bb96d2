"""What comes of answers, against numbers worked out by hand or by NumPy over all answers at once."""

import io

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

from fl_server import spool as spools
from fl_server.combine import Sum, rounded
from fl_server.strategy import Rounds
from simulation.grid import InProcessGrid

START = [1.0, 2.0]


def one_round(strategy, answers, *, sent=START, number=1, dtype=np.float32, weights=None, steps=None):
    """The weights after one round in which site i answers `answers[i]`."""
    strategy.nodes = {i + 2: f"s{i}" for i in range(len(answers))}
    arrays = ArrayRecord({"w": Array(np.array(sent, dtype))})
    grid = InProcessGrid(ClientApp(), [{}] * len(answers))
    for i, question in enumerate(strategy.configure_train(number, arrays, ConfigRecord(), grid)):
        question.metadata.__dict__["_message_id"] = f"question {i}"
        metrics = {"num-examples": 1 if weights is None else weights[i]} | ({} if steps is None else {"steps": steps[i]})
        content = {"arrays": ArrayRecord({"w": Array(np.array(answers[i], dtype))}), "metrics": MetricRecord(metrics)}
        strategy.take(Message(RecordDict(content), reply_to=question))
    result, _ = strategy.finish(number)
    return None if result is None else result["w"].numpy()


def test_the_mean_is_flowers_to_rounding_and_better_rounded():
    rng = np.random.default_rng(0)
    answers, weights = rng.normal(size=(50, 1000)) + 10, rng.integers(1, 100, size=50).tolist()
    ours = one_round(Rounds(FedAvg()), answers, sent=np.zeros(1000), weights=weights)
    exact = np.average(answers.astype(np.float32).astype(np.float64), axis=0, weights=weights)
    np.testing.assert_array_equal(ours, exact.astype(np.float32))
    grid = InProcessGrid(ClientApp(), [{}] * 50)
    replies = []
    for node, (answer, weight) in zip(grid.get_node_ids(), zip(answers, weights, strict=True), strict=True):
        content = {"a": ArrayRecord([answer.astype(np.float32)]), "m": MetricRecord({"num-examples": weight})}
        replies.append(Message(RecordDict(content), node, "train"))
    flowers, _ = FedAvg().aggregate_train(1, replies)
    np.testing.assert_allclose(ours, flowers["0"].numpy(), rtol=1e-6)


def test_momentum_goes_on_from_the_arrays_that_were_sent():
    strategy = Rounds(FedAvgM(server_learning_rate=0.1, server_momentum=0.5))
    first = one_round(strategy, [[1, 2], [3, 2]])
    np.testing.assert_allclose(first, [1.1, 2.0], rtol=1e-6)  # 1/10 of the way to the mean, (2, 2)
    second = one_round(strategy, [[2, 3], [2.2, 3]], sent=[1.1, 2.0], number=2)
    np.testing.assert_allclose(second, [1.1 + 0.1 * (0.5 * 1 + 1), 2.0 + 0.1 * 1], rtol=1e-6)
    assert second.dtype == np.float32


def test_momentum_of_nothing_at_full_step_is_the_mean():
    assert one_round(Rounds(FedAvgM()), [[1, 2], [3, 4]]).tolist() == [2.0, 3.0]


def test_the_trimmed_mean_leaves_a_fifth_out_at_either_end_number_by_number():
    answers = [[0, 5], [1, -50], [2, 5], [3, 7], [100, 6]]
    result = one_round(Rounds(FedTrimmedAvg(beta=0.2)), answers, weights=[1, 100, 1, 1, 1])
    np.testing.assert_allclose(result, [(1 + 2 + 3) / 3, (5 + 5 + 6) / 3], rtol=1e-6)  # sizes play no part


def test_krum_takes_the_one_whose_nearest_are_nearest():
    # of 5 of which 1 may lie, the 2 nearest count: squared distances 1+4, 1+1, 1+4, 4+9, and thousands
    strategy = Rounds(Krum(num_malicious_nodes=1))
    result = one_round(strategy, [[1, 2], [2, 2], [3, 2], [5, 2], [101, 2]], weights=[9, 9, 9, 9, 10**6])
    assert result.tolist() == [2.0, 2.0]
    told = {site: (answer.answer, answer.reason) for site, answer in strategy.answers[1].items()}
    assert told == {"s1": ("used", "")} | dict.fromkeys(("s0", "s2", "s3", "s4"), ("used", "compared; s1 was chosen"))


@pytest.mark.parametrize("length", [1e3, 1e6])
def test_krum_sees_small_updates_of_long_weights(length):
    # in float32 |x|^2 + |y|^2 - 2xy of such weights has no digit of the distance left
    unit = length * 2.0**-20
    points = [0, 1, 2, 4, 100]
    answers = [[length + unit * point, length] for point in points]
    result = one_round(Rounds(Krum(num_malicious_nodes=1)), answers, sent=[length, length])
    assert result[0] == np.float32(answers[1][0])


def test_multikrum_is_the_mean_of_the_chosen():
    strategy = Rounds(MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2))
    result = one_round(strategy, [[1, 2], [2, 2], [3.1, 2], [5, 2], [101, 2]], weights=[1, 1, 3, 1, 1])
    # squared distances to the two nearest: 1+4.41, 1+1.21, 1.21+3.61 (5 is nearer than 1), ...
    np.testing.assert_allclose(result, [(2 + 3 * 3.1) / 4, 2], rtol=1e-6)


def test_a_strategy_that_is_not_known_here_sees_all_answers():
    class Last(FedAvg):
        def aggregate_train(self, server_round, replies):
            return list(replies)[-1].content["arrays"], MetricRecord({})

    assert one_round(Rounds(Last()), [[1, 2], [3, 4], [5, 6]]).tolist() == [5.0, 6.0]
    far = [[1, 2]] * 6 + [[1e6, 1e6]]
    np.testing.assert_allclose(one_round(Rounds(Bulyan(num_malicious_nodes=1)), far), [1, 2], rtol=1e-6)


ALL = {
    "fedavg": FedAvg,
    "fedprox": lambda: FedProx(proximal_mu=0.1),
    "fedavgm": lambda: FedAvgM(server_learning_rate=0.3, server_momentum=0.9),
    "fedadam": lambda: FedAdam(eta=0.1, tau=1e-3),
    "fedyogi": lambda: FedYogi(eta=0.1),
    "fedadagrad": lambda: FedAdagrad(eta=0.1),
    "fedmedian": FedMedian,
    "fedtrimmed": FedTrimmedAvg,
    "krum": lambda: Krum(num_malicious_nodes=1),
    "multikrum": lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
    "sum": Sum,
}


@pytest.fixture(params=ALL)
def make(request):
    return ALL[request.param]


def three_rounds(strategies):
    """Models after each of three rounds of seven sites, the strategy of each round being another object."""
    rng, sent, seen = np.random.default_rng(1), np.zeros(50), []
    for number, strategy in enumerate(strategies, start=1):
        sent = one_round(strategy, sent + rng.normal(size=(7, 50)) + 0.3, sent=sent, number=number)
        seen.append(sent)
    return seen


def test_a_strategy_goes_on_from_its_state_as_if_nothing_had_happened(make):
    undisturbed = three_rounds([Rounds(make())] * 3)
    first = Rounds(make())

    class Resumed(Rounds):
        def configure_train(self, *arguments):
            file = io.BytesIO()
            torch.save(first.state(), file)
            file.seek(0)
            self.restore(torch.load(file, weights_only=True))
            return super().configure_train(*arguments)

    resumed = three_rounds([first, first, Resumed(make())])
    for one, other in zip(undisturbed, resumed, strict=True):
        assert one.tobytes() == other.tobytes()
    three = Rounds(make())
    three_rounds([three] * 3)
    remembered = {"fedadam": {"m_t/w", "v_t/w"}, "fedavgm": {"momentum/0"}, "fedavg": set(), "krum": set()}
    kind = next(name for name, maker in ALL.items() if maker is make)
    assert set(three.state()) == remembered.get(kind, set(three.state()))


def test_what_a_strategy_remembers_is_a_copy_and_not_taken_by_another():
    strategy = Rounds(FedAdam())
    one_round(strategy, [[2, 2]] * 3)
    state = strategy.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    one_round(strategy, [[3, 3]] * 3, number=2)
    assert all(torch.equal(state[name], before[name]) for name in state)
    for other in (FedAvgM(server_momentum=0.5), FedAvg()):
        with pytest.raises(ValueError, match=r"remembers nothing called \['m_t', 'v_t'\]"):
            Rounds(other).restore(state)
    assert Rounds(FedMedian()).state() == {}
    Rounds(FedMedian()).restore({})


def test_where_answers_wait_changes_no_bit(make, tmp_path, monkeypatch):
    in_memory = three_rounds([Rounds(make())] * 3)
    monkeypatch.setattr(spools, "COLUMNS", 7 * 4 * 3)  # three columns at a time
    on_disk = three_rounds([Rounds(make(), folder=tmp_path, in_memory=0)] * 3)
    exact = make not in (ALL["krum"], ALL["multikrum"])  # distances are added up in another order
    for one, other in zip(in_memory, on_disk, strict=True):
        assert one.tobytes() == other.tobytes() or (not exact and np.allclose(one, other, rtol=1e-6))


def test_unequal_work_counts_as_fednova_says():
    # updates (1, 0) of one step and (0, 4) of four, weighted 1:3; per step (1, 0) and (0, 1), times 1/4 * 1 + 3/4 * 4 steps
    result = one_round(Rounds(FedAvg(), steps=4), [[2, 2], [1, 6]], weights=[1, 3], steps=[1, 4])
    np.testing.assert_allclose(result, [1 + 3.25 / 4, 2 + 3.25 * 3 / 4], rtol=1e-6)


def test_equal_work_counts_as_ever(make):
    rng = np.random.default_rng(2)
    answers = rng.normal(size=(7, 50))
    plain = one_round(Rounds(make()), answers, sent=np.zeros(50))
    stepped = one_round(Rounds(make(), steps=9), answers, sent=np.zeros(50), steps=[3] * 7)
    assert plain.tobytes() == stepped.tobytes()


def test_unequal_work_is_stretched_before_any_choice():
    answers, steps = [[2, 2], [3, 2], [5, 2]], [1, 2, 4]  # one unit per step each
    result = one_round(Rounds(FedMedian(), steps=4), answers, steps=steps)
    np.testing.assert_allclose(result, [1 + 7 / 3, 2], rtol=1e-6)  # the mean number of steps


@pytest.mark.parametrize("said", [0, 5, -1, 2.0, None])
def test_an_answer_that_does_not_say_how_many_steps_it_took_is_quarantined(said):
    strategy = Rounds(FedAvg(), steps=4)
    metrics = [1, 2, said] if said is not None else [1, 2, [1, 2]]
    result = one_round(strategy, [[2, 2], [3, 2], [9, 9]], steps=metrics)
    assert strategy.answers[1]["s2"].answer == "quarantined"
    assert "'steps' must be a whole number from 1 to 4" in strategy.answers[1]["s2"].reason
    assert [strategy.answers[1][s].steps for s in ("s0", "s1")] == [1, 2]
    np.testing.assert_allclose(result, [1 + 1.5 * (1 + 1) / 2, 2], rtol=1e-6)


def test_a_mean_of_whole_numbers_is_the_nearest_whole_one():
    assert one_round(Rounds(FedAvg()), [[1, 2], [2, 2], [2, 2]], dtype=np.int64).tolist() == [2, 2]
    assert rounded(np.array([2.9999999]), np.dtype(np.int64)).tolist() == [3]
