"""Fetching from the archive's DICOMweb door what a person asks for: the third way in, beside C-STORE and the watch folder.

    asked for → studies → series of the wanted kinds → instances that aren't here → incoming/ → as if they had been sent

An archive that takes no notice of a filter answers with everything that it has, so each study is held against what was asked
for. What is here already is not fetched again, so that a pull that was broken off goes on where it was. Nothing that is printed
or logged says who a patient is.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, timedelta

from fl_client.admission import key_of
from fl_client.cohort import Cohort
from fl_client.halt import halted
from fl_client.intake.dicomweb import UID, Instance, Study, Web
from fl_client.intake.incoming import Incoming, clean_folder, only_one
from fl_client.intake.multipart import BadAnswer
from fl_client.intake.part10 import NotPart10, look, split
from fl_client.intake.pseudonyms import Pseudonyms
from fl_client.site import DicomWeb, SavedQuery, Site

NOBODYS = "2.25.81102991626513239327402956011637322102"
"""A UID made from a random UUID, of no study."""


@dataclass(frozen=True)
class Wanted:
    """One thing to ask the archive for. `name` says which it is and not what it holds: `accession 3 of 20`."""

    name: str
    asked: Mapping[str, str] = field(repr=False)  # by DICOM keyword
    fits: Callable[[Study], bool] = field(repr=False)


KINDS: dict[str, tuple[str, Callable[[Study], str]]] = {
    "accession": ("AccessionNumber", lambda study: study.accession),
    "study": ("StudyInstanceUID", lambda study: study.uid),
    "patient": ("PatientID", lambda study: study.patient_id),
}
"""What single studies are asked for by."""


def wanted(kind: str, values: Sequence[str]) -> list[Wanted]:
    """One `Wanted` for each number. Raises `ValueError`, naming the place and not the number, for what is none."""
    keyword, of = KINDS[kind]
    found = []
    for place, value in enumerate(dict.fromkeys(value.strip() for value in values), start=1):
        name = f"{kind} {place} of {len(set(map(str.strip, values)))}"
        if not value or len(value) > 64 or not value.isprintable() or set(value) & set("*?\\"):
            raise ValueError(f"{name}: 1 to 64 characters are right, and none of * ? \\, which stand for many studies")
        if kind == "study" and not UID.fullmatch(value):
            raise ValueError(f"{name}: a Study Instance UID has digits and dots alone")
        found.append(Wanted(name, {keyword: value}, _is(of, value)))
    return found


def _is(of: Callable[[Study], str], value: str) -> Callable[[Study], bool]:
    return lambda study: of(study) == value


def saved(name: str, query: SavedQuery, today: date) -> Wanted:
    """A query of the settings, on this day."""
    first = f"{today - timedelta(days=query.days):%Y%m%d}"
    asked = {"StudyDate": f"{first}-{today:%Y%m%d}"}
    asked |= {"ModalitiesInStudy": query.modality} if query.modality else {}
    asked |= {"StudyDescription": query.description} if query.description else {}

    def fits(study: Study) -> bool:
        of_kind = not query.modality or not study.modalities or query.modality in study.modalities
        return first <= study.date <= f"{today:%Y%m%d}" and of_kind

    return Wanted(f"query {name}", asked, fits)


@dataclass
class Pulled:
    """What became of it: numbers, and sentences about what did not go well, by name of what was asked for."""

    studies: int = 0
    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # stored, again, conflict, here, to fetch, failed, withdrawn
    kinds: Counter[str] = field(default_factory=Counter)  # modalities of series that are left in the archive
    reasons: Counter[str] = field(default_factory=Counter)  # why instances could not be fetched
    troubles: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether everything that was asked for is here."""
        return not self.troubles and not self.counts["failed"]


def pull(site: Site, settings: DicomWeb, things: Sequence[Wanted], done: Pulled, *, dry: bool = False) -> None:
    """Fetch what isn't here (`dry`: count it), and note in `done` what became of it, as far as it came.

    It can be repeated, and runs beside the intake, which works off what comes. Raises `NoAnswer` if the archive can't be
    reached, `NoRoom` below the watermark, `InUse` beside another pull, `ValueError` for more studies than
    `dicomweb.most_studies`, for a user to whom the identity zone doesn't belong and once the hospital is stopped, and
    `OSError`. What was fetched until then is here.
    """
    _require_own(site)
    _require_running(site)
    incoming = Incoming(site.identity_folder, clean=clean_folder(site), min_free_bytes=int(site.arrivals.min_free_gib * 2**30))
    with only_one(incoming.folder / ".pull.lock", "another pull runs for this site already"), Web(settings) as web:
        studies = _staying(site, _studies(web, things, done, most=settings.most_studies), done)
        if len(studies) > settings.most_studies:
            raise ValueError(
                f"{len(studies)} studies fit, more than dicomweb.most_studies {settings.most_studies}; ask for fewer at a time"
            )
        done.studies = len(studies)
        for number, study in enumerate(studies, start=1):
            try:
                missing = list(_missing(web, study, settings, incoming, done))
            except BadAnswer as reason:
                done.troubles.append(f"study {number} of {len(studies)}: {reason}")
                continue
            if dry:
                done.counts["to fetch"] += len(missing)
            else:
                _fetch(web, missing, incoming, done, site=site, at_once=settings.connections)


