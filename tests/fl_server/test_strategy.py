import resource

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

from fl_client import release
from fl_server.strategy import DECLINED, Rounds
from simulation.grid import InProcessGrid

START = {"w": np.array([1.0, 2.0], np.float32), "frozen": np.array([7, 8], np.int64)}


def answer(message: Message, values: list[float], *, weight: float = 1, **metrics: float) -> Message:
    arrays = ArrayRecord({"w": Array(np.array(values, np.float32))})
    metric = MetricRecord({"num-examples": weight, "epsilon": 1.0, **metrics})
    return Message(RecordDict({"arrays": arrays, "metrics": metric}), reply_to=message)


def one_round(strategy: Rounds, *answers, number: int = 1, start=START):
    """Ask the nodes 2, 3, 4 once; each function of `answers` makes one node's reply or list of replies."""
    grid = InProcessGrid(ClientApp(), [{}, {}, {}])
    arrays = ArrayRecord({name: Array(array) for name, array in start.items()})
    questions = strategy.configure_train(number, arrays, ConfigRecord(), grid)
    for i, question in enumerate(questions):
        question.metadata.__dict__["_message_id"] = f"question {i}"
    replies = []
    for question, make in zip(questions, answers, strict=True):
        made = make(question) if make is not None else []
        replies += made if isinstance(made, list) else [made]
    result, _ = strategy.aggregate_train(number, reversed(replies))
    return None if result is None else {name: array.numpy() for name, array in result.items()}


def rounds(aggregator: FedAvg | None = None, **settings) -> Rounds:
    fields = {"trainable": ["w"], "nodes": {2: "a", 3: "b", 4: "c"}}
    return Rounds(aggregator or FedAvg(), **{**fields, **settings})


def good(values, weight=1.0):
    return lambda message: answer(message, values, weight=weight)


def test_fedavg_is_the_mean_weighted_by_declared_sizes():
    result = one_round(rounds(), good([0, 0], 5), good([3, 6], 10), good([8, 0], 25))
    np.testing.assert_allclose(result["w"], [(3 * 10 + 8 * 25) / 40, 60 / 40], rtol=1e-6)
    assert result["w"].dtype == np.float32


def test_what_no_site_trains_is_kept_as_it_was():
    result = one_round(rounds(), good([0, 0]), good([0, 0]), good([0, 0]))
    np.testing.assert_array_equal(result["frozen"], START["frozen"])
    assert result["frozen"].dtype == np.int64


def test_fedmedian_ignores_one_site_that_is_far_off():
    result = one_round(rounds(FedMedian()), good([1, 1]), good([2, 2]), good([1e30, -1e30]))
    np.testing.assert_array_equal(result["w"], [2, 1])
    assert result["w"].dtype == np.float32


def test_fedadam_steps_along_the_mean_update_and_keeps_float32():
    strategy = rounds(FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3))
    result = one_round(strategy, good([2, 2]), good([2, 2]), good([2, 2]))
    update = np.array([1.0, 0.0])  # mean of the answers minus what was sent
    m, v = 0.1 * update, 0.01 * update**2  # Reddi et al. 2020, Algorithm 2, from zero moments
    rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)  # bias correction as Flower counts it, from round + 1
    np.testing.assert_allclose(result["w"], START["w"] + rate * m / (np.sqrt(v) + 1e-3), rtol=1e-6)
    assert result["w"].dtype == np.float32


