"""The coordinator's rounds: who was asked, who answered, what was used, and the model that came of it.

`Rounds` is a Flower strategy around another one (FedAvg, FedAdam, FedMedian, ...): it lets in only answers that fit the
model, and says in words why any other did not count, where Flower's own strategies end the run or average NaN. `run`
is konsil's loop: hospitals are known by name from an enrolment, and every planned hospital has an entry in every round.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt

from conf.study import Study
from fl_server.enrolment import Enrolment
from fl_server.record import LONGEST_REASON, Record, Round, SiteRound
from fl_server.weights import State, save
from tasks.fingerprint import fingerprint
from tasks.task import load

Observer = Callable[[Round, State], None]
"""Called after each round with who answered and the model as it would be released now."""

DECLINED = 100  # error code of a site that says no, in words (fl_client/release.py); any other code is a failure


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
    ) -> None:
        self.aggregator = aggregator
        self.quorum = quorum
        self.trainable = trainable
        self.nodes = nodes
        self.weights = weights
        self.ttl_s = ttl_s
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
            kind, group = MessageType.TRAIN, str(server_round)
            self._asked = [Message(content, node, kind, ttl=self.ttl_s, group_id=group) for node in self.nodes]
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
            reason = (first.error.reason or f"error {first.error.code}")[:LONGEST_REASON]
            return SiteRound.model_validate({"answer": answer, "reason": reason})
        if first.metadata.src_node_id != question.metadata.dst_node_id:
            reason = f"answered by node {first.metadata.src_node_id}, which was not asked"
            return SiteRound(answer="quarantined", reason=reason)
        site = self.site(question.metadata.dst_node_id)
        try:
            metrics = _sound_metrics(first.content, self.aggregator.weighted_by_key, (self.weights or {}).get(site))
            _require_sound_arrays(first.content, {name: self._sent[name] for name in self._names})
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
    def _names(self) -> list[str]:
        return list(self._sent) if self.trainable is None else [n for n in self._sent if n in set(self.trainable)]

    def _combine(self, server_round: int, sound: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if isinstance(self.aggregator, FedOpt):  # steps from the arrays that were sent: give it those that came back
            self.aggregator.current_arrays = {name: self._sent[name] for name in self._names}
        for message, shared in zip(sound, _shared_metrics(sound), strict=True):
            found = next(iter(message.content.array_records.values()))
            message.content = RecordDict({self.aggregator.arrayrecord_key: found, "metrics": shared})
        moments = _moments(self.aggregator)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            arrays, metrics = self.aggregator.aggregate_train(server_round, sound)
            # Flower's sums come back as float64 from FedAdam, and integers as floats from all of them
            moved = {name: array.numpy().astype(self._sent[name].dtype) for name, array in (arrays or {}).items()}
        if arrays is None:
            return None, None
        # the moments, too: where the second one is infinite, the step is 0 and finite, in this and every later round
        after = [array for moment in _moments(self.aggregator).values() for array in (moment or {}).values()]
        if not all(np.isfinite(array).all() for array in [*moved.values(), *after]):
            vars(self.aggregator).update(moments)
            return None, None
        return ArrayRecord({name: Array(moved.get(name, sent)) for name, sent in self._sent.items()}), metrics

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


# -- konsil's own loop ------------------------------------------------------------------------------------------------


def run(
    grid: Grid,
    study: Study,
    initial: Mapping[str, torch.Tensor],
    *,
    folder: Path,
    observer: Observer | None = None,
    enrol_timeout_s: float = 0.0,
    engine: str = "",
) -> tuple[State, Record]:
    """Run the study over the hospitals behind `grid`, from the weights `initial`.

    Writes into `folder`: at the start a `record.json` with the verdict `failed`, in place of an earlier run's record and
    model; after every round the record as it stands; and before it, when any answer was used, `model.pt` (`torch.load` with
    `weights_only=True`), so that what the hospitals have paid for outlives a crash. The model is that of the last round or,
    with `strategy.ema_decay` d, the mean of all rounds' models weighted d^(rounds still to come). Hospitals that have not
    enrolled within `enrol_timeout_s` may still join before a later round.
    Raises `ValueError` if the study names other initial weights; the folder is as it was then.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in initial.items()}
    if study.initial_model_sha256 not in (None, fingerprint(state)):
        raise ValueError(f"the study starts from weights {study.initial_model_sha256}, but was given {fingerprint(state)}")
    folder.mkdir(parents=True, exist_ok=True)
    record = Record.begin(study, versions=versions(), engine=engine)
    record.judge()
    record.write(folder / "record.json")
    (folder / "model.pt").unlink(missing_ok=True)
    strategy = Rounds(
        _aggregator(study),
        quorum=study.strategy.quorum,
        trainable=_trainable(study),
        nodes={},
        weights={},
        ttl_s=study.strategy.round_timeout_s,
    )
    enrolment = Enrolment(study)
    enrolment.wait(grid, timeout_s=enrol_timeout_s)
    mean, weight = {name: tensor.clone() for name, tensor in state.items()}, 0.0
    for number in range(1, study.rounds + 1):
        start = time.monotonic()
        enrolment.before_round(grid)  # who came late may join from here on
        strategy.nodes, strategy.weights = enrolment.nodes, enrolment.sizes
        if isinstance(strategy.aggregator, FedOpt):
            strategy.aggregator.eta = study.strategy.server_step(number, study.rounds)
        config = ConfigRecord({"study-hash": study.hash})
        enough = len(enrolment.nodes) >= study.strategy.quorum  # else every answer would be paid for and none would count
        questions = strategy.configure_train(number, ArrayRecord(dict(state)), config, grid) if enough else []
        replies = grid.send_and_receive(questions, timeout=study.strategy.round_timeout_s) if questions else []
        arrays, _ = strategy.aggregate_train(number, replies) if enough else (None, None)
        if arrays is not None:
            state = dict(arrays.to_torch_state_dict())
            weight = 1.0 + study.strategy.ema_decay * weight
            mean = {n: m + (state[n] - m) / weight if m.is_floating_point() else state[n] for n, m in mean.items()}
        model = mean if study.strategy.ema_decay else state
        if arrays is not None:
            save(model, folder / "model.pt")
        answered = strategy.answers.get(number, {})
        answers = {site: answered.get(site) or enrolment.missing(site) for site in study.sites}
        seconds = time.monotonic() - start
        record.rounds.append(Round(round=number, sites=answers, seconds=seconds, arrays_sha256=fingerprint(model)))
        _note_sites(record, enrolment, answers)
        record.judge()
        record.write(folder / "record.json")
        if observer is not None:
            observer(record.rounds[-1], {name: tensor.clone() for name, tensor in model.items()})
    return model, record


def _note_sites(record: Record, enrolment: Enrolment, answers: Mapping[str, SiteRound]) -> None:
    for name, answer in answers.items():
        site = record.sites[name]
        site.declared_size = enrolment.sizes.get(name)
        if answer.epsilon is not None:
            site.epsilon, site.delta = answer.epsilon, enrolment.deltas.get(name)


def _aggregator(study: Study) -> FedAvg:
    """The Flower strategy that the study names. No evaluation by the sites: scores would need a budget of their own."""
    kinds: dict[str, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "fedprox": lambda: FedProx(proximal_mu=study.strategy.proximal_mu),
        "fedadam": lambda: FedAdam(eta=study.strategy.server_learning_rate, tau=study.strategy.server_tau),
        "fedmedian": FedMedian,
    }
    return kinds[study.strategy.name]()


def _trainable(study: Study) -> list[str]:
    task = load(study.task)
    with torch.random.fork_rng(devices=[]):
        return task.trainable(task.model())


def versions() -> dict[str, str]:
    """What the coordinator runs on: konsil and the packages that decide the numbers."""
    packages = ("konsil", "flwr", "torch", "monai", "numpy", "dp-accounting", "scipy")  # the last two: how much noise
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
