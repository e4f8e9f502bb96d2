"""What a fault is: where it acts, in which rounds, and at which times of asking.

The classes hold settings alone and import what they need when they act: a plan is read before anything heavy is imported.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from conf.study import Frozen, Name

if TYPE_CHECKING:
    from flwr.app import Context, Message

Where = Literal["hospital", "wire", "coordinator"]
Answer = Callable[["Message", "Context"], "Message"]
"""What a hospital does with a message: its ClientApp, or its ClientApp with faults around it."""


def _first_and_last(rounds: object) -> object:
    return (rounds, rounds) if isinstance(rounds, int) else rounds


Rounds = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
    BeforeValidator(_first_and_last),
]
"""The first and the last round, or one number for both."""


class Fault(Frozen):
    """One thing that goes wrong on purpose."""

    where: ClassVar[Where]
    in_federation: ClassVar[bool] = False  # whether real processes can be made to have it, too

    fault: str
    rounds: Rounds

    @model_validator(mode="after")
    def _in_order(self) -> Fault:
        first, last = self.rounds
        if first > last:
            raise ValueError(f"the rounds go from {first} to {last}; the first comes first")
        return self

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Whom it concerns."""
        return ()

    def covers(self, number: int) -> bool:
        """Whether round `number` is one of its rounds."""
        first, last = self.rounds
        return first <= number <= last

    def told(self) -> dict[str, Any]:
        """As `record.faults` has it."""
        return {**self.model_dump(mode="json", exclude_defaults=True), "words": (type(self).__doc__ or "").split("\n")[0]}


class AtSite(Fault):
    """A fault at one hospital."""

    site: Name

    @property
    def hospitals(self) -> tuple[str, ...]:
        """The one."""
        return (self.site,)


class InHospital(AtSite):
    """A fault inside a hospital. With `times`, it goes away after so many messages of a round: who asks again has luck."""

    where: ClassVar[Where] = "hospital"
    asked: ClassVar[frozenset[str]] = frozenset({"train"})  # kinds of message it acts on: train, evaluate, query

    times: Annotated[int, Field(ge=1)] | None = None

    @abstractmethod
    def around(self, answer: Answer, question: Message, context: Context) -> Message:
        """Answer as a hospital does that has this fault."""


class OnWire(Fault):
    """A fault between hospitals and coordinator; both sides do what they do."""

    where: ClassVar[Where] = "wire"

    def connected(self) -> bool:
        """Whether the coordinator sees the hospital among those that are there."""
        return True

    def stops(self, question: Message) -> bool:
        """Whether the question does not arrive."""
        return False

    def error(self) -> tuple[int, str] | None:
        """What the coordinator hears instead of what was stopped or lost: code and words, or nothing."""
        return None

    def loses(self, *, times: int) -> bool:
        """Whether the answer does not arrive; `times` were lost before in this round."""
        return False

    def holds(self) -> bool:
        """Whether the answer comes when its round is over."""
        return False

    def copies(self, reply: Message) -> Sequence[Message]:
        """What arrives beside the answer."""
        return ()

    def seconds(self, took: float, *, timeout_s: float) -> float:
        """How long the hospital seems to have taken, when it took `took` seconds of a round's `timeout_s`."""
        return took


class AtCoordinator(Fault):
    """A fault of the coordinator itself."""

    where: ClassVar[Where] = "coordinator"


def settings_of(context: Context) -> Path:
    """The settings file of the hospital whose node this is."""
    return Path(str(context.node_config["site"]))


def number_of(question: Message) -> int:
    """The number of the round that a question says it belongs to."""
    number = question.content.config_records["config"]["server-round"]
    if not isinstance(number, int):
        raise TypeError(f"the number of a round is a whole number, not {number!r}")
    return number
