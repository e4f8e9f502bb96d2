"""Patients of whom something new has been de-identified: each is let in, or let in anew, from all that the clean store has.

    <identity>/pending/<pseudonym>      a patient to let in; the file says how often it failed

A patient who can't be let in is tried again for ever, since nothing of him is lost or grows meanwhile, but ever more seldom.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.incoming import PENDING, Incoming, clean_folder, mark_pending
from fl_client.intake.labels import LabelMap
from fl_client.intake.series import SeriesRules
from fl_client.intake.waiting import times_of
from fl_client.intake.way_back import WayBack
from fl_client.site import Site

RETRY_S, LONGEST_RETRY_S = 300.0, 86400.0  # until a patient is tried again; each failure doubles it

log = logging.getLogger("konsil.intake")


class LettingIn:
    """The patients of one hospital who are to be let in."""

    def __init__(
        self, site: Site, incoming: Incoming, way_back: WayBack, cohort: Cohort, *, labels: LabelMap, rules: SeriesRules
    ) -> None:
        self._identity, self._clean, self._quarantine = site.identity_folder, clean_folder(site), incoming.quarantine
        self._way_back, self._cohort, self._labels, self._rules = way_back, cohort, labels, rules
        self._not_before: dict[str, float] = {}  # patients who could not be written; as `time.monotonic`
        self._pending.mkdir(mode=0o700, exist_ok=True)

    @property
    def _pending(self) -> Path:
        return self._identity / PENDING

    def mark(self, pseudonym: str) -> None:
        """The patient is to be let in, and at once: what came now may be what was missing. Raises `OSError`."""
        mark_pending(self._identity, pseudonym)
        self._not_before.pop(pseudonym, None)

    def work(self, counts: Counter[str], *, all_quiet: bool, stopped: Callable[[], bool]) -> None:
        """Let in who is marked, or (without `all_quiet`) whose time has come; adds to the counts. Raises `OSError`."""
        for mark in sorted(self._pending.iterdir()):
            if stopped():
                return
            if all_quiet or time.monotonic() >= self._not_before.get(mark.name, 0.0):
                self._admit(mark, counts)

    def _admit(self, mark: Path, counts: Counter[str]) -> None:
        """Make the patient's case from all that the clean store has of him."""
        try:
            if mark.name in self._cohort.withdrawn:  # while his files were being read
                shutil.rmtree(self._clean / mark.name, ignore_errors=True)
                self._way_back.forget(mark.name)
            elif (self._clean / mark.name).is_dir():
                found = admit_folder(
                    self._clean / mark.name,
                    self._cohort,
                    key=None,
                    labels=self._labels,
                    series=self._rules,
                    short=self._short(mark.name),
                    moments=self._way_back.moments(mark.name),
                )
                counts["admitted"] += len(found.admitted)
                counts["refused"] += len(found.refused)
            mark.unlink(missing_ok=True)
        except Exception as error:  # one patient's failure never stops the others
            log.error("a patient could not be let in (%s) and is tried again", type(error).__name__)
            times = times_of(mark)
            self._not_before[mark.name] = time.monotonic() + min(RETRY_S * 2 ** min(times, 20), LONGEST_RETRY_S)
            with contextlib.suppress(OSError):
                mark.write_text(str(times + 1))
            counts["failed"] += 1

    def _short(self, pseudonym: str) -> set[str]:
        """The patient's series of which an image lies in the quarantine and not in the clean store."""
        aside, folder = self._quarantine.images(pseudonym), self._clean / pseudonym
        return {series for series, instance in aside if not any(folder.glob(f"*/{series}/{instance}.dcm"))}
