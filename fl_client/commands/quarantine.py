"""What may not pass, and what becomes of it: `konsil-site quarantine [list | release | drop]`.

Released originals are judged anew by the settings of today; dropped ones are deleted. Whoever decided stands in the audit log.
"""

from __future__ import annotations

import argparse
import re

from fl_client.commands import Commands
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its options."""
    aside = commands.add_parser("quarantine", help="originals that may not pass, with the reasons; let them be judged again")
    aside.add_argument("what", nargs="?", choices=("list", "release", "drop"), default="list")
    aside.add_argument("files", nargs="*", metavar="FILE", help="as the list shows it, or the first letters of it")
    aside.add_argument("--reason", default="", metavar="WORDS", help="all whose reason holds these words")
    aside.add_argument("--who", help="who decides, for the audit log (default: the user's name)")
    aside.set_defaults(run=_quarantine)


def _quarantine(site: Site, options: argparse.Namespace) -> int:
    from fl_client.audit import AuditLog
    from fl_client.intake.incoming import Incoming, clean_folder, mark_pending  # here: pydicom takes a moment to import

    incoming = Incoming(site.identity_folder, clean=clean_folder(site))
    lines = incoming.quarantine.lines()
    chosen = [
        line
        for line in lines
        if options.reason.lower() in str(line.get("reason", "")).lower()
        and (not options.files or any(line["file"].startswith(name) for name in options.files))
    ]
    if options.what == "list":
        for line in chosen:
            patient, when = line.get("pseudonym") or "of nobody known", line.get("when", "")
            print(f"{_short(line['file'])}  {when}  {patient}  {line.get('reason', '')}")
        print(f"{len({line['file'] for line in chosen})} files in {incoming.quarantine.folder}")
        return 0
    if not options.files and not options.reason:
        raise ValueError(f"konsil-site quarantine {options.what}: name files, or --reason WORDS for all with such a reason")
    done, failed = 0, 0
    for file in sorted({str(line["file"]) for line in chosen}):
        try:
            incoming.again(file) if options.what == "release" else incoming.quarantine.drop(file)
            done += 1
            for line in chosen:  # a stack that was short of this image may do without it now
                if line["file"] == file and re.fullmatch(r"P[0-9A-F]{16}", str(line.get("pseudonym", ""))):
                    mark_pending(site.identity_folder, line["pseudonym"])
        except ValueError as reason:
            print(reason)
            failed += 1
    if done:
        AuditLog(site.folder / "audit.jsonl").append("quarantine", decision=options.what, files=done, who=options.who)
    word = "released: the intake judges them again, by the settings of today" if options.what == "release" else "dropped"
    print(f"{done} files {word}; {failed} not")
    return 0 if done and not failed else 1


def _short(file: str) -> str:
    """So many letters that no two files share them."""
    return file if re.fullmatch(r"W[0-9A-F]{16}", file) else file[:48]
