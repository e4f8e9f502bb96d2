"""Faults of a hospital's answer: the work was done and paid for, and what is sent is wrong all the same.

A broken accelerator, another model, a careless or hostile change to the software. Nobody at the coordinator can look inside;
all it has is the numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from simulation.faults.fault import Answer, InHospital

if TYPE_CHECKING:
    from flwr.app import Context, Message

Numbers = npt.NDArray[Any]


class WrongAnswer(InHospital):
    """A fault that changes the arrays of an answer."""

    def around(self, answer: Answer, question: Message, context: Context) -> Message:
        """The hospital's answer with other arrays; a refusal stays as it is."""
        sent = {name: array.numpy() for record in question.content.array_records.values() for name, array in record.items()}
        reply = answer(question, context)
        if not reply.has_error():
            for key, record in list(reply.content.array_records.items()):
                found = {name: array.numpy() for name, array in record.items()}
                reply.content[key] = _record(self.changed(found, sent))
        return reply

    @abstractmethod
    def changed(self, found: dict[str, Numbers], sent: dict[str, Numbers]) -> dict[str, Numbers]:
        """The arrays that leave instead of `found`; `sent` are those that came with the question."""


class NanUpdate(WrongAnswer):
    """One number of the update is not a number."""

    fault: Literal["nan_update"]

    def changed(self, found: dict[str, Numbers], sent: dict[str, Numbers]) -> dict[str, Numbers]:
        """The first number of the first array."""
        name = next(iter(found))
        first = found[name].copy()
        first.flat[0] = np.nan
        return {**found, name: first}


class ExplodingUpdate(WrongAnswer):
    """The update is a million times as long as it should be."""

    fault: Literal["exploding_update"]
    factor: Annotated[float, Field(gt=1)] = 1e6

    def changed(self, found: dict[str, Numbers], sent: dict[str, Numbers]) -> dict[str, Numbers]:
        """In the right direction, much too far."""
        return _moved(found, sent, lambda update: update * self.factor)


class SignFlippedUpdate(WrongAnswer):
    """The update points the other way: the hospital works against the others, with numbers that look like theirs."""

    fault: Literal["sign_flipped_update"]

    def changed(self, found: dict[str, Numbers], sent: dict[str, Numbers]) -> dict[str, Numbers]:
        """As far, in the opposite direction."""
        return _moved(found, sent, lambda update: -update)


class WrongShapes(WrongAnswer):
    """The arrays are of another model: one has a row too many."""

    fault: Literal["wrong_shapes"]

    def changed(self, found: dict[str, Numbers], sent: dict[str, Numbers]) -> dict[str, Numbers]:
        """The first array, one longer."""
        name = next(iter(found))
        return {**found, name: np.concatenate([found[name], found[name][:1]])}


class WrongNames(WrongAnswer):
    """The arrays have names of their own, as those of another framework have."""

    fault: Literal["wrong_names"]

    def changed(self, found: dict[str, Numbers], sent: dict[str, Numbers]) -> dict[str, Numbers]:
        """The same numbers under other names."""
        return {f"module.{name}": array for name, array in found.items()}


class WrongDtype(WrongAnswer):
    """The arrays come with twice the bits that were asked for."""

    fault: Literal["wrong_dtype"]

    def changed(self, found: dict[str, Numbers], sent: dict[str, Numbers]) -> dict[str, Numbers]:
        """The same numbers as float64."""
        return {name: array.astype(np.float64) for name, array in found.items()}


def _moved(found: dict[str, Numbers], sent: dict[str, Numbers], change: Callable[[Numbers], Numbers]) -> dict[str, Numbers]:
    """`found` with the way from `sent` to it changed; what was not sent (a sum) is all way."""
    start = {name: sent.get(name, np.zeros_like(array)) for name, array in found.items()}
    return {name: (start[name] + change(array - start[name])).astype(array.dtype) for name, array in found.items()}


def _record(arrays: dict[str, Numbers]) -> Any:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