def knock(settings: DicomWeb) -> None:
    """Ask the archive for a study that nobody has. Raises `NoAnswer`, `BadAnswer`, and what `Web` raises for wrong files."""
    with Web(settings) as web:
        if web.studies({KINDS["study"][0]: NOBODYS}, most=settings.most_studies):
            raise BadAnswer(f"{settings.url} takes no notice of what it is asked for: it gives studies that nobody asked for")


def _studies(web: Web, things: Sequence[Wanted], done: Pulled, *, most: int) -> list[Study]:
    """Every study that was asked for, once."""
    found: dict[str, Study] = {}
    for thing in things:
        try:
            listed = web.studies(thing.asked, most=most)
        except BadAnswer as reason:
            done.troubles.append(f"{thing.name}: {reason}")
            continue
        fitting = [study for study in listed if thing.fits(study)]
        if len(fitting) < len(listed):
            more = len(listed) - len(fitting)
            done.troubles.append(f"{thing.name}: the archive gave {more} studies that were not asked for; they are not fetched")
        elif not listed and len(thing.asked) == 1:
            done.troubles.append(f"{thing.name}: the archive has no such study")
        found |= {study.uid: study for study in fitting}
    return list(found.values())


def _staying(site: Site, studies: list[Study], done: Pulled) -> list[Study]:
    """Without those of patients who have withdrawn: nobody lets them in, so nobody fetches them."""
    away = Cohort(site.cohort_folder).withdrawn
    if not away:
        return studies
    names = Pseudonyms(key_of(site))
    staying = [study for study in studies if names.pseudonym(study.patient_id) not in away]
    done.counts["withdrawn"] = len(studies) - len(staying)
    return staying


def _missing(web: Web, study: Study, settings: DicomWeb, incoming: Incoming, done: Pulled) -> Iterator[Instance]:
    """Instances of the wanted kinds that aren't here. Raises `BadAnswer`."""
    for series, modality in web.series(study.uid):
        if modality not in settings.modalities:
            done.kinds[modality or "none"] += 1
            continue
        for one in web.instances(study.uid, series):
            done.images += 1
            if incoming.has(study=one.study, instance=one.uid):
                done.counts["here"] += 1
            else:
                yield one


def _require_own(site: Site) -> None:
    """What another user put there, the intake could not read."""
    place = site.identity_folder
    if place.exists() and place.stat().st_uid != os.geteuid():
        raise ValueError(f"{place} belongs to another user (uid {place.stat().st_uid}), the intake's: run this as that user")


def _require_running(site: Site) -> None:
    if halted(site.folder) == "stopped":
        raise ValueError(f"{site.name} is stopped; konsil-site resume takes the switch away")


def _fetch(web: Web, missing: Sequence[Instance], incoming: Incoming, done: Pulled, *, site: Site, at_once: int) -> None:
    """Fetch these, some at a time. What no other would fare better with ends it: no line, no room."""
    stop, lock = threading.Event(), threading.Lock()

    def one(instance: Instance) -> None:
        if stop.is_set():
            return
        what, why = "failed", ""
        try:
            _require_running(site)  # stop-now ends a pull, too
            what = keep(web, instance, incoming)
        except (BadAnswer, NotPart10) as reason:  # this instance's own trouble
            why = str(reason)
        except BaseException:
            stop.set()
            raise
        with lock:
            done.counts[what] += 1
            done.reasons[why] += bool(why)

    with ThreadPoolExecutor(at_once) as threads, contextlib.ExitStack() as ending:
        ending.callback(stop.set)  # whatever ends it, Ctrl-C too, nobody begins another
        for _ in threads.map(one, missing):
            pass


def keep(web: Web, one: Instance, incoming: Incoming) -> str:
    """Fetch one instance and put it on the disk as it is; what `Incoming.keep` says.

    Raises `BadAnswer` and `NotPart10` for what is not this instance, `NoAnswer`, `NoRoom` and `OSError`.
    """
    incoming.require_room()
    data = web.file(one)
    start, syntax = split(data)
    seen = look(data[start:], syntax)
    if (seen.study, seen.instance) != (one.study.encode(), one.uid.encode()):
        raise BadAnswer("it is another instance than the one that was asked for")
    return incoming.keep(data[:start], data[start:], transfer_syntax=syntax, instance=one.uid)
