"""Ending the hospital's processes at once, without waiting for what they do: nothing of the house is hurt by a kill."""

from __future__ import annotations

import psutil

from fl_client.daemon import running
from fl_client.site import Site


def end_now(site: Site) -> list[str]:
    """Kill every process of this hospital and its children; what could not be killed, in words.

    What runs under another user's account ends by itself when it looks at the switch, before anything more leaves.
    """
    failed = []
    for role, pid in running(site).items():
        try:
            daemon = psutil.Process(pid)
            for process in (daemon, *daemon.children(recursive=True)):  # the daemon first: it would start the others again
                process.kill()
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            failed.append(f"the {role} (process {pid}) belongs to another user: it lets nothing out and ends by itself")
    return failed