@pytest.mark.parametrize(
    "huge",
    [
        [1e38, 0],  # its square is over the largest float32, 3.4e38: the second moment overflows
        [-3.4e38, 0],  # so does its distance from what was sent
    ],
)
def test_who_makes_the_sum_overflow_is_left_out_and_named_and_the_others_count(huge):
    sent = {"w": np.array([3e37, 2.0], np.float32), "frozen": START["frozen"]}
    strategy, twin = (rounds(FedAdam(eta=0.1, tau=1e-3), nodes={2: "a", 3: "b"}) for _ in range(2))
    near = [3e37, 3.0]
    before = [one_round(s, good(near), good(near), start=sent) for s in (strategy, twin)]
    assert before[0]["w"].tobytes() == before[1]["w"].tobytes()
    moved = one_round(strategy, good(huge, 1000), good(near), number=2, start=sent)
    assert {site: a.answer for site, a in strategy.answers[2].items()} == {"a": "quarantined", "b": "used"}
    assert "with it the sum is not finite" in strategy.answers[2]["a"].reason
    alone = one_round(twin, None, good(near), number=2, start=sent)
    assert moved["w"].tobytes() == alone["w"].tobytes()
    after, expected = (one_round(s, good(near), good(near), number=3, start=sent) for s in (strategy, twin))
    assert after["w"].tobytes() == expected["w"].tobytes()
    assert after["w"][1] > 2.0


def test_a_round_whose_sum_overflows_with_the_fewest_answers_that_count_is_discarded(caplog):
    sent = {"w": np.array([3e37, 2.0], np.float32), "frozen": START["frozen"]}
    strategy, twin = (rounds(FedAdam(eta=0.1, tau=1e-3), nodes={2: "a", 3: "b"}, quorum=2) for _ in range(2))
    near = [3e37, 3.0]
    for one in (strategy, twin):
        one_round(one, good(near), good(near), start=sent)
    assert one_round(strategy, good([1e38, 0], 1000), good(near), number=2, start=sent) is None
    assert {site: a.answer for site, a in strategy.answers[2].items()} == {"a": "quarantined", "b": "quarantined"}
    assert "the aggregation of this round was not finite" in strategy.answers[2]["b"].reason
    after, expected = (one_round(s, good(near), good(near), number=3, start=sent) for s in (strategy, twin))
    assert after["w"].tobytes() == expected["w"].tobytes()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda m: answer(m, [np.nan, 0]), "array 'w' holds values that are not finite"),
        (lambda m: answer(m, [1, 2, 3]), "array 'w' is float32[3], expected float32[2]"),
        (lambda m: answer(m, [1, 2], loss=float("nan")), "the metric 'loss' is not finite"),
        (lambda m: answer(m, [1, 2], weight=0), "must be a positive number, not 0"),
        (lambda m: Message(RecordDict(), reply_to=m), "0 metric records instead of one"),
        (
            lambda m: Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=m),
            "0 array records instead of one",
        ),
        (
            lambda m: Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"v": Array(np.ones(2, np.float32))}),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=m,
            ),
            "missing 'w', unknown 'v'",
        ),
        (
            lambda m: Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"no array")}),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=m,
            ),
            "array 'w' can't be read",
        ),
        (
            lambda m: Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"w": Array(np.ones(2, np.float64))}),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=m,
            ),
            "array 'w' is float64[2], expected float32[2]",
        ),
    ],
)
def test_an_unsound_answer_is_quarantined_under_its_sites_name_and_the_others_count(bad, reason):
    strategy = rounds()
    result = one_round(strategy, good([1, 1]), bad, good([3, 3]))
    np.testing.assert_array_equal(result["w"], [2, 2])
    assert strategy.answers[1]["b"].answer == "quarantined"
    assert reason in strategy.answers[1]["b"].reason
    assert strategy.answers[1]["a"].answer == strategy.answers[1]["c"].answer == "used"


def test_two_different_answers_of_one_site_are_quarantined_and_equal_ones_count_once():
    strategy = rounds()
    twice = one_round(strategy, good([1, 1]), lambda m: [answer(m, [9, 9]), answer(m, [5, 5])], good([3, 3]))
    np.testing.assert_array_equal(twice["w"], [2, 2])
    assert "answered twice" in strategy.answers[1]["b"].reason
    same = one_round(strategy, good([1, 1]), lambda m: [answer(m, [9, 9]), answer(m, [9, 9])], good([2, 2]), number=2)
    np.testing.assert_allclose(same["w"], [4, 4])
    assert strategy.answers[2]["b"].answer == "used"


