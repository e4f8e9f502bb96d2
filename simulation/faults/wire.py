"""Faults between hospitals and coordinator: machines that are away, networks that are cut, answers that come late or twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from conf.study import Name
from simulation.faults.fault import Answer, AtSite, InHospital, OnWire, Where

if TYPE_CHECKING:
    from flwr.app import Context, Message

NODE_UNAVAILABLE, REPLY_UNAVAILABLE = 5, 4
"""Flower's codes of a node that is gone and of an answer that is."""


class Offline(OnWire, AtSite):
    """The hospital's machine is off: the coordinator sees that it isn't there."""

    fault: Literal["offline"]
    in_federation: ClassVar[bool] = True

    def connected(self) -> bool:
        """It is not among the nodes."""
        return False

    def stops(self, question: Message) -> bool:
        """Nothing arrives."""
        return True

    def error(self) -> tuple[int, str] | None:
        """Flower's SuperLink says so itself, when a node was silent for a minute."""
        return NODE_UNAVAILABLE, "The destination node is currently unavailable."


class Partition(OnWire):
    """The network is cut between some hospitals and the coordinator; nobody is told, nothing arrives in either direction."""

    fault: Literal["partition"]
    sites: Annotated[tuple[Name, ...], Field(min_length=1)]

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Those on the other side."""
        return self.sites

    def stops(self, question: Message) -> bool:
        """A question is lost without a word; who a node is is asked of those that can be reached."""
        return True

    def error(self) -> tuple[int, str] | None:
        """Silence."""
        return None


class Slow(OnWire, InHospital):
    """The hospital takes three times as long for everything.

    The coordinator sees that on the wire. The hospital feels it where a round has a time (`training.work_s`): it has a third of
    its pace, and takes as many steps as that allows.
    """

    where: ClassVar[Where] = "wire"

    fault: Literal["slow"]
    factor: Annotated[float, Field(gt=1)] = 3.0
    times: None = None  # a machine doesn't become faster by being asked again

    def around(self, answer: Answer, question: Message, context: Context) -> Message:
        """At a third of the pace."""
        from fl_client.pace import slower

        with slower(self.factor):
            return answer(question, context)

    def seconds(self, took: float, *, timeout_s: float) -> float:
        """By the clock of the simulation; nobody sleeps."""
        return took * self.factor


class LateReply(OnWire, AtSite):
    """The hospital's answer arrives when its round is over."""

    fault: Literal["late_reply"]
    by_s: Annotated[float, Field(gt=0)] = 60.0

    def holds(self) -> bool:
        """It is on its way until then."""
        return True

    def seconds(self, took: float, *, timeout_s: float) -> float:
        """The round's time, and a minute."""
        return timeout_s + self.by_s


class LostReply(OnWire, AtSite):
    """The hospital's answer is lost on its way: trained and paid for, and nobody hears of it."""

    fault: Literal["lost_reply"]
    times: Annotated[int, Field(ge=1)] = 1  # so many answers of a round; who asks again after that has luck

    def loses(self, *, times: int) -> bool:
        """The first `times` of a round."""
        return times < self.times

    def error(self) -> tuple[int, str] | None:
        """Flower's SuperLink finds that it doesn't have what it was promised."""
        return REPLY_UNAVAILABLE, "The reply message is not available."


class DuplicateReply(OnWire, AtSite):
    """The hospital's answer arrives twice."""

    fault: Literal["duplicate_reply"]
    contents: Literal["same", "different"] = "same"

    def copies(self, reply: Message) -> Sequence[Message]:
        """The answer once more; if different, with another first number."""
        second = copy.deepcopy(reply)
        if self.contents == "different" and not second.has_error():
            from flwr.app import Array, ArrayRecord

            for key, record in list(second.content.array_records.items()):
                arrays = {name: array.numpy().copy() for name, array in record.items()}
                next(iter(arrays.values())).flat[0] += 1
                second.content[key] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return (second,)
