"""Where one patient stands among reference values, in a number and in words. Nothing of it leaves the hospital."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from tasks.reference_values.lms import z_score
from tasks.reference_values.measures import Ventricle
from tasks.reference_values.settings import Measure
from tasks.reference_values.values import Curve, ReferenceValues

PEOPLE = {"F": "women", "M": "men"}


@dataclass(frozen=True)
class Place:
    """One measure of one patient. `percentile` is None where nothing can be said; else with its 95 % interval."""

    measure: Measure
    value: float
    age: float
    sex: str
    percentile: float | None
    low: float = 0.0
    high: float = 100.0

    @property
    def figure(self) -> str:
        """The value with its unit."""
        return f"{self.value:.{0 if self.measure.unit in ('%', 'ml', 'g') else 1}f} {self.measure.unit}"

    @property
    def words(self) -> str:
        """A sentence without a full stop. Beyond the 5th and 95th percentile it says no more than that."""
        people = f"{PEOPLE[self.sex]} of {int(self.age)}"
        if self.percentile is None:
            return f"too little is known of {people} to compare it with"
        between = f"with 95 % certainty {_bounds(self.low, self.high)}"
        if self.percentile < 5:
            return f"below the 5th percentile of {people} ({between})"
        if self.percentile > 95:
            return f"above the 95th percentile of {people} ({between})"
        return f"at the {ordinal(self.percentile)} percentile of {people} ({between})"


def places(found: Ventricle, values: ReferenceValues) -> list[Place]:
    """Every measure that is known of the patient, in the study's order."""
    result = []
    for measure in values.settings.measures:
        value = found.value(measure)
        curve = values.curve(measure, found.sex)
        if value is not None and value > 0 and curve is not None:
            result.append(place(curve, found.age, value))
    return result


def place(curve: Curve, age: float, value: float) -> Place:
    """Where this value stands among the sex at this age."""
    if int(age) not in curve.ages:
        return Place(curve.measure, value, age, curve.sex, None)
    at, of = np.array([float(age)]), np.array([value])
    middle = float(ndtr(z_score(np.array([curve.theta]), at, of, curve.scale))[0, 0, 0])
    spread = ndtr(z_score(np.array(curve.replicates), at, of, curve.scale))[:, 0, 0]
    low, high = (float(one) for one in np.quantile(spread, (0.025, 0.975)))
    return Place(curve.measure, value, age, curve.sex, 100 * middle, 100 * min(low, middle), 100 * max(high, middle))


def source(values: ReferenceValues) -> str:
    """Where the values come from, in two sentences."""
    masks = "masks that readers drew"
    if values.settings.masks != "reader":
        masks = f"masks that the model {values.settings.masks.sha256[:12]} drew"
    return (
        f"Reference values of study {values.study} ({values.study_hash[:12]}), from {masks}. Patients of "
        f"{values.how_many} ({', '.join(values.hospitals)}), counted together; {values.promise or 'no privacy was promised'}."
    )


def ordinal(percentile: float) -> str:
    """A percentile in words, between 1 and 99.

    >>> ordinal(2.6), ordinal(52.2), ordinal(11.3), ordinal(99.9)
    ('3rd', '52nd', '11th', '99th')
    """
    number = min(99, max(1, round(percentile)))
    ending = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _bounds(low: float, high: float) -> str:
    if high < 5:
        return "below the 5th"
    if low > 95:
        return "above the 95th"
    return f"{'below the 5th' if low < 5 else ordinal(low)} to {'above the 95th' if high > 95 else ordinal(high)}"
