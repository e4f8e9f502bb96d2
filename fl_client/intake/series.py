"""Which series of a patient the study gets: the rules, the latest of several, two phases of a whole cine, one of a name.

Patients who are let in and visitors whom a trained model looks at go through the same choice, so that a model sees in use what
it saw in training. What isn't chosen is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydicom.dataset import Dataset

from conf.study import Frozen
from fl_client.intake.door import Reasons, Refused
from fl_client.intake.headers import Patient, references
from fl_client.intake.volume import Frame, GeometryRefused

NEAR_R_WAVE = 8
"""A cine's lone masked phase is end-diastole within one part in so many of the cycle, before or after the R wave."""

SYSTOLE = (0.2, 0.6)
"""And end-systole if it lies between these shares of the cycle after the R wave: about a third at rest, more at high rates."""

PHASES = {"ed": "end-diastole", "es": "end-systole"}
"""What a cine's phases are called, by what their names end in."""


class SeriesRule(Frozen):
    """A DICOM series becomes `name` if it has this modality and all `words` stand in its description."""

    name: str
    words: tuple[str, ...] = ()  # lower case; none matches every description
    modality: str = "MR"
    phases: bool = False  # a cine: gives `<name>_ed` and `<name>_es`


class SeriesRules(Frozen):
    """Which series the study wants, in order: the first rule that fits names the series. Others stay outside."""

    rules: tuple[SeriesRule, ...] = (
        SeriesRule(name="cine_ed", words=("cine", "ed")),
        SeriesRule(name="cine_es", words=("cine", "es")),
        SeriesRule(name="cine", words=("cine",), phases=True),
        SeriesRule(name="lge", words=("lge",)),
    )

    @property
    def words(self) -> frozenset[str]:
        """The only words of a series description that de-identification lets through."""
        return frozenset(word for rule in self.rules for word in rule.words)

    def match(self, header: Dataset) -> SeriesRule | None:
        """The first rule that fits a de-identified header."""
        words = set(str(header.get("SeriesDescription", "")).split())
        return next((rule for rule in self.rules if header.get("Modality") == rule.modality and words >= set(rule.words)), None)


def chosen(pseudonym: str, patient: Patient, rules: SeriesRules, reasons: Reasons) -> dict[str, list[Frame]]:
    """The images that the study gets of a patient, by series name: the latest of each rule, and of a cine its phases.

    A cine's phase and a series of its own can have one name: a study holds the whole cine, and its end-diastole once more. The
    one that somebody drew on is taken. If nobody drew, it is the series of its own, whose description says what it is, where a
    cine's first phase is only supposed to be end-diastole. The other is left out. Raises `Refused` if both were drawn on, and
    what `latest` and `phases` raise.
    """
    found: dict[str, list[Frame]] = {}
    several = sorted(latest(pseudonym, patient, rules, reasons), key=lambda rule_and_frames: rule_and_frames[0].phases)
    for rule, frames in several:  # cines last, so that what is there already is a series of its own
        for name, phase in phases(rule, frames, patient.masks):
            own = found.get(name)
            if own is None:
                found[name] = phase
                continue
            which = PHASES[name.removeprefix(f"{rule.name}_")]
            on_cine, on_own = is_drawn(phase, patient.masks), is_drawn(own, patient.masks)
            if on_cine and on_own:
                raise Refused(f"{name} is there twice with a mask, as {which} of the {rule.name} and as a series of its own")
            if on_cine:
                found[name], away = phase, own
                reason = f"a series {name} on which nobody drew, of a patient with a mask on {which} of the {rule.name}"
            else:
                away = phase
                reason = f"{rule.name}: its {which} has no mask, and there is a series {name} {'with one' if on_own else 'too'}"
            reasons.leave_out(f"{pseudonym}-{str(away[0].header.get('SeriesInstanceUID', ''))[-12:]}", reason)
    return found


def is_drawn(frames: list[Frame], masks: list[Frame]) -> bool:
    """Whether a mask refers to any of these images."""
    drawn = {uid for mask in masks for uid in references(mask.header)}
    return any(str(frame.header.SOPInstanceUID) in drawn for frame in frames)


def lone_phases(found: Mapping[str, list[Frame]], rules: SeriesRules, masks: list[Frame]) -> dict[str, str]:
    """For each phase that a cine could not give, by its series name: why not, and which one is taken alone."""
    reasons = {}
    for name, frames in found.items():
        rule = rules.match(frames[0].header)
        if rule is None or not rule.phases:
            continue
        taken = name.removeprefix(f"{rule.name}_")
        (other,) = PHASES.keys() - {taken}
        if f"{rule.name}_{other}" not in found:
            why = f"{PHASES[other]} has no mask" if is_drawn(frames, masks) else "no phase has a mask"
            reasons[f"{rule.name}_{other}"] = f"{rule.name}: {why}, so only {PHASES[taken]} is admitted"
    return reasons


