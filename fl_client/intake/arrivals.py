"""What becomes of originals: a study that has gone quiet is de-identified file by file, and its patients are let in.

    incoming/<study>/ → quiet → clean/<pseudonym>/… or quarantine/ → admit → the original goes when its time is over

The state is in the files themselves: an original without a line in `done.jsonl` is still to do, a patient with a mark in
`pending/` still to be let in. Every step can be repeated, so that a kill at any instant loses nothing and doubles nothing.
What is told are counts; reasons stand in the quarantine's list and in the cohort's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fl_client.admission import key_of, label_map, series_rules
from fl_client.cohort import Cohort
from fl_client.intake.attempts import MOST_TRIES, Attempts, can_write
from fl_client.intake.clean import Cleaned, Quarantined, deidentify_file, sweep, unread
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.forget import owner
from fl_client.intake.incoming import (
    PARTS,
    Incoming,
    clean_folder,
    done,
    is_whole,
    mark_done,
    only_one,
    originals,
    sync_done,
)
from fl_client.intake.letting_in import LettingIn
from fl_client.intake.part10 import NotPart10, mapped, split
from fl_client.intake.quarantine import sync_folder
from fl_client.intake.way_back import WayBack
from fl_client.site import Site

RETRY_S = 300.0  # until a file that could not be written is tried again
TICK_NS = 50_000_000  # two changes of a folder within the kernel's tick can have one time
DAMAGED = "its bytes are not those that arrived: cut short by a power failure, or damaged on the disk; send it again"
DEADLY = "the process ended twice while this file was read"

log = logging.getLogger("konsil.intake")


@dataclass(frozen=True)
class Rest:
    """A study with nothing to do, as long as its folder does not change."""

    changed_ns: int  # the folder's last change
    removal: float  # when the next original is to go, seconds since 1970
    again: float  # when what failed is tried again, as `time.monotonic`: no clock that is set back keeps it waiting


class Arrivals:
    """Works off what has arrived at one hospital. One process does it."""

    def __init__(self, site: Site, *, clock: Callable[[], float] = time.time) -> None:
        """Raises what `key_of` raises, and `ValueError` in words for series rules or a label map that are wrong."""
        settings = site.arrivals
        self._quiet_s, self._keep_s = settings.quiet_s, settings.keep_originals_days * 86400
        self._accept_faces, self._clock = settings.accept_faces, clock
        labels, rules = label_map(settings.labels or "cardiac"), series_rules(settings.series_rules)
        words = rules.words | labels.words
        self._deidentify = Deidentifier(key_of(site), words=words, retain=settings.retain)
        self.clean = clean_folder(site)
        self.incoming = Incoming(site.identity_folder, clean=self.clean)
        self.clean.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._way_back = WayBack(site.identity_folder / "map.sqlite")
        self._cohort = Cohort(site.cohort_folder)
        self._patients = LettingIn(site, self.incoming, self._way_back, self._cohort, labels=labels, rules=rules)
        self._attempts = Attempts(self.incoming.folder, self._probe)
        self._at_work = self.incoming.at_work
        self._idle: dict[Path, Rest] = {}
        self._seen: dict[Path, tuple[int, float]] = {}  # number of originals, and since when there are so many

    def work(self, *, all_quiet: bool = False, stopped: Callable[[], bool] = lambda: False) -> Counter[str]:
        """Work off what is quiet (`all_quiet`: what lies there) and give counts. Raises `OSError` if nothing can be read."""
        counts: Counter[str] = Counter()
        for study in self.incoming.studies():
            if stopped():
                return counts
            try:
                if all_quiet or not self._rests(study):
                    self._study(study, counts, all_quiet=all_quiet, stopped=stopped)
            except Exception as error:  # one study's failure never stops the others
                log.error("a study could not be worked off (%s) and is tried again", type(error).__name__)
                counts["failed"] += 1
                with contextlib.suppress(OSError):
                    self._idle[study] = Rest(_changed(study), math.inf, time.monotonic() + RETRY_S)
        self._patients.work(counts, all_quiet=all_quiet, stopped=stopped)
        return counts

    def _study(self, study: Path, counts: Counter[str], *, all_quiet: bool, stopped: Callable[[], bool]) -> None:
        """Work off one study if it is quiet, and remember until when it rests."""
        if not all_quiet and 0 <= self._clock() - _changed(study) / 1e9 < self._quiet_s:
            return  # something came just now: not even listed, since a study can have very many files
        todo = self._to_do(study)
        if todo and not all_quiet and not self._is_quiet(study, todo):
            return
        failed = set[Path]()
        for original in todo:
            if stopped():
                return
            became = self._one(study, original)
            counts[became] += 1
            if became == "failed":
                failed.add(original)
        if todo:
            counts["studies"] += 1
            sync_done(study)  # before the originals go, so that the same bytes are known when they come again
        self._remove_old(study)
        changed = _changed(study)  # before the look at what is left: what comes after the look changes the folder again
        if set(self._to_do(study)) <= failed and abs(time.time_ns() - changed) > TICK_NS:
            again = time.monotonic() + RETRY_S if failed else math.inf
            self._idle[study] = Rest(changed, self._next_removal(study), again)

    def _rests(self, study: Path) -> bool:
        """Whether nothing has come since the last look, nothing is to go yet, and nothing is to be tried again."""
        rest = self._idle.get(study)
        if rest is None or rest.changed_ns != _changed(study):
            return False
        return self._clock() < rest.removal and time.monotonic() < rest.again

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of this work and sweep up what killed processes left. Raises `InUse`."""
        with only_one(self.incoming.folder / ".arrivals.lock", "originals are worked off by another process already"):
            sweep(self.clean)
            yield

    def _to_do(self, study: Path) -> list[Path]:
        """Originals whose de-identified copy isn't there. One that was quarantined and came again counts, too."""
        became = done(study)
        todo = [
            path
            for path in originals(study)
            if not (line := became.get(path.name)) or not line["clean"] or not (self.clean / line["clean"]).exists()
        ]
        if len({path.name.partition("-")[0] for path in todo}) < len(todo):  # of two with one UID the first that came counts
            todo.sort(key=_arrived)
        return todo

    def _is_quiet(self, study: Path, todo: list[Path]) -> bool:
        """Nothing of the study has come for `quiet_s`, by the files' times or, if those are ahead, by watching it."""
        newest = 0.0
        for path in todo:
            with contextlib.suppress(FileNotFoundError):  # its patient withdrew just now
                newest = max(newest, path.stat().st_mtime)
        if self._clock() - newest >= self._quiet_s:
            return True
        number, since = self._seen.get(study, (0, 0.0))
        if number != len(todo):
            self._seen[study] = (len(todo), time.monotonic())
            return False
        return time.monotonic() - since >= self._quiet_s

    def _one(self, study: Path, original: Path) -> str:
        """One original to the clean store or the quarantine, and the line that says so; gives which."""
        try:
            if self._died_of(original):
                return self._apart(study, original, Quarantined(DEADLY))
            if not self._whole(original):
                self._apart(study, original, Quarantined(DAMAGED), name=f"{uuid4().hex}.dcm")
                return "quarantined"
            if self._has_withdrawn(original):
                original.unlink()
                self._attempts.forget(original.name)
                return "withdrawn"
            became = deidentify_file(
                original,
                self.clean,
                deidentify=self._deidentify,
                way_back=self._way_back,
                accept_faces=self._accept_faces,
            )
            if isinstance(became, Quarantined):
                return self._apart(study, original, became)
            self._note_pending(became)
            mark_done(study, original.name, clean=became.path.relative_to(self.clean).as_posix(), when=self._clock())
            self._attempts.forget(original.name)
            return "cleaned"
        except FileNotFoundError:  # its patient withdrew just now
            return "withdrawn"
        except OSError as error:
            return self._failed(study, original, error)
        except Exception as error:  # the reader's own fault is one file's reason, never a traceback
            log.error("an original could not be read (%s)", type(error).__name__)
            return self._apart(study, original, Quarantined(f"it can't be read ({type(error).__name__})"))
        finally:
            self._at_work.unlink(missing_ok=True)

    def _failed(self, study: Path, original: Path, error: OSError) -> str:
        """It stays and is tried again; after `MOST_TRIES` by its own fault it is put aside, so that a person looks at it."""
        if self._attempts.failed(original.name, error) < MOST_TRIES:
            log.error("an original could not be worked off (%s); it stays and is tried again", type(error).__name__)
            return "failed"
        why = f"it could not be worked off in {MOST_TRIES} attempts ({type(error).__name__}), while the disk could be written"
        try:
            return self._apart(study, original, unread(original, self._deidentify, why))
        except OSError:  # not even that
            return "failed"

    def _probe(self) -> None:
        """Whether an original's way could be written. Raises `OSError`."""
        can_write(self.clean, self.clean / f".{uuid4().hex}.part")
        can_write(self.incoming.folder, self.incoming.folder / PARTS / uuid4().hex)
        self._way_back.probe()

    def _apart(self, study: Path, original: Path, reason: Quarantined, name: str = "") -> str:
        """The original goes to the quarantine; the reason is written first, the line last."""
        quarantine = self.incoming.quarantine
        quarantine.note(
            name or original.name,
            reason.reason,
            pseudonym=reason.pseudonym,
            series=reason.series,
            instance=reason.instance,
        )
        original.rename(quarantine.folder / (name or original.name))
        sync_folder(quarantine.folder)
        self._attempts.forget(original.name)
        if not name:
            mark_done(study, original.name, clean="", when=self._clock())
        return "quarantined"

    def _died_of(self, original: Path) -> bool:
        """Whether two processes have ended while they read this file; notes that this one begins to."""
        times = 0
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            before = json.loads(self._at_work.read_text())
            times = int(before["times"]) if before["file"] == original.name else 0
        if times >= 2:
            return True
        self._at_work.write_text(json.dumps({"file": original.name, "times": times + 1}))
        return False

    def _whole(self, original: Path) -> bool:
        try:
            with mapped(original) as data:
                start, syntax = split(data)
                return is_whole(original, data[start:], syntax)
        except NotPart10:
            return False

    def _has_withdrawn(self, original: Path) -> bool:
        away = self._cohort.withdrawn
        return bool(away) and owner(original, self._deidentify) in away

    def _note_pending(self, became: Cleaned) -> None:
        self._patients.mark(became.pseudonym)

    def _remove_old(self, study: Path) -> None:
        """Originals whose copy is in the clean store go when their time is over."""
        for path, since in self._copied(study):
            if self._clock() - since >= self._keep_s:
                path.unlink(missing_ok=True)

    def _next_removal(self, study: Path) -> float:
        """When the next original of the study is to go."""
        return min((since + self._keep_s for _, since in self._copied(study)), default=math.inf)

    def _copied(self, study: Path) -> list[tuple[Path, float]]:
        """Originals whose copy is in the clean store, and since when."""
        became = done(study)
        lines = [(path, became[path.name]) for path in originals(study) if path.name in became]
        return [(path, float(line["when"])) for path, line in lines if line["clean"] and (self.clean / line["clean"]).exists()]


def _arrived(original: Path) -> tuple[int, str]:
    try:
        return original.stat().st_mtime_ns, original.name
    except FileNotFoundError:  # its patient withdrew just now
        return 0, original.name


def _changed(study: Path) -> int:
    return study.stat().st_mtime_ns


def work_until(site: Site, stopped: Callable[[], bool]) -> None:
    """Work off what arrives until `stopped`. Raises `InUse`, and what `Arrivals` raises."""
    arrivals = Arrivals(site)
    pause = min(2.0, max(0.1, site.arrivals.quiet_s / 4))
    with arrivals.alone():
        while not stopped():
            try:
                tell(arrivals.work(stopped=stopped))
            except OSError as error:  # a disk that is full or away may come back
                log.error("originals could not be worked off (%s)", type(error).__name__)
                time.sleep(pause)
            time.sleep(pause)


def tell(counts: Counter[str]) -> None:
    """One line for the site's log, in numbers."""
    if counts:
        names = ("studies", "cleaned", "quarantined", "withdrawn", "admitted", "refused", "failed")
        log.info("worked off: %s", ", ".join(f"{counts[name]} {name}" for name in names if counts[name]))
