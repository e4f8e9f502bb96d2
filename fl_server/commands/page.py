"""The coordinator's page: `konsil-study page, page-token`."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fl_server.commands import Commands

if TYPE_CHECKING:
    import uvicorn

    from fl_server.page.guard import Door


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    shown = commands.add_parser("page", parents=[house], help="the studies in a browser, until told to stop")
    shown.set_defaults(run=page)
    shown.add_argument("--runs", type=Path, default=None, help="a folder of rehearsals, or one of them, instead")
    shown.add_argument("--port", type=int, default=None, help="to listen on; 0: any that is free (default: page.port, 8790)")
    shown.add_argument(
        "--with", dest="parent", type=int, default=None, help=argparse.SUPPRESS
    )  # ends with the process that began it
    again = commands.add_parser("page-token", parents=[house], help="a new token for the page; who is logged in is out")
    again.set_defaults(run=page_token)


def page(options: argparse.Namespace) -> int:
    """Show the studies until somebody says stop."""
    import uvicorn  # here: the other commands serve nobody

    from fl_server.page.app import page_app
    from fl_server.page.serving import configured

    door, listening = opened(options.folder, options.runs, options.port)
    server = uvicorn.Server(configured(page_app(door)))
    if options.parent is not None:
        threading.Thread(target=_end_with, args=(server, options.parent), daemon=True).start()
    with listening:
        server.run(sockets=[listening])
    return 0


def _end_with(server: uvicorn.Server, parent: int) -> None:
    """A server that is killed can't end its page; then the page has another parent."""
    while os.getppid() == parent:
        time.sleep(1.0)
    server.should_exit = True


def opened(folder: Path, rehearsals: Path | None, port: int | None) -> tuple[Door, socket.socket]:
    """The page's door and its port, told on the screen. Raises `OSError` and `ValueError` in words."""
    from fl_server.house import House, Page
    from fl_server.page.guard import Door, ensure_token, is_loopback, token, token_path

    if rehearsals is not None:
        if not rehearsals.is_dir():
            raise ValueError(f"{rehearsals} is no folder")
        made = secrets.token_urlsafe(32)
        settings, name, runs, registry = Page(), rehearsals.resolve().name, rehearsals.resolve(), None
        where = "The token was shown where the page was started."
        read, told = lambda: made, f"log in with the token {made}"
    else:
        house = House.load(folder)
        path = token_path(house.folder)
        ensure_token(path)
        settings, name, runs, registry = house.page or Page(), house.hosts[0], house.runs, house.folder / "registry"
        where = f"The token stands in the file {path.name} of the coordinator's folder; whoever runs konsil here can read it."
        read, told = lambda: token(path), f"log in with the token in {path}"
    listening = listen(settings.host, settings.port if port is None else port)
    door = Door(
        name=name,
        runs=runs,
        token=read,
        where=where,
        host=settings.host,
        port=listening.getsockname()[1],
        names=settings.names,
        registry=registry,
    )
    host = f"[{door.host}]" if ":" in door.host else door.host
    print(f"the studies in {runs}: http://{host}:{door.port}/", flush=True)
    print(told, flush=True)
    if not is_loopback(door.host):
        warning = "can be reached from other machines without TLS: put a proxy with TLS in front of it, or set 127.0.0.1"
        print(f"WARNING: page.host {door.host} {warning}", file=sys.stderr)
    return door, listening


def listen(host: str, port: int) -> socket.socket:
    """The page's own port. Raises `OSError` in words if it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(f"the page can't listen on {host} port {port}: {getattr(error, 'strerror', '') or error}") from None


def page_token(options: argparse.Namespace) -> int:
    """Make a new token."""
    from fl_server.house import House
    from fl_server.page.guard import new_token, token_path

    path = token_path(House.load(options.folder).folder)
    print(f"{new_token(path)}  to log in; in {path}")
    return 0
