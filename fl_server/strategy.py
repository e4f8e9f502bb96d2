"""A Flower strategy that lets in only sound answers: those that fit what was asked for, in names, shapes and numbers.

`Rounds` stands around another strategy (FedAvg, FedAdam, FedMedian, ...) and says in words why any answer did not count, where
Flower's own strategies end the run or average NaN. It takes answers one by one and keeps of each no more than the round's end
needs (fl_server/spool.py). It can be used in any Flower app.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_server.combine import Combined, Sound, carried, carry, combine, rounded
from fl_server.combine import Sum as Sum
from fl_server.record import SiteRound, printable
from fl_server.sound import shared_metrics, sound_arrays, sound_metrics, sound_steps
from fl_server.spool import IN_MEMORY, Arrays, Spool

DECLINED = 100  # error code of a site that says no, in words (fl_client/release.py); any other code is a failure

FEWEST = 4
"""Answers among which one can be said to be far from the others."""

LITTER = 64 * 1024**2
"""Bytes of answers after which Python looks for what nobody needs any more: each `Array` of Flower's that is made from numbers
lies in a circle of functions that know one another, with its bytes, until then."""

EVERYBODY = "all together"
"""Stands in a site's place where only all sites' sum is known."""

log = logging.getLogger("konsil.rounds")


@dataclass
class _Place:
    """One site in the round under way: what it was asked, and what came of it so far."""

    node: int
    questions: list[Message]
    heard: set[str] = field(default_factory=set)  # ids of questions that something came back for
    outcome: SiteRound | None = None
    answered: str = ""  # id of the question whose answer is kept in the spool
    metrics: MetricRecord = field(default_factory=MetricRecord)
    norm: float = 0.0  # L2 of the update
    barred: bool = False  # it contradicted itself: nothing of it counts in this round


class Rounds(Strategy):
    """A strategy around `aggregator` that aggregates only sound answers, and tells what became of each.

    An answer is sound if it holds one ArrayRecord with exactly the asked names, shapes and dtypes, all finite, and one
    MetricRecord of finite numbers with a positive weight. Everything else is quarantined under the name of the site it
    came from. What the aggregation returns has the dtypes of what was sent; arrays that no site trains are kept.

    A site may be asked again in a round (`ask_again`). The first sound answer counts, to whichever of its questions. The same
    answer once more changes nothing. Another one to the same question quarantines the site for this round, for one of the two
    is not what it says; another one to another question (it was trained anew, with fresh noise) is left aside.

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
    deadline_s
        An answer that took longer is late and does not count, where `take` is told how long it took.
    deadlines_s
        The same of sites that have another; a message to one stays valid for as much longer or shorter.
    expected
        What comes back, by name, as far as shapes and dtypes go; None: some of what was sent.
    check
        Raises `ValueError`, in words, for arrays that fit and are wrong all the same.
    kind
        Flower's type of the messages, for sites that are known by name: train or evaluate.
    steps
        The most local steps an answer can come of. Given, each must say in the metric `steps` how many it took, and updates
        are made comparable as FedNova does (`Sound.stretches`); None: all took equally many.
    outlier_factor
        An update longer than so many times the median of the sound ones is quarantined, from 4 of them on; None: none is.
        Where steps differ, updates are compared as long as they will count.
    used
        Called at the end of a round with the site and the arrays of each answer that was used.
    unread
        The answers are for `used` alone: they are under masks, and nothing can be made of them here.
    folder
        Where answers wait that memory is not spent on; None: the system's folder for temporary files.
    in_memory
        Bytes of a round's answers that wait in memory.

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
        deadline_s: float | None = None,
        deadlines_s: Mapping[str, float] | None = None,
        expected: Arrays | None = None,
        check: Callable[[Arrays], None] | None = None,
        kind: str = MessageType.TRAIN,
        steps: int | None = None,
        outlier_factor: float | None = None,
        used: Callable[[str, Arrays], None] | None = None,
        unread: bool = False,
        folder: Path | None = None,
        in_memory: int = IN_MEMORY,
    ) -> None:
        self.aggregator = aggregator
        self.quorum = quorum
        self.trainable = trainable
        self.nodes = nodes
        self.weights = weights
        self.ttl_s = ttl_s
        self.deadline_s = deadline_s
        self.deadlines_s = dict(deadlines_s or {})
        self.expected = expected
        self.check = check
        self.kind = kind
        self.steps = steps
        self.outlier_factor = outlier_factor
        self.used = used
        self.unread = unread
        self.folder = folder
        self.in_memory = in_memory
        self.answers: dict[int, dict[str, SiteRound]] = {}
        self._sent: dict[str, npt.NDArray[Any]] = {}
        self._places: dict[str, _Place] = {}
        self._by_question: dict[str, _Place] = {}
        self._strays: list[str] = []
        self._open: dict[str, tuple[int, str, int]] = {}  # of rounds before: question -> round, site, node
        self._spool = Spool({})
        self._full = ""  # why the round's answers could not all be kept
        self._litter = 0  # bytes of answers since Python last cleaned up

    def summary(self) -> None:
        """Log the settings of the strategy inside."""
        self.aggregator.summary()

    def site(self, node: int) -> str:
        """The name of a node's site, as far as it is known."""
        return (self.nodes or {}).get(node, f"node {node}")

    def deadline(self, site: str) -> float | None:
        """Seconds after its question at which this site's answer counts no more."""
        return self.deadlines_s.get(site, self.deadline_s)

    # -- asking -------------------------------------------------------------------------------------------------------

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """One message for each site of this round. What an earlier round has not finished is forgotten."""
        self._sent = {name: array.numpy() for name, array in arrays.items()}
        config["server-round"] = server_round
        if self.nodes is None:
            asked = list(self.aggregator.configure_train(server_round, arrays, config, grid))
        else:
            keys, group = (self.aggregator.arrayrecord_key, self.aggregator.configrecord_key), str(server_round)
            asked = []
            for node, site in self.nodes.items():
                own = ConfigRecord(dict(config))
                if site in (self.weights or {}):  # a hospital that has changed it since declines before it pays
                    own["declared-size"] = (self.weights or {})[site]
                content = RecordDict({keys[0]: arrays, keys[1]: own})  # the arrays are one object for all
                asked.append(Message(content, node, self.kind, ttl=self.ttl_s, group_id=group))
        if self.ttl_s is not None:
            for message in asked:
                deadline = self.deadline(self.site(message.metadata.dst_node_id))
                message.metadata.ttl = self.ttl_s + (deadline or 0.0) - (self.deadline_s or 0.0)
        self._places = {self.site(m.metadata.dst_node_id): _Place(m.metadata.dst_node_id, [m]) for m in asked}
        self._by_question, self._strays, self._full = {}, [], ""
        self._spool.close()
        self._spool = Spool(self._wanted, folder=self.folder, in_memory=self.in_memory)
        return asked

    def ask_again(self, site: str, *, left_s: float | None = None) -> Message:
        """The round's question to this site once more, as a new message; `left_s` seconds are left for an answer that counts.

        Raises `KeyError` for a site that was not asked.
        """
        place = self._places[site]
        first = place.questions[0]
        metadata, content = first.metadata, first.content
        if left_s is not None:
            content = RecordDict(dict(content.items()))
            key = self.aggregator.configrecord_key
            content[key] = ConfigRecord({**dict(content.config_records.get(key, {})), "left-s": float(left_s)})
        again = Message(content, metadata.dst_node_id, metadata.message_type, ttl=metadata.ttl, group_id=metadata.group_id)
        place.questions.append(again)
        return again

    # -- answers ------------------------------------------------------------------------------------------------------

    def take(self, reply: Message, *, seconds: float | None = None) -> None:
        """Judge an answer, and keep what a sound one holds; the message can be forgotten.

        `seconds` is how long the answer took. An answer to a question of an earlier round is noted as `late` does.
        """
        self._litter += self._spool.block_bytes
        if self._litter > LITTER:
            self._litter = 0
            gc.collect()
        asked = reply.metadata.reply_to_message_id
        place = self._place_of(asked)
        if place is None:
            if self.late(reply, seconds=seconds) is None:
                self._strays.append(self.site(reply.metadata.src_node_id))
            return
        place.heard.add(asked)
        site = self.site(place.node)
        if place.barred:
            return
        late = self._lateness(reply, place.node, seconds)
        answer, arrays = self._judge(reply, place, site) if late is None else (late, {})
        if place.answered:
            self._compare(reply, place, site, answer, arrays)
            return
        answer = answer.model_copy(update={"seconds": seconds})
        if answer.answer == "used":
            try:
                self._keep(reply, place, site, arrays)
            except OSError as error:
                self._full = f"the coordinator could not keep the round's answers: {error.strerror or error}"
                answer = answer.model_copy(update={"answer": "quarantined", "reason": f"sound, but {self._full}"})
        place.outcome = answer

    def late(self, reply: Message, *, seconds: float | None = None) -> tuple[int, str, SiteRound] | None:
        """Note an answer that came after its round was finished: the round, the site, and its entry as it is now.

        None if nobody was waiting for it any more. What the answer holds is not used; an error that the site did not write
        itself is no answer.
        """
        if (asked := self._open.pop(reply.metadata.reply_to_message_id, None)) is None:
            return None
        number, site, node = asked
        if reply.has_error() and reply.metadata.src_node_id != node:
            return None
        said = f"; it said: {printable(reply.error.reason or '')}" if reply.has_error() else ""
        after = "" if seconds is None else f", {seconds:.0f} s after the question"
        changes = {"answer": "late", "reason": f"answered when the round was over{after}{said}", "seconds": seconds}
        entry = self.answers[number][site] = self.answers[number][site].model_copy(update=changes)
        return number, site, entry

    def finish(self, number: int) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the sound answers; (None, None) below the quorum. Fills `answers[number]`, and forgets what was kept."""
        try:
            return self._finish(number)
        finally:
            self._spool.close()

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """`take` each, and `finish`: for Flower's own loop, which has all answers at once."""
        for reply in replies:
            self.take(reply)
        return self.finish(server_round)

    def move(
        self, number: int, sent: Arrays, mean: Arrays, *, sizes: Sequence[float] = ()
    ) -> dict[str, npt.NDArray[Any]] | None:
        """The model after a round of which only the mean of all answers is known; None if it would not be finite.

        `sent` are the arrays that hospitals train, as they were, `mean` the same as the hospitals together would have them,
        who declare `sizes`.
        """
        question = Message(RecordDict(), 0, self.kind)
        self._sent = {name: np.asarray(array) for name, array in sent.items()}
        weight = MetricRecord({self.aggregator.weighted_by_key: 1.0})
        self._places = {EVERYBODY: _Place(0, [question], metrics=weight)}
        self._spool.close()
        self._spool = Spool(self._wanted, folder=self.folder, in_memory=self.in_memory)
        try:
            self._spool.put(EVERYBODY, {name: rounded(np.asarray(mean[name]), self._sent[name].dtype) for name in self._sent})
            made = self._combine(number, [EVERYBODY], sizes)
        finally:
            self._spool.close()
            self._places = {}
        return None if made is None else {name: made.arrays.get(name, array) for name, array in self._sent.items()}

    def outcome(self, site: str) -> SiteRound | None:
        """What is known of a site's answer before the round is over; None if nothing has come."""
        place = self._places.get(site)
        return None if place is None else place.outcome

    def waiting(self) -> list[str]:
        """Ids of this round's questions to which nothing has come back, of sites without a sound answer."""
        return [
            asked
            for place in self._places.values()
            if not place.answered and not place.barred
            for question in place.questions
            if (asked := question.metadata.message_id) and asked not in place.heard
        ]

    # -- what is kept from round to round -----------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """What the strategy inside remembers of earlier rounds (moments, momentum); a copy. Empty for means and medians."""
        return {name: torch.from_numpy(np.array(array)) for name, array in carried(self.aggregator).items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on as the strategy that gave this `state` would. Raises `ValueError` for another strategy's."""
        carry(self.aggregator, {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()})

    # -- the round's end ----------------------------------------------------------------------------------------------

    def _finish(self, number: int) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self._quarantine_outliers()
        absent = SiteRound(answer="absent", reason="no answer before the round's end")
        self.answers[number] = answers = {}
        for site, place in self._places.items():  # in the order of asking: sums don't depend on the order of arrival
            told = place.outcome or absent
            answers[site] = told.model_copy(update={"attempts": len(place.questions)})
            if told is absent:
                self._open |= {q.metadata.message_id: (number, site, place.node) for q in place.questions}
        for site in self._strays:
            if site not in answers:
                answers[site] = SiteRound(answer="quarantined", reason="answered a question of no message in this round")
        sound = [site for site, answer in answers.items() if answer.answer == "used"]
        if self._full:
            self._discard(answers, f"sound, but {self._full}")
            return None, None
        if len(sound) < self.quorum:
            self._discard(answers, f"sound, but {len(sound)} of the {self.quorum} answers came that a round needs")
            return None, None
        if self.unread:
            try:
                for site in sound:
                    if self.used is not None:
                        self.used(site, self._spool.arrays(site))
            except OSError as error:
                reason = f"sound, but the coordinator could not read the round's answers back: {error.strerror or error}"
                self._discard(answers, reason)
            return None, None
        try:
            made = self._combine(number, sound)
        except OSError as error:
            log.error("round %d: the answers can't be read back: %s", number, error)
            reason = f"sound, but the coordinator could not read the round's answers back: {error.strerror or error}"
            self._discard(answers, reason)
            return None, None
        while made is None and len(sound) > self.quorum:  # one whose numbers are too large for the sum voids nobody else's
            longest = max(sound, key=lambda site: self._places[site].norm)
            sound.remove(longest)
            reason = f"the update has a length of {self._places[longest].norm:.3g}: with it the sum is not finite"
            answers[longest] = answers[longest].model_copy(update={"answer": "quarantined", "reason": reason})
            made = self._combine(number, sound)
        if made is None:
            self._discard(answers, "sound alone, but the aggregation of this round was not finite")
            return None, None
        for site in sound:
            if site not in made.chosen:
                answers[site] = answers[site].model_copy(update={"reason": f"compared; {', '.join(made.chosen)} was chosen"})
            if self.used is not None:
                self.used(site, self._spool.arrays(site))
        kept = self._sent if self.expected is None else self.expected
        return ArrayRecord({name: Array(made.arrays.get(name, array)) for name, array in kept.items()}), made.metrics

    def _combine(self, number: int, sites: list[str], sizes: Sequence[float] = ()) -> Combined | None:
        """The arrays of the next model in the dtypes that were sent; None, and nothing remembered, if they are not finite."""
        places = [self._places[site] for site in sites]
        before = carried(self.aggregator)
        question = places[0].questions[0]
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            made = combine(
                self.aggregator,
                number,
                replace(self._sound(sites), sizes=sizes),
                metrics=shared_metrics([place.metrics for place in places]),
                question=question,
            )
            wanted = self._wanted
            moved = {} if made is None else {name: rounded(a, wanted[name].dtype) for name, a in made.arrays.items()}
        # the moments, too: where the second one is infinite, the step is 0 and finite, in this and every later round
        if made is None or not all(np.isfinite(a).all() for a in [*moved.values(), *carried(self.aggregator).values()]):
            carry(self.aggregator, before)
            return None
        return Combined(moved, made.metrics, made.chosen)

    def _sound(self, sites: list[str]) -> Sound:
        metrics = [self._places[site].metrics for site in sites]
        return Sound(
            spool=self._spool,
            sites=sites,
            weights=[float(str(one[self.aggregator.weighted_by_key])) for one in metrics],
            steps=[1 if self.steps is None else int(str(one["steps"])) for one in metrics],
            sent=None if self.expected is not None else self._wanted,
        )

    def _quarantine_outliers(self) -> None:
        sites = [site for site, place in self._places.items() if place.answered and not place.barred]
        if self.outlier_factor is None or self.expected is not None or len(sites) < FEWEST:
            return
        norms = np.array([self._places[site].norm for site in sites]) * self._sound(sites).stretches
        if not (middle := float(np.median(norms))):
            return  # most sent back what came: there is no length to compare with
        for site, norm in zip(sites, norms, strict=True):
            if norm > self.outlier_factor * middle:
                place = self._places[site]
                reason = (
                    f"its update is {norm:.4g} long, more than {self.outlier_factor:g} times the median of "
                    f"{len(sites)} updates, {middle:.4g}"
                )
                self._drop(place, site, reason)

    @staticmethod
    def _discard(answers: dict[str, SiteRound], reason: str) -> None:
        for site, answer in answers.items():
            if answer.answer == "used":
                answers[site] = answer.model_copy(update={"answer": "quarantined", "reason": reason})

    # -- one answer ---------------------------------------------------------------------------------------------------

    def _place_of(self, asked: str) -> _Place | None:
        if asked not in self._by_question:  # messages get their ids when they are sent
            self._by_question = {q.metadata.message_id: place for place in self._places.values() for q in place.questions}
            self._by_question.pop("", None)
        return self._by_question.get(asked)

    def _lateness(self, reply: Message, node: int, seconds: float | None) -> SiteRound | None:
        deadline = self.deadline(self.site(node))
        if deadline is None or seconds is None or seconds <= deadline:
            return None
        if reply.has_error() and reply.metadata.src_node_id != node:
            return None
        said = f"; it said: {printable(reply.error.reason or '')}" if reply.has_error() else ""
        reason = f"answered {seconds:.1f} s after the question; the round took answers for {deadline:g} s{said}"
        return SiteRound(answer="late", reason=reason)

    def _judge(self, reply: Message, place: _Place, site: str) -> tuple[SiteRound, Arrays]:
        """What to think of an answer; with the arrays of a sound one."""
        if reply.has_error():
            answer: Literal["declined", "failed"] = "declined" if reply.error.code == DECLINED else "failed"
            return SiteRound(answer=answer, reason=printable(reply.error.reason or f"error {reply.error.code}")), {}
        if reply.metadata.src_node_id != place.node:
            reason = f"answered by node {reply.metadata.src_node_id}, which was not asked"
            return SiteRound(answer="quarantined", reason=reason), {}
        size = sum(len(array.data) for record in reply.content.array_records.values() for array in record.values())
        try:
            metrics = sound_metrics(reply.content, self.aggregator.weighted_by_key, (self.weights or {}).get(site))
            steps = None if self.steps is None else sound_steps(metrics, self.steps)
            arrays = sound_arrays(reply.content, self._wanted)
            if self.check is not None:
                self.check(arrays)
        except ValueError as error:
            return SiteRound(answer="quarantined", reason=str(error), bytes=size), {}
        said = metrics.get("epsilon")
        epsilon = said if isinstance(said, float) and said < math.inf else None
        return SiteRound(answer="used", epsilon=epsilon, steps=steps, bytes=self._spool.block_bytes), arrays

    def _keep(self, reply: Message, place: _Place, site: str, arrays: Arrays) -> None:
        self._spool.put(site, arrays)
        place.answered = reply.metadata.reply_to_message_id
        place.metrics = MetricRecord(dict(next(iter(reply.content.metric_records.values())).items()))
        if self.outlier_factor is not None and self.expected is None:
            lengths = [np.linalg.norm((array - np.float64(self._sent[name])).ravel()) for name, array in arrays.items()]
            place.norm = float(np.linalg.norm(lengths))

    def _compare(self, reply: Message, place: _Place, site: str, answer: SiteRound, arrays: Arrays) -> None:
        """An answer of a site that has a sound one already."""
        if answer.answer == "late" or reply.has_error() or reply.metadata.src_node_id != place.node:
            return  # the site has not said anything else that could count
        if answer.answer == "used" and next(iter(reply.content.metric_records.values())) == place.metrics:
            kept = self._spool.arrays(site)
            if all(arrays[name].tobytes() == array.tobytes() for name, array in kept.items()):
                return
        if reply.metadata.reply_to_message_id != place.answered:
            log.warning("%s answered a question that was asked again anew, not as before; the first answer counts", site)
            return
        self._drop(place, site, "answered twice, with different contents")

    def _drop(self, place: _Place, site: str, reason: str) -> None:
        self._spool.drop(site)
        place.answered, place.barred = "", True
        changes = {"answer": "quarantined", "reason": reason}
        place.outcome = place.outcome.model_copy(update=changes) if place.outcome else SiteRound.model_validate(changes)

    @property
    def _wanted(self) -> Arrays:
        """What a sound answer holds."""
        if self.expected is not None:
            return self.expected
        return {name: sent for name, sent in self._sent.items() if self.trainable is None or name in set(self.trainable)}

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
                    sound_metrics(reply.content, self.aggregator.weighted_by_key, None)
                except ValueError:
                    continue
                sound.append(reply)
        return self.aggregator.aggregate_evaluate(server_round, sound)
