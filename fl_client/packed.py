"""A question whose arrays came as one block is answered with one block.

The coordinator packs the arrays of its messages (tasks/packing.py), so that a round takes a handful of requests. What is
trained, checked and written into the audit log are the arrays, not the block.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from tasks.packing import pack, unpack

BLOCK = "konsil-block"
"""The one name in an ArrayRecord that holds a block."""


def unpacked(record: ArrayRecord) -> ArrayRecord:
    """The arrays of a block; any other record as it is. Raises `ValueError` for a block that can't be read."""
    if list(record) != [BLOCK]:
        return record
    return ArrayRecord({key: Array(array) for key, array in unpack(record[BLOCK].data).items()})


def packed_mod(question: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod that unpacks what came, and packs the answer to it.

    A block that can't be read goes on as it is, and is declined like any arrays that were not expected.
    """
    packed = [name for name, record in question.content.array_records.items() if list(record) == [BLOCK]]
    try:
        for name in packed:
            question.content[name] = unpacked(question.content.array_records[name])
    except (ValueError, MemoryError):
        return call_next(question, context)
    answer = call_next(question, context)
    if packed and not answer.has_error():
        for name, record in list(answer.content.array_records.items()):
            block = pack({key: array.numpy() for key, array in record.items()})
            answer.content[name] = ArrayRecord({BLOCK: Array("uint8", (len(block),), BLOCK, block)})
    return answer
