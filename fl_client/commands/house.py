"""The house itself: `konsil-site init, status, audit-log, support-bundle, withdraw, pause, resume, stop-now`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fl_client import halt
from fl_client.commands import Commands, confided, whole
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The commands and their options."""
    new = commands.add_parser("init", help="write settings and keys; at a terminal it asks for what no flag says")
    new.add_argument("--name", help="the hospital's name, as studies will call it")
    new.add_argument("--declared-size", type=int, help="a round number near the number of patients; public")
    new.add_argument("--epsilon", type=float, help="the most that patients' data may cost, for ever (default 10)")
    new.add_argument("--delta", type=float, help="well below one over the number of patients (default 0.001)")
    new.add_argument(
        "--peer", metavar="TITLE@ADDRESS", help="the archive that sends images here, by IP address (default: none)"
    )
    new.add_argument("--ae-title", help="how the archive calls us (default KONSIL)")
    new.add_argument("--listen", metavar="ADDRESS:PORT", help="where we listen for it (default 127.0.0.1:11112)")
    new.add_argument("--folder", help="where clean files, cohort and books lie (default: beside the settings)")
    new.add_argument(
        "--identity", metavar="FOLDER", help="where identities and the key for pseudonyms lie (default: there too)"
    )
    new.set_defaults(run_without_site=_init)
    now = commands.add_parser("status", help="what runs, what waits for you, what is left of the budget")
    now.set_defaults(run=_status)
    log = commands.add_parser("audit-log", help="check and print the log of decisions and of everything that left the house")
    log.add_argument("--last", type=whole(0), default=50, help="so many lines (default 50; 0: all)")
    log.set_defaults(run=_audit_log)
    bundle = commands.add_parser("support-bundle", help="a file for those who help: versions, settings, failures; no names")
    bundle.add_argument("out", type=Path, help="a new file, NAME.zip")
    bundle.set_defaults(run=_support_bundle)
    away = commands.add_parser("withdraw", help="a patient withdraws: out of every later round, and removed from the house")
    away.add_argument("patient", nargs="?", default="-", help="the hospital's number, or the pseudonym; default: it asks")
    away.add_argument("--who", help="who asks for it (default: the user's name)")
    away.set_defaults(run=_withdraw)
    switches = (
        ("pause", "decline whatever is asked, until resume; images still come in"),
        ("resume", "work again"),
        ("stop-now", "end everything at once and let nothing out, until resume; the coordinator isn't asked"),
    )
    for name, what in switches:
        switch = commands.add_parser(name, help=what)
        switch.add_argument("--who", help="who decides (default: the user's name)")
        switch.add_argument("--why", default="", help="a sentence for the log")
        switch.set_defaults(run=_switch)


def _init(options: argparse.Namespace) -> int:
    from fl_client.founding import QUESTIONS, Founding, asked, found

    given = {key: getattr(options, key) for key, _, _ in QUESTIONS if getattr(options, key) is not None}
    places = {key: getattr(options, key) for key in ("folder", "identity") if getattr(options, key) is not None}
    if sys.stdin.isatty() and not {"name", "declared_size"} <= given.keys():
        return found(options.site, asked({**given, **places}))
    if missing := [f"--{key.replace('_', '-')}" for key in ("name", "declared_size") if key not in given]:
        raise ValueError(f"{' and '.join(missing)}: say it, or start this at a terminal, where it asks")
    alone = [f"--{key.replace('_', '-')}" for key in ("ae_title", "listen") if key in given and "peer" not in given]
    if alone:
        raise ValueError(f"{' and '.join(alone)}: that is for an archive which sends images here; name it with --peer")
    return found(options.site, Founding(**given, **places))


def _status(site: Site, options: argparse.Namespace) -> int:
    from fl_client.standing import standing, told  # here: the ledger's accounting takes a second to import

    now = standing(site)
    for line in told(now):
        print(line)
    return 1 if now.wrong or now.crashing or now.line else 0


def _audit_log(site: Site, options: argparse.Namespace) -> int:
    from fl_client.standing import audit_lines

    lines = audit_lines(site.folder / "audit.jsonl", last=options.last)
    for line in lines:
        print(line)
    print(f"{len(lines)} lines shown, the chain is unbroken" if lines else "nothing has happened yet")
    return 0


def _support_bundle(site: Site, options: argparse.Namespace) -> int:
    from fl_client.support_bundle import support_bundle

    print(f"wrote {support_bundle(site, options.out)}; read it before you give it away, it is plain text in a zip file")
    return 0


def _withdraw(site: Site, options: argparse.Namespace) -> int:
    from fl_client.withdrawal import tell, withdraw  # here: image readers take seconds to import

    patient = confided(options.patient, "the patient's number or pseudonym")
    for line in tell(withdraw(site, patient, who=options.who), site):
        print(line)
    return 0


def _switch(site: Site, options: argparse.Namespace) -> int:
    from fl_client.audit import AuditLog
    from fl_client.ending import end_now

    audit = AuditLog(site.folder / "audit.jsonl")
    name = {"pause": "paused", "resume": "resumed", "stop-now": "stopped"}[options.command]
    if name == "paused":
        halt.halt(site.folder, "paused", who=options.who, why=options.why)
        print(f"{site.name} declines whatever is asked, until: konsil-site resume")
    elif name == "stopped":
        halt.halt(site.folder, "stopped", who=options.who, why=options.why)  # before anything that could fail
        print(f"{site.name} is stopped: nothing runs or leaves, until: konsil-site resume")
        for failed in end_now(site):
            print(failed, file=sys.stderr)
    else:  # the line first: nobody goes on working without anybody having said so
        audit.append(name, who=options.who, why=options.why)
        print(f"{site.name} works again; konsil-site start" if halt.resume(site.folder) else f"{site.name} wasn't halted")
        return 0
    audit.append(name, who=options.who, why=options.why)
    return 0
