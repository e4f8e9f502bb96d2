"""The part of `konsil-site check` that looks at ports: the DICOM door, the page, and the archive's own door.

A port that is free is as wrong while its part runs as one that is taken while it does not. Doors are looked at with the code
that opens them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from fl_client.daemon import RUNS, elsewhere, running, started
from fl_client.finding import Finding
from fl_client.sharing import is_trainers
from fl_client.site import DicomDoor, Site

STARTING_S = 45.0
"""What a part gets from its start until its port has to be open: image readers take seconds to import."""


def dicom(site: Site, settings: Path) -> Iterator[Finding]:
    """The port for images: as the intake would open it, and free, or ours."""
    from fl_client.intake.listening import Listening, out_of_reach

    door = site.dicom
    if door is None:
        return
    try:
        Listening.of(
            door.model_copy(update={"tls": None}) if is_trainers(site.folder, settings) else door
        )  # its key is the intake's
    except ValueError as error:
        yield Finding("mend", "dicom", f"{error}; the intake does not start with it")
        return
    where = f"{door.host}:{door.port}"
    if not door.peers:
        yield Finding("warn", "dicom", "dicom.peers is empty: nobody may send images")
    if far := out_of_reach(door):
        text = f"only this machine can reach {where}, and not {', '.join(far)} of dicom.peers"
        yield Finding("warn", "dicom", f"{text}; dicom.host has to be this machine's address in their network")
    if trouble := _shut(door):
        if door.tls is not None and is_trainers(site.folder, settings):
            yield Finding("ok", "dicom", f"{where} is taken, as it is while the intake runs; the intake's user can ask it")
        elif "intake" in {*running(site), *elsewhere(site)}:
            from fl_client.intake.echo import echo

            answer = echo(door)
            yield Finding("ok" if answer.startswith("ours") else "mend", "dicom", f"{where}: {answer}")
        else:
            text = f"{where} can't be opened ({trouble}): another program listens there, or the address is not this machine's"
            yield Finding("mend", "dicom", f"{text}; change dicom.host or dicom.port, or end that program")
    elif _runs(site, "intake"):
        yield _not_open(site, "intake", "dicom", where)
    else:
        yield Finding("ok", "dicom", f"{where} is free for {door.ae_title}")


def page(site: Site, settings: Path) -> Iterator[Finding]:
    """The page's own port: free, or ours."""
    from fl_client.commands.page import listen

    if site.page is None:
        return
    where = f"{site.page.host}:{site.page.port}"
    try:
        listen(site.page).close()
    except OSError as error:
        if _runs(site, "page"):
            yield Finding("ok", "page", f"{where} is taken, and the page runs")
        else:
            text = f"{error}; if that is not this hospital's page, change page.host or page.port, or end that program"
            yield Finding("mend", "page", text)
        return
    if _runs(site, "page"):
        yield _not_open(site, "page", "page", where)
    else:
        yield Finding("ok", "page", f"{where} is free for the page")


def archive(site: Site, settings: Path) -> Iterator[Finding]:
    """The archive's DICOMweb door: whether it answers to us."""
    web = site.dicomweb
    if web is None or is_trainers(site.folder, settings):  # it is the intake's business
        return
    from fl_client.intake.pull import knock

    try:
        knock(web)
        yield Finding("ok", "dicomweb", f"{web.url} answers, and lets us in")
    except (OSError, ValueError) as error:
        yield Finding("mend", "dicomweb", str(error))


def _shut(door: DicomDoor) -> str:
    """Why the port can't be had, in the system's words; empty if it can."""
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the intake does
        try:
            probe.bind((door.host, door.port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _runs(site: Site, role: str) -> bool:
    """Whether a role is known to run, here or as another user."""
    return role in running(site) or elsewhere(site).get(role) == RUNS


def _not_open(site: Site, role: str, what: str, where: str) -> Finding:
    """A role runs, and nobody listens at its port."""
    seconds, log = started(site, role)
    if seconds < STARTING_S:
        return Finding("warn", what, f"the {role} was started {seconds:.0f} s ago and does not listen on {where} yet")
    if role in running(site):
        return Finding("mend", what, f"the {role} runs, but nobody listens on {where}; its log says why: {log}")
    text = f"the {role} runs as another user or in another container, and nobody listens on {where} here"
    return Finding("warn", what, f"{text}: right for a container with a network of its own; else its log says why: {log}")
