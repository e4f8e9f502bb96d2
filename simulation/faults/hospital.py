"""A hospital with faults: konsil's own ClientApp, and around it what the plan says for this hospital and round."""

from __future__ import annotations

import functools
import json
from typing import cast

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from simulation.faults.fault import Answer, InHospital, number_of
from simulation.faults.plan import fault_of

STATE = "faults on purpose"
"""Where a node remembers which round it has seen, and how often it was asked in it."""


class FaultyHospital(ClientApp):
    """The hospital's app as ever, for every message that no fault acts on."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as this hospital does in this round."""
        kind = message.metadata.message_type.partition(".")[0]
        number, times = _remembered(message, context, kind)
        answer: Answer = answered
        for settings in json.loads(str(context.node_config.get("faults", "[]"))):
            fault = fault_of(settings)
            if not isinstance(fault, InHospital) or kind not in fault.asked or not fault.covers(number):
                continue
            if fault.times is None or times <= fault.times:
                answer = functools.partial(fault.around, answer)
        return answer(message, context)


def answered(message: Message, context: Context) -> Message:
    """What konsil's own app answers."""
    from fl_client.app import app

    return app(message, context)


def _remembered(message: Message, context: Context, kind: str) -> tuple[int, int]:
    """The round that it is, and how often this hospital was asked for it, this time included."""
    seen = context.state.config_records.setdefault(STATE, ConfigRecord({"seen": [0, 0]}))
    number, times = cast(list[int], seen["seen"])
    if kind == "query":  # before the next round, who takes part
        return number + 1, 1
    if kind == "train":
        asked = number_of(message)
        number, times = asked, times + 1 if asked == number else 1
        seen["seen"] = [number, times]
    return number, times


app = FaultyHospital()
"""What nodes run whose hospital has faults: `simulation.faults.hospital:app`."""