class Asked:
    """A round under way in which answers are given one by one."""

    def __init__(self, strategy: Rounds, number: int = 1, start=START):
        self.strategy, self.number = strategy, number
        grid = InProcessGrid(ClientApp(), [{}, {}, {}])
        arrays = ArrayRecord({name: Array(array) for name, array in start.items()})
        self.questions = {}
        for question in strategy.configure_train(number, arrays, ConfigRecord(), grid):
            self.send(strategy.site(question.metadata.dst_node_id), question)

    def send(self, site, question):
        question.metadata.__dict__["_message_id"] = f"{self.number} {site} {len(self.questions)}"
        self.questions[site] = question
        return question

    def again(self, site):
        return self.send(site, self.strategy.ask_again(site))

    def finish(self):
        result, _ = self.strategy.finish(self.number)
        return None if result is None else result["w"].numpy().tolist()


def test_a_site_that_is_asked_again_is_used_and_its_attempts_are_counted():
    strategy = rounds()
    asked = Asked(strategy)
    lost = asked.questions["b"]
    for site in "ac":
        strategy.take(answer(asked.questions[site], [1, 1]), seconds=2.0)
    strategy.take(Message(Error(5, "node unavailable"), reply_to=lost), seconds=3.0)
    again = asked.again("b")
    assert again.metadata.dst_node_id == lost.metadata.dst_node_id
    assert again.content == lost.content
    assert strategy.waiting() == [again.metadata.message_id]
    strategy.take(answer(again, [4, 4]), seconds=1.5)
    assert strategy.waiting() == []
    assert asked.finish() == [2, 2]
    told = {site: (a.answer, a.attempts, a.seconds, a.bytes) for site, a in strategy.answers[1].items()}
    assert told == {"a": ("used", 1, 2.0, 8), "b": ("used", 2, 1.5, 8), "c": ("used", 1, 2.0, 8)}


def test_the_first_of_two_answers_to_two_questions_counts_and_the_other_harms_nobody():
    strategy = rounds()
    asked = Asked(strategy)
    first = asked.questions["b"]
    second = asked.again("b")
    strategy.take(answer(second, [4, 4]))
    strategy.take(answer(first, [100, 100]))  # trained twice, with other noise: not what it said before, and yet no lie
    for site in "ac":
        strategy.take(answer(asked.questions[site], [1, 1]))
    assert asked.finish() == [2, 2]
    assert strategy.answers[1]["b"].answer == "used"


def test_an_error_after_a_sound_answer_or_before_one_changes_nothing():
    strategy = rounds()
    asked = Asked(strategy)
    question = asked.questions["a"]
    strategy.take(Message(Error(8, "stopped responding"), reply_to=question))
    strategy.take(answer(question, [2, 2]))
    strategy.take(Message(Error(8, "stopped responding"), reply_to=question))
    assert asked.finish() == [2, 2]
    assert strategy.answers[1]["a"].answer == "used"


def test_who_contradicts_itself_is_out_for_the_round_whatever_comes_later():
    strategy = rounds()
    asked = Asked(strategy)
    question = asked.questions["b"]
    for values in ([9, 9], [5, 5], [9, 9]):
        strategy.take(answer(question, values))
    strategy.take(answer(asked.questions["a"], [2, 2]))
    assert asked.finish() == [2, 2]
    assert strategy.answers[1]["b"].reason == "answered twice, with different contents"


def test_an_answer_that_took_longer_than_the_round_is_late_and_not_used():
    strategy = rounds(deadline_s=60.0)
    asked = Asked(strategy)
    strategy.take(answer(asked.questions["a"], [2, 2]), seconds=60.0)
    strategy.take(answer(asked.questions["b"], [9, 9]), seconds=60.5)
    strategy.take(Message(Error(DECLINED, "the round is over"), reply_to=asked.questions["c"]), seconds=3600.0)
    assert asked.finish() == [2, 2]
    told = strategy.answers[1]
    assert [told[site].answer for site in "abc"] == ["used", "late", "late"]
    assert told["b"].reason == "answered 60.5 s after the question; the round took answers for 60 s"
    assert told["c"].reason.endswith("; it said: the round is over")
    assert (told["b"].seconds, told["c"].seconds) == (60.5, 3600.0)


def test_an_answer_to_a_round_that_is_over_is_told_as_late_in_that_round_and_never_used():
    strategy = rounds()
    first = Asked(strategy)
    strategy.take(answer(first.questions["a"], [2, 2]))
    assert first.finish() == [2, 2]
    assert strategy.answers[1]["b"].answer == "absent"
    second = Asked(strategy, number=2)
    unavailable = Message(Error(5, "node unavailable"), reply_to=first.questions["c"])
    unavailable.metadata.__dict__["_src_node_id"] = 1  # SuperLink's own word is nobody's answer
    strategy.take(unavailable)
    number, site, entry = strategy.late(answer(first.questions["b"], [9, 9]), seconds=100.0)
    assert (number, site, entry.answer, entry.seconds) == (1, "b", "late", 100.0)
    assert strategy.answers[1]["b"] == entry
    assert strategy.late(answer(first.questions["b"], [9, 9])) is None
    strategy.take(answer(second.questions["a"], [3, 3]))
    assert second.finish() == [3, 3]
    assert [strategy.answers[2][site].answer for site in "abc"] == ["used", "absent", "absent"]
    assert strategy.answers[1]["c"].answer == "absent"


def four(strategy, values):
    strategy.nodes = {i + 2: letter for i, letter in zip(range(len(values)), "abcdef", strict=False)}
    asked = Asked(strategy, start={"w": np.zeros(2, np.float32), "frozen": START["frozen"]})
    for question, value in zip(asked.questions.values(), values, strict=True):
        strategy.take(answer(question, value))
    return asked.finish()


def test_an_update_many_times_as_long_as_the_others_is_quarantined_with_both_numbers():
    strategy = rounds(outlier_factor=5.0)
    assert four(strategy, [[1, 0], [0, 2], [-3, 0], [30, 40]]) == pytest.approx([-2 / 3, 2 / 3])
    assert strategy.answers[1]["d"].answer == "quarantined"
    reason = "its update is 50 long, more than 5 times the median of 4 updates, 2.5"
    assert strategy.answers[1]["d"].reason == reason
    assert [strategy.answers[1][site].answer for site in "abc"] == ["used"] * 3


def test_of_three_nobody_can_say_which_is_far_from_the_others():
    strategy = rounds(outlier_factor=5.0)
    assert four(strategy, [[1, 0], [0, 2], [30, 40]]) == pytest.approx([31 / 3, 14])


def test_where_most_send_back_what_came_no_length_is_too_long():
    strategy = rounds(outlier_factor=5.0)
    assert four(strategy, [[0, 0], [0, 0], [0, 0], [4, 4]]) == [1, 1]


def test_outliers_count_against_the_quorum():
    strategy = rounds(outlier_factor=5.0, quorum=4)
    assert four(strategy, [[1, 0], [0, 2], [-3, 0], [30, 40]]) is None
    assert "3 of the 4 answers came" in strategy.answers[1]["a"].reason
    assert "its update is 50 long" in strategy.answers[1]["d"].reason


