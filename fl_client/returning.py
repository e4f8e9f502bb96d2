"""Masks and a short report back to the hospital's archive, for research use only: called by `konsil-site return`.

    clean store → segment → the patient's own names again → wait in the identity zone → archive → sent list, audit log

Nothing of this leaves the hospital, and the ledger does not count it. It needs the way back to patients, which only the
intake's user can read. An examination is made whole before anything of it is sent, and counts as sent when the archive has
said so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

from fl_client.admission import label_map, series_rules
from fl_client.audit import AuditLog
from fl_client.cohort import Cohort
from fl_client.halt import halted
from fl_client.intake.incoming import clean_folder, only_one
from fl_client.intake.labels import LabelMap
from fl_client.intake.original import NoWayBack, under_original_names
from fl_client.intake.report_page import Drawn, Report, draw
from fl_client.intake.research import Author, Names, Originals, research_heat_map, research_pdf, research_seg
from fl_client.intake.returned import Returned
from fl_client.intake.send import NoLine, destination, knock, send
from fl_client.intake.series import SeriesRules
from fl_client.intake.visitors import Visitor, visitors
from fl_client.intake.volume import GeometryRefused
from fl_client.intake.way_back import WayBack
from fl_client.intake.write_back import NOTE
from fl_client.reference_values import kept, placed
from fl_client.segmenting import SOME_REFUSED, progress_bars, require_meanings
from fl_client.site import Archive, Site
from fl_client.trained import Trained, load_trained
from fl_client.uncertainty import Jury, convene, other_models
from fl_client.withdrawal import PSEUDONYM, pseudonym_of
from tasks.case import Volume
from tasks.reference_values.place import Place
from tasks.reference_values.values import ReferenceValues
from tasks.uncertainty.examine import Examined
from tasks.uncertainty.views import MEMBERS


@dataclass(frozen=True)
class Exam:
    """One examination of a patient, and the names that its objects have or will have."""

    study: str  # UID in the clean store
    segs: Mapping[str, Names]  # by series
    heat_maps: Mapping[str, Names]  # by series, where they were asked for
    report: Names


@dataclass(frozen=True)
class Desk:
    """All that is the same for every patient of one call."""

    site: Site
    archive: Archive
    trained: Trained
    author: Author
    labels: LabelMap
    rules: SeriesRules
    way_back: WayBack
    values: ReferenceValues | None  # that patients are compared with, if the hospital has any
    jury: Jury
    heat_maps: bool  # whether they go back, too


def give_back(
    site: Site,
    model: Path,
    *,
    who: str,
    study: str | None = None,
    patients: Sequence[str] = (),
    labels: str | None = None,
    rules: Path | None = None,
    dry_run: bool = False,
    pause_s: float = 2.0,
    members: int = MEMBERS,
    also: Sequence[Path] = (),
    heat_maps: bool = False,
) -> int:
    """Segment patients of the clean store and send a DICOM SEG per series and one report per examination to the archive.

    `patients` are pseudonyms or the hospital's numbers; none means all. `members` look at each image and `also` are further
    models among them, as in `segmenting.segment`; `heat_maps` sends where they are unsure as a Parametric Map. `dry_run` makes
    the objects and sends nothing. Returns 0, or 3 if something was refused or not taken. Raises `ValueError` and `OSError` in
    words, before anything is made or sent, for a site without an archive, a user who may not see identities, and a model that
    no record knows.
    """
    if site.archive is None:
        raise ValueError("this site names no archive: results go back only to the peer of a section archive in its settings")
    if halted(site.folder) == "stopped":
        raise ValueError("this hospital is stopped (konsil-site stop-now): nothing is sent until konsil-site resume")
    way_back = _way_back(site)
    trained = load_trained(model, study, site)
    if not trained.is_recorded:
        raise ValueError(
            f"no record tells of the weights in {model}: only the last model of a run, known by the fingerprint in its "
            "record.json, may write into the archive; put the record beside the model, or name it with --study"
        )
    meanings = label_map(labels or site.arrivals.labels or "cardiac")
    require_meanings(trained.task.settings.structures, meanings, labels or site.arrivals.labels or "cardiac")
    author = Author(trained.study_name, trained.study_hash, trained.fingerprint)
    chosen_rules = series_rules(rules or site.arrivals.series_rules)
    jury = convene(site, trained, model, count=members, also=other_models(also, study, site))
    if heat_maps:
        jury.require_maps()
    desk = Desk(site, site.archive, trained, author, meanings, chosen_rules, way_back, kept(site), jury, heat_maps)
    people = _people(site, patients)
    counts: Counter[str] = Counter()
    (site.identity_folder / "returned").mkdir(mode=0o700, exist_ok=True)
    with only_one(site.identity_folder / "returned" / ".lock", "another process sends results back already"):
        try:
            if not dry_run:
                knock(desk.archive)
            with progress_bars() as advance:
                for done, pseudonym in enumerate(people, 1):
                    _patient(desk, pseudonym, counts, dry_run=dry_run, pause_s=pause_s)
                    advance("sending back", done, len(people))
        except NoLine as reason:
            counts["no line"] += 1
            print(reason)
        finally:
            if counts["sent"]:
                AuditLog(site.folder / "audit.jsonl").append(
                    "returned",
                    model=trained.fingerprint,
                    study=trained.study_hash,
                    objects=counts["sent"],
                    destination=desk.archive.peer.ae_title,
                    who=who,
                )
    _tell(desk, counts, dry_run=dry_run)
    return SOME_REFUSED if counts["refused"] or counts["not taken"] or counts["no line"] else 0


# -- the steps, in the order above ---------------------------------------------------------------------------------------


def _way_back(site: Site) -> WayBack:
    path = site.identity_folder / "map.sqlite"
    try:
        if not os.access(site.identity_folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError
        there = path.exists()
    except PermissionError:
        if site.identity_folder.parent.exists() and not _is_missing(site.identity_folder):
            raise PermissionError(
                f"{site.identity_folder} is not for this user: results go back under patients' own names, which only the "
                "intake's user may see"
            ) from None
        there = False
    if not there:
        raise FileNotFoundError(
            f"{path} is missing: only images that came in through this hospital's door (konsil-site intake) have a way back"
        )
    return WayBack(path)


def _is_missing(folder: Path) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except PermissionError:
        pass
    return False


def _people(site: Site, patients: Sequence[str]) -> list[str]:
    """Pseudonyms of the clean store, without those who withdrew. Raises `ValueError` for somebody who isn't there."""
    clean, away = clean_folder(site), Cohort(site.cohort_folder).withdrawn
    there = {path.name for path in clean.iterdir() if PSEUDONYM.fullmatch(path.name)} if clean.exists() else set()
    if not patients:
        if not there - away:
            raise ValueError(f"{clean} holds no patient's images; they come in through the door (konsil-site intake)")
        return sorted(there - away)
    asked = dict.fromkeys(pseudonym_of(site, patient) for patient in patients)
    if gone := [pseudonym for pseudonym in asked if pseudonym in away]:
        raise ValueError(f"{', '.join(gone)} withdrew; nothing is computed of this patient any more")
    if strangers := [pseudonym for pseudonym in asked if pseudonym not in there]:
        raise ValueError(f"no patient {', '.join(strangers)} in {clean}; --patient takes pseudonyms or the hospital's numbers")
    return list(asked)


