"""Flower's SuperExec, which starts a study's process, with the study's token in a file instead of in the command.

What stands in a command is shown by the machine to all its users. Flower's commands take `--token-file` as well; its own
SuperExec uses that only on Kubernetes. `konsil-study serve` starts this in a folder that is closed to others.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KEPT_S = 600.0
"""A study's process reads its token when it starts; files older than this are removed when the next one does."""


def confiding(popen: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`popen` for commands with `--token TOKEN`: the token goes into a file of `folder` (0600). Raises `OSError`."""

    def start(command: Sequence[str], **given: Any) -> Any:
        words = list(command)
        if "--token" in words:
            at = words.index("--token")
            for old in folder.glob("*.token"):
                if time.time() - old.stat().st_mtime > KEPT_S:
                    old.unlink(missing_ok=True)
            path = folder / f"{time.time_ns()}.token"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(file, "w") as out:
                out.write(words[at + 1])
            words[at : at + 2] = ["--token-file", str(path)]
        return popen(words, **given)

    return start


def main() -> None:
    """`flower-superexec` with its own arguments, from the folder of the coordinator's house."""
    from flwr.supercore.cli.flower_superexec import flower_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    folder = Path.cwd() / "tokens"
    folder.mkdir(mode=0o700, exist_ok=True)
    own = SimpleNamespace(Popen=confiding(subprocess.Popen, folder), DEVNULL=subprocess.DEVNULL)
    subprocess_executor.subprocess = own  # type: ignore[assignment,attr-defined]
    flower_superexec()


if __name__ == "__main__":
    main()
