"""The coordinator: rounds, record, verdict.

`Rounds` also serves other Flower apps (docs/flower_plugin.md); the names below are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_server.record import Record as Record
    from fl_server.rounds import run as run
    from fl_server.strategy import Rounds as Rounds

_HOME = {"Record": "fl_server.record", "Rounds": "fl_server.strategy", "run": "fl_server.rounds"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fl_server' has no attribute '{name}'")
