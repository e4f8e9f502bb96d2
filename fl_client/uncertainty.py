"""How sure a trained model is of this hospital's patients: members, and what their agreement is worth here.

    <site>/calibrations/<fingerprint>-<members>.json    learned by `konsil-site calibrate`, with the pseudonyms of whom
    calibration.json beside a model                     learned by the coordinator, of generated patients

A hospital's own calibration goes before the one that came with the model. It is made of patients without noise, so it stays in
the house, is used by `segment` and `return` alone, and goes when one of those patients withdraws.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from conf.study import Frozen, words
from fl_client.cohort import CaseUnreadable, Cohort
from fl_client.sharing import file_mode, make_folder
from fl_client.site import Site
from fl_client.trained import Trained, load_trained
from tasks.case import Volume
from tasks.fingerprint import fingerprint
from tasks.segmentation.settings import Settings
from tasks.uncertainty import triage
from tasks.uncertainty.calibration import Calibration
from tasks.uncertainty.calibration import calibrate as learn
from tasks.uncertainty.examine import Examined, Judged, examine, judge
from tasks.uncertainty.views import members_of

FEW = 30
"""Patients below whom one in ten is told by two or fewer of them. A choice."""

BESIDE = "calibration.json"
"""Beside a run's model: what the coordinator learned of generated patients."""


class Own(Frozen):
    """A hospital's own calibration, and whom it was learned from."""

    patients: tuple[str, ...]
    calibration: Calibration


@dataclass(frozen=True)
class Jury:
    """All members that look at an image; the first one draws the mask."""

    members: Sequence[nn.Module]
    settings: Settings
    calibration: Calibration | None
    told: str  # how sureness is told here, in a sentence
    models: tuple[str, ...]  # fingerprints of the networks among them

    def examine(self, volume: Volume) -> Examined:
        """Segment a volume with all of them. Raises `ValueError` for an image, or an answer, that won't do."""
        return examine(self.members, self.settings, volume)

    def sureness(self, found: Examined) -> triage.Sure | None:
        """How sure the members are of a volume, lowest where somebody should look first; None of one member."""
        return triage.sureness(found.agreement, self.calibration)

    def require_maps(self) -> None:
        """Raise `ValueError` if there is nobody to disagree."""
        if len(self.members) == 1:
            raise ValueError(
                "one member alone can't disagree: there are no heat maps of it; take --members 8, or where a study "
                "trained without augmentation another model beside it (--also)"
            )

    @property
    def temperature(self) -> float:
        """At which probabilities are taken."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def known_by(self) -> tuple[str, ...]:
        """What tells results with one calibration from those with another; nothing without any."""
        return (sha256(self.calibration.model_dump_json().encode()).hexdigest(),) if self.calibration else ()


def convene(site: Site, trained: Trained, model: Path, *, count: int, also: Sequence[Trained] = ()) -> Jury:
    """The model at `model`, others of the same task, and views of them, `count` in all; with the calibration that fits them.

    Raises `ValueError` in words for another model of another task, for fewer members than models, and for a calibration that
    can't be read.
    """
    members, models = _members(trained, also, count), _known_as(trained, *also)
    calibration = None
    if len(members) == 1:
        told = "One member alone can't disagree: how sure the model is can't be told."
    else:
        calibration, why = _kept(site, models, len(members), model)
        told = f"{why}: agreement of {len(members)} members ranks patients, and is no Dice."
    if calibration is not None:
        told = f"Expected Dice as learned from {calibration.patients} patients ({calibration.of}), by {len(members)} members; "
        told += f"off by {calibration.miss:.3f} on average."
    return Jury(members, trained.task.settings, calibration, told, models)


def other_models(paths: Sequence[Path], study: str | None, site: Site) -> list[Trained]:
    """Further models that are asked beside the first. Raises what `load_trained` raises."""
    return [load_trained(path, study if not _has_study(path) else None, site) for path in paths]


def calibrate(
    site: Site,
    model: Path,
    *,
    study: str | None = None,
    also: Sequence[Path] = (),
    count: int,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Calibration:
    """Learn from this hospital's patients who are held back from every training, and keep it here for this model.

    Raises `ValueError` and `OSError` in words, having kept nothing, if too few of them have a reader's mask, and if one of them
    withdraws meanwhile.
    """
    trained = load_trained(model, study, site)
    others = other_models(also, study, site)
    members, settings = _members(trained, others, count), trained.task.settings
    cohort = Cohort(site.cohort_folder)
    held_back = cohort.split("test", test_fraction=site.test_fraction)
    if not held_back:
        raise ValueError(
            f"{site.name} holds nobody back from training (test_fraction {site.test_fraction:g}, {len(cohort)} patients): on "
            "those whom a model has seen it looks surer than it is"
        )
    judged, reasons = _judged(cohort, held_back, members, settings, progress)
    try:
        found = learn(
            judged,
            models=_known_as(trained, *others),
            members=len(members),
            of=f"held back at {site.name}",
        )
    except ValueError as error:
        why = f"; {reasons[0]}" if reasons else ""
        raise ValueError(f"{site.name}, {len(held_back)} patients held back from training: {error}{why}") from None
    own = Own(patients=tuple(dict.fromkeys(one.patient for one in judged)), calibration=found)
    _keep(site, own)
    if away := cohort.withdrawn.intersection(own.patients):  # asked last: whoever withdraws from here on finds the file
        for patient in away:
            forget(site, patient)
        raise ValueError(f"{site.name}: one of these patients withdrew meanwhile, so nothing was kept; calibrate again")
    return found


def forget(site: Site, pseudonym: str) -> int:
    """Take away the calibrations that were learned from this patient; how many there were."""
    gone = 0
    for path in sorted(_folder(site).glob("*")):  # what a kill left half written, too
        try:
            theirs = pseudonym in json.loads(path.read_text())["patients"]
        except (KeyError, OSError, TypeError, ValueError):  # it says nothing, and counts as about everybody
            theirs = True
        if theirs:
            path.unlink()
            gone += 1
    return gone


def lines(found: Calibration) -> list[str]:
    """What was learned, for a person."""
    rank = "can't be told" if found.rank is None else f"{found.rank:.2f}"
    result = [
        f"{found.patients} patients, {found.members} members: expected Dice is off by {found.miss:.3f} on average, rank "
        f"correlation of agreement and Dice {rank} (patients who were not learned from)",
        f"temperature {found.temperature:.2f}: calibration error of the probabilities {found.error_before:.3f} before, "
        f"{found.error_after:.3f} after",
    ]
    for name, curve in found.curves.items():
        ends = [
            f"agreement {end:.2f} means Dice {curve.expected(end):.2f}" for end in (curve.agreement[0], curve.agreement[-1])
        ]
        result.append(f"  {name}: {' and '.join(ends)}; one patient in ten lies more than {curve.below:.2f} below")
    if found.patients < FEW:
        result.append(
            f"  {found.patients} patients are few: one or two of them say how far one in ten lies below, and the curves can "
            f"follow single ones; calibrate again when {FEW} are held back"
        )
    return result


# -- the parts -----------------------------------------------------------------------------------------------------------


def _members(trained: Trained, also: Sequence[Trained], count: int) -> list[nn.Module]:
    for other in also:
        if other.task.settings != trained.task.settings:
            raise ValueError(f"{other.name} has other settings than {trained.name}: members answer the same question")
    return members_of([one.model for one in (trained, *also)], trained.task.settings, count)


def _judged(
    cohort: Cohort,
    patients: Sequence[str],
    members: Sequence[nn.Module],
    settings: Settings,
    progress: Callable[[str, int, int], None],
) -> tuple[list[Judged], list[str]]:
    """What members draw of these patients beside a reader's masks, and why not of some of them."""
    judged, reasons = list[Judged](), list[str]()
    for done, patient in enumerate(patients, 1):
        try:
            for volume in cohort.case(patient).volumes:
                if volume.series in settings.series and volume.mask is not None:
                    judged.append(judge(examine(members, settings, volume), patient, volume, settings))
        except (CaseUnreadable, ValueError) as error:
            reasons.append(f"{patient}: {error}")
        except KeyError:
            reasons.append(f"{patient} withdrew meanwhile")
        progress("examining", done, len(patients))
    return judged, reasons


