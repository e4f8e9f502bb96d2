"""Takes up studies that were interrupted: whoever has started one need not stay beside it for weeks.

A study runs in a process of its own, and that process, the SuperLink or the machine may end at any instant. What a person
wants of the study stands in `run.json`; where it has got to, in its checkpoint. The coordinator looks every few seconds, and
starts anew, from the checkpoint, what should run and doesn't. A study that ends again and again without getting further is left
to a person.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

from conf.study import Study
from fl_server.control import Control, Refused, control
from fl_server.house import House
from fl_server.live import Now
from fl_server.record import moment
from fl_server.run_lock import RunFolderInUse, in_use
from fl_server.runs import STUDY, Standing, folders, in_hand, record_of

LOOK_S = 3.0
"""Seconds between two looks."""

GIVE_UP = 6
"""So many starts without one more round are enough."""

WAITED_S = 60.0
"""Who has waited for hospitals so long did not fall over at once."""

log = logging.getLogger("konsil.keeper")


def begin(
    house: House,
    talk: Control,
    study: Study,
    *,
    resume: bool = False,
    interruptions: int = 0,
    rounds_then: int = 0,
    wait_for: int = 0,
    quorum_timeout_s: float | None = None,
) -> int:
    """Start a study, or start it again from its checkpoint; returns the number of Flower's run.

    Written down first: a coordinator that dies in between starts it when it is back. Whoever calls has the study in hand
    (`runs.in_hand`). For how many hospitals it waits, and how long, is remembered for later starts. Raises `Refused`; a study
    that was to begin then is not wanted any more, since somebody was told.
    """
    folder = house.runs / study.name
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{STUDY}.part"
    part.write_text(study.to_json())
    part.replace(folder / STUDY)
    before = Standing.read(folder) if resume else None
    standing = Standing(study_hash=study.hash, started=moment(), wait_for=wait_for, quorum_timeout_s=quorum_timeout_s)
    if before is not None:
        standing = before.model_copy(update={"wanted": "running", "why": "", "stopped": "", "started": moment(), "run": None})
    standing.write(folder)
    try:
        patience_s = house.quorum_timeout_s if standing.quorum_timeout_s is None else standing.quorum_timeout_s
        run = talk.start(
            study,
            enrol_timeout_s=house.enrol_timeout_s,
            quorum_timeout_s=patience_s,
            wait_for=standing.wait_for,
            resume=resume,
        )
    except Refused as error:
        if not resume:
            standing.model_copy(update={"wanted": "stopped", "why": str(error), "stopped": moment()}).write(folder)
        raise
    counted = {"run": run, "interruptions": interruptions, "rounds_then": rounds_then}
    standing.model_copy(update=counted).write(folder)
    return run


def study_in(folder: Path) -> Study:
    """The study that a folder is of. Raises `ValueError` in words if none stands there."""
    path = folder / STUDY
    if not path.exists():
        raise ValueError(f"{folder} does not hold the text of its study ({STUDY}); it was started by other means")
    return Study.from_json(path.read_text())


def look(house: House) -> list[str]:
    """Take up every study that should run and doesn't; a sentence about each that was found so."""
    told = []
    for folder in folders(house.runs):
        try:
            with in_hand(house.runs, folder.name, patience_s=0.0):
                standing = Standing.read(folder)
                if standing is None or standing.wanted != "running":
                    continue
                with control(house) as talk:
                    sentence = _look_at(house, talk, folder, standing)
            if sentence:
                told.append(sentence)
        except RunFolderInUse:
            continue  # somebody starts or stops it at this moment
        except Refused as error:
            log.warning("study %s is not taken up now: %s", folder.name, error)
        except Exception as error:  # one study that can't be read keeps nobody from the others
            told.append(f"study {folder.name} can't be looked after: {type(error).__name__}: {error}")
    for sentence in told:
        log.warning("%s", sentence)
    return told


def _look_at(house: House, talk: Control, folder: Path, standing: Standing) -> str:
    record = record_of(folder)
    if record is not None and record.finished and record.study_hash == standing.study_hash:
        standing.model_copy(update={"wanted": "ended"}).write(folder)
        return ""
    if in_use(folder):  # its process is there, whatever Flower says
        return ""
    if standing.run is not None and talk.run_status(standing.run)[0] != "finished":
        now = Now.read(folder)
        if now is None or now.run != standing.run:  # it has not begun yet
            return ""
        talk.stop(standing.run)  # its process is gone, which Flower would notice a minute later
    rounds = len(record.rounds) if record is not None else 0
    tries = 0 if rounds > standing.rounds_then or _was_waiting(folder, standing) else standing.interruptions
    if tries >= GIVE_UP:
        why = f"it ended {tries} times without one more round; look at its log, then konsil-study resume {folder.name}"
        standing.model_copy(update={"wanted": "stopped", "why": why, "stopped": moment()}).write(folder)
        return f"study {folder.name} is left alone: {why}"
    waited = (datetime.now(UTC) - _when(standing.started)).total_seconds()
    if 0 <= waited < 2.0**tries:  # a clock that was set back holds nothing up
        return ""
    run = begin(house, talk, study_in(folder), resume=True, interruptions=tries + 1, rounds_then=rounds)
    return f"study {folder.name} was interrupted after round {rounds} and goes on as run {run}"


def _was_waiting(folder: Path, standing: Standing) -> bool:
    """Whether the latest start ended while it waited for people, who take days: machines are restarted meanwhile."""
    now = Now.read(folder)
    if now is None or now.run != standing.run or now.phase != "enrolling":
        return False
    return now.updated - _when(standing.started).timestamp() >= WAITED_S


def _when(text: str) -> datetime:
    found = datetime.fromisoformat(text) if text else datetime.fromtimestamp(0, UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
