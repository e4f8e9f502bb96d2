"""Who at the hospital may read what the house writes: its owner, or also the house's group.

The intake, which sees identities, and the trainer, which never does, can be two users. Then the house's folder has the bit
"set group ID" (`chmod 2770`), everything made in it belongs to its group, and what both need is made for the group as well.
Without that bit everything is for its owner alone. The identity zone is always for its owner alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_shared(folder: Path) -> bool:
    """Whether what is made in this folder is for its group, too."""
    return folder.exists() and bool(folder.stat().st_mode & stat.S_ISGID)


def is_trainers(folder: Path, settings: Path) -> bool:
    """Whether this is the trainer's user in a house for two: the intake's own settings, and what is only its own is closed."""
    return is_shared(folder) and settings.stat().st_uid not in (0, os.geteuid())


def file_mode(folder: Path) -> int:
    """Permissions for a new file in this folder: 0600, or 0660 where its group shares it."""
    return 0o660 if is_shared(folder) else 0o600


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, with mode 0700, or 0770 where the group of the folder above shares it."""
    if path.exists():
        return
    make_folder(path.parent)
    path.mkdir(mode=0o770 if is_shared(path.parent) else 0o700, exist_ok=True)


@contextmanager
def kept_to(folder: Path) -> Iterator[None]:
    """While this lasts, what the process makes without naming a mode is closed to others, and to the group unless it shares.

    A person's shell often has umask 022: what they made in a shared house would then be closed to the other role.
    """
    before = os.umask(0o007 if is_shared(folder) else 0o077)
    try:
        yield
    finally:
        os.umask(before)


def replaceable(*paths: Path) -> list[str]:
    """What another user could put in the place of these files or folders, as sentences that say what to do; empty if nothing.

    Whoever may write in a folder may rename what is in it, whatever its own mode says, unless the folder has the sticky bit.
    Looked at are each path and every folder above it; trusted are root and the user who runs this.
    """
    trusted, found = (0, os.geteuid()), {}
    for path in paths:
        inside = path.absolute()
        for place in (inside, *inside.parents):
            if place in found or not place.exists():
                continue
            info = place.stat()
            holds = place != inside  # a folder, in which `path` or a folder of it lies
            if info.st_uid not in trusted:
                found[place] = f"{place} belongs to another user (uid {info.st_uid}), who could exchange {path}; do: chown it"
            elif info.st_mode & 0o022 and not (holds and info.st_mode & stat.S_ISVTX):
                mode = stat.S_IMODE(info.st_mode)
                found[place] = (
                    f"{place} has mode {mode:04o}, so others could exchange {path}; do: chmod go-w {place}, and let the "
                    "setting folder name another folder for what the group shares"
                )
    return list(found.values())
