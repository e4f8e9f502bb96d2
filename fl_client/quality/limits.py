"""Who is outside a study's quality limits: each patient judged alone, by numbers that stand in the study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from conf.quality import Limit, QualityLimits
from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.quality import records
from fl_client.quality.measure import Quality


def outside(cohort: Cohort, limits: QualityLimits, patients: Iterable[str]) -> dict[str, str]:
    """The patients whom the limits leave out, and why, in words.

    A patient whose case can't be read is not judged here: whoever prepares it says so. Patients without a record are measured
    first, 0.1 to 0.3 s for each image.
    """
    left_out: dict[str, str] = {}
    for patient in patients:
        try:
            found = records.of(cohort, patient)
        except (CaseUnreadable, KeyError):
            continue
        except Exception as error:  # what is wrong with one patient's images is never an error of the study
            left_out[patient] = f"the quality of the images can't be measured ({type(error).__name__}: {error})"
            continue
        if reasons := breaches(limits, found):
            left_out[patient] = "; ".join(reasons)
    return left_out


def breaches(limits: QualityLimits, found: Mapping[str, Quality]) -> list[str]:
    """What of one patient's quality by series is outside, a sentence each; empty if nothing is."""
    reasons = []
    for series, metric, limit in limits.each():
        if series in found and (reason := _breach(limit, metric, found[series])):
            reasons.append(f"{series}: {reason}")
    return reasons


def _breach(limit: Limit, metric: str, quality: Quality) -> str:
    value = quality.values.get(metric)
    if value is None:
        why = quality.why.get(metric, "not a parameter of this kind of image")
        return f"{metric} can't be measured ({why}), and the study wants it" if limit.unmeasured == "leave_out" else ""
    if limit.min is not None and value < limit.min:
        return f"{metric} is {value:g}; the study wants at least {limit.min:g}"
    if limit.max is not None and value > limit.max:
        return f"{metric} is {value:g}; the study wants at most {limit.max:g}"
    return ""
