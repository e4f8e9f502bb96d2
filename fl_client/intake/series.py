"""Which series of a patient the study gets: the rules, the latest of several, the part of each that is meant, one of a name.

Patients who are let in and visitors whom a trained model looks at go through the same choice, so that a model sees in use what
it saw in training. What isn't chosen is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.dataset import Dataset

from conf.study import Frozen
from fl_client.intake.cine import phases
from fl_client.intake.door import Reasons, Refused
from fl_client.intake.headers import Patient, is_drawn
from fl_client.intake.newest import PHASES
from fl_client.intake.split import Part, asked_for, one_part, one_time
from fl_client.intake.volume import Frame, GeometryRefused


class SeriesRule(Part):
    """A DICOM series becomes `name` if it has this modality and all `words` stand in its description.

    Where it holds several volumes, the fields of `Part` say which: `image_type`, `plane`, `echo`, `b_value`, ...
    """

    name: str
    words: tuple[str, ...] = ()  # lower case; none matches every description
    modality: str = "MR"
    phases: bool = False  # a cine: gives `<name>_ed` and `<name>_es`

    @property
    def names(self) -> frozenset[str]:
        """What its volumes may be called."""
        return frozenset(f"{self.name}_{phase}" for phase in PHASES) if self.phases else frozenset((self.name,))


class SeriesRules(Frozen):
    """Which series the study wants, in order: the first rule that fits names the series. Others stay outside.

    Rules with the same words and modality share their series and name different parts of it, such as its echoes.
    """

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

    @property
    def names(self) -> frozenset[str]:
        """What volumes may be called that these rules give."""
        return frozenset(name for rule in self.rules for name in rule.names)

    def match(self, header: Dataset) -> tuple[SeriesRule, ...]:
        """The first rule that fits a de-identified header, and those that ask for other parts of the same series."""
        words = set(str(header.get("SeriesDescription", "")).split())
        fitting = [rule for rule in self.rules if header.get("Modality") == rule.modality and words >= set(rule.words)]
        return tuple(rule for rule in fitting if set(rule.words) == set(fitting[0].words))


def chosen(
    pseudonym: str, patient: Patient, rules: SeriesRules, reasons: Reasons
) -> tuple[dict[str, list[Frame]], frozenset[str]]:
    """The images that the study gets of a patient, by series name: one part of the latest of each rule, of a cine its phases.

    End-diastole and end-systole are of one examination, or only the later of the two is taken; the name of the other is the
    second answer.

    A cine's phase and a series of its own can have one name: a study holds the whole cine, and its end-diastole once more. The
    one that somebody drew on is taken. If nobody drew, it is the series of its own, whose description says what it is, where a
    cine's first phase is only supposed to be end-diastole. The other is left out. Raises `Refused` if both were drawn on, and
    what `latest`, `one_part` and `phases` raise.
    """
    found: dict[str, list[Frame]] = {}
    several = sorted(latest(pseudonym, patient, rules, reasons), key=lambda rule_and_frames: rule_and_frames[0].phases)
    for rule, frames in several:  # cines last, so that what is there already is a series of its own
        for name, phase in _volumes(pseudonym, rule, frames, patient.masks, reasons):
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
    return found, _without_other_examinations(pseudonym, found, reasons)


def _without_other_examinations(pseudonym: str, found: dict[str, list[Frame]], reasons: Reasons) -> frozenset[str]:
    """Takes out phases of an earlier examination than their cine's other phase, and names them. Raises `Refused`."""
    apart = set()
    for name in sorted(found):
        other = _other_phase(name)
        if name not in found or other not in found or _examination(found[name]) == _examination(found[other]):
            continue
        dates = {each: day_of(found[each]) for each in (name, other)}
        if not all(dates.values()):
            raise Refused(f"{name} and {other} are of two studies, and there are no dates to say which is the later")
        odd = min(dates, key=lambda each: dates[each])
        frames = found.pop(odd)
        apart.add(odd)
        reason = f"{odd} of an earlier study than {_other_phase(odd)}; the two phases of a cine are taken from one"
        reasons.leave_out(f"{pseudonym}-{str(frames[0].header.get('SeriesInstanceUID', ''))[-12:]}", reason)
    return frozenset(apart)


