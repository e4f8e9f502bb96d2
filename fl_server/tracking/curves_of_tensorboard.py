"""A record as TensorBoard's event files, in the folder `tensorboard` of the study: the same curves as in MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

from conf.study import Frozen
from fl_server.record import Record
from fl_server.tracking import facts

FOLDER = "tensorboard"


class _Noted(Frozen):
    key: str
    published: facts.Published


def publish(record: Record, folder: Path) -> Path:
    """Write down what is new; the folder. Points of a round that were written before a crash are written over."""
    from torch.utils.tensorboard import SummaryWriter

    place = folder / FOLDER
    note = place / "published.json"
    before = facts.Published()
    if note.exists():
        noted = _Noted.model_validate_json(note.read_text())
        if noted.key == facts.key(record):
            before = noted.published
        else:  # another study's, or an earlier course of this one
            shutil.rmtree(place)
    new = list(facts.points(record, before))
    if new:
        # events from this step on, of an earlier process, don't count
        purge = before.rounds + 1 if record.rounds and len(record.rounds) > before.rounds else None
        with SummaryWriter(str(place), purge_step=purge) as writer:
            for point in new:
                writer.add_scalar(point.name, point.value, point.step, walltime=point.at_ms / 1000)
    place.mkdir(exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(_Noted(key=facts.key(record), published=facts.published(record)).model_dump_json())
    part.replace(note)
    return place
