"""One set of arrays out of a round's sound answers, by Flower's own strategies, in memory that does not grow with their number.

A mean is added up here, hospital by hospital in the order of asking and in float64, and Flower's class gets it as one answer:
all that FedAvg, FedAvgM and FedAdam do with many answers begins with their mean. Medians and trimmed means are taken number by
number, so Flower's class gets some columns of all answers at a time. Krum looks at distances only: it gets points of as few
dimensions as there are hospitals, which lie exactly as far from one another. Any other strategy gets all answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, FedYogi, MultiKrum
from flwr.serverapp.strategy.fedopt import FedOpt
from flwr.serverapp.strategy.multikrum import select_multikrum

from fl_server.spool import Spool
from fl_server.wiener import FedWiener

Arrays = Mapping[str, npt.NDArray[Any]]

Named = dict[str, npt.NDArray[Any]]

PIECE = 2**18
"""Numbers that are added up at a time: what is made on the way stays in the processor's cache."""


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


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound answers of a round, in the order of asking.

    `sent` is what the answers started from, by name; None if they are no further steps of it (sums). `steps` are the local
    steps of each answer, all equal unless sites may take fewer. `sizes` are what the hospitals behind the answers declare, if
    that isn't what the answers weigh.
    """

    spool: Spool
    sites: Sequence[str]
    weights: Sequence[float]
    steps: Sequence[int]
    sent: Arrays | None
    sizes: Sequence[float] = ()

    @property
    def stretches(self) -> npt.NDArray[np.float64]:
        """What each update is multiplied by, so that all hospitals pull equally, however far they got: (S,).

        Wang et al. 2020 (arXiv 2007.07481), FedNova without momentum: the update of each hospital is divided by its own number
        of steps, and the sum is multiplied by the weighted mean of those numbers.
        """
        if self.sent is None or len(set(self.steps)) <= 1:
            return np.ones(len(self.sites))
        return float(np.average(self.steps, weights=self.weights)) / np.asarray(self.steps, dtype=np.float64)


@dataclass(frozen=True)
class Combined:
    """What came of a round: arrays by name, in the aggregator's own dtypes, and whose answers they were made of."""

    arrays: Named
    metrics: MetricRecord | None
    chosen: Sequence[str]


def combine(
    aggregator: FedAvg, number: int, sound: Sound, *, metrics: Sequence[MetricRecord], question: Message
) -> Combined | None:
    """What `aggregator` makes of the sound answers; None if it makes nothing of them.

    `metrics` are of the same sites, all with the same names; those of the answers that were chosen are averaged. `question` is
    any of the round's messages. Raises `OSError` if the answers can't be read back from the disk.
    """
    how = HOW.get(type(aggregator).aggregate_train, _at_once)
    if sound.sent is not None:  # not all that was sent: what comes back of it
        if isinstance(aggregator, FedOpt | FedWiener):
            aggregator.current_arrays = dict(sound.sent)
        elif isinstance(aggregator, FedAvgM):
            aggregator.current_arrays = _record(sound.sent)
    if isinstance(aggregator, FedWiener):
        aggregator.sizes = sound.sizes or sound.weights
    arrays, chosen = how(aggregator, number, sound, metrics, question)
    if arrays is None:
        return None
    contents = [RecordDict({"metrics": metrics[i]}) for i in chosen]
    said = aggregator.train_metrics_aggr_fn(contents, aggregator.weighted_by_key)
    return Combined(arrays, said, [sound.sites[i] for i in chosen])


_Made = tuple[Named | None, Sequence[int]]
Way = Callable[[FedAvg, int, Sound, Sequence[MetricRecord], Message], _Made]


def _by_mean(aggregator: FedAvg, number: int, sound: Sound, metrics: Sequence[MetricRecord], question: Message) -> _Made:
    everybody = range(len(sound.sites))
    one = [MetricRecord({aggregator.weighted_by_key: 1.0})]
    return _asked(aggregator, number, [_record(_mean(sound, everybody))], one, question), everybody


def _by_sum(aggregator: FedAvg, number: int, sound: Sound, metrics: Sequence[MetricRecord], question: Message) -> _Made:
    return _added(sound, np.ones(len(sound.sites))), range(len(sound.sites))


def _by_columns(aggregator: FedAvg, number: int, sound: Sound, metrics: Sequence[MetricRecord], question: Message) -> _Made:
    groups = [np.empty(count, dtype) for count, dtype in zip(sound.spool.counts, sound.spool.groups, strict=True)]
    for group, flat in enumerate(groups):
        for first, columns in _columns(sound, group):
            records = [_record({"columns": row}) for row in columns.astype(flat.dtype, copy=False)]
            found = _asked(aggregator, number, records, metrics, question)
            if found is None:
                return None, ()
            flat[first : first + columns.shape[1]] = rounded(found["columns"], flat.dtype)
    return sound.spool.named(groups), range(len(sound.sites))


def _by_distance(aggregator: FedAvg, number: int, sound: Sound, metrics: Sequence[MetricRecord], question: Message) -> _Made:
    if not isinstance(aggregator, MultiKrum):
        raise TypeError(f"{type(aggregator).__name__} chooses by other means than MultiKrum")
    count = len(sound.sites)
    start = None if sound.sent is None else sound.spool.flattened(sound.sent)
    products = np.zeros((count, count))  # of updates, not of weights: weights are long and lie close to one another
    for group in range(len(sound.spool.groups)):
        for first, columns in _columns(sound, group):
            centre = 0.0 if start is None else start[group][first : first + columns.shape[1]]
            updates = columns.astype(np.float64) - centre
            products += updates @ updates.T
    if not np.isfinite(products).all():
        return None, ()
    lengths, axes = np.linalg.eigh(products)
    points = axes * np.sqrt(np.maximum(lengths, 0.0))
    contents = [RecordDict({"points": _record({"point": point})}) for point in points]
    best = select_multikrum(contents, aggregator.num_malicious_nodes, aggregator.num_nodes_to_select)
    chosen = [i for i, content in enumerate(contents) if any(content is one for one in best)]
    return _mean(sound, chosen), chosen


