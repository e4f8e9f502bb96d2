"""Images from the archive's DICOMweb door: `konsil-site pull`."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from fl_client.commands import Commands, confided
from fl_client.site import DicomWeb, SavedQuery, Site

if TYPE_CHECKING:
    from fl_client.intake.pull import Pulled

PARTLY = 3
"""Exit status when something could not be fetched; the rest is here, and the next pull goes on."""

LONGEST_LIST = 10_000
"""Numbers in one list."""


def add(commands: Commands) -> None:
    """The command and its options."""
    door = commands.add_parser("pull", help="fetch studies from the archive over DICOMweb; the intake lets their patients in")
    door.add_argument("what", choices=("accession", "study", "patient", "query"), help="what the studies are named by")
    door.add_argument("values", nargs="*", metavar="VALUE", help="numbers, UIDs, names of queries; none, or -: asks for one")
    door.add_argument("--list", type=Path, metavar="FILE", help="a file with one of them a line (-: standard input)")
    door.add_argument("--dry-run", action="store_true", help="say how much there is, and fetch nothing")
    door.add_argument("--who", help="who asks, for the audit log (default: the user's name)")
    door.set_defaults(run=_pull)


def _pull(site: Site, options: argparse.Namespace) -> int:
    from fl_client.audit import AuditLog
    from fl_client.daemon import running
    from fl_client.intake.incoming import InUse
    from fl_client.intake.pull import Pulled, pull, saved, wanted  # here: pydicom takes a moment to import

    settings = site.dicomweb
    if settings is None:
        raise ValueError(f"{options.site} names no dicomweb: add its url, as docs/intake.md says")
    if options.what == "query":
        things = [saved(name, _query(settings, name), date.today()) for name in _values(options, "the saved query's name")]
    else:
        things = wanted(options.what, _values(options, f"the {options.what} to fetch"))
    done = Pulled()
    try:
        pull(site, settings, things, done, dry=options.dry_run)
    except InUse as other:
        raise ValueError(str(other)) from None
    finally:  # what was fetched before the archive went away is here
        _tell(done, settings, dry=options.dry_run)
        if fetched := _fetched(done):
            AuditLog(site.folder / "audit.jsonl").append(
                "pulled", by=options.what, studies=done.studies, images=fetched, failed=done.counts["failed"], who=options.who
            )
    if fetched and "intake" not in running(site):
        print("the intake isn't running; konsil-site intake --once lets their patients in")
    return 0 if done.is_whole else PARTLY


def _fetched(done: Pulled) -> int:
    return done.counts["stored"] + done.counts["conflict"]


def _tell(done: Pulled, settings: DicomWeb, *, dry: bool) -> None:
    for trouble in done.troubles:
        print(trouble)
    counts, kinds = done.counts, ", ".join(settings.modalities)
    left = ", ".join(f"{number} {kind}" for kind, number in sorted(done.kinds.items()))
    print(f"{done.studies} studies with {done.images} images ({kinds})")
    if left:
        print(f"series of other kinds are left in the archive: {left}")
    if counts["withdrawn"]:
        print(f"{counts['withdrawn']} studies of patients who have withdrawn are not fetched")
    here = counts["here"] + counts["again"]
    if dry:
        print(f"{counts['to fetch']} images to fetch, {here} are here already; nothing was fetched")
        return
    print(f"{_fetched(done)} images fetched, {here} were here already, {counts['failed']} could not be fetched")
    for reason, number in done.reasons.most_common():
        if number:
            print(f"  {number}: {reason}")


def _values(options: argparse.Namespace, question: str) -> list[str]:
    """Numbers from a file, from the command line, or, so that they stand in no list of processes, from the terminal."""
    if options.list is None:
        return [confided(value, question) for value in options.values or [""]]
    if options.values:
        raise ValueError("name studies in a file or on the command line, not both")
    try:
        text = sys.stdin.read() if str(options.list) == "-" else options.list.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{options.list} is not UTF-8 text; one number a line is right") from None
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not 0 < len(lines) <= LONGEST_LIST:
        raise ValueError(f"{options.list} names {len(lines)} studies; 1 to {LONGEST_LIST} are right, one a line")
    return lines


def _query(settings: DicomWeb, name: str) -> SavedQuery:
    if name not in settings.queries:
        known = ", ".join(sorted(settings.queries)) or "none"
        raise ValueError(f"no saved query '{name}'; dicomweb.queries holds {known}")
    return settings.queries[name]