def _patient(desk: Desk, pseudonym: str, counts: Counter[str], *, dry_run: bool, pause_s: float) -> None:
    """Make what isn't made, send what isn't sent. Raises `NoLine`, `OSError`."""
    say = partial(_say, counts, pseudonym)
    found, reasons = visitors(
        clean_folder(desk.site) / pseudonym, key=None, rules=desk.rules, wanted=desk.trained.task.settings.series
    )
    for reason in reasons.refused.values():
        say("refused", reason)
    returned = Returned(desk.site.identity_folder, pseudonym, destination=destination(desk.archive))
    returned.sweep()
    for visitor in found:
        if visitor.patient != pseudonym:
            say("refused", "files of another patient lie in this folder of the clean store")
            continue
        try:
            exams = _exams(desk, visitor)
        except NoWayBack as reason:
            say("refused", str(reason))
            continue
        for exam in exams:
            report = exam.report.instance
            if returned.is_sent(report):  # it goes last: all of the examination is there
                counts["there"] += 1
                continue
            if not returned.is_waiting(report) and not _make(desk, visitor, exam, returned, counts):
                continue
            if pseudonym in Cohort(desk.site.cohort_folder).withdrawn:  # while the model was at work
                _forget(returned)
                return
            if dry_run:
                names = [*(names.instance for names in (*exam.segs.values(), *exam.heat_maps.values())), report]
                waiting = [name for name in names if returned.is_waiting(name)]
                counts["made"] += len(waiting)
                print(f"  {pseudonym}: {len(waiting)} objects wait in {returned.folder}")
            else:
                _send(desk, exam, returned, counts, pseudonym, pause_s=pause_s)


