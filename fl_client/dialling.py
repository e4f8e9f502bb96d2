"""Before a hospital's SuperNode dials: what would keep it out, in words that say what to do.

Flower's own process ends with "SSL/TLS handshake error detected" or, for a key that is not registered, as if it had been told
to. So ours looks first, as `konsil-site check` does, and tells the log and `konsil-site status`.

    <folder>/run/supernode/coordinator.json    what was wrong with the line to the coordinator when it was last looked at
    <folder>/run/supernode/heard               empty; its time is when the coordinator last answered
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from fl_client.finding import Finding
from fl_client.loopback import write_private
from fl_client.site import Site

REFUSED = 4
"""Exit status of a SuperNode that did not dial, because it would not be let in."""

SHUT = ("tls", "key")
"""What has to be right before dialling makes sense: who the coordinator is, and that it knows our key."""

LASTING = ("versions", "name")
"""What remains wrong although the coordinator lets us in: its studies will be declined here."""

FILE = "coordinator.json"
HEARD = "heard"

SILENT_S = 600.0
"""A coordinator that nothing was heard of for so long is told to a person; a restart or an upgrade takes less."""


def may_dial(site: Site, settings: Path, folder: Path) -> bool:
    """Look at the line to the coordinator, tell what is wrong with it, and whether it makes sense to dial.

    A coordinator that does not answer is dialled: the SuperNode waits for it. `folder` is where `told` finds what was wrong.
    """
    from fl_client.reach import coordinator

    wrong = [finding for finding in coordinator(site, settings) if finding.level == "mend"]
    for finding in wrong:
        print(f"konsil-site: the line to the coordinator, {finding.what}: {finding.text}", flush=True)
    note(folder, wrong)
    return not any(finding.what in SHUT for finding in wrong)


def connected(folder: Path) -> None:
    """The coordinator has let us in: what is noted of the line is over, but for what lasts."""
    found = [Finding("mend", line["what"], line["text"]) for line in _read(folder) if line["what"] in LASTING]
    note(folder, found)


def heard(folder: Path) -> None:
    """The coordinator has answered just now."""
    with contextlib.suppress(OSError):  # a full disk shows elsewhere
        (folder / HEARD).touch(mode=0o640)


def silence(folder: Path) -> list[str]:
    """That nothing was heard of the coordinator for long, as a sentence, of a SuperNode that runs and waits for messages."""
    try:
        since = (folder / HEARD).stat().st_mtime
    except OSError:
        return []
    silent = time.time() - since
    when = datetime.fromtimestamp(since, UTC).isoformat(timespec="minutes")[:16]
    words = f"nothing was heard of the coordinator since {when} UTC, {silent / 60:.0f} minutes; look with konsil-site check"
    return [words] if silent > SILENT_S else []


def note(folder: Path, wrong: Iterable[Finding]) -> None:
    """Put down what is wrong in place of what was. Raises `OSError`."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [{"when": when, "what": finding.what, "text": finding.text} for finding in wrong]
    if lines:
        write_private(folder / FILE, json.dumps(lines).encode())
    else:
        (folder / FILE).unlink(missing_ok=True)


def told(folder: Path) -> list[str]:
    """What was wrong with the line when it was last looked at, as sentences; none, if nothing was or nobody has looked."""
    return [f"the line to the coordinator, {line['what']} ({line['when'][:16]} UTC): {line['text']}" for line in _read(folder)]


def _read(folder: Path) -> list[dict[str, str]]:
    try:
        found = json.loads((folder / FILE).read_text())
        return [{key: str(line[key]) for key in ("when", "what", "text")} for line in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []
