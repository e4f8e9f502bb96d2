"""A Flower strategy that lets in only sound answers: those that fit what was asked for, in names, shapes and numbers.

`Rounds` stands around another strategy (FedAvg, FedAdam, FedMedian, ...) and says in words why any answer did not count, where
Flower's own strategies end the run or average NaN. It can be used in any Flower app.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt

from fl_server.record import SiteRound, printable

DECLINED = 100  # error code of a site that says no, in words (fl_client/release.py); any other code is a failure

Arrays = Mapping[str, npt.NDArray[np.generic]]


class Rounds(Strategy):
    """A strategy around `aggregator` that aggregates only sound answers, and tells what became of each.

    An answer is sound if it holds one ArrayRecord with exactly the asked names, shapes and dtypes, all finite, and one
    MetricRecord of finite numbers with a positive weight. Everything else is quarantined under the name of the site it
    came from. What the aggregation returns has the dtypes of what was sent; arrays that no site trains are kept.

    Parameters
    ----------
    aggregator
        A strategy of the FedAvg family; samples the nodes (unless `nodes` are given) and combines the sound answers.
    quorum
        A round with fewer sound answers keeps the old model.
    trainable
        Names of the arrays that come back; None: all that were sent.
    nodes
        Node id -> site name. Given, these nodes are asked in every round; None: the aggregator samples nodes.
    weights
        Site name -> the weight that this site's answers must carry; None: whatever they say.
    ttl_s
        Seconds a message stays valid, so that a site that wakes up late does not work on a round long gone.
    expected
        What comes back, by name, as far as shapes and dtypes go; None: some of what was sent.
    check
        Raises `ValueError`, in words, for arrays that fit and are wrong all the same.
    kind
        Flower's type of the messages, for sites that are known by name: train or evaluate.

    Use it in any Flower app: `Rounds(FedAvg(min_train_nodes=3), quorum=2).start(grid, initial_arrays, num_rounds=5)`;
    afterwards `answers[round][site]` is what became of each.
    """

    def __init__(
        self,
        aggregator: FedAvg,
        *,
        quorum: int = 1,
        trainable: Collection[str] | None = None,
        nodes: Mapping[int, str] | None = None,
        weights: Mapping[str, int] | None = None,
        ttl_s: float | None = None,
        expected: Arrays | None = None,
        check: Callable[[Arrays], None] | None = None,
        kind: str = MessageType.TRAIN,
    ) -> None:
        self.aggregator = aggregator
        self.quorum = quorum
        self.trainable = trainable
        self.nodes = nodes
        self.weights = weights
        self.ttl_s = ttl_s
        self.expected = expected
        self.check = check
        self.kind = kind
        self.answers: dict[int, dict[str, SiteRound]] = {}
        self._sent: dict[str, npt.NDArray[np.generic]] = {}
        self._asked: list[Message] = []

    def summary(self) -> None:
        """Log the settings of the strategy inside."""
        self.aggregator.summary()

    def site(self, node: int) -> str:
        """The name of a node's site, as far as it is known."""
        return (self.nodes or {}).get(node, f"node {node}")

    # -- training -----------------------------------------------------------------------------------------------------

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """One message for each site of this round."""
        self._sent = {name: array.numpy() for name, array in arrays.items()}
        config["server-round"] = server_round
        if self.nodes is None:
            self._asked = list(self.aggregator.configure_train(server_round, arrays, config, grid))
        else:
            content = RecordDict({self.aggregator.arrayrecord_key: arrays, self.aggregator.configrecord_key: config})
            group = str(server_round)
            self._asked = [Message(content, node, self.kind, ttl=self.ttl_s, group_id=group) for node in self.nodes]
        if self.ttl_s is not None:
            for message in self._asked:
                message.metadata.ttl = self.ttl_s
        return self._asked

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the sound answers; (None, None) below the quorum. Fills `answers[server_round]`."""
        by_question: dict[str, list[Message]] = {}
        for reply in replies:
            by_question.setdefault(reply.metadata.reply_to_message_id, []).append(reply)
        self.answers[server_round] = answers = {}
        sound: list[Message] = []
        for question in self._asked:  # in the order of asking: sums don't depend on the order of arrival
            site = self.site(question.metadata.dst_node_id)
            received = by_question.pop(question.metadata.message_id, [])
            answers[site] = self._judge(question, received)
            if answers[site].answer == "used":
                sound.append(received[0])
        for reply in (r for strays in by_question.values() for r in strays):
            site = self.site(reply.metadata.src_node_id)
            if site not in answers:
                answers[site] = SiteRound(answer="quarantined", reason="answered a question of no message in this round")
        if len(sound) < self.quorum:
            self._discard(answers, f"sound, but {len(sound)} of the {self.quorum} answers came that a round needs")
            return None, None
        arrays, metrics = self._combine(server_round, sound)
        if arrays is None:
            self._discard(answers, "sound alone, but the aggregation of this round was not finite")
        return arrays, metrics

    def _judge(self, question: Message, replies: list[Message]) -> SiteRound:
        if not replies:
            return SiteRound(answer="absent", reason="no answer before the round's end")
        first = replies[0]
        if any(_fingerprint_of(reply) != _fingerprint_of(first) for reply in replies[1:]):
            return SiteRound(answer="quarantined", reason="answered twice, with different contents")
        if first.has_error():
            answer = "declined" if first.error.code == DECLINED else "failed"
            reason = printable(first.error.reason or f"error {first.error.code}")
            return SiteRound.model_validate({"answer": answer, "reason": reason})
        if first.metadata.src_node_id != question.metadata.dst_node_id:
            reason = f"answered by node {first.metadata.src_node_id}, which was not asked"
            return SiteRound(answer="quarantined", reason=reason)
        site = self.site(question.metadata.dst_node_id)
        try:
            metrics = _sound_metrics(first.content, self.aggregator.weighted_by_key, (self.weights or {}).get(site))
            _require_sound_arrays(first.content, self._wanted)
            if self.check is not None:
                self.check({name: array.numpy() for name, array in next(iter(first.content.array_records.values())).items()})
        except ValueError as error:
            return SiteRound(answer="quarantined", reason=str(error))
        epsilon = metrics.get("epsilon")
        return SiteRound(answer="used", epsilon=epsilon if isinstance(epsilon, float) and epsilon < math.inf else None)

    @staticmethod
    def _discard(answers: dict[str, SiteRound], reason: str) -> None:
        for site, answer in answers.items():
            if answer.answer == "used":
                answers[site] = answer.model_copy(update={"answer": "quarantined", "reason": reason})

    @property
    def _wanted(self) -> Arrays:
        """What a sound answer holds."""
        if self.expected is not None:
            return self.expected
        return {name: sent for name, sent in self._sent.items() if self.trainable is None or name in set(self.trainable)}

    def _combine(self, server_round: int, sound: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if isinstance(self.aggregator, FedOpt):  # steps from the arrays that were sent: give it those that came back
            self.aggregator.current_arrays = dict(self._wanted)
        for message, shared in zip(sound, _shared_metrics(sound), strict=True):
            found = next(iter(message.content.array_records.values()))
            message.content = RecordDict({self.aggregator.arrayrecord_key: found, "metrics": shared})
        moments = _moments(self.aggregator)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            arrays, metrics = self.aggregator.aggregate_train(server_round, sound)
            # Flower's sums come back as float64 from FedAdam, and integers as floats from all of them
            wanted = self._wanted
            moved = {name: array.numpy().astype(wanted[name].dtype) for name, array in (arrays or {}).items()}
        if arrays is None:
            return None, None
        # the moments, too: where the second one is infinite, the step is 0 and finite, in this and every later round
        after = [array for moment in _moments(self.aggregator).values() for array in (moment or {}).values()]
        if not all(np.isfinite(array).all() for array in [*moved.values(), *after]):
            vars(self.aggregator).update(moments)
            return None, None
        kept = self._sent if self.expected is None else self.expected
        return ArrayRecord({name: Array(moved.get(name, array)) for name, array in kept.items()}), metrics

    # -- evaluation: as the aggregator does it, sound answers only ------------------------------------------------------

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """The messages of the aggregator; none when the nodes were given, because those are asked to train only."""
        if self.nodes is not None:
            return []
        return list(self.aggregator.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Combine the sound metrics; the others are left out."""
        sound = []
        for reply in replies:
            if not reply.has_error():
                try:
                    _sound_metrics(reply.content, self.aggregator.weighted_by_key, None)
                except ValueError:
                    continue
                sound.append(reply)
        return self.aggregator.aggregate_evaluate(server_round, sound)


class Sum(FedAvg):
    """Adds the answers up, array by array, where FedAvg takes their weighted mean: for counts of disjoint patients."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The sums, and the sites' metrics averaged as ever."""
        answers = list(replies)
        if not answers:
            return None, None
        records = [next(iter(answer.content.array_records.values())) for answer in answers]
        sums = {name: Array(np.sum([record[name].numpy() for record in records], axis=0)) for name in records[0]}
        metrics = self.train_metrics_aggr_fn([answer.content for answer in answers], self.weighted_by_key)
        return ArrayRecord(sums), metrics


def _moments(aggregator: FedAvg) -> dict[str, dict[str, npt.NDArray[np.generic]] | None]:
    """What FedAdam and its kin carry from round to round, by attribute. Flower makes new dictionaries in each round."""
    return {"m_t": aggregator.m_t, "v_t": aggregator.v_t} if isinstance(aggregator, FedOpt) else {}


def _sound_metrics(content: RecordDict, weight_key: str, weight: int | None) -> Mapping[str, object]:
    """The one MetricRecord of an answer. Raises `ValueError` saying what is wrong with it."""
    if len(content.metric_records) != 1:
        raise ValueError(f"the answer holds {len(content.metric_records)} metric records instead of one")
    metrics = next(iter(content.metric_records.values()))
    for name, value in metrics.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) or (name == "epsilon" and number == math.inf) for number in numbers):
            raise ValueError(f"the metric '{name}' is not finite")
    said = metrics.get(weight_key)
    if not isinstance(said, int | float) or said <= 0:
        raise ValueError(f"the weight '{weight_key}' must be a positive number, not {said}")
    if weight is not None and said != weight:
        raise ValueError(f"the weight '{weight_key}' is {said}, but this site declared {weight} when it enrolled")
    return metrics


def _shared_metrics(replies: list[Message]) -> list[MetricRecord]:
    """Of each answer, the metrics that all of them have in the same shape: Flower ends the run over any other."""
    found = [next(iter(reply.content.metric_records.values())) for reply in replies]
    shapes = [{name: len(value) if isinstance(value, list) else None for name, value in one.items()} for one in found]
    shared = [name for name in found[0] if all(name in shape and shape[name] == shapes[0][name] for shape in shapes)]
    return [MetricRecord({name: one[name] for name in shared}) for one in found]


def _require_sound_arrays(content: RecordDict, asked: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Raise `ValueError`, naming the first array that does not fit what was asked for."""
    if len(content.array_records) != 1:
        raise ValueError(f"the answer holds {len(content.array_records)} array records instead of one")
    arrays = next(iter(content.array_records.values()))
    if set(arrays) != set(asked):
        missing, unknown = sorted(set(asked) - set(arrays)), sorted(set(arrays) - set(asked))
        raise ValueError(f"array names differ from those asked for: missing {missing}, unknown {unknown}")
    for name, wanted in asked.items():
        # the header of a NumPy file can promise more than its bytes hold: look at its length before reading it
        if len(arrays[name].data) > wanted.nbytes + 4096:
            raise ValueError(f"array '{name}' is {len(arrays[name].data)} bytes long, expected about {wanted.nbytes}")
        try:
            array = arrays[name].numpy()
        except (ValueError, TypeError, EOFError, OSError, MemoryError, SyntaxError):
            raise ValueError(f"array '{name}' can't be read") from None
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            found, right = f"{array.dtype}{list(array.shape)}", f"{wanted.dtype}{list(wanted.shape)}"
            raise ValueError(f"array '{name}' is {found}, expected {right}")
        if not np.isfinite(array).all():
            raise ValueError(f"array '{name}' holds values that are not finite")


def _fingerprint_of(reply: Message) -> str:
    return f"error {reply.error.code} {reply.error.reason}" if reply.has_error() else reply.content.object_id