def test_a_full_disk_keeps_the_old_model_and_the_next_round_goes_on(tmp_path):
    strategy = rounds(folder=tmp_path, in_memory=0)
    asked = Asked(strategy)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    strategy.take(answer(asked.questions["a"], [1, 1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, before[1]))
    try:
        strategy.take(answer(asked.questions["b"], [1, 1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    strategy.take(answer(asked.questions["c"], [1, 1]))
    assert asked.finish() is None
    assert {a.answer for a in strategy.answers[1].values()} == {"quarantined"}
    reason = "sound, but the coordinator could not keep the round's answers: File too large"
    assert {a.reason for a in strategy.answers[1].values()} == {reason}
    asked = Asked(strategy, number=2)
    for question in asked.questions.values():
        strategy.take(answer(question, [3, 3]))
    assert asked.finish() == [3, 3]


def test_whoever_wants_them_is_given_the_answers_that_were_used():
    seen = {}
    strategy = rounds(used=lambda site, arrays: seen.update({site: arrays["w"].tolist()}))
    asked = Asked(strategy)
    strategy.take(answer(asked.questions["a"], [1, 2]))
    strategy.take(answer(asked.questions["b"], [np.nan, 0]))
    asked.finish()
    assert seen == {"a": [1.0, 2.0]}


def test_errors_are_declines_or_failures_and_are_told_apart_from_silence():
    strategy = rounds()
    one_round(
        strategy,
        lambda m: Message(Error(100, "budget spent"), reply_to=m),
        lambda m: Message(Error(8, "stopped responding"), reply_to=m),
        None,
    )
    said = {site: (a.answer, a.reason) for site, a in strategy.answers[1].items()}
    assert said["a"] == ("declined", "budget spent")
    assert said["b"] == ("failed", "stopped responding")
    assert said["c"] == ("absent", "no answer before the round's end")


def test_site_and_coordinator_mean_the_same_by_a_decline_and_words_are_cut_short():
    assert DECLINED == release.DECLINED != release.FAILED
    strategy = rounds()
    one_round(strategy, lambda m: release.decline(m, "no " * 10_000), good([1, 1]), good([1, 1]))
    assert strategy.answers[1]["a"].answer == "declined"
    assert len(strategy.answers[1]["a"].reason) == 500


def test_an_error_that_flowers_superlink_writes_under_its_own_number_is_put_down_to_the_site():
    def unavailable(message):
        reply = Message(Error(5, "node unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    strategy = rounds()
    one_round(strategy, good([1, 1]), unavailable, good([1, 1]))
    assert strategy.answers[1]["b"].answer == "failed"
    assert set(strategy.answers[1]) == {"a", "b", "c"}


def test_an_answer_in_the_name_of_another_node_is_quarantined():
    def forged(message):
        reply = answer(message, [9, 9])
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    strategy = rounds()
    one_round(strategy, good([1, 1]), forged, good([1, 1]))
    assert "node 2, which was not asked" in strategy.answers[1]["b"].reason


def test_a_weight_other_than_the_declared_one_is_quarantined():
    strategy = rounds(weights={"a": 1, "b": 1, "c": 1})
    one_round(strategy, good([1, 1]), good([9, 9], 1000), good([1, 1]))
    assert "this site declared 1" in strategy.answers[1]["b"].reason


def test_below_the_quorum_the_old_model_is_kept_and_no_answer_counts():
    strategy = rounds(quorum=2)
    assert one_round(strategy, good([5, 5]), None, None) is None
    assert strategy.answers[1]["a"].answer == "quarantined"
    assert "1 of the 2 answers" in strategy.answers[1]["a"].reason


def test_sites_may_send_different_further_metrics_without_ending_the_run():
    strategy = rounds()
    result = one_round(strategy, lambda m: answer(m, [1, 1], loss=3.0), good([2, 2]), good([3, 3]))
    np.testing.assert_allclose(result["w"], [2, 2])


def test_the_order_of_arrival_changes_no_bit():
    values = np.random.default_rng(0).normal(size=(3, 2))
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        grid = InProcessGrid(ClientApp(), [{}, {}, {}])
        strategy = rounds()
        arrays = ArrayRecord({name: Array(array) for name, array in START.items()})
        questions = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        for i, question in enumerate(questions):
            question.metadata.__dict__["_message_id"] = str(i)
        replies = [answer(questions[i], list(values[i]), weight=3 + i) for i in order]
        results.append(strategy.aggregate_train(1, replies)[0]["w"].numpy())
    assert results[0].tobytes() == results[1].tobytes()


def test_it_serves_a_foreign_app_through_flowers_own_start():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        value = np.nan if context.node_config["sick"] else 1.0
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + np.float32(value))})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 2})}), reply_to=message)

    strategy = Rounds(FedAvg(fraction_evaluate=0.0), quorum=2)
    grid = InProcessGrid(app, [{"sick": False}, {"sick": True}, {"sick": False}])
    result = strategy.start(grid, ArrayRecord({"w": Array(np.zeros(2, np.float32))}), num_rounds=2)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), [2, 2])
    assert strategy.answers[2]["node 3"].answer == "quarantined"