def _at_once(aggregator: FedAvg, number: int, sound: Sound, metrics: Sequence[MetricRecord], question: Message) -> _Made:
    records = []
    everybody = range(len(sound.sites))
    for i in everybody:
        alone = np.zeros(len(sound.sites))
        alone[i] = 1.0
        records.append(_record(_added(sound, alone)))
    return _asked(aggregator, number, records, metrics, question), everybody


HOW: dict[Any, Way] = {
    **dict.fromkeys([one.aggregate_train for one in (FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedWiener)], _by_mean),
    **dict.fromkeys([one.aggregate_train for one in (FedMedian, FedTrimmedAvg)], _by_columns),
    MultiKrum.aggregate_train: _by_distance,
    Sum.aggregate_train: _by_sum,
}
"""By the method that aggregates: a strategy that inherits it (FedProx, Krum) is meant, too; one that overrides it is not."""


def rounded(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """In another dtype; where a mean of whole numbers is a fraction, the nearest whole one."""
    return (np.rint(array) if dtype.kind in "iu" and array.dtype.kind == "f" else array).astype(dtype, copy=False)


# -- what a strategy carries from round to round --------------------------------------------------------------------------

REMEMBERED: tuple[tuple[type[FedAvg], set[str]], ...] = (
    (FedOpt, {"m_t", "v_t"}),
    (FedAvgM, {"momentum"}),
    (FedWiener, {"mean", "noise"}),
)
"""By strategy, the first words of the names of what it remembers."""


def carried(aggregator: FedAvg) -> Named:
    """What FedAdam and its kin, FedAvgM and FedWiener remember of earlier rounds; empty for those that remember nothing."""
    if isinstance(aggregator, FedWiener):
        return aggregator.remembered()
    if isinstance(aggregator, FedOpt):
        return {
            f"{moment}/{name}": array
            for moment in ("m_t", "v_t")
            for name, array in (getattr(aggregator, moment) or {}).items()
        }
    if isinstance(aggregator, FedAvgM):
        return {f"momentum/{i}": array for i, array in enumerate(aggregator.momentum_vector or [])}
    return {}


def carry(aggregator: FedAvg, remembered: Arrays) -> None:
    """Let it remember what `carried` gave. Raises `ValueError` for what is another strategy's."""
    parts: dict[str, Named] = {}
    for key, array in remembered.items():
        kind, _, name = key.partition("/")
        parts.setdefault(kind, {})[name] = array
    known = next((names for kind, names in REMEMBERED if isinstance(aggregator, kind)), set())
    if unknown := sorted(set(parts) - known):
        raise ValueError(f"{type(aggregator).__name__} remembers nothing called {unknown}; this is another strategy's")
    if isinstance(aggregator, FedOpt):
        aggregator.m_t, aggregator.v_t = parts.get("m_t"), parts.get("v_t")
    elif isinstance(aggregator, FedAvgM):
        aggregator.momentum_vector = list(parts["momentum"].values()) if parts else None
    elif isinstance(aggregator, FedWiener):
        aggregator.remember(parts)


# -- the arithmetic -------------------------------------------------------------------------------------------------------


def _mean(sound: Sound, chosen: Sequence[int]) -> Named:
    weights = np.zeros(len(sound.sites))
    weights[list(chosen)] = np.asarray(sound.weights, dtype=np.float64)[list(chosen)]
    return _added(sound, weights / weights.sum())


def _added(sound: Sound, shares: npt.NDArray[np.float64]) -> Named:
    """The sum of the answers, each times its share, in the dtypes in which they came."""
    spool, stretches = sound.spool, sound.stretches
    sums = [np.zeros(count) for count in spool.counts]
    plain = sound.sent is None or bool((stretches == 1).all())
    start = sums if sound.sent is None or plain else spool.flattened(sound.sent)
    for site, share, stretch in zip(sound.sites, shares, stretches, strict=True):
        if not share:
            continue
        for total, answer, sent in zip(sums, spool.flat(site), start, strict=True):
            for first in range(0, len(total), PIECE):
                piece = slice(first, first + PIECE)
                numbers = answer[piece].astype(np.float64)
                total[piece] += share * (numbers if plain else sent[piece] + stretch * (numbers - sent[piece]))
    return {name: rounded(total, spool.dtypes[name]) for name, total in spool.named(sums).items()}


def _columns(sound: Sound, group: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Columns of the stretched answers: as they came or, if hospitals got differently far, in float64."""
    stretches = sound.stretches[:, None]
    if sound.sent is None or (stretches == 1).all():
        yield from sound.spool.columns(sound.sites, group)
        return
    start = sound.spool.flattened(sound.sent)[group]
    for first, columns in sound.spool.columns(sound.sites, group):
        sent = start[first : first + columns.shape[1]].astype(np.float64)
        yield first, sent + stretches * (columns - sent)


def _asked(
    aggregator: FedAvg, number: int, records: Sequence[ArrayRecord], metrics: Sequence[MetricRecord], question: Message
) -> Named | None:
    """What Flower's own class makes of these answers."""
    contents = [
        RecordDict({aggregator.arrayrecord_key: record, "metrics": one}) for record, one in zip(records, metrics, strict=True)
    ]
    arrays, _ = aggregator.aggregate_train(number, [Message(content, reply_to=question) for content in contents])
    return None if arrays is None else {name: array.numpy() for name, array in arrays.items()}


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