def latest(pseudonym: str, patient: Patient, rules: SeriesRules, reasons: Reasons) -> list[tuple[SeriesRule, list[Frame]]]:
    """The series that the study asks for, the latest of each rule; the rest is left out. Raises `Refused` if none is left."""
    found: dict[str, list[tuple[str, str]]] = {}  # rule name: (date, series UID)
    by_name = {rule.name: rule for rule in rules.rules}
    unasked: dict[str, int] = {}
    for uid, frames in sorted(patient.series.items()):
        rule = rules.match(frames[0].header)
        if rule is None:
            reason = f"a series of {len(frames)} {frames[0].header.get('Modality', '')} images that no series rule asks for"
            reasons.leave_out(f"{pseudonym}-{uid[-12:]}", reason)
            unasked[reason] = unasked.get(reason, 0) + 1
        else:
            dates = [str(frame.header.get("StudyDate") or frame.header.get("AcquisitionDate") or "") for frame in frames]
            found.setdefault(rule.name, []).append((max(dates), uid))
    if not found:
        wanted = ", ".join(f"{rule.name} ({rule.modality})" for rule in rules.rules)
        raise Refused(f"no usable series: the study asks for {wanted}; there were {'; '.join(unasked) or 'no MR or CT slices'}")
    result = []
    for name, series in sorted(found.items()):
        last = max(date for date, _ in series)
        newest = [uid for date, uid in series if date == last]
        if len(newest) > 1:
            raise Refused(f"{len(newest)} series are {name} and none is later than the other; the study wants one")
        for date, uid in series:
            if date < last:
                reasons.leave_out(f"{pseudonym}-{uid[-12:]}", f"an earlier {name} of a patient with a later one")
        result.append((by_name[name], patient.series[newest[0]]))
    return result


def phases(rule: SeriesRule, frames: list[Frame], masks: list[Frame]) -> Iterator[tuple[str, list[Frame]]]:
    """A cine as its end-diastolic and end-systolic phase; any other series as it is.

    Phases are the frames' ranks by trigger time at their slice position. Masks say which phases matter: a reader draws on
    end-diastole and end-systole, and the heart contracts, so that of two masked phases end-diastole is the one nearer to the
    R wave (cyclically). A single masked phase has nothing to be compared with: it is named by where it lies in the cycle, or
    refused. Without masks only the first phase, at the R wave, is taken as end-diastole.
    """
    if not rule.phases:
        yield rule.name, frames
        return
    positions: dict[tuple[float, ...], list[Frame]] = {}
    for frame in frames:
        if frame.header.get("TriggerTime") in (None, "") or frame.header.get("ImagePositionPatient") in (None, ""):
            raise GeometryRefused(f"{rule.name}: a cine image without TriggerTime or position")
        positions.setdefault(tuple(map(float, frame.header.ImagePositionPatient)), []).append(frame)
    counts = {len(some) for some in positions.values()}
    if len(counts) > 1:
        raise GeometryRefused(
            f"{rule.name}: {min(counts)} to {max(counts)} phases per slice; every slice needs the same number"
        )
    ranked = [sorted(some, key=lambda frame: float(frame.header.TriggerTime)) for some in positions.values()]
    by_rank = [[some[rank] for some in ranked] for rank in range(counts.pop())]
    masked = [rank for rank, phase in enumerate(by_rank) if is_drawn(phase, masks)]
    if len(masked) > 2:
        raise Refused(f"{rule.name}: masks on {len(masked)} phases; the study reads end-diastole and end-systole")
    if len(masked) == 1:
        yield f"{rule.name}_{_only_phase(rule.name, masked[0], len(by_rank))}", by_rank[masked[0]]
        return
    masked.sort(key=lambda rank: min(rank, len(by_rank) - rank))
    for suffix, rank in zip(("ed", "es"), masked or [0], strict=False):
        yield f"{rule.name}_{suffix}", by_rank[rank]


def _only_phase(name: str, rank: int, count: int) -> str:
    """`ed` or `es` for the one phase that somebody drew on. Raises `Refused` where it could be neither or both."""
    if min(rank, count - rank) <= count / NEAR_R_WAVE:
        return "ed"
    if SYSTOLE[0] <= rank / count <= SYSTOLE[1]:
        return "es"
    raise Refused(
        f"{name}: only phase {rank + 1} of {count} has a mask, {rank / count:.0%} of the cycle after the R wave; end-diastole "
        f"lies within {1 / NEAR_R_WAVE:.1%} of it and end-systole between {SYSTOLE[0]:.0%} and {SYSTOLE[1]:.0%} after it"
    )