def _known_as(*several: Trained) -> tuple[str, ...]:
    """Fingerprints; of weights in a number type that has none, of the network that they were loaded into."""
    return tuple(one.fingerprint or fingerprint(one.model.state_dict()) for one in several)


def _has_study(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    return any((folder / name).is_file() for name in ("record.json", "study.json"))


def _kept(site: Site, models: Sequence[str], members: int, model: Path) -> tuple[Calibration | None, str]:
    """The calibration that fits, the hospital's own before the one beside the model; or None and why."""
    own = _place(site, models, members)
    if own.is_file():
        try:
            return Own.model_validate_json(own.read_text()).calibration, ""
        except ValidationError as error:
            said = words(error).splitlines()[0]
            raise ValueError(f"{own} holds no calibration that this konsil can read: {said}; konsil-site calibrate") from None
    beside = (model if model.is_dir() else model.parent) / BESIDE
    if not beside.is_file():
        return None, "No calibration is here (konsil-site calibrate)"
    found = Calibration.load(beside)
    if (found.models, found.members) != (tuple(models), members):
        return None, f"{beside} is of other members than these"
    return found, ""


def _folder(site: Site) -> Path:
    return site.folder / "calibrations"


def _place(site: Site, models: Sequence[str], members: int) -> Path:
    name = models[0] if len(models) == 1 else sha256(" ".join(models).encode()).hexdigest()
    return _folder(site) / f"{name}-{members}.json"


def _keep(site: Site, own: Own) -> None:
    make_folder(_folder(site))
    place = _place(site, own.calibration.models, own.calibration.members)
    part = place.with_suffix(".part")
    part.touch(mode=file_mode(place.parent))
    part.write_text(own.model_dump_json())
    part.replace(place)
