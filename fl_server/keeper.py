"""Takes up studies that were interrupted: whoever has started one need not stay beside it for weeks.

A study runs in a process of its own, and that process, the SuperLink or the machine may end at any instant. What a person
wants of the study stands in `run.json`; where it has got to, in its checkpoint. The coordinator looks every few seconds, and
starts anew, from the checkpoint, what should run and doesn't. A study that ends again and again without getting further is left
to a person.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from conf.study import Study
from fl_server.control import Control, Refused, control
from fl_server.house import House
from fl_server.live import Now
from fl_server.record import moment
from fl_server.runs import Standing, folders, record_of

STUDY = "study.json"
"""The study's own text, in its folder from the start on."""

LOOK_S = 3.0
"""Seconds between two looks."""

GIVE_UP = 6
"""So many starts without one more round are enough."""

log = logging.getLogger("konsil.keeper")


def begin(
    house: House, talk: Control, study: Study, *, resume: bool = False, interruptions: int = 0, rounds_then: int = 0
) -> int:
    """Start a study, or start it again from its checkpoint; returns the number of Flower's run.

    Written down first: a coordinator that dies in between starts it when it is back. Raises `Refused`.
    """
    folder = house.runs / study.name
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{STUDY}.part"
    part.write_text(study.to_json())
    part.replace(folder / STUDY)
    standing = Standing(study_hash=study.hash, started=moment(), interruptions=interruptions, rounds_then=rounds_then)
    standing.write(folder)
    run = talk.start(study, enrol_timeout_s=house.enrol_timeout_s, resume=resume)
    standing.model_copy(update={"run": run}).write(folder)
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
            standing = Standing.read(folder)
            if standing is None or standing.wanted != "running":
                continue
            with control(house) as talk:
                if sentence := _look_at(house, talk, folder, standing):
                    told.append(sentence)
        except Refused as error:
            log.warning("study %s is not taken up now: %s", folder.name, error)
        except (OSError, ValueError) as error:
            told.append(f"study {folder.name} can't be looked after: {error}")
    for sentence in told:
        log.warning("%s", sentence)
    return told


def _look_at(house: House, talk: Control, folder: Path, standing: Standing) -> str:
    record = record_of(folder)
    if record is not None and record.finished:
        standing.model_copy(update={"wanted": "ended"}).write(folder)
        return ""
    if standing.run is not None:
        status, _ = talk.run_status(standing.run)
        if status != "finished":
            now = Now.read(folder)
            if now is None or now.run != standing.run or now.alive:
                return ""
            talk.stop(standing.run)  # its process is gone, which Flower would notice a minute later
    rounds = len(record.rounds) if record is not None else 0
    tries = 0 if rounds > standing.rounds_then else standing.interruptions
    if tries >= GIVE_UP:
        why = f"it ended {tries} times without one more round; look at its log, then konsil-study resume {folder.name}"
        standing.model_copy(update={"wanted": "stopped", "why": why}).write(folder)
        return f"study {folder.name} is left alone: {why}"
    if datetime.now(UTC) < _when(standing.started) + timedelta(seconds=2.0**tries):
        return ""
    run = begin(house, talk, study_in(folder), resume=True, interruptions=tries + 1, rounds_then=rounds)
    return f"study {folder.name} was interrupted after round {rounds} and goes on as run {run}"


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.fromtimestamp(0, UTC)
