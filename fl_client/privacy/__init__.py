"""Patient-level differential privacy: gate, clip, noise, events, budget, ledger, and the training loop made of them.

In reading order: what may be trained (`gate`), what one patient may contribute (`clip`), what hides it (`noise`), what that
costs (`events`, `budget`), who keeps count (`ledger`), and the loop (`dp_sgd`). The promise stands in docs/privacy.md.
"""

from fl_client.privacy.budget import calibrate, epsilon
from fl_client.privacy.clip import ClippedSum, clipped_sum
from fl_client.privacy.dp_sgd import PatientExamples, TrainingReport, train
from fl_client.privacy.events import Event
from fl_client.privacy.gate import require_private
from fl_client.privacy.ledger import BudgetSpent, Ledger, LedgerBroken
from fl_client.privacy.noise import Noise, noised, noisy_sum, noisy_total, os_noise, seeded_noise

__all__ = [
    "BudgetSpent",
    "ClippedSum",
    "Event",
    "Ledger",
    "LedgerBroken",
    "Noise",
    "PatientExamples",
    "TrainingReport",
    "calibrate",
    "clipped_sum",
    "epsilon",
    "noised",
    "noisy_sum",
    "noisy_total",
    "os_noise",
    "require_private",
    "seeded_noise",
    "train",
]
