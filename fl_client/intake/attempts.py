"""How often an original could not be worked off, so that one that can't be is put aside in the end and not tried for ever.

    <identity>/incoming/failed.json     original: how often, since when, by which kind of error

Most failures are the house's and not the file's: a disk that is full or away, a database that somebody locks. Those don't
count, or one bad night would put every study aside. A failure counts only if its error is not of that kind and if, right after
it, the house can write where it has to.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from fl_client.intake.quarantine import sync_folder, write_whole

MOST_TRIES = 5
"""After so many failures that are a file's own it is put aside; with five minutes between two, after twenty minutes."""

FAILED = "failed.json"
OF_THE_HOUSE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN)
)


class Attempts:
    """The list in the folder of originals; `probe` raises `OSError` if the house can't write where it has to."""

    def __init__(self, incoming: Path, probe: Callable[[], None]) -> None:
        self._place, self._probe = incoming / FAILED, probe
        self._failed = failures(incoming)

    def failed(self, original: str, error: OSError) -> int:
        """Note that an original failed; gives how often by its own fault. A list that can't be written is no error."""
        before = self._failed.get(original, {"times": 0, "since": time.time()})
        times = int(before["times"]) + self._is_its_own(error)
        self._failed[original] = {"times": times, "since": before["since"], "error": type(error).__name__}
        self._write()
        return times

    def forget(self, original: str) -> None:
        """It is worked off, or put aside."""
        if self._failed.pop(original, None) is not None:
            self._write()

    def _is_its_own(self, error: OSError) -> bool:
        if error.errno in OF_THE_HOUSE:
            return False
        try:
            self._probe()
        except OSError:
            return False
        return True

    def _write(self) -> None:
        text = json.dumps(self._failed).encode()
        with contextlib.suppress(OSError):  # the next failure writes it
            write_whole(self._place.with_name(f".{uuid4().hex}.part"), self._place, [text])


def failures(incoming: Path) -> dict[str, dict[str, Any]]:
    """By original: `times`, `since` (seconds since 1970), `error`. Raises `PermissionError` for who may not see."""
    try:
        found = json.loads((incoming / FAILED).read_text())
    except PermissionError:
        raise
    except (OSError, ValueError):  # none, or damaged: counting begins anew
        return {}
    kinds = {"times": int, "since": float | int, "error": str}
    whole = found.items() if isinstance(found, dict) else ()
    return {
        str(name): line
        for name, line in whole
        if isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in kinds.items())
    }


def can_write(folder: Path, part: Path) -> None:
    """Write a byte below `folder` to the disk and take it away. `part` is a name that is swept up. Raises `OSError`."""
    try:
        with open(part, "xb") as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    finally:
        part.unlink(missing_ok=True)
    sync_folder(folder)
