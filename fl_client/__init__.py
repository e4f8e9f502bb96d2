"""One hospital: the door in, the cohort, private training, the ledger, the door out.

The names below are for other Flower apps, too (docs/flower_plugin.md); they are imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from conf.threads import wait_briefly

if TYPE_CHECKING:
    from fl_client.mod import ledger_mod as ledger_mod
    from fl_client.privacy import BudgetSpent as BudgetSpent
    from fl_client.privacy import Event as Event
    from fl_client.privacy import Ledger as Ledger
    from fl_client.privacy import calibrate as calibrate
    from fl_client.privacy import epsilon as epsilon
    from fl_client.privacy import noisy_sum as noisy_sum
    from fl_client.privacy import os_noise as os_noise
    from fl_client.privacy import require_private as require_private

_HOME = {"ledger_mod": "fl_client.mod"} | dict.fromkeys(
    ("BudgetSpent", "Event", "Ledger", "calibrate", "epsilon", "noisy_sum", "os_noise", "require_private"),
    "fl_client.privacy",
)

wait_briefly()  # before anything here imports torch


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fl_client' has no attribute '{name}'")
