"""Scores of several patients as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the patients for whom it is defined."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row and np.isfinite(row[name])] for name in names}
    return {name: float(np.mean(found)) for name, found in values.items() if found}
