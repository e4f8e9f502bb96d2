"""The hospital's own switch: a file that stops all work here, without asking the coordinator.

    <site>/halt.json    {"state": "paused" | "stopped", "who": ..., "when": ..., "why": ...}

It is looked at before a message is answered and once more before the answer leaves. A file that can't be read counts as
"stopped": whoever damaged it may have meant to write it.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fl_client.sharing import file_mode

State = Literal["paused", "stopped"]
FILE = "halt.json"


def halted(folder: Path) -> str:
    """`""` if the hospital works, `"paused"` if it declines for the time being, `"stopped"` if nothing may run or leave."""
    try:
        state = json.loads((folder / FILE).read_text())["state"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "stopped"
    return "paused" if state == "paused" else "stopped"


def halt(folder: Path, state: State, *, who: str, why: str = "") -> None:
    """Write the switch to the disk; when this returns, nothing new is answered. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"state": state, "who": who, "why": why, "when": datetime.now(UTC).isoformat(timespec="seconds")})
    part = folder / f"{FILE}.{os.getpid()}.part"
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, file_mode(folder))
    with open(file, "w") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(file)
    part.replace(folder / FILE)


def resume(folder: Path) -> bool:
    """Take the switch away; whether there was one."""
    there = (folder / FILE).exists()
    (folder / FILE).unlink(missing_ok=True)
    return there
