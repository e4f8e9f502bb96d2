"""The page beside a coordinator's server, where `coordinator.yaml` asks for it: a process of its own.

A page that can't start or that ends costs nobody a study, so nothing waits for it and nothing ends with it; what it says is
in `log/page.log`. It ends with the server, also with one that is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

from fl_server.house import House

STOP_S = 5.0

log = logging.getLogger("konsil.serve")


@contextlib.contextmanager
def page_beside(house: House) -> Iterator[None]:
    """Run `konsil-study page` meanwhile, if the coordinator's settings have a section `page`."""
    if house.page is None:
        yield
        return
    page = _begin(house)
    try:
        yield
    finally:
        if page is not None:
            page.terminate()
            try:
                page.wait(STOP_S)
            except subprocess.TimeoutExpired:
                page.kill()
                page.wait()


def _begin(house: House) -> subprocess.Popen[bytes] | None:
    command = [sys.executable, "-m", "fl_server", "page", "--folder", str(house.folder), "--with", str(os.getpid())]
    try:
        folder = house.folder / "log"
        folder.mkdir(mode=0o700, exist_ok=True)
        with open(folder / "page.log", "wb") as said:  # of this start alone: it can't grow without end
            return subprocess.Popen(
                command,
                cwd=house.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the server alone, which ends this
            )
    except OSError as error:
        log.warning("the page does not run: %s", error)
        return None