def _exams(desk: Desk, visitor: Visitor) -> list[Exam]:
    """The visitor's series by examination, with the names of what is made of them. Raises `NoWayBack`."""
    codes = [
        f"{name} {value} {desk.labels.structures[name].code.scheme} {desk.labels.structures[name].code.value}"
        for name, value in desk.trained.task.settings.structures.items()
    ]
    by_study: dict[str, dict[str, Names]] = {}
    heat_maps: dict[str, Names] = {}
    asked = [str(len(desk.jury.members)), *desk.jury.models, *desk.jury.known_by]
    for series, frames in visitor.series.items():
        images = []
        for frame in frames:
            original = desk.way_back.original_uid(str(frame.header.SOPInstanceUID))
            if original is None:
                raise NoWayBack("the way back does not know one of its images")
            images.append(f"{original}#{frame.number}")
        names = Names.of("seg", desk.author, *codes, *images)
        by_study.setdefault(str(frames[0].header.StudyInstanceUID), {})[series] = names
        if desk.heat_maps:
            heat_maps[series] = Names.of("heat map", desk.author, *asked, *images)
    exams = []
    for study, segs in by_study.items():
        heats = {series: heat_maps[series] for series in segs if series in heat_maps}
        made_of = [names.instance for names in (*segs.values(), *heats.values())]
        exams.append(Exam(study, segs, heats, Names.of("pdf", desk.author, study, *made_of, *desk.jury.known_by)))
    return exams


def _make(desk: Desk, visitor: Visitor, exam: Exam, returned: Returned, counts: Counter[str]) -> bool:
    """Segment an examination and let its objects wait, the report last; False if there is nothing to report."""
    drawn: list[Drawn] = []
    originals: list[Originals] = []
    segs: list[Names] = []
    heat_maps: list[Names] = []
    refused: dict[str, str] = {}
    for series, names in exam.segs.items():
        try:
            volume, clean_headers = visitor.read(series)
            if clean_headers is None:
                raise GeometryRefused("its frames lie in several multi-frame images, and no SEG can refer to all of them")
            found = desk.jury.examine(volume)
            mask = found.mask
            source = under_original_names(clean_headers, desk.way_back)
            seg = heat_map = None  # both are made before either waits: what waits is sent
            if mask.any():
                seg = research_seg(mask, source, desk.labels, series=series, author=desk.author, names=names)
            if own := exam.heat_maps.get(series):
                entropy = found.entropy(desk.jury.temperature)
                heat_map = research_heat_map(entropy, source, series=series, author=desk.author, names=own)
            if seg is not None:
                returned.put(names.instance, seg)
                segs.append(names)
            if own and heat_map is not None:
                returned.put(own.instance, heat_map)
                heat_maps.append(own)
        except OSError:
            raise
        except ValueError as reason:  # its geometry, an image without contrast, a header that no DICOM object can refer to
            refused[series] = str(reason)
        except Exception as error:  # highdicom copies headers, and what is odd in them ends here
            refused[series] = f"no DICOM object can refer to these images ({type(error).__name__})"
        else:
            drawn.append(Drawn(series, volume.image, mask, volume.spacing_mm, _sure(desk.jury, found)))
            originals.append(source)
    for series, words in refused.items():
        _say(counts, f"{visitor.patient} {series}", "refused", words)
    if drawn:
        page = draw(_report(desk, visitor.patient, exam, drawn, refused))
        document = research_pdf(page, originals, segs, author=desk.author, names=exam.report, heat_maps=heat_maps)
        returned.put(exam.report.instance, document)
    return bool(drawn)


def _sure(jury: Jury, found: Examined) -> dict[str, str]:
    """How sure the model is, by structure, in figures; nothing of one member."""
    if jury.calibration is None:
        return {name: f"{value:.2f}" for name, value in found.agreement.items()}
    low = jury.calibration.low(found.agreement)
    return {name: f"{value:.2f} (≥ {low[name]:.2f})" for name, value in jury.calibration.expected(found.agreement).items()}


def _report(desk: Desk, patient: str, exam: Exam, drawn: Sequence[Drawn], refused: Mapping[str, str]) -> Report:
    study = desk.way_back.study(exam.study, patient)
    person = desk.way_back.person(study.pseudonym) if study else None
    if study is None or person is None:
        raise NoWayBack("the way back does not know this patient any more")
    fingerprint = desk.author.fingerprint
    lines = [
        ("Patient number", person.patient_id),
        ("Examination of", f"{study.date[:4]}-{study.date[4:6]}-{study.date[6:8]}" if len(study.date) == 8 else "unknown"),
        ("Accession number", study.accession or "none"),
        ("Study of the model", desk.author.study_name),
        ("  its hash", desk.author.study_hash or "not told"),
        ("Model (SHA-256)", fingerprint),
        ("Made on", f"{date.today().isoformat()} at {desk.site.name}"),
        *((f"{series} not drawn", reason[:90]) for series, reason in refused.items()),
    ]
    places = _places(desk, patient, drawn)
    structures = desk.trained.task.settings.structures
    title = "Expected Dice (nine in ten)" if desk.jury.calibration else "Agreement of members"
    return Report("Outlines by a trained model", lines, structures, drawn, desk.values, places, title, desk.jury.told)


def _places(desk: Desk, patient: str, drawn: Sequence[Drawn]) -> list[Place]:
    """Where the patient stands among the hospital's reference values by what the model drew; nowhere if that can't be told.

    Age, sex and body come from the cohort's case, whose images are those that were drawn on.
    """
    structures = desk.trained.task.settings.structures
    if desk.values is None or structures.get("blood_pool") != desk.values.settings.blood_pool:
        return []
    try:
        case = Cohort(desk.site.cohort_folder).case(patient)
        volumes = tuple(
            Volume(one.series, one.image.astype(np.float32), np.diag([*one.spacing_mm, 1.0]), one.mask) for one in drawn
        )
        return placed(replace(case, volumes=volumes), desk.values)
    except (KeyError, ValueError):
        return []


def _send(desk: Desk, exam: Exam, returned: Returned, counts: Counter[str], pseudonym: str, *, pause_s: float) -> None:
    """The masks, and when the archive has them all, the report that names them. Raises `NoLine`."""
    made = (*exam.segs.values(), *exam.heat_maps.values())
    masks = [names.instance for names in made if returned.is_waiting(names.instance)]
    for instances in (masks, [exam.report.instance]):
        for answer in send(desk.archive, [returned.place(instance) for instance in instances], pause_s=pause_s):
            if not answer.is_taken:
                _say(counts, pseudonym, "not taken", f"{answer.path.name}: {destination(desk.archive)}: {answer.words}")
                continue
            returned.mark_sent(answer.path.stem)
            counts["sent"] += 1
        if any(returned.is_waiting(instance) for instance in instances):
            return
    counts["patients"] += 1


def _forget(returned: Returned) -> None:
    """Remove what was made of a patient who withdrew."""
    for path in returned.folder.glob("*.dcm"):
        path.unlink(missing_ok=True)


def _say(counts: Counter[str], whom: str, what: str, reason: str) -> None:
    counts[what] += 1
    print(f"  {whom} {what}: {reason}")


def _tell(desk: Desk, counts: Counter[str], *, dry_run: bool) -> None:
    where = destination(desk.archive)
    if dry_run:
        print(f"{desk.trained.name}: {counts['made']} objects would go to {where}. {NOTE}")
        return
    print(
        f"{desk.trained.name}: {where} took {counts['sent']} objects of {counts['patients']} examinations; {counts['there']} "
        f"were there already, {counts['refused']} refused here, {counts['not taken']} not taken. {NOTE}"
    )
    if counts["not taken"] or counts["no line"]:
        print("  What was not taken counts as not sent. It waits in the identity zone and goes with the same command.")
