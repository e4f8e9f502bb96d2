"""What a hospital's answer must hold to count: the arrays and metrics that were asked for, and nothing that is not a number.

Each function reads one part of an answer and raises `ValueError`, in words, where something is wrong with it. What is read
comes from outside: nothing in it may end the run or cost memory that its size does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import MetricRecord, RecordDict

from fl_server.spool import Arrays

MOST_DECLARED = 10_000_000
"""Patients that one hospital may declare: more than any has. Without a bound one could make the mean its own update."""


def sound_size(said: object) -> int:
    """The size that a hospital declares when it enrols. Raises `ValueError` unless it is a whole number from 1 to the most."""
    if not isinstance(said, int) or isinstance(said, bool) or not 1 <= said <= MOST_DECLARED:
        raise ValueError(f"declared the size {_short(said)}; it must be a whole number from 1 to {MOST_DECLARED}")
    return said


def sound_delta(said: object) -> float:
    """The delta at which a hospital's ledger states its epsilon. Raises `ValueError` unless it lies between 0 and 1.

    It goes into the record, in whose format (JSON) there is nothing for what is no number.
    """
    if not isinstance(said, float) or not 0 < said < 1:  # nan is neither
        raise ValueError(f"states its epsilon at a delta of {_short(said)}; it must lie between 0 and 1")
    return said


def sound_metrics(content: RecordDict, weight_key: str, weight: int | None) -> Mapping[str, object]:
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


def sound_steps(metrics: Mapping[str, object], most: int) -> int:
    """How many local steps an answer came of, from 1 to `most`. Raises `ValueError` for anything else."""
    said = metrics.get("steps")
    if not isinstance(said, int) or not 1 <= said <= most:
        raise ValueError(f"the metric 'steps' must be a whole number from 1 to {most}, the study's steps, not {said}")
    return said


MOST_PIECES, LONGEST_PIECE = 1000, 1024
"""Of what a secure sum is agreed on with: one piece for each hospital, none longer than keys with a signature."""


def sound_pieces(content: RecordDict) -> dict[str, bytes]:
    """The pieces of bytes, by name, that a hospital answers a question of a secure sum with. Raises `ValueError`."""
    if content.array_records or content.metric_records or len(content.config_records) != 1:
        raise ValueError("the answer must hold one record of bytes and nothing else")
    pieces = dict(next(iter(content.config_records.values())))
    if len(pieces) > MOST_PIECES:
        raise ValueError(f"the answer holds {len(pieces)} pieces; there are at most {MOST_PIECES} hospitals")
    sound = {name: piece for name, piece in pieces.items() if isinstance(piece, bytes) and len(piece) <= LONGEST_PIECE}
    if len(sound) < len(pieces):
        raise ValueError(f"the answer holds pieces that are no bytes, or longer than {LONGEST_PIECE}")
    return sound


def shared_metrics(found: Sequence[MetricRecord]) -> list[MetricRecord]:
    """Of each answer, the metrics that all of them have in the same shape: Flower ends the run over any other."""
    shapes = [{name: len(value) if isinstance(value, list) else None for name, value in one.items()} for one in found]
    shared = [name for name in found[0] if all(name in shape and shape[name] == shapes[0][name] for shape in shapes)]
    return [MetricRecord({name: one[name] for name in shared}) for one in found]


def sound_arrays(content: RecordDict, asked: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an answer. Raises `ValueError`, naming the first array that does not fit what was asked for."""
    if len(content.array_records) != 1:
        raise ValueError(f"the answer holds {len(content.array_records)} array records instead of one")
    arrays = next(iter(content.array_records.values()))
    if set(arrays) != set(asked):
        missing, unknown = sorted(set(asked) - set(arrays)), sorted(set(arrays) - set(asked))
        raise ValueError(f"array names differ from those asked for: missing {_few(missing)}, unknown {_few(unknown)}")
    sound = {}
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
        sound[name] = array
    return sound


def _short(said: object) -> str:
    """What was said, in no more words than fit into a reason."""
    return repr(said)[:64]


def _few(names: list[str]) -> str:
    """Names in a sentence; a hospital chose some of them, so no more of them, and of each, than a reader needs."""
    told = [repr(name[:80]) for name in names[:3]]
    more = f" and {len(names) - len(told)} more" if len(names) > len(told) else ""
    return ", ".join(told) + more if told else "none"
