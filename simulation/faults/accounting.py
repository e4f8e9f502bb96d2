"""Nothing may be lost without a word: every planned hospital in every round, and every case of every hospital."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from conf.study import Study
from fl_client.patients import chosen
from fl_client.site import Site
from fl_server.record import Record
from tasks.task import load_for


@dataclass(frozen=True)
class Account:
    """Planned hospitals in planned rounds."""

    planned: int
    accounted: int
    silent: tuple[str, ...]  # what nobody can tell from the record, in words


def account(record: Record) -> Account:
    """Look for the entry of every planned hospital in every round that was run; all but a `used` one need a reason.

    Rounds that were not run are told as a whole: the record says why the study has ended before them.
    """
    planned, silent = 0, []
    for number in range(1, int(record.study["rounds"]) + 1):
        entry = next((one for one in record.rounds if one.round == number), None)
        for site in record.study["sites"]:
            planned += 1
            found = None if entry is None else entry.sites.get(site)
            if entry is None and not record.stopped_early:
                silent.append(f"round {number}: {site}: the round is not in the record")
            elif entry is not None and found is None:
                silent.append(f"round {number}: {site}: no entry")
            elif found is not None and found.answer != "used" and not found.reason:
                silent.append(f"round {number}: {site}: {found.answer}, without a reason")
    return Account(planned, planned - len(silent), tuple(silent))


@dataclass(frozen=True)
class Cases:
    """The cases that have come to a hospital."""

    came: int
    used: int
    refused: int  # at the door, or by the study for a reason in the hospital's own log
    withdrawn: int

    @property
    def silent(self) -> int:
        """Cases of which nobody can tell what became of them."""
        return self.came - self.used - self.refused - self.withdrawn


def cases(site: Site, study: Study, came: Collection[str]) -> Cases:
    """What became of the cases `came` (pseudonyms), as the hospital's own folder has it now."""
    task = load_for(study, models=site.models_folder)
    cohort, usable, left_out = chosen(site, study, task, "train")
    tested = cohort.split("test", test_fraction=site.test_fraction)
    told = _log(site)
    refused = {entry["what"] for entry in cohort.refused} | {patient for patient, reason in left_out.items() if reason}
    refused |= {entry["patient"] for entry in told if entry.get("left_out")}
    used = (set(usable) | set(tested)) & set(came)
    withdrawn = cohort.withdrawn & set(came)
    return Cases(len(came), len(used - withdrawn), len((refused & set(came)) - used - withdrawn), len(withdrawn))


def _log(site: Site) -> list[dict[str, str]]:
    path = site.folder / "log" / "training.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
