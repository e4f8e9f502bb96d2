"""Flower's grid, looked at more often and asked for less.

Arrays travel as one block (tasks/packing.py), not as two objects for each. konsil's rounds push their questions and pull
answers as they come (asking.py). For other apps there is `send_and_receive`: Flower's own sleeps three seconds between two
looks for answers, so that every round takes up to that much longer than its slowest hospital. Here the wait starts at a fifth
of a second and grows with the round: never above a fiftieth of the time that has passed, nor two seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool

import httpx
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.constant import PULL_MAX_TIME
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.run import Run

from tasks.packing import pack, unpack

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 2.0
"""Between two looks for answers: at first, and at most."""

SHARE = 0.02
"""Of the time that has passed: what waiting may add to a round."""

BLOCK = "konsil-block"
"""The one name in an ArrayRecord that holds a block; hospitals know it, too (fl_client/packed.py)."""

FLOWER_SAYS = {
    "ClientApp stopped responding": "its konsil process ended while it worked on this, perhaps for lack of memory",
    "Error: Message Unavailable": "the question was not there any more when it was to be sent",
    "Error: Reply Message Unavailable": "its answer was lost on the way",
    "Error: Node Unavailable": "its machine is offline",
}
"""How what Flower itself says in a hospital's place begins, and what that means."""

log = logging.getLogger("konsil.grid")


def pause(passed: float, left: float) -> float:
    """Seconds until the next look for answers, when `passed` have gone since the question and `left` remain."""
    return min(max(FIRST_WAIT_S, SHARE * passed), LONGEST_WAIT_S, left)


def pulled(grid: Grid, questions: Sequence[str]) -> tuple[list[Message], list[str]]:
    """The answers that are there, and the questions whose answers are so malformed that Flower can't read them.

    Raises what is this machine's trouble and no hospital's.
    """
    try:
        return [_plain(reply) for reply in grid.pull_messages(questions)], []
    except (BrokenProcessPool, httpx.HTTPError):
        raise
    except Exception as error:  # somebody's answer; whose, is found one by one
        if len(questions) == 1:
            log.warning("an answer can't be read: %s", type(error).__name__)
            return [], list(questions)
    each = [pulled(grid, [question]) for question in questions]
    return [reply for replies, _ in each for reply in replies], [one for _, bad in each for one in bad]


def _plain(reply: Message) -> Message:
    """The same answer; an error that Flower wrote has our words."""
    if reply.has_error():
        said = reply.error.reason or ""
        for begins, meaning in FLOWER_SAYS.items():
            if said.startswith(begins):
                reply.error = Error(reply.error.code, meaning)
    return reply


class GridAround(Grid):
    """A `Grid` around another, which answers for it where nothing else is said."""

    inside: Grid

    def set_run(self, run: Run) -> None:
        """Use Flower's description of this run."""
        self.inside.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of this run."""
        return self.inside.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message for one node; the same as `flwr.app.Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class PromptGrid(GridAround):
    """A `Grid` around another, for everything but the waiting and the form in which arrays travel."""

    def __init__(self, inside: Grid) -> None:
        self.inside = inside
        # a part that is still on its way is looked for a tenth of a second later, not 1, 2, 4 s; Flower's max_time ends it,
        # and not that of a grid before this one in the same process
        ours = {"initial_backoff": 0.1, "backoff_cap": 2.0, "max_tries_per_object": None, "max_time": PULL_MAX_TIME}
        pull_objects.__kwdefaults__ = {**(pull_objects.__kwdefaults__ or {}), **ours}

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are connected now."""
        return self.inside.get_node_ids()

    def names(self) -> dict[int, str]:
        """The connected nodes, and the name that each was registered under; empty where keys are not registered."""
        nodes = getattr(self.inside, "get_nodes", None)  # of Flower's deployed grid; no part of `Grid`
        return dict.fromkeys(self.get_node_ids(), "") if nodes is None else {node.node_id: node.name for node in nodes()}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send, and return the messages' ids. The messages themselves stay as they are."""
        messages = list(messages)
        plain = [message.content for message in messages]
        blocks: dict[int, ArrayRecord] = {}  # messages of a round share their arrays
        try:
            for message in messages:
                message.content = _packed(message.content, blocks)
            return list(self.inside.push_messages(messages))
        finally:
            for message, content in zip(messages, plain, strict=True):
                message.content = content

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that are there, each once. A block that can't be read stays one; nobody will have asked for it."""
        answers = list(self.inside.pull_messages(message_ids))
        for answer in answers:
            if not answer.has_error():
                _unpack(answer.content)
        return answers

    def within(self, seconds: float) -> None:
        """Wait no longer than this for the parts of an answer that is on its way; what is not whole then counts as lost."""
        pull_objects.__kwdefaults__ = {**(pull_objects.__kwdefaults__ or {}), "max_time": max(1.0, seconds)}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send, and return what was answered within `timeout` seconds; as soon as all have answered."""
        start = time.monotonic()
        waiting = {message for message in self.push_messages(messages) if message is not None}
        replies: list[Message] = []
        while True:
            found = list(self.pull_messages(waiting)) if waiting else []
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            passed = time.monotonic() - start
            if not waiting or (timeout is not None and passed >= timeout):
                return replies
            left = LONGEST_WAIT_S if timeout is None else timeout - passed
            time.sleep(pause(passed, left))


def _packed(content: RecordDict, blocks: dict[int, ArrayRecord]) -> RecordDict:
    """The same content with every ArrayRecord as one block; `blocks` knows those that were made already."""
    packed = RecordDict(dict(content.items()))
    for name, record in content.array_records.items():
        if id(record) not in blocks:
            block = pack({key: array.numpy() for key, array in record.items()})
            blocks[id(record)] = ArrayRecord({BLOCK: Array("uint8", (len(block),), BLOCK, block)})
        packed[name] = blocks[id(record)]
    return packed


def _unpack(content: RecordDict) -> None:
    for name, record in list(content.array_records.items()):
        if list(record) == [BLOCK]:
            try:
                arrays = unpack(record[BLOCK].data)
                content[name] = ArrayRecord({key: Array(array) for key, array in arrays.items()})
            except Exception as error:  # a hospital wrote it: whatever it is, the others' run goes on
                log.warning("a hospital's block can't be read: %s", type(error).__name__)
