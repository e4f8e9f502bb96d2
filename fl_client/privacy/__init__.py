"""Patient-level differential privacy: gate, clip, noise, ledger and its filter, and the training loop made of them.

In reading order: what may be trained (`gate`), what one patient may contribute (`clip`), what hides it (`noise`), what that
costs (`tasks.accounting`, which the coordinator reckons with, too), whether one more may leave (`filters`), who keeps count
(`ledger`), and the loop (`dp_sgd`). The promise stands in docs/privacy.md. Names are imported when first used: whoever only
reads the ledger waits for no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_client.privacy.clip import ClippedSum as ClippedSum
    from fl_client.privacy.clip import clipped_sum as clipped_sum
    from fl_client.privacy.dp_sgd import PatientExamples as PatientExamples
    from fl_client.privacy.dp_sgd import TrainingReport as TrainingReport
    from fl_client.privacy.dp_sgd import train as train
    from fl_client.privacy.gate import require_private as require_private
    from fl_client.privacy.ledger import BudgetSpent as BudgetSpent
    from fl_client.privacy.ledger import Ledger as Ledger
    from fl_client.privacy.ledger import LedgerBroken as LedgerBroken
    from fl_client.privacy.noise import Noise as Noise
    from fl_client.privacy.noise import noised as noised
    from fl_client.privacy.noise import noisy_sum as noisy_sum
    from fl_client.privacy.noise import noisy_total as noisy_total
    from fl_client.privacy.noise import os_noise as os_noise
    from fl_client.privacy.noise import seeded_noise as seeded_noise
    from tasks.accounting.budget import calibrate as calibrate
    from tasks.accounting.budget import epsilon as epsilon
    from tasks.accounting.events import Event as Event
    from tasks.accounting.events import shared_noise as shared_noise

_HOME = {
    **dict.fromkeys(("calibrate", "epsilon"), "tasks.accounting.budget"),
    **dict.fromkeys(("Event", "shared_noise"), "tasks.accounting.events"),
    **dict.fromkeys(("ClippedSum", "clipped_sum"), "fl_client.privacy.clip"),
    **dict.fromkeys(("PatientExamples", "TrainingReport", "train"), "fl_client.privacy.dp_sgd"),
    "require_private": "fl_client.privacy.gate",
    **dict.fromkeys(("BudgetSpent", "Ledger", "LedgerBroken"), "fl_client.privacy.ledger"),
    **dict.fromkeys(("Noise", "noised", "noisy_sum", "noisy_total", "os_noise", "seeded_noise"), "fl_client.privacy.noise"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fl_client.privacy' has no attribute '{name}'")
