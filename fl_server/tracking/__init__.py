"""Studies in MLflow and TensorBoard, for whoever compares many of them there.

A process of its own reads the record after every round and writes down what is new in it. The study waits for nothing that
happens there: a tracking server that is slow, full or gone costs lines in `tracking.log` and nothing else. Nothing is reported
to anybody else: MLflow's own telemetry is switched off.

What is written is what the record holds: settings, hospitals' names, their answers and epsilon, scores; and the final model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import Field, field_validator

from conf.study import Frozen, Study

LOCAL = "local"
SETTINGS = "KONSIL_TRACKING"
"""Environment variable with the settings as JSON, for a study that runs in a process of Flower's."""

LOG = "tracking.log"
FAILURES = 3
"""After so many processes that ended in trouble no other is started."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # MLflow looks for the git commit of a script, and complains where there is no git
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; by default 120, seven times
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
}
"""What the process is told by its environment."""

log = logging.getLogger("konsil.tracking")


class Tracking(Frozen):
    """Where studies are written down besides their folder."""

    mlflow: Annotated[str, Field(max_length=500)] | None = LOCAL  # local: mlflow.db beside the studies; or a server's URI
    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "konsil"  # of MLflow, which compares runs in one
    tensorboard: bool = False  # files in the study's folder, for `tensorboard --logdir`

    @field_validator("mlflow")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        if value is not None and value != LOCAL and "://" not in value:
            raise ValueError(f"{value!r} is neither `{LOCAL}` nor a URI such as https://mlflow.example.org; null: no tracking")
        return value

    def missing(self) -> list[str]:
        """In words, what is wanted and can't be had because a package is not installed."""
        lacking = []
        if self.mlflow is not None and importlib.util.find_spec("mlflow") is None:
            lacking.append("MLflow is not installed; pip install 'konsil[tracking]' brings it")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            lacking.append("TensorBoard is not installed; pip install tensorboard brings it")
        return lacking

    def possible(self) -> Tracking:
        """These settings without what is not installed."""
        return self.model_copy(
            update={
                "mlflow": self.mlflow if importlib.util.find_spec("mlflow") is not None else None,
                "tensorboard": self.tensorboard and importlib.util.find_spec("tensorboard") is not None,
            }
        )


class Tracker:
    """Writes down one study, as its record grows. Use it in a `with` block, or `close` it.

    `folder` is the study's, with its record.json; `store` the folder that gets `mlflow.db` and `mlruns/` (by default the one
    that the study's folder is in, so that studies beside each other can be compared).

    >>> with Tracker(study, folder, Tracking()) as tracker:
    ...     run(grid, study, start, folder=folder, observer=tracker.after_round)
    """

    def __init__(self, study: Study, folder: Path, settings: Tracking, *, store: Path | None = None) -> None:
        self.folder = folder.resolve()
        self._store = (store or self.folder.parent).resolve()
        self._settings = settings.possible()
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        for lacking in settings.missing():
            log.info("study %s is not tracked: %s", study.name, lacking)

    @classmethod
    def from_environment(cls, study: Study, folder: Path) -> Tracker:
        """With the settings that the coordinator has given this process; with none it tracks nothing."""
        text = os.environ.get(SETTINGS, "")
        try:
            settings = Tracking.model_validate_json(text) if text else Tracking(mlflow=None)
        except ValueError as error:
            log.warning("%s can't be read, so nothing is tracked: %s", SETTINGS, error)
            settings = Tracking(mlflow=None)
        return cls(study, folder, settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def update(self, record: Any = None) -> None:
        """Say that there is a newer record. Returns at once, and never raises."""
        if not self._wanted:
            return
        try:
            process = self._there()
            if process is not None and process.stdin is not None:
                os.write(process.stdin.fileno(), b"\n")
        except BlockingIOError:
            pass  # it has enough to do, and looks at the latest record when it is done
        except OSError as error:
            log.warning("the study goes on, but is not tracked: %s", error)

    def after_round(self, entry: Any, model: Any) -> None:
        """`update`, as `fl_server.rounds.run` calls its observer."""
        self.update()

    def close(self, *, wait_s: float = 0.0) -> None:
        """Let it write down the last record, and wait at most so long for it; it ends by itself."""
        if self._process is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process = self._there()
            if process is not None and process.stdin is not None:
                process.stdin.close()
            if process is not None and wait_s:
                process.wait(wait_s)
        self._process = None

    @property
    def _wanted(self) -> bool:
        return self._settings.mlflow is not None or self._settings.tensorboard

    def _there(self) -> subprocess.Popen[bytes] | None:
        """The process, or a new one if it has ended; None after too many that failed."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return self._process
            self._failures += code != 0
        if self._failures > FAILURES:
            return None
        self._process = start(self.folder, self._settings, self._store)
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
        threading.Thread(target=self._process.wait, daemon=True).start()  # nobody else asks how it ended
        return self._process


def start(folder: Path, settings: Tracking, store: Path) -> subprocess.Popen[bytes]:
    """The process that writes down the study in `folder` at every line on its standard input, and once more at its end."""
    with open(folder / LOG, "ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), "--store", str(store), "--settings", settings.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **QUIET},
            start_new_session=True,  # Ctrl-C is for the study; the process ends when nobody is left to tell it anything
        )