def _other_phase(name: str) -> str:
    """`cine_es` of `cine_ed` and the reverse; empty for the name of no phase."""
    stem, _, phase = name.rpartition("_")
    return f"{stem}_{next(iter(PHASES.keys() - {phase}))}" if stem and phase in PHASES else ""


def day_of(frames: list[Frame]) -> str:
    """The day of an examination as its images say it, YYYYMMDD, moved as all dates are; empty if they don't."""
    return max(str(frame.header.get("StudyDate") or frame.header.get("AcquisitionDate") or "") for frame in frames)


def _examination(frames: list[Frame]) -> str:
    """What the images of one examination share: the day, since one visit may come as two studies, or else the study's UID."""
    return day_of(frames) or str(frames[0].header.get("StudyInstanceUID", ""))


def _volumes(
    pseudonym: str, rule: SeriesRule, frames: list[Frame], masks: list[Frame], reasons: Reasons
) -> list[tuple[str, list[Frame]]]:
    """The candidate volumes of one series by name; what was put aside is left out. Raises `GeometryRefused` and `Refused`."""
    try:
        split = one_part(frames, rule)
        uid = str(frames[0].header.get("SeriesInstanceUID", ""))[-12:]
        for what, reason in split.aside:
            reasons.leave_out(f"{pseudonym}-{uid}-{rule.name}-{what}", f"{rule.name}: {reason}")
        return list(phases(rule.name, split.frames, masks)) if rule.phases else [(rule.name, one_time(split.frames, rule))]
    except GeometryRefused as reason:
        raise GeometryRefused(f"{rule.name}: {reason}") from None


def lone_phases(found: Mapping[str, list[Frame]], rules: SeriesRules, masks: list[Frame]) -> dict[str, str]:
    """For each phase that a cine could not give, by its series name: why not, and which one is taken alone."""
    reasons = {}
    for name, frames in found.items():
        rule = next((rule for rule in rules.match(frames[0].header) if rule.phases and name.startswith(f"{rule.name}_")), None)
        if rule is None:
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
        fitting = rules.match(frames[0].header)
        asked = [rule for rule in fitting if any(asked_for(frame.header, rule) for frame in frames)]
        if not asked:
            why = "of an ImageType that" if fitting else "that"
            reason = f"a series of {len(frames)} {frames[0].header.get('Modality', '')} images {why} no series rule asks for"
            reasons.leave_out(f"{pseudonym}-{uid[-12:]}", reason)
            unasked[reason] = unasked.get(reason, 0) + 1
        for rule in asked:
            found.setdefault(rule.name, []).append((day_of(frames), uid))
    if not found:
        wanted = ", ".join(f"{rule.name} ({rule.modality})" for rule in rules.rules)
        raise Refused(f"no usable series: the study asks for {wanted}; there were {'; '.join(unasked) or 'no MR or CT slices'}")
    result = []
    for name, series in sorted(found.items()):
        other = _other_phase(name)
        complete = {_examination(patient.series[uid]) for _, uid in found.get(other, [])}
        together = [date for date, uid in series if _examination(patient.series[uid]) in complete]
        last = max(together or [date for date, _ in series])  # a lone phase of today doesn't part the two of last year
        newest = [uid for date, uid in series if date == last]
        if len(newest) > 1:
            raise Refused(f"{len(newest)} series are {name} and none is later than the other; the study wants one")
        for date, uid in series:
            if date < last:
                reasons.leave_out(f"{pseudonym}-{uid[-12:]}", f"an earlier {name} of a patient with a later one")
            elif date > last:
                reasons.leave_out(f"{pseudonym}-{uid[-12:]}", f"a later {name} without {other}; an earlier study has both")
        result.append((by_name[name], patient.series[newest[0]]))
    return result
